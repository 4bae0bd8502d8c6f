"""Changes of builds, for those who follow them: subscriptions and live pages share one poll."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from django.db.models import BooleanField, ExpressionWrapper, Q
from django.utils import timezone

from environments.models import Build
from environments.operations.change_polls import Poll

#: After a build is finished its worker may still write the last lines of the log.
LAST_LINES = timedelta(seconds=2)
ARCHIVED = ExpressionWrapper(Q(log_archive__isnull=False), output_field=BooleanField())


def is_settled(archived: bool, finished_at: datetime | None) -> bool:
    """Return whether the worker has written all of the log that it ever will."""
    return archived or (finished_at is not None and timezone.now() - finished_at > LAST_LINES)


def states_of(builds: Collection[int]) -> Mapping[int, object]:
    """Return what a reader sees of each of these builds: a change of it is an update."""
    rows = Build.objects.filter(pk__in=builds).values_list(
        "pk", "state", "attempt", "progress", "log_lines", ARCHIVED, "finished_at"
    )
    return {pk: (*shown, is_settled(archived, end)) for pk, *shown, archived, end in rows}


BUILD_CHANGES = Poll[int](states_of, topics=("build", "buildlog"))
