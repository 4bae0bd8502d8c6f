"""Bounds on stored times, so that a wall clock that was set back leaves no row waiting.

Rows store wall-clock times, because several machines share them. A clock that is set back by two
hours leaves times that are two hours away. Every such time has a longest distance that the program
itself can have written: the lease, the back-off of the attempt. What is further away is invalid.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Q

#: Clocks of machines that share a database may differ by so much.
SKEW = timedelta(seconds=5)


def expired(field: str, now: datetime, *, life: timedelta) -> Q:
    """Match times that are over, or further ahead than anybody can have set them."""
    return Q(**{f"{field}__lt": now}) | Q(**{f"{field}__gt": now + life + SKEW})


def valid(field: str, now: datetime, *, life: timedelta) -> Q:
    """Match times that are still to come, and no further ahead than `life`."""
    return Q(**{f"{field}__gt": now, f"{field}__lte": now + life + SKEW})


def older(field: str, now: datetime, *, than: timedelta) -> Q:
    """Match moments that passed longer than `than` ago, and moments that are yet to come."""
    return Q(**{f"{field}__lt": now - than}) | Q(**{f"{field}__gt": now + SKEW})
