"""Progress and cancellation of long work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from condastore.errors import LeaseLostError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`done` of `total` packages or files; `current` is the name of the current one."""

    stage: str  # "fetching", "linking", "compiling", ...
    done: int = 0
    total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    current: str = ""


Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]


def ignore(progress: Progress) -> None:
    """Progress that is not reported."""


def never() -> bool:
    """Work that cannot be cancelled."""
    return False


def obey(cancelled: Cancelled) -> None:
    """Raise LeaseLostError if the work must stop."""
    if cancelled():
        raise LeaseLostError("This build was cancelled, or another worker has it now.")
