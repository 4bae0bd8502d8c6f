"""The arguments and options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _environments(incomplete: str) -> list[str]:
    from condastore.cli import completion

    return completion.environments(incomplete)


def _builds(incomplete: str) -> list[str]:
    from condastore.cli import completion

    return completion.builds(incomplete)


def complete_namespace(incomplete: str) -> list[str]:
    """Complete the name of a namespace."""
    from condastore.cli import completion

    return completion.namespaces(incomplete)


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, and nothing else, to stdout.", show_default=False),
]
Environment = Annotated[
    str,
    typer.Argument(
        metavar="ENV",
        help="NAMESPACE/ENV; NAMESPACE may be left out for your own.",
        autocompletion=_environments,
        show_default=False,
    ),
]
BuildOf = Annotated[
    str,
    typer.Argument(
        metavar="ENV[:BUILD]",
        help="NAMESPACE/ENV, with :NUMBER, :TAG or :current for one of its builds.",
        autocompletion=_builds,
        show_default=False,
    ),
]
File = Annotated[
    Path,
    typer.Option(
        "--file",
        "-f",
        help="environment.yml, conda-lock.yml or an explicit list; - for stdin.",
        show_default=False,
    ),
]
OptionalFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="environment.yml, conda-lock.yml or an explicit list; - for stdin.",
        show_default=False,
    ),
]
Platform = Annotated[
    str | None, typer.Option("--platform", help="For example linux-64.", show_default=False)
]
Limit = Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 for all.")]
ForceSolve = Annotated[
    bool, typer.Option("--force-solve", help="Solve anew, though the answer is stored already.")
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.", show_default=False)
]
