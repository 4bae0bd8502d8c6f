"""The `condastore` command: its groups, and how errors end it. Needs none of the server's parts."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated

import typer

from condastore import __version__, terminal
from condastore.cli import (
    approvals,
    audit,
    config,
    credentials,
    environments,
    hosted,
    images,
    mirrors,
    namespaces,
    packages,
    policies,
    recalls,
    render,
    retention,
    run,
    server,
    sync,
    tokens,
    verifying,
    webhooks,
)
from condastore.cli.errors import CommandError, Status
from condastore.cli.options import AsJson

INTERRUPTED = 130  # as shells say that Ctrl-C ended a command

app = typer.Typer(
    name="condastore",
    help="Conda environments for teams: versioned, reproducible, and built on a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
) -> None:
    """Conda environments for teams: versioned, reproducible, and built on a server."""
    if server_url:
        os.environ[config.URL_VARIABLE] = server_url


def version(as_json: AsJson = False) -> None:
    """Show the version of this program."""
    found = {"version": __version__, "python": platform.python_version()}
    render.answer(found, as_json, lambda: render.say(f"condastore {__version__}"))


tokens.add_to(app)
app.add_typer(namespaces.app, name="namespace")
app.add_typer(environments.app, name="env")
app.add_typer(approvals.app, name="approval")
app.add_typer(recalls.app, name="recall")
app.add_typer(credentials.app, name="credential")
app.add_typer(audit.app, name="audit")
app.add_typer(policies.app, name="policy")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(mirrors.app, name="mirror")
app.add_typer(hosted.app, name="channel")
app.add_typer(images.app, name="image")
app.command(
    # What follows the environment is the command's own, options too.
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)(run.run)
packages.add_to(app)
verifying.add_to(app)
retention.add_to(app)
sync.add_to(app)
server.add_to(app)
app.command()(version)


def main() -> None:
    """Run the command of `sys.argv` and leave with its status; no traceback reaches a person."""
    terminal.guard()
    try:
        app(prog_name="condastore")
    except CommandError as error:
        _report(error)
        status: int = error.status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; so that the interpreter does not complain at its end:
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
