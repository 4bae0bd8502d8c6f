"""What happens, as it happens: a build's states and log, and the builds of a namespace.

Each subscription looks at the database a few times a second, by index, and holds neither a thread
nor a connection in between. Whether its reader may still see it is asked again every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

import strawberry
from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.db.models import BooleanField, ExpressionWrapper, Max, Q
from django.utils import timezone
from strawberry import ID, Info

from accounts.access import Actor
from accounts.authentication import CHECK_INTERVAL, renewed
from condastore import turns
from environments.domain.lifecycle import BuildState
from environments.graphql.pages import actor_in
from environments.graphql.types import BuildNode, EnvironmentNode, find
from environments.models import Build, BuildEvent
from environments.operations.namespaces import find_namespace

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

#: Seconds between two looks; CHECK_INTERVAL is for whether the reader may still see it.
LOOK = 0.25
#: Lines that one update brings at most.
LINES = 5_000
#: After a build is finished its worker may still write the last lines of the log.
LAST_LINES = timedelta(seconds=2)
#: Rows of one database may become visible out of their order: so far back is looked again.
OVERLAP = 200


def subscription(*, description: str) -> Callable[[F], F]:
    found: Any = strawberry.subscription(description=description)
    return found  # type: ignore[no-any-return]


@strawberry.type
class BuildUpdate:
    build: BuildNode
    new_lines: list[str]
    next_line: int = strawberry.field(description="Continue with it as `fromLine`.")


@strawberry.type
class EnvironmentEvent:
    environment: EnvironmentNode
    build: BuildNode
    state: BuildState
    at: datetime
    message: str


async def looked(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one look in a thread of the pool, which has no connection afterwards."""

    def look() -> T:
        try:
            return read(*args, **kwargs)
        finally:
            close_old_connections()

    async with turns.running(turns.Kind.WATCH):
        return await sync_to_async(look, thread_sensitive=False)()


@dataclass(slots=True)
class Watch:
    """One reader, and when its sign-in and its right to read were last checked."""

    request: Any  # the HTTP request, or the SocketRequest of a WebSocket
    checked: float = float("-inf")

    @property
    def actor(self) -> Actor:
        return actor_in(self.request)

    def due(self) -> bool:
        """Return True where the right to read is to be checked again.

        Raises:
            TokenInvalidError, SignInEndedError: the sign-in is not valid any more.
        """
        actor = self.actor
        if time.monotonic() - self.checked < CHECK_INTERVAL:
            return False
        self.request.actor = renewed(actor)
        self.checked = time.monotonic()
        return True


@dataclass(slots=True)
class BuildWatch(Watch):
    key: str = ""
    next_line: int = 0
    seen: object = None

    def look(self) -> tuple[BuildUpdate | None, bool]:
        """What is new, if anything, and whether it was the last."""
        if self.due():
            find(Build.objects.visible_to(self.actor).only("pk"), self.key, "build")
        build = (
            Build.objects.select_related("environment__namespace", "prefix", "lock")
            .defer("source", "log_archive", "verdicts")
            .annotate(
                archived=ExpressionWrapper(
                    Q(log_archive__isnull=False), output_field=BooleanField()
                )
            )
            .get(pk=self.key)
        )
        state = (build.state, build.attempt, build.progress, build.log_lines)
        first = self.seen is None
        lines: list[str] = []
        if first or build.log_lines > self.next_line:
            lines = build.log_from(self.next_line, limit=LINES)
            self.next_line += len(lines)
        told = build.archived or (  # type: ignore[attr-defined]
            build.finished_at is not None and timezone.now() - build.finished_at > LAST_LINES
        )
        last = build.finished and bool(told) and self.next_line >= build.log_lines
        if state == self.seen and not lines:
            return None, last
        self.seen = state
        shown: Any = build
        return BuildUpdate(build=shown, new_lines=lines, next_line=self.next_line), last


@dataclass(slots=True)
class NamespaceWatch(Watch):
    name: str = ""
    key: int = 0
    newest: int = -1

    def look(self, told: set[int]) -> list[EnvironmentEvent]:
        if self.due():
            self.key = find_namespace(self.actor, self.name).pk
        if self.newest < 0:
            self.newest = BuildEvent.objects.aggregate(last=Max("pk"))["last"] or 0
            told.update(self._recent().values_list("pk", flat=True))
            return []
        events = list(
            self._recent()
            .exclude(pk__in=told)
            .filter(
                build__environment__namespace=self.key,
                build__deleted_at=None,
                build__environment__deleted_at=None,
            )
            .select_related("build__environment__namespace")
            .defer("build__source", "build__log_archive", "build__verdicts")
            .order_by("pk")[:OVERLAP]
        )
        for event in events:
            told.add(event.pk)
            self.newest = max(self.newest, event.pk)
        told.difference_update({pk for pk in told if pk <= self.newest - OVERLAP})
        return [_event(event) for event in events]

    def _recent(self) -> Any:
        return BuildEvent.objects.filter(pk__gt=self.newest - OVERLAP)


def _event(event: Any) -> EnvironmentEvent:
    return EnvironmentEvent(
        environment=event.build.environment,
        build=event.build,
        state=event.state,
        at=event.at,
        message=event.message,
    )


@strawberry.type
class Subscription:
    @subscription(
        description="An update at each change, with the log from `fromLine`; ends with the build."
    )
    async def build_progress(
        self, info: Info, build_id: ID, from_line: int = 0
    ) -> AsyncGenerator[BuildUpdate, None]:
        watch = BuildWatch(
            request=info.context.request, key=str(build_id), next_line=max(0, from_line)
        )
        while True:
            update, last = await looked(watch.look)
            if update is not None:
                yield update
            if last:
                return
            if update is None or len(update.new_lines) < LINES:
                await asyncio.sleep(LOOK)

    @subscription(description="Each move of a build of the namespace, from now on.")
    async def environment_events(
        self, info: Info, namespace: str
    ) -> AsyncGenerator[EnvironmentEvent, None]:
        watch = NamespaceWatch(request=info.context.request, name=namespace)
        told: set[int] = set()
        while True:
            for event in await looked(watch.look, told):
                yield event
            await asyncio.sleep(LOOK)
