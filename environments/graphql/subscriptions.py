"""GraphQL subscriptions: states and log of a build, and the builds of a namespace.

A subscription holds neither a thread nor a connection while it waits. One poll per process tells
all of them what has changed (`change_polls`); whether a reader may still see it is checked again
every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import strawberry
from django.db.models import Max
from strawberry import ID, Info

from accounts.access import Actor
from accounts.authentication import CHECK_INTERVAL, renewed
from environments.domain.lifecycle import BuildState
from environments.graphql.arguments import NamespaceName
from environments.graphql.builds import BuildNode
from environments.graphql.environments import EnvironmentNode
from environments.graphql.fields import actor_in, described
from environments.graphql.nodes import find
from environments.models import Build, BuildEvent
from environments.operations.build_changes import ARCHIVED, BUILD_CHANGES, is_settled
from environments.operations.change_polls import Poll, read_in_thread
from environments.operations.namespaces import find_namespace

F = TypeVar("F", bound=Callable[..., Any])

#: Lines that one update brings at most.
LINES = 5_000
#: Rows of one database may become visible out of their order: so far back is looked again.
OVERLAP = 200


def subscription(*, description: str) -> Callable[[F], F]:
    found: Any = strawberry.subscription(description=description)
    return found  # type: ignore[no-any-return]


@strawberry.type(description="One change of a build, with new log lines.")
class BuildUpdate:
    build: BuildNode = strawberry.field(description="Build after the change.")
    new_lines: list[str] = strawberry.field(description="Log lines since the previous update.")
    next_line: int = strawberry.field(
        description="Number of the next log line; pass it as `fromLine` to continue."
    )


@strawberry.type(description="State change of a build, as sent to subscribers of a namespace.")
class EnvironmentEvent:
    environment: EnvironmentNode = strawberry.field(description="Environment of the build.")
    build: BuildNode = strawberry.field(description="Build that changed.")
    state: BuildState = strawberry.field(description="State that the build moved to.")
    at: datetime = strawberry.field(description="When the build moved.")
    message: str = strawberry.field(description="Additional information, for people.")


def _newest_events(_: Collection[None]) -> Mapping[None, object]:
    """The newest event, and how many there are of those that may still come in before it."""
    newest = BuildEvent.objects.aggregate(last=Max("pk"))["last"] or 0
    return {None: (newest, BuildEvent.objects.filter(pk__gt=newest - OVERLAP).count())}


_events = Poll[None](_newest_events, topics=("build",))


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

    @property
    def due_in(self) -> float:
        """Seconds until the right to read is to be checked again."""
        return max(0.0, self.checked + CHECK_INTERVAL - time.monotonic())


@dataclass(slots=True)
class BuildWatch(Watch):
    key: str = ""
    next_line: int = 0
    seen: object = None
    build: int = 0
    state: tuple[object, ...] = ()

    def check(self) -> None:
        if self.due():
            found = find(Build.objects.visible_to(self.actor).only("pk"), self.key, "build")
            self.build = found.pk

    def look(self) -> tuple[BuildUpdate | None, bool]:
        """Return the news, if any, and whether they are final."""
        self.check()
        build = (
            Build.objects.select_related("environment__namespace", "prefix", "lock")
            .defer("source", "log_archive", "verdicts")
            .annotate(archived=ARCHIVED)
            .get(pk=self.build)
        )
        archived: bool = build.archived  # type: ignore[attr-defined]
        settled = is_settled(archived, build.finished_at)
        self.state = (build.state, build.attempt, build.progress, build.log_lines, settled)
        state = self.state[:-1]
        first = self.seen is None
        lines: list[str] = []
        if first or build.log_lines > self.next_line:
            lines = build.log_from(self.next_line, limit=LINES)
            self.next_line += len(lines)
        last = build.finished and settled and self.next_line >= build.log_lines
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
    state: object = None

    def check(self) -> None:
        if self.due():
            self.key = find_namespace(self.actor, self.name).pk

    def look(self, told: set[int]) -> list[EnvironmentEvent]:
        self.check()
        # Before the events are read: what comes in between wakes this one again.
        self.state = _newest_events(())[None]
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


@strawberry.type(description="Live updates over WebSocket or server-sent events.")
class Subscription:
    @subscription(
        description="Updates of one build with new log lines; ends when the build has finished."
    )
    async def build_progress(
        self,
        info: Info,
        build_id: Annotated[ID, described("Id of the build.")],
        from_line: Annotated[
            int, described("Number of the first log line to send, starting at 0.")
        ] = 0,
    ) -> AsyncGenerator[BuildUpdate, None]:
        watch = BuildWatch(
            request=info.context.request, key=str(build_id), next_line=max(0, from_line)
        )
        while True:
            update, last = await read_in_thread(watch.look)
            if update is not None:
                yield update
            if last:
                return
            if update is None or len(update.new_lines) < LINES:
                while not await BUILD_CHANGES.changed(
                    watch.build, watch.state, timeout=watch.due_in
                ):
                    await read_in_thread(watch.check)

    @subscription(description="State changes of all builds in a namespace, from now on.")
    async def environment_events(
        self, info: Info, namespace: NamespaceName
    ) -> AsyncGenerator[EnvironmentEvent, None]:
        watch = NamespaceWatch(request=info.context.request, name=namespace)
        told: set[int] = set()
        while True:
            for event in await read_in_thread(watch.look, told):
                yield event
            while not await _events.changed(None, watch.state, timeout=watch.due_in):
                await read_in_thread(watch.check)
