"""`condastore run`: a command in an environment that lies on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from condastore.cli import config, queries, render
from condastore.cli.client import Api, UnreachableError, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import ask_build, not_found, reference
from condastore.cli.options import AsJson, BuildOf
from condastore.cli.references import CURRENT, Reference

#: What conda writes for a variable that the environment takes away.
UNSET = "***unset***"
#: Minimum interval between two reports of a use to the server.
USE_REPORT_INTERVAL = timedelta(hours=1)
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells say it


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A linked build on this machine, under a path that never changes what it holds."""

    folder: Path
    name: str  # NAMESPACE/ENV:NUMBER
    used_at: str = ""  # when the server last heard of a use


def add_to(root: typer.Typer) -> None:
    # What follows the environment is the command's own, options too.
    settings = {"allow_interspersed_args": False, "ignore_unknown_options": True}
    root.command(context_settings=settings)(run)


def run(
    environment: BuildOf,
    command: Annotated[
        list[str],
        typer.Argument(metavar="[--] COMMAND...", help="What to run.", show_default=False),
    ],
) -> None:
    """Run a command in an environment of this machine.

    The build is chosen once: a switch meanwhile does not disturb what runs. Ends with the
    command's own status. Also the first line of a script:
    `#!/usr/bin/env -S condastore run team/env python`.
    """
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise CommandError(
            "There is no command to run.",
            status=Status.USAGE,
            code="invalid-input",
            hint=f"Write it after the environment: `condastore run {environment} -- python`.",
        )
    api = connect()
    try:
        prefix = from_server(api, reference(api, environment))
        report_use(api, prefix)
    except UnreachableError as unreachable:
        found = from_folder(environment, unreachable)
        render.warn(f"note: {api.server.url} cannot be reached; {found.name} is used as it is here")
        prefix = found
    execute(prefix, command)


def path(environment: BuildOf, as_json: AsJson = False) -> None:
    """Print the folder of one build on this machine: it stays that build when the pointer moves.

    For programs started without `condastore run`: `"$(condastore env path ENV)"/bin/python`.
    """
    api = connect()
    try:
        prefix = from_server(api, reference(api, environment))
    except UnreachableError as unreachable:
        prefix = from_folder(environment, unreachable)
    found = {"build": prefix.name, "path": str(prefix.folder)}
    render.answer(found, as_json, lambda: render.say(str(prefix.folder)))


def from_server(api: Api, ref: Reference) -> Prefix:
    """The build that the server says; CommandError where it is not on this machine."""
    build = ask_build(api, queries.PREFIX, ref)
    path = build["prefixPath"]
    if build.get("recalled"):
        raise CommandError(
            f"{build['ref']} was recalled: {build['recalled']}",
            status=Status.REFUSED,
            code="recalled",
            hint="Build the environment again: another version of the package is chosen.",
        )
    if missing := build.get("missingFolder"):
        raise _missing_folder(build["ref"], missing)
    if not path:
        hint = f"Link it again: `condastore env restore {build['ref']}`."
        if build["state"] in ("FAILED", "CANCELLED"):
            hint = f"See why: `condastore env log {build['ref']}`."
        elif build["state"] != "ARCHIVED":
            hint = f"Follow it: `condastore env wait {build['ref']}`."
        raise not_found(f"{build['ref']} is {build['state']}: it has no folder.", hint=hint)
    environment = build["environment"]
    folder = Path(path)
    if not _is_prefix(folder):
        namespace = environment["namespace"]["name"]
        kept = _numbered(_kept_prefixes(), namespace, environment["name"], str(build["number"]))
        if kept is None:
            raise not_found(
                f"{build['ref']} is not on this machine: there is no folder {folder}.",
                hint=(
                    f"Keep it here with `condastore sync`, and set {config.ENVS_VARIABLE}; or make "
                    f"it from its lock: `condastore env export {build['ref']} --format "
                    "explicit.txt`, then `conda create --prefix FOLDER --file ...-explicit.txt`."
                ),
            )
        folder = kept
    return Prefix(
        folder=folder, name=build["ref"], used_at=str(environment.get("lastUsedAt") or "")
    )


def _missing_folder(ref: str, missing: Mapping[str, Any]) -> CommandError:
    """The error for a READY build whose folder is missing on the server."""
    failure = missing.get("failure") or {}
    if missing["state"] != "FAILED":
        return CommandError(
            f"{ref} is being restored: its folder is missing on the server, and is linked again.",
            status=Status.NOT_FOUND,
            code="folder-missing",
            hint=f"Try again in a while. See how far it is: `condastore env show {ref}`.",
        )
    return CommandError(
        f"The folder of {ref} is missing on the server, and cannot be linked again: "
        f"{failure.get('message') or 'its last attempt failed.'}",
        status=Status.NOT_FOUND,
        code="folder-missing",
        hint=" ".join(
            text
            for text in (
                failure.get("hint"),
                f"Then try again at once: `condastore env restore {ref}`.",
            )
            if text
        ),
    )


def _is_prefix(folder: Path) -> bool:
    """CommandError where the folder is there for other accounts of this machine only."""
    try:
        return (folder / "conda-meta").is_dir()
    except PermissionError as error:
        raise CommandError(
            "The folder of this environment is not for your account on this machine.",
            status=Status.REFUSED,
            code="access-denied",
            where=str(folder),
            hint="Ask an administrator to name your Unix group for its namespace "
            "(CONDASTORE_NAMESPACE_GROUPS).",
        ) from error


def _kept_prefixes() -> Path | None:
    """Where `condastore sync` puts the builds of this machine."""
    kept = config.kept_folder()
    return kept / ".condastore" / "prefixes" if kept is not None else None


def _numbered(prefixes: Path | None, namespace: str, name: str, number: str) -> Path | None:
    """A build's folder: `<prefixes>/<namespace>/<number>-<12 digits>-<environment>`."""
    if prefixes is None:
        return None
    found = (prefixes / namespace).glob(f"{number}-*-{name}")  # a name may hold dashes
    return next((one for one in found if one.name.split("-", 2)[2] == name), None)


def report_use(api: Api, prefix: Prefix) -> None:
    """Tell the server that somebody uses the environment, now and then.

    In a process of its own that nobody waits for: the command starts no later, and knows nothing
    of whether it worked.
    """
    if not api.server.token or _recent(prefix.used_at) or os.fork():
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the reader of the command's output does not wait either
        os.dup2(nowhere, descriptor)
    if os.fork():
        os._exit(0)
    os.setsid()
    with contextlib.suppress(BaseException):
        api.note_use(prefix.name)
    os._exit(0)


def _recent(moment: str) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(moment) < USE_REPORT_INTERVAL
    except ValueError:
        return False


def from_folder(text: str, unreachable: UnreachableError) -> Prefix:
    """Without the server: what the data folder of this machine says by itself."""
    kept, data = config.kept_folder(), config.data_folder()
    if kept is None and data is None:
        raise unreachable

    def own_namespace() -> str:
        stored = config.current().username
        if not stored:
            raise unreachable
        return stored.lower()

    from condastore.cli.references import parse_reference

    ref = parse_reference(text, own_namespace=own_namespace)
    links = [folder for folder in (kept, data and data / "envs") if folder is not None]
    prefixes = [_kept_prefixes(), data and data / "prefixes"]
    if ref.build in {"", CURRENT}:
        found = [(one / ref.namespace / ref.environment).resolve() for one in links]
    elif ref.build.isdigit():
        numbered = (_numbered(one, ref.namespace, ref.environment, ref.build) for one in prefixes)
        found = [one for one in numbered if one is not None]
    else:
        raise unreachable
    folder = next((one for one in found if _is_prefix(one)), None)
    if folder is None:
        raise unreachable
    number = folder.name.partition("-")[0]
    name = f"{ref.namespace}/{ref.environment}"
    return Prefix(folder=folder, name=f"{name}:{number}" if number.isdigit() else name)


def variables(prefix: Prefix, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` as it is inside the environment: conda's own variables, then the packages', then
    those of the specification."""
    inside = dict(environ)
    # They would send a Python of the environment to another one's modules.
    for name in ("PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
        inside.pop(name, None)
    inside["PATH"] = f"{prefix.folder / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"
    inside["CONDA_PREFIX"] = str(prefix.folder)
    inside["CONDA_DEFAULT_ENV"] = prefix.name.partition(":")[0]
    inside["CONDA_SHLVL"] = "1"
    inside["CONDASTORE_BUILD"] = prefix.name
    files = sorted((prefix.folder / "etc" / "conda" / "env_vars.d").glob("*.json"))
    given = [_object(file) for file in files]
    if isinstance(own := _object(prefix.folder / "conda-meta" / "state").get("env_vars"), dict):
        given.append(own)
    for settings in given:
        for name, value in settings.items():
            if value == UNSET:
                inside.pop(name, None)
            else:
                inside[name] = str(value)
    return inside


def _object(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CommandError(
            f"A file of the environment cannot be read: {error}.",
            status=Status.INVALID,
            code="invalid-input",
            where=str(file),
        ) from error
    return content if isinstance(content, dict) else {}


def execute(prefix: Prefix, command: list[str]) -> NoReturn:
    """Become the command. Activation scripts of the packages run first, where there are any."""
    inside = variables(prefix, os.environ)
    if shutil.which(command[0], path=inside["PATH"]) is None:
        render.warn(f"error: there is no command {command[0]!r} in {prefix.name}")
        sys.exit(NOT_FOUND)
    scripts = sorted((prefix.folder / "etc" / "conda" / "activate.d").glob("*.sh"))
    sys.stdout.flush()
    sys.stderr.flush()
    if scripts:
        shell = shutil.which("bash") or "/bin/sh"
        lines = 'n=$1; shift; while [ "$n" -gt 0 ]; do . "$1"; shift; n=$((n-1)); done; exec "$@"'
        command = [
            shell, "-c", lines, "condastore", str(len(scripts)), *map(str, scripts), *command
        ]  # fmt: skip
    try:
        os.execvpe(command[0], command, inside)  # noqa: S606 - no shell is what we want
    except OSError as error:
        render.warn(f"error: {command[0]} cannot be run: {error.strerror}")
        sys.exit(NOT_EXECUTABLE)
