"""Correction of due times that a wall clock left in the future when it was set back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import structlog
from django.db.models import Q

from environments.models.clock_bounds import SKEW
from environments.models.leased_work import LeasedWork, RetryPolicy, in_states
from environments.operations import queueing

logger = structlog.get_logger(__name__)
#: The backoff is computed up to this attempt; later ones are treated as this one.
LAST_ATTEMPT = 20


def correct(now: datetime) -> int:
    """Make rows due that would wait longer than their retry policy allows; return how many."""
    corrected = sum(_correct(model, now) for model in queueing.KINDS)
    if corrected:
        logger.warning("the clock was set back", corrected=corrected)
    return corrected


def _correct(model: type[LeasedWork], now: datetime) -> int:
    policy = model.retry_policy()
    late = in_states((model.QUEUED_STATE,)) & _too_late(now, policy)
    if policy.rest:
        late |= in_states((model.FAILED_STATE,)) & Q(not_before__gt=now + policy.rest + SKEW)
    rows: Any = model._default_manager.filter(late)
    return int(rows.update(not_before=now, message_sent_at=None))


def _too_late(now: datetime, policy: RetryPolicy) -> Q:
    """Match rows whose `not_before` is further away than their attempt can have set it."""
    found = Q(attempt=0, not_before__gt=now + policy.interval + SKEW)
    for number in range(1, LAST_ATTEMPT + 1):
        longest = max(policy.delay(number), policy.interval) + SKEW
        attempt = {"attempt__gte" if number == LAST_ATTEMPT else "attempt": number}
        found |= Q(**attempt, not_before__gt=now + longest)
    # Stated apart, so that the index on it is used: almost no row waits at all.
    return Q(not_before__gt=now + SKEW) & found
