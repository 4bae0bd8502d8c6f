"""Claim rows with a lease, also if the database connection is lost in the middle of a claim.

A commit whose answer is lost may have been done. The row would then belong to this worker without
its knowledge, wait for its lease to expire, and count as a lost worker.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Protocol, TypeVar

from django.conf import settings

from condastore.outages import DATABASE_ERRORS, is_outage, persist
from environments.services.engine_context import get_engine

#: One claim of this process at a time, so that the token after the one read here belongs to this
#: claim or to another owner.
_claiming = threading.Lock()


L = TypeVar("L", covariant=True)


class Leased(Protocol[L]):
    """A row that one worker at a time works on."""

    lease_token: int

    def refresh_from_db(self, *, fields: list[str]) -> None: ...

    def claim(self, owner: str, *, life: timedelta) -> L | None: ...

    def lease_held_by(self, owner: str, *, token: int) -> L | None: ...


def claim(row: Leased[L]) -> L | None:
    """Start the next attempt for this worker; None if it is not due or another worker has it.

    Raises:
        OperationalError, InterfaceError: the database is unreachable and the row was not claimed.
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
