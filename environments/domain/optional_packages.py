"""Import libraries without their optional dependencies, to start processes faster.

httpx imports rich, pygments and click for a command line of its own, structlog imports rich for
tracebacks in colour, strawberry_django imports psycopg for types of arrays: together a fifth of a
second of processor time in each process that starts, and 20 MiB of its memory.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_packages(*names: str) -> Iterator[None]:
    """Make imports of modules fail in the context, as if they were not installed.

    For the first imports of a process only: other threads are affected, too.

    Args:
        names: full names of modules; a module that was imported before stays importable.
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # the documented way to prevent one
    try:
        yield
    finally:
        for name in hidden:
            if name in sys.modules and sys.modules[name] is None:
                del sys.modules[name]


def import_without_rich(*libraries: str) -> None:
    """Import libraries that would import rich; libraries that are not installed are skipped."""
    with without_packages("rich", "pygments", "click"):
        for library in libraries:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(library)
