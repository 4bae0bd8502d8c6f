"""The `condastore` command: its groups, and its exit status. Runs without the server."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from condastore import __version__, terminal
from condastore.cli import config, render
from condastore.cli.errors import CommandError, Status
from condastore.cli.lazy import Lazy, LazyGroup

INTERRUPTED = 130  # as shells say that Ctrl-C ended a command


class Commands(LazyGroup):
    """All commands, in the order in which they are listed."""

    lazy = {
        "login": Lazy("tokens", "Sign in to a server; later commands go to it."),
        "logout": Lazy("tokens", "Forget the sign-in; the token that `login` made is revoked."),
        "whoami": Lazy("tokens", "Show who you are on the server, and your roles."),
        "run": Lazy("run", "Run a command in an environment of this machine."),
        "search": Lazy(
            "packages", "Search the packages of all channels that are known to the server."
        ),
        "contains": Lazy("packages", "Show which environments contain a package."),
        "verify": Lazy(
            "verifying",
            "Check the signature of a build's provenance, and files against it. Works offline.",
        ),
        "collect": Lazy("retention", "Delete unreferenced blobs and packages; runs on the server."),
        "sync": Lazy(
            "sync",
            "Keep environments as folders on this machine: DIR/NAMESPACE/ENV is the current build.",
        ),
        "up": Lazy(
            "server",
            "Run everything on this machine: database, queue, workers, scheduler and web server.",
        ),
        "worker": Lazy("server", "Run a worker, which runs queued solves, builds and exports."),
        "backup": Lazy(
            "server",
            "Back up this installation while it runs: database, secrets and stored packages.",
        ),
        "restore": Lazy(
            "server",
            "Restore an installation from a backup into an empty data folder and database.",
        ),
        "scheduler": Lazy(
            "server",
            "Run the scheduler: requeue lost builds and clean up. Of several, one is active.",
        ),
        "manage": Lazy("server", "Run one of Django's management commands."),
        "version": Lazy("version", "Show the version of this program."),
        "token": Lazy("tokens", "API tokens, with which programs sign in."),
        "namespace": Lazy("namespaces", "Namespaces, their quotas and their members' roles."),
        "env": Lazy("environments", "Environments and their builds."),
        "approval": Lazy(
            "approvals", "Requests for packages that need approval, and decisions on them."
        ),
        "recall": Lazy(
            "recalls", "Recall packages: builds that contain one are neither built nor served."
        ),
        "credential": Lazy(
            "credentials",
            "Secrets for channels of the namespaces that you manage; they are never shown.",
        ),
        "audit": Lazy("audit", "The audit log: search, verify, export, prune."),
        "policy": Lazy("policies", "Rules for packages, and simulations of their effects."),
        "webhook": Lazy("webhooks", "Addresses that receive events."),
        "mirror": Lazy(
            "mirrors", "Remote channels, read here through the rules, now or as they were on a day."
        ),
        "channel": Lazy(
            "hosted",
            "Channels on the server itself: upload your own packages, for builds and conda's "
            "tools.",
        ),
        "image": Lazy("images", "Container images: base images and pushes to other registries."),
        "retention": Lazy("retention", "Retention of builds, and restoring deleted builds."),
        "storage": Lazy("retention", "Storage of the server's files."),
    }


app = typer.Typer(
    name="condastore",
    cls=Commands,
    help="Conda environments for teams: versioned, reproducible, and built on a server.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        render.say(f"condastore {__version__}")
        raise typer.Exit


@app.callback()
def common(
    server_url: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="URL",
            help=f"The server to talk to; also {config.URL_VARIABLE}.",
            show_default=False,
        ),
    ] = "",
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version and exit.",
            callback=_print_version,
            is_eager=True,
            show_default=False,
        ),
    ] = False,
) -> None:
    """Conda environments for teams: versioned, reproducible, and built on a server."""
    if server_url:
        os.environ[config.URL_VARIABLE] = server_url


def main() -> None:
    """Run the command of `sys.argv` and leave with its status; no traceback reaches a person."""
    terminal.guard()
    try:
        if "_CONDASTORE_COMPLETE" in os.environ:
            from condastore.cli import completion

            completion.run(lambda: app(prog_name="condastore"))
        else:
            app(prog_name="condastore")
    except CommandError as error:
        _report(error)
        status: int = error.status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone: keep the interpreter from failing when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = Status.FAILED
    except Exception as error:
        if os.environ.get("CONDASTORE_DEBUG"):
            raise
        render.warn(
            f"error: something unexpected happened: {type(error).__name__}: {error}\n"
            "  hint: set CONDASTORE_DEBUG=1 to see where, and report it"
        )
        status = Status.FAILED
    else:
        status = Status.OK
    sys.exit(status)


def _report(error: CommandError) -> None:
    if os.environ.get("CONDASTORE_DEBUG"):
        import traceback

        traceback.print_exception(error)
    own = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if "--json" in own:
        render.warn(terminal.to_json(error.document(), indent=2))
    else:
        for line in error.lines():
            render.warn(terminal.one_line(line))


if __name__ == "__main__":
    main()
