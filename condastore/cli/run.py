"""`condastore run`: a command in an environment that lies on this machine."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from condastore.cli import config, queries, render
from condastore.cli.client import Api, UnreachableError, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import ask_build, not_found, reference
from condastore.cli.options import BuildOf
from condastore.cli.references import CURRENT, Reference

#: What conda writes for a variable that the environment takes away.
UNSET = "***unset***"
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells say it


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A linked build on this machine, under a path that never changes what it holds."""

    folder: Path
    name: str  # NAMESPACE/ENV:NUMBER


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
    except UnreachableError as unreachable:
        found = from_folder(environment, unreachable)
        render.warn(f"note: {api.server.url} cannot be reached; {found.name} is used as it is here")
        prefix = found
    execute(prefix, command)


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
    if not path:
        hint = f"Link it again: `condastore env restore {build['ref']}`."
        if build["state"] != "ARCHIVED":
            hint = f"Follow it: `condastore env wait {build['ref']}`."
        raise not_found(f"{build['ref']} is {build['state']}: it has no folder.", hint=hint)
    folder = Path(path)
    if not (folder / "conda-meta").is_dir():
        raise not_found(
            f"{build['ref']} is not on this machine: there is no folder {folder}.",
            hint=(
                "Make it here from its lock: "
                f"`condastore env export {build['ref']} --format explicit.txt`, then "
                f"`conda create --prefix FOLDER --file ...-explicit.txt`."
            ),
        )
    return Prefix(folder=folder, name=build["ref"])


def from_folder(text: str, unreachable: UnreachableError) -> Prefix:
    """Without the server: what the data folder of this machine says by itself."""
    data = config.data_folder()
    if data is None:
        raise unreachable

    def own_namespace() -> str:
        stored = config.current().username
        if not stored:
            raise unreachable
        return stored.lower()

    from condastore.cli.references import parse_reference

    ref = parse_reference(text, own_namespace=own_namespace)
    if ref.build in {"", CURRENT}:
        link = data / "envs" / ref.namespace / ref.environment
        folder = link.resolve()
    elif ref.build.isdigit():
        # `prefixes/<namespace>/<number>-<lock digest, 12>-<environment>`; a name may hold dashes.
        candidates = (data / "prefixes" / ref.namespace).glob(f"{ref.build}-*-{ref.environment}")
        matching = [one for one in candidates if one.name.split("-", 2)[2] == ref.environment]
        folder = matching[0] if matching else data / "none"
    else:
        raise unreachable
    if not (folder / "conda-meta").is_dir():
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
