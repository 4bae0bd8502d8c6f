"""Environments of all namespaces, and their builds: state, verdicts in words, log, history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from environments.admin.base import (
    BESIDE,
    Panel,
    Question,
    Room,
    badge,
    link,
    list_url,
    moment,
    size,
)
from environments.admin.changelist import day_filter, text_filter
from environments.domain.lifecycle import CANCELLABLE, FINISHED, BuildState
from environments.domain.policy import Verdict
from environments.models import (
    Build,
    Environment,
    LockedConda,
    LockedPypi,
    LockRow,
    Preview,
)
from environments.operations import builds, environments

LOG_LINES = 200
#: Large columns of a build that is only named.
LARGE = ("source", "log_archive", "verdicts")


def _delete_environment(actor: Actor, row: Environment, answers: Mapping[str, Any]) -> None:
    environments.delete_environment(actor=actor, environment=row)


def _unpin(actor: Actor, row: Environment, answers: Mapping[str, Any]) -> None:
    builds.unpin(actor=actor, environment=row)


@admin.register(Environment)
class EnvironmentRoom(Room):
    list_display = ("name", "place", "current_build", "state", "own_size", "all_size", "changed")
    list_filter = (text_filter("namespace", "namespace", "namespace__name", lower=True), "pinned")
    search_fields = ("name", "namespace__name")
    ordering = ("namespace__name", "name")
    deferred = tuple(f"current__{name}" for name in LARGE)
    facts = (
        "place",
        "name",
        "description",
        "current_build",
        "pinned",
        "own_size",
        "all_size",
        "created_at",
        "created_by",
        "updated_at",
    )
    questions = (
        Question(
            name="unpin",
            title="Unpin",
            text="The newest READY build becomes current, and later ones will.",
            do=_unpin,
            fits=lambda row: row.pinned,
        ),
        Question(
            name="remove",
            title="Delete",
            text="Its builds are cancelled or archived and its folder goes. The history stays.",
            do=_delete_environment,
            removes=True,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).filter(deleted_at=None)
        return rows.select_related("namespace", "created_by", "current__prefix")

    @admin.display(description="namespace", ordering="namespace__name")
    def place(self, environment: Environment) -> object:
        return link(environment.namespace)

    @admin.display(description="current build")
    def current_build(self, environment: Environment) -> object:
        build = environment.current
        return link(build, f"build {build.number}") if build else "none yet"

    @admin.display
    def state(self, environment: Environment) -> object:
        return badge(environment.current.state) if environment.current else ""

    @admin.display(description="bytes of its own")
    def own_size(self, environment: Environment) -> str:
        prefix = environment.current.prefix if environment.current else None
        return size(prefix.unique_size) if prefix else ""

    @admin.display(description="with what it shares")
    def all_size(self, environment: Environment) -> str:
        prefix = environment.current.prefix if environment.current else None
        return size(prefix.apparent_size) if prefix else ""

    @admin.display(description="last change")
    def changed(self, environment: Environment) -> object:
        return moment(environment.updated_at)

    def panels(self, actor: Actor, row: Environment) -> Sequence[Panel]:
        made = row.builds.select_related("requested_by").defer(*LARGE).order_by("-number")
        panels = [
            Panel(
                title="Builds, the newest first",
                headers=("Build", "State", "Asked for by", "Made", "What went wrong"),
                rows=[
                    (
                        link(build, f"build {build.number}"),
                        badge(build.state),
                        build.requested_by or "",
                        moment(build.created_at),
                        (build.failure or {}).get("message", ""),
                    )
                    for build in made[:BESIDE]
                ],
                more=list_url(Build, environment=row.name, namespace=row.namespace.name),
            )
        ]
        if row.current is not None:
            panels += packages_of(row.current.lock_id)
        return [*panels, self._users(row)]

    def _users(self, environment: Environment) -> Panel:
        shares: Any = environment
        people = shares.user_shares.select_related("user").order_by("user__username")[:BESIDE]
        groups = shares.group_shares.select_related("group").order_by("group__name")[:BESIDE]
        place = environment.namespace
        return Panel(
            title="Who may use it",
            headers=("Who", "By"),
            rows=[
                *([("everybody", "its namespace is public")] if place.public else []),
                (link(place, f"whoever holds a role in {place}"), "its namespace"),
                *((link(one.user), "it is shared with them") for one in people),
                *((f"group {one.group}", "it is shared with them") for one in groups),
            ],
        )


def packages_of(lock: int | None) -> list[Panel]:
    conda = LockedConda.objects.filter(lock=lock or 0).select_related("package")
    pypi = LockedPypi.objects.filter(lock=lock or 0).select_related("package")
    conda = conda.defer("package__record").order_by("package__name", "platform")
    rows: list[tuple[object, ...]] = [
        (
            link(one.package, one.package.name),
            one.package.version,
            one.package.channel,
            one.package.license,
            size(one.package.size),
            one.platform,
        )
        for one in conda[:1000]
    ]
    rows += [
        (
            link(one.package, one.package.name),
            one.package.version,
            "PyPI",
            one.package.license,
            size(one.package.size),
            one.platform,
        )
        for one in pypi.order_by("package__name", "platform")[:1000]
    ]
    headers = ("Package", "Version", "Channel", "License", "Size", "Platform")
    return [Panel(title=f"Packages ({len(rows)})", headers=headers, rows=rows)]


def _cancel(actor: Actor, row: Build, answers: Mapping[str, Any]) -> None:
    builds.cancel_build(actor=actor, build=row)


def _archive(actor: Actor, row: Build, answers: Mapping[str, Any]) -> None:
    builds.archive_build(actor=actor, build=row)


def _restore(actor: Actor, row: Build, answers: Mapping[str, Any]) -> None:
    builds.restore_build(actor=actor, build=row)


def _delete(actor: Actor, row: Build, answers: Mapping[str, Any]) -> None:
    builds.delete_build(actor=actor, build=row)


def _make_current(actor: Actor, row: Build, answers: Mapping[str, Any]) -> None:
    builds.set_current_build(actor=actor, build=row, pin=True)


@admin.register(Build)
class BuildRoom(Room):
    list_display = ("where", "number", "shown_state", "attempt", "requested_by", "made", "wrong")
    list_filter = (
        "state",
        text_filter("namespace", "namespace", "environment__namespace__name", lower=True),
        text_filter("environment", "environment", "environment__name", lower=True),
        day_filter("since", "made since the day", "created_at__gte"),
    )
    search_fields = ("=environment__name", "=environment__namespace__name")
    ordering = ("-pk",)
    deferred = ("log_archive", "source", "verdicts")
    facts = (
        "environment_link",
        "number",
        "shown_state",
        "requested_by",
        "reason",
        "wrong",
        "platform",
        "attempt",
        "created_at",
        "finished_at",
        "sizes",
        "seconds",
        "lock_link",
    )
    questions = (
        Question(
            name="cancel",
            title="Cancel",
            do=_cancel,
            fits=lambda row: row.state in CANCELLABLE,
            text="What waits is cancelled at once; what runs stops within seconds.",
        ),
        Question(
            name="make-current",
            title="Make current and pin",
            do=_make_current,
            fits=lambda row: row.state == BuildState.READY,
        ),
        Question(
            name="archive",
            title="Archive",
            do=_archive,
            fits=lambda row: row.state == BuildState.READY,
            text="Drops the bytes. Specification, lock and log stay; it can be restored.",
        ),
        Question(
            name="restore",
            title="Restore",
            do=_restore,
            fits=lambda row: row.state == BuildState.ARCHIVED,
        ),
        Question(
            name="remove",
            title="Delete",
            do=_delete,
            fits=lambda row: row.state in FINISHED,
            text="Its bytes go to the trash; its number is never used again.",
            removes=True,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).filter(deleted_at=None)
        return rows.select_related("environment__namespace", "requested_by", "prefix")

    @admin.display(description="environment")
    def where(self, build: Build) -> str:
        return str(build.environment)

    @admin.display(description="environment")
    def environment_link(self, build: Build) -> object:
        return link(build.environment)

    @admin.display(description="state")
    def shown_state(self, build: Build) -> object:
        return badge(build.state)

    @admin.display(description="made")
    def made(self, build: Build) -> object:
        return moment(build.created_at)

    @admin.display(description="what went wrong")
    def wrong(self, build: Build) -> str:
        failure = build.failure or {}
        return f"{failure.get('message', '')} {failure.get('hint', '')}".strip()[:300]

    @admin.display(description="on the disk")
    def sizes(self, build: Build) -> str:
        if build.prefix is None:
            return ""
        own, shared = size(build.prefix.unique_size), size(build.prefix.apparent_size)
        return f"{own} of its own; {shared} with what it shares"

    @admin.display(description="seconds by stage")
    def seconds(self, build: Build) -> str:
        return ", ".join(f"{stage.lower()} {taken:.1f}" for stage, taken in build.timings.items())

    @admin.display(description="lock")
    def lock_link(self, build: Build) -> object:
        return link(build.lock) if build.lock_id else ""

    def panels(self, actor: Actor, row: Build) -> Sequence[Panel]:
        verdicts = [Verdict.from_json(one) for one in row.verdicts]
        waiting: Any = row
        requests = waiting.requests.select_related("namespace").order_by("-pk")
        lines = row.log_lines or (row.origin.log_lines if row.origin else 0)
        log = row.log_from(max(0, lines - LOG_LINES), limit=LOG_LINES)
        return (
            Panel(
                title="What rules said of it",
                headers=("Rule", "Effect", "Of", "In words"),
                rows=[(v.rule, v.effect.value, v.subject, v.sentence) for v in verdicts],
            ),
            Panel(
                title="Decisions that it waited for",
                headers=("Package", "State", "Rule"),
                rows=[(link(one), badge(one.state), one.rule) for one in requests[:BESIDE]],
            ),
            Panel(
                title="History",
                headers=("When", "State", ""),
                rows=[
                    (f"{event.at:%F %T}", badge(event.state), event.message)
                    for event in row.events.all()[:200]
                ],
            ),
            Panel(title="Specification", headers=(), rows=(), text=row.source),
            Panel(
                title=f"Log, its last {LOG_LINES} lines" if lines > LOG_LINES else "Log",
                headers=(),
                rows=(),
                text="\n".join(log),
            ),
        )


@admin.register(LockRow)
class LockRoom(Room):
    title = "Locks"
    list_display = ("digest", "package_count", "bytes", "created_at")
    search_fields = ("digest__startswith",)
    ordering = ("-pk",)
    facts = ("digest", "channels", "platforms", "package_count", "bytes", "created_at")

    @admin.display(description="to download")
    def bytes(self, lock: LockRow) -> str:
        return size(lock.size)

    def panels(self, actor: Actor, row: LockRow) -> Sequence[Panel]:
        made = row.builds.select_related("environment__namespace").defer(*LARGE).order_by("-pk")
        return (
            Panel(
                title="Builds of it",
                headers=("Build", "State"),
                rows=[(link(build), badge(build.state)) for build in made[:BESIDE]],
            ),
            *packages_of(row.pk),
        )


@admin.register(Preview)
class PreviewRoom(Room):
    list_display = ("id", "namespace", "state", "requested_by", "created_at")
    list_select_related = ("namespace", "requested_by")
    list_filter = ("state",)
    ordering = ("-pk",)
    facts = ("id", "namespace", "state", "requested_by", "created_at", "failure")
