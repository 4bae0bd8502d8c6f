"""Environments, builds, locks and previews of all namespaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction
from environments.admin.display import (
    RELATED_ROWS,
    RelatedTable,
    badge,
    link,
    list_url,
    long_text,
    relative_time,
    size,
)
from environments.admin.filters import date_range, flag_filter, text_filter
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
#: Large columns that are not loaded for a build that is only named.
LARGE = ("source", "log_archive", "verdicts")


def _delete_environment(actor: Actor, row: Environment, answers: Mapping[str, Any]) -> None:
    environments.delete_environment(actor=actor, environment=row)


def _unpin(actor: Actor, row: Environment, answers: Mapping[str, Any]) -> None:
    builds.unpin(actor=actor, environment=row)


@admin.register(Environment)
class EnvironmentAdmin(ReadOnlyAdmin):
    console_group, console_position = ConsoleGroup.ENVIRONMENTS, 2
    list_display = (
        "name",
        "namespace_link",
        "current_build",
        "state",
        "own_size",
        "total_size",
        "changed",
    )
    list_filter = (
        text_filter("namespace", "namespace", "namespace__name", lower=True),
        ("pinned", flag_filter("pin", yes="Pinned", no="Not pinned")),
        date_range("updated_at", "last change"),
    )
    search_fields = ("name", "namespace__name")
    ordering = ("namespace__name", "name")
    deferred = tuple(f"current__{name}" for name in LARGE)
    fields = (
        "namespace_link",
        "name",
        "description",
        "current_build",
        "pinned",
        "own_size",
        "total_size",
        "created_at",
        "created_by",
        "updated_at",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="unpin",
            title="Unpin",
            text="The newest READY build becomes current; newer builds replace it when they are "
            "READY.",
            run=_unpin,
            applies_to=lambda row: row.pinned,
        ),
        ConfirmedAction(
            name="remove",
            title="Delete",
            text="Builds are cancelled or archived, and the folder is removed. The history stays.",
            run=_delete_environment,
            deletes=True,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).filter(deleted_at=None)
        return rows.select_related("namespace", "created_by", "current__prefix")

    @admin.display(description="namespace", ordering="namespace__name")
    def namespace_link(self, environment: Environment) -> object:
        return link(environment.namespace)

    @admin.display(description="current build")
    def current_build(self, environment: Environment) -> object:
        build = environment.current
        return link(build, f"build {build.number}") if build else "none"

    @admin.display
    def state(self, environment: Environment) -> object:
        return badge(environment.current.state) if environment.current else ""

    @admin.display(description="own size")
    def own_size(self, environment: Environment) -> str:
        prefix = environment.current.prefix if environment.current else None
        return size(prefix.unique_size) if prefix else ""

    @admin.display(description="size with shared files")
    def total_size(self, environment: Environment) -> str:
        prefix = environment.current.prefix if environment.current else None
        return size(prefix.apparent_size) if prefix else ""

    @admin.display(description="last change")
    def changed(self, environment: Environment) -> object:
        return relative_time(environment.updated_at)

    def related_tables(self, actor: Actor, row: Environment) -> Sequence[RelatedTable]:
        result = row.builds.select_related("requested_by").defer(*LARGE).order_by("-number")
        related_tables = [
            RelatedTable(
                title="Builds, newest first",
                headers=("Build", "State", "Requested by", "Created", "Failure"),
                rows=[
                    (
                        link(build, f"build {build.number}"),
                        badge(build.state),
                        build.requested_by or "",
                        relative_time(build.created_at),
                        (build.failure or {}).get("message", ""),
                    )
                    for build in result[:RELATED_ROWS]
                ],
                more=list_url(Build, environment=row.name, namespace=row.namespace.name),
            )
        ]
        if row.current is not None:
            related_tables += packages_of(row.current.lock_id)
        return [*related_tables, self._users(row)]

    def _users(self, environment: Environment) -> RelatedTable:
        shares: Any = environment
        people = shares.user_shares.select_related("user").order_by("user__username")[:RELATED_ROWS]
        groups = shares.group_shares.select_related("group").order_by("group__name")[:RELATED_ROWS]
        namespace = environment.namespace
        return RelatedTable(
            title="Access",
            headers=("Who", "Through"),
            rows=[
                *([("everyone", "the namespace is public")] if namespace.public else []),
                (link(namespace, f"members of {namespace}"), "role in the namespace"),
                *((link(one.user), "shared with the user") for one in people),
                *((f"group {one.group}", "shared with the group") for one in groups),
            ],
        )


def packages_of(lock: int | None) -> list[RelatedTable]:
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
    return [RelatedTable(title=f"Packages ({len(rows)})", headers=headers, rows=rows)]


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
class BuildAdmin(ReadOnlyAdmin):
    console_group, console_position = ConsoleGroup.ENVIRONMENTS, 3
    list_display = (
        "build_label",
        "shown_state",
        "failure_text",
        "requested_by",
        "created",
        "attempt",
    )
    export_fields = (
        "environment_name",
        "number",
        "state",
        "requested_by",
        "created_at",
        "finished_at",
        "attempt",
        "failure_message",
    )
    list_filter = (
        "state",
        text_filter("namespace", "namespace", "environment__namespace__name", lower=True),
        text_filter("environment", "environment", "environment__name", lower=True),
        date_range("created_at", "creation"),
    )
    search_fields = ("=environment__name", "=environment__namespace__name")
    ordering = ("-pk",)
    deferred = ("log_archive", "source", "verdicts")
    fields = (
        "environment_link",
        "number",
        "shown_state",
        "requested_by",
        "reason",
        "failure_message",
        "platform",
        "attempt",
        "created_at",
        "finished_at",
        "sizes",
        "seconds",
        "lock_link",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="cancel",
            title="Cancel",
            run=_cancel,
            applies_to=lambda row: row.state in CANCELLABLE,
            text="A queued build is cancelled at once; a running build stops within seconds.",
        ),
        ConfirmedAction(
            name="make-current",
            title="Make current and pin",
            run=_make_current,
            applies_to=lambda row: row.state == BuildState.READY,
        ),
        ConfirmedAction(
            name="archive",
            title="Archive",
            run=_archive,
            applies_to=lambda row: row.state == BuildState.READY,
            text="Deletes the files. The specification, lock and log stay; the build can be "
            "restored.",
        ),
        ConfirmedAction(
            name="restore",
            title="Restore",
            run=_restore,
            applies_to=lambda row: row.state == BuildState.ARCHIVED,
        ),
        ConfirmedAction(
            name="remove",
            title="Delete",
            run=_delete,
            applies_to=lambda row: row.state in FINISHED,
            text="The files are moved to the trash. The number is never used again.",
            deletes=True,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).filter(deleted_at=None)
        return rows.select_related("environment__namespace", "requested_by", "prefix")

    @admin.display(description="build")
    def build_label(self, build: Build) -> str:
        return f"{build.environment}:{build.number}"

    @admin.display(description="environment")
    def environment_name(self, build: Build) -> str:
        return str(build.environment)

    @admin.display(description="environment")
    def environment_link(self, build: Build) -> object:
        return link(build.environment)

    @admin.display(description="state")
    def shown_state(self, build: Build) -> object:
        return badge(build.state)

    @admin.display(description="created")
    def created(self, build: Build) -> object:
        return relative_time(build.created_at)

    @admin.display(description="failure")
    def failure_message(self, build: Build) -> str:
        failure = build.failure or {}
        return f"{failure.get('message') or ''} {failure.get('hint') or ''}".strip()[:2000]

    @admin.display(description="failure")
    def failure_text(self, build: Build) -> object:
        return long_text(self.failure_message(build)[:300])

    @admin.display(description="size on disk")
    def sizes(self, build: Build) -> str:
        if build.prefix is None:
            return ""
        own, shared = size(build.prefix.unique_size), size(build.prefix.apparent_size)
        return f"{own} own; {shared} with shared files"

    @admin.display(description="seconds by stage")
    def seconds(self, build: Build) -> str:
        return ", ".join(f"{stage.lower()} {spent:.1f}" for stage, spent in build.timings.items())

    @admin.display(description="lock")
    def lock_link(self, build: Build) -> object:
        return link(build.lock) if build.lock_id else ""

    def related_tables(self, actor: Actor, row: Build) -> Sequence[RelatedTable]:
        verdicts = [Verdict.from_json(one) for one in row.verdicts]
        waiting: Any = row
        requests = waiting.requests.select_related("namespace").order_by("-pk")
        lines = row.log_lines or (row.origin.log_lines if row.origin else 0)
        log = row.log_from(max(0, lines - LOG_LINES), limit=LOG_LINES)
        return (
            RelatedTable(
                title="Policy verdicts",
                headers=("Rule", "Effect", "Package", "Explanation"),
                rows=[(v.rule, v.effect.value, v.subject, v.sentence) for v in verdicts],
            ),
            RelatedTable(
                title="Approval requests",
                headers=("Package", "State", "Rule"),
                rows=[(link(one), badge(one.state), one.rule) for one in requests[:RELATED_ROWS]],
            ),
            RelatedTable(
                title="History",
                headers=("Time", "State", "Message"),
                rows=[
                    (f"{event.at:%F %T}", badge(event.state), event.message)
                    for event in row.events.all()[:200]
                ],
            ),
            RelatedTable(title="Specification", headers=(), rows=(), text=row.source),
            RelatedTable(
                title=f"Last {LOG_LINES} lines of the log" if lines > LOG_LINES else "Log",
                headers=(),
                rows=(),
                text="\n".join(log),
            ),
        )


@admin.register(LockRow)
class LockAdmin(ReadOnlyAdmin):
    title = "Locks"
    console_group, console_position = ConsoleGroup.ENVIRONMENTS, 4
    list_display = ("digest", "package_count", "download_size", "created")
    list_filter = (date_range("created_at", "creation"),)
    search_fields = ("digest__startswith",)
    search_help_text = "Start of the digest."
    ordering = ("-pk",)
    fields = ("digest", "channels", "platforms", "package_count", "download_size", "created_at")

    @admin.display(description="download size")
    def download_size(self, lock: LockRow) -> str:
        return size(lock.size)

    @admin.display(description="created")
    def created(self, lock: LockRow) -> object:
        return relative_time(lock.created_at)

    def related_tables(self, actor: Actor, row: LockRow) -> Sequence[RelatedTable]:
        result = row.builds.select_related("environment__namespace").defer(*LARGE).order_by("-pk")
        return (
            RelatedTable(
                title="Builds of this lock",
                headers=("Build", "State"),
                rows=[(link(build), badge(build.state)) for build in result[:RELATED_ROWS]],
            ),
            *packages_of(row.pk),
        )


@admin.register(Preview)
class PreviewAdmin(ReadOnlyAdmin):
    title = "Previews"
    console_group, console_position = ConsoleGroup.ENVIRONMENTS, 5
    list_display = ("id", "namespace", "state", "requested_by", "created")
    list_select_related = ("namespace", "requested_by")
    list_filter = ("state", date_range("created_at", "creation"))
    ordering = ("-pk",)
    fields = ("id", "namespace", "state", "requested_by", "created_at", "failure")

    @admin.display(description="created")
    def created(self, preview: Preview) -> object:
        return relative_time(preview.created_at)
