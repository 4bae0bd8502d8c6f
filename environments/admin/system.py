"""Workers, leader election, missing folders, webhooks and notifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from condastore.errors import NotFoundError
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction, OneTimeText
from environments.admin.display import (
    RELATED_ROWS,
    RelatedTable,
    badge,
    link,
    list_url,
    long_text,
    relative_time,
)
from environments.admin.filters import date_range, flag_filter, presence_filter
from environments.models import FolderRestore, Leader, Namespace, Notification, Webhook, Worker
from environments.models.notifications import Event
from environments.operations import builds, notifications


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    title = "Workers"
    console_group, console_position = ConsoleGroup.SYSTEM, 2
    list_display = ("name", "shown_state", "platform", "queues", "started", "lease_expires")
    list_filter = (date_range("started_at", "start"),)
    fields = ("name", "shown_state", "platform", "queues", "started_at", "expires_at")

    @admin.display(description="state")
    def shown_state(self, worker: Worker) -> object:
        return badge("alive" if worker.expires_at > timezone.now() else "gone")

    @admin.display(description="started")
    def started(self, worker: Worker) -> object:
        return relative_time(worker.started_at)

    @admin.display(description="lease expires")
    def lease_expires(self, worker: Worker) -> object:
        return relative_time(worker.expires_at)


@admin.register(Leader)
class LeaderAdmin(ReadOnlyAdmin):
    """Which scheduler holds the lease of each periodic job."""

    title = "Leader election"
    console_group, console_position = ConsoleGroup.SYSTEM, 3
    list_display = ("duty", "owner", "lease_expires")
    list_filter = (date_range("expires_at", "lease expiry"),)
    fields = ("duty", "owner", "expires_at")

    @admin.display(description="lease expires")
    def lease_expires(self, leader: Leader) -> object:
        return relative_time(leader.expires_at)


def _restore(actor: Actor, row: FolderRestore, answers: Mapping[str, Any]) -> None:
    build = row.build
    if build is None:
        raise NotFoundError("No READY build uses this folder.")
    builds.restore_build(actor=actor, build=build)


@admin.register(FolderRestore)
class FolderRestoreAdmin(ReadOnlyAdmin):
    title = "Missing folders"
    console_group, console_position = ConsoleGroup.SYSTEM, 4
    list_display = ("prefix", "shown_state", "problem_text", "attempt", "found", "restored")
    list_filter = ("state", date_range("found_at", "found missing"))
    list_select_related = ("prefix",)
    ordering = ("-found_at",)
    fields = (
        "prefix",
        "shown_state",
        "build_link",
        "attempt",
        "problem",
        "hint",
        "not_before",
        "found_at",
        "finished_at",
        "restored",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="again",
            title="Try again now",
            text="Link the folder again without waiting for the next attempt.",
            run=_restore,
        ),
    )

    @admin.display(description="state")
    def shown_state(self, row: FolderRestore) -> object:
        return badge(row.state)

    @admin.display(description="build")
    def build_link(self, row: FolderRestore) -> object:
        return link(row.build) if row.build else "none"

    @admin.display(description="problem")
    def problem(self, row: FolderRestore) -> str:
        return (row.failure or {}).get("message", "")

    @admin.display(description="problem")
    def problem_text(self, row: FolderRestore) -> object:
        return long_text(self.problem(row))

    @admin.display(description="what to do")
    def hint(self, row: FolderRestore) -> str:
        return (row.failure or {}).get("hint") or ""

    @admin.display(description="found missing")
    def found(self, row: FolderRestore) -> object:
        return relative_time(row.found_at)


class WebhookForm(forms.Form):
    url = forms.CharField(max_length=500, label="URL", help_text="https://…")
    namespace = forms.ModelChoiceField(
        Namespace.objects.order_by("name"),
        required=False,
        empty_label="all namespaces",
        help_text="Namespace whose events are delivered.",
    )
    events = forms.MultipleChoiceField(
        choices=Event.choices,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="Events to deliver. If none is selected, all are delivered.",
    )


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> OneTimeText:
    created = notifications.create_webhook(
        actor=actor,
        namespace=answers["namespace"],
        url=answers["url"],
        events=answers["events"],
    )
    return OneTimeText(
        title="The webhook was added",
        text=f"{created.webhook} gets the events. Its deliveries are signed with this secret, "
        "which is shown only now.",
        value=created.secret,
    )


def _delete(actor: Actor, row: Webhook, answers: Mapping[str, Any]) -> None:
    notifications.delete_webhook(actor=actor, webhook=row)


@admin.register(Webhook)
class WebhookAdmin(ReadOnlyAdmin):
    title = "Webhooks"
    console_group, console_position = ConsoleGroup.SYSTEM, 5
    list_display = ("url", "source", "events", "enabled", "created")
    list_filter = (
        ("enabled", flag_filter("state", yes="Enabled", no="Disabled")),
        date_range("created_at", "creation"),
    )
    list_select_related = ("namespace",)
    ordering = ("-pk",)
    fields = ("url", "source", "events", "enabled", "created_at")
    confirmed_actions = (
        ConfirmedAction(
            name="new", title="Add a webhook", run=_create, form=WebhookForm, rows=False
        ),
        ConfirmedAction(
            name="remove",
            title="Remove",
            text="Notifications that are not delivered yet are deleted too.",
            run=_delete,
            deletes=True,
        ),
    )

    @admin.display(description="events of")
    def source(self, hook: Webhook) -> str:
        return str(hook.namespace or "all namespaces")

    @admin.display(description="created")
    def created(self, hook: Webhook) -> object:
        return relative_time(hook.created_at)

    def related_tables(self, actor: Actor, row: Webhook) -> Sequence[RelatedTable]:
        sent = row.notifications.order_by("-pk")[:RELATED_ROWS]
        return (
            RelatedTable(
                title="Notifications, newest first",
                headers=("Notification", "State", "Attempts", "Problem"),
                rows=[
                    (link(one, one.subject), _state(one), one.attempt, one.problem) for one in sent
                ],
                more=list_url(Notification, webhook__id__exact=row.pk),
            ),
        )


def _state(message: Notification) -> object:
    if message.delivered_at:
        return badge("delivered")
    return badge("given-up" if message.failed_at else "waiting")


@admin.register(Notification)
class NotificationAdmin(ReadOnlyAdmin):
    title = "Notifications"
    console_group, console_position = ConsoleGroup.SYSTEM, 6
    list_display = ("subject", "event", "recipient", "shown_state", "attempt", "age")
    list_filter = (
        "event",
        presence_filter(
            "delivered", "delivery", "delivered_at", present="Delivered", absent="Not delivered"
        ),
        presence_filter(
            "failed", "failure", "failed_at", present="Given up", absent="Not given up"
        ),
        date_range("created_at", "creation"),
    )
    search_fields = ("=email",)
    search_help_text = "Complete e-mail address of the recipient."
    ordering = ("-pk",)
    deferred = ("content",)
    fields = (
        "subject",
        "event",
        "recipient",
        "shown_state",
        "attempt",
        "problem",
        "created_at",
        "delivered_at",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("webhook")

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:
        return lookup == "webhook__id__exact" or super().lookup_allowed(lookup, value, request)

    @admin.display(description="to")
    def recipient(self, message: Notification) -> str:
        return message.email or str(message.webhook)

    @admin.display(description="state")
    def shown_state(self, message: Notification) -> object:
        return _state(message)

    @admin.display(description="created")
    def age(self, message: Notification) -> object:
        return relative_time(message.created_at)

    def related_tables(self, actor: Actor, row: Notification) -> Sequence[RelatedTable]:
        text = row.content.get("text", "")
        return (RelatedTable(title="Text", headers=(), rows=(), text=text),)
