"""Commands that run a server: `up`, `worker`, `scheduler`, `backup`, `restore`, `manage`.

They need the distribution `condastore-server`; without it each of them names what to install.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from condastore.cli import render
from condastore.cli.errors import CommandError, Fault, Status
from condastore.cli.options import AsJson

INSTALL = "pip install condastore-server"


def add_to(root: typer.Typer) -> None:
    for command in (up, worker, scheduler, backup, restore):
        root.command()(command)
    root.command(
        context_settings={
            "allow_interspersed_args": False,
            "ignore_unknown_options": True,
            "help_option_names": [],
        },
    )(manage)


@contextmanager
def _server_parts() -> Iterator[None]:
    """Report a missing server, missing dependencies and invalid settings as errors of a command."""
    if importlib.util.find_spec("condastore.settings") is None:
        raise _not_installed("condastore-server")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    try:
        _import_without_rich()
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in {"condastore", "environments", "accounts"}:
            raise
        raise _not_installed(name) from error
    except Exception as error:
        # Django's, by its name: Django itself may not be there to import it from.
        if type(error).__name__ != "ImproperlyConfigured":
            found = importlib.import_module("condastore.startup_errors").explain(error)
            if found is None:
                raise
            raise found from error
        raise CommandError(
            str(error), status=Status.INVALID, code="invalid-input", where="settings"
        ) from error


def _not_installed(package: str) -> CommandError:
    return CommandError(
        f"The server is not installed in this Python environment: {package} is missing.",
        status=Status.USAGE,
        code="not-installed",
        hint=INSTALL,
    )


def _import_without_rich() -> None:
    """Import structlog and httpx before anything else does: they are slow to import with rich."""
    optional_packages = importlib.import_module("environments.domain.optional_packages")
    optional_packages.import_without_rich("structlog", "httpx")


def up(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; 0 for a free one.", show_default="8470"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Worker processes.", show_default="1")
    ] = None,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser when ready.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run everything on this machine: database, queue, workers, scheduler and web server."""
    if sys.stderr.isatty() and not as_json:
        # A person reads what `up` itself says; warnings and errors of its parts still appear.
        os.environ.setdefault("CONDASTORE_LOG_LEVEL", "WARNING")
    with _server_parts():
        importlib.import_module("condastore.supervisor.supervise").up(
            host=host, port=port, workers=workers, open_browser=open_browser, as_json=as_json
        )


def worker(
    queues: Annotated[
        str, typer.Option(help="Queues to work on, separated by commas.")
    ] = "builds,solves,artifacts,upkeep",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Messages processed at the same time.",
            show_default="CONDASTORE_WORKER_THREADS",
        ),
    ] = None,
) -> None:
    """Run a worker, which runs queued solves, builds and exports."""
    names = [name.strip() for name in queues.split(",") if name.strip()]
    with _server_parts():
        importlib.import_module("condastore.worker").run(queues=names, threads=threads)


def scheduler() -> None:
    """Run the scheduler: requeue lost builds and clean up. Of several, one is active."""
    with _server_parts():
        importlib.import_module("condastore.scheduler").run()


def backup(
    folder: Annotated[
        Path, typer.Argument(metavar="DEST", help="Folder of the backup, on another disk.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Only read an existing backup, and compare digests.")
    ] = False,
    blobs: Annotated[
        bool,
        typer.Option(
            "--blobs/--no-blobs",
            help="Also copy blobs of an object store; those of a data folder are always copied.",
        ),
    ] = False,
    hard_links: Annotated[
        bool,
        typer.Option(
            "--hard-links",
            help="Hard-link blobs instead of copying them; DEST must be on the same disk.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Back up this installation while it runs: database, secrets and stored packages.

    The folder holds the secrets of the installation: keep it closed. The same folder again copies
    only what is new; so does a second run after one that was stopped.
    """
    os.umask(0o077)
    with _server_parts():
        importlib.import_module("django").setup()
        create = importlib.import_module("condastore.backups.create")
        if not verify:
            made = create.back_up(folder, blobs=blobs, link=hard_links, report=_say(as_json))
            render.answer(
                {"snapshot": made.snapshot, "blobs": made.blobs, "absent": list(made.absent)},
                as_json,
                lambda: render.say(f"The backup in {folder} is complete."),
            )
            return
        faults = create.verify(folder, report=_say(as_json))
    if faults:
        raise CommandError(
            f"The backup is damaged: {len(faults)} files.",
            status=Status.INVALID,
            code="damaged",
            where=str(folder),
            hint="Back up again into this folder after you removed the damaged files.",
            faults=[Fault(message=message) for message in faults],
        )
    render.answer(
        {"whole": True}, as_json, lambda: render.say("All files of the backup are unchanged.")
    )


def restore(
    folder: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the backup.")],
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Restore over an existing installation, which is moved aside."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore an installation from a backup into an empty data folder and database.

    Then run `condastore up`: it links the folders of all environments again by itself.
    """
    os.umask(0o077)
    with _server_parts():
        importlib.import_module("django").setup()
        restoring = importlib.import_module("condastore.backups.restore")
        done = restoring.restore(folder, replace=replace, report=_say(as_json))
    render.answer(
        {"snapshot": done.snapshot, "created_at": done.created_at},
        as_json,
        lambda: render.say(
            f"The installation of {done.created_at} is restored. Start it with `condastore up`, "
            "which links the folders of all environments again."
        ),
    )


def _say(as_json: bool) -> Callable[[str], None]:
    """Progress goes to stderr, where the answer is JSON."""
    return render.warn if as_json else render.say


def manage(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="COMMAND...")] = None,
) -> None:
    """Run one of Django's management commands."""
    os.umask(0o077)
    with _server_parts():
        with contextlib.suppress(CommandError):  # the checks of each command say what stays open
            starting = importlib.import_module("condastore.supervisor.startup")
            starting.prepare_folder(importlib.import_module("django.conf").settings.DATA)
        management = importlib.import_module("django.core.management")
        management.execute_from_command_line(["condastore manage", *(arguments or ["help"])])
    sys.stdout.flush()
