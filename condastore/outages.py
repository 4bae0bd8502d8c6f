"""The database as an outage: what Django raises, and what is answered."""

from __future__ import annotations

from django.db import InterfaceError, OperationalError

from environments.domain.errors import UnavailableError

#: What Django raises where the database cannot be reached, has gone in mid-request, or is busy.
AWAY = (OperationalError, InterfaceError)
#: Seconds after which a client may try again: `Retry-After` of each 503.
RETRY_AFTER = 10


def unavailable(error: BaseException | None = None) -> UnavailableError:
    """The error that is answered for one of AWAY."""
    details = {"retry_after": RETRY_AFTER}
    if error is not None and "locked" in str(error):
        return UnavailableError(
            "The database is busy: more is being changed than it can write.",
            hint=f"Try again in {RETRY_AFTER} seconds.",
            details=details,
        )
    return UnavailableError(
        "The database does not answer.", hint="Try again in a while.", details=details
    )
