"""Claims of rows with a lease, also where the database goes away in the middle of one.

A commit whose answer is cut off may have been done. The row is then ours, and nobody knows: it
would wait for its lease to end, and count as a lost worker.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Protocol, TypeVar

from django.conf import settings

from condastore.outages import DATABASE_ERRORS, is_outage, persist
from environments.services.engine_context import get_engine

#: Claims of this process, one at a time: the token after the one that is read here is of this
#: claim, or of another process with another owner.
_claiming = threading.Lock()


L = TypeVar("L", covariant=True)


class Leased(Protocol[L]):
    """A row that one worker at a time works on."""

    lease_token: int

    def refresh_from_db(self, *, fields: list[str]) -> None: ...

    def claim(self, owner: str, *, life: timedelta) -> L | None: ...

    def lease_held_by(self, owner: str, *, token: int) -> L | None: ...


def claim(row: Leased[L]) -> L | None:
    """Start the next attempt for this worker; None where it is not due, or another has it.

    Raises:
        OperationalError, InterfaceError: the database was away, and the row is not ours.
    """
    owner = get_engine().owner
    with _claiming:
        row.refresh_from_db(fields=["lease_token"])
        token = row.lease_token + 1
        try:
            return row.claim(owner, life=settings.LEASE)
        except DATABASE_ERRORS as error:
            if not is_outage(error):
                raise
            lease = persist(lambda: row.lease_held_by(owner, token=token))
            if lease is None:
                raise
            return lease
