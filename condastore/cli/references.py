"""How `NAMESPACE/ENV[:BUILD]` is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from condastore.cli.errors import CommandError, Status

CURRENT = "current"
_FORM = "Write it as NAMESPACE/ENV, or NAMESPACE/ENV:BUILD, where BUILD is a number or a tag."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`build` is a number, a tag, "current", or "" where none was named."""

    namespace: str
    environment: str
    build: str = ""

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.environment}"
        return f"{name}:{self.build}" if self.build else name


def parse_reference(text: str, *, own_namespace: Callable[[], str]) -> Reference:
    """`own_namespace` is asked for where `text` names no namespace.

    Raises:
        CommandError: `text` is no reference.
    """
    name, colon, build = text.partition(":")
    namespace, slash, environment = name.rpartition("/")
    wrong = not environment or "/" in namespace or (colon and not build) or ":" in build
    if wrong or (slash and not namespace) or any(c.isspace() for c in text):
        raise CommandError(
            f"{text!r} does not name an environment.",
            status=Status.USAGE,
            code="invalid-input",
            hint=_FORM,
        )
    return Reference(namespace=namespace or own_namespace(), environment=environment, build=build)
