"""Events and progress that the node agent reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from condastore.errors import StoreError as StoreError
from environments.domain.progress import Progress as Progress

Kind = Literal[
    "linking",  # a build is new here
    "current",  # an environment's folder leads to a build now
    "removed",  # its link is gone
    "dropped",  # the files of a build are gone
    "in-use",  # they are not, as a process needs them
    "left-out",  # an environment that has no folder, and why
    "failed",  # what could not be done for one environment
    "refused",  # the server says that a namespace is not there for us
    "unreachable",  # it could not be asked; nothing was removed
    "note",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened; `subject` is an environment or a namespace."""

    kind: Kind
    subject: str
    message: str
    build: int | None = None
    hint: str = ""


class Told(Protocol):
    """Receiver of events. `progress` is called from several threads."""

    def event(self, event: Event) -> None: ...

    def progress(self, subject: str, progress: Progress) -> None: ...
