"""What runs, and what is told to others: workers, duties, webhooks, messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.access import Actor
from condastore.errors import NotFoundError
from environments.admin.base import BESIDE, Panel, Question, Room, badge, link, list_url, moment
from environments.models import FolderRestore, Leader, Namespace, Notification, Webhook, Worker
from environments.models.notifications import Event
from environments.operations import builds, notifications


@admin.register(Worker)
class WorkerRoom(Room):
    list_display = ("name", "shown_state", "platform", "queues", "started_at", "heard_of")
    facts = ("name", "shown_state", "platform", "queues", "started_at", "expires_at")

    @admin.display(description="state")
    def shown_state(self, worker: Worker) -> object:
        return badge("alive" if worker.expires_at > timezone.now() else "gone")

    @admin.display(description="counts as alive until")
    def heard_of(self, worker: Worker) -> object:
        return moment(worker.expires_at)


@admin.register(Leader)
class LeaderRoom(Room):
    title = "Duties"
    list_display = ("duty", "owner", "expires_at")
    facts = ("duty", "owner", "expires_at")


def _again(actor: Actor, row: FolderRestore, answers: Mapping[str, Any]) -> None:
    build = row.build
    if build is None:
        raise NotFoundError("No READY build needs this folder any more.")
    builds.restore_build(actor=actor, build=build)


@admin.register(FolderRestore)
class FolderRestoreRoom(Room):
    title = "Missing folders"
    list_display = ("prefix", "shown_state", "attempt", "found", "restored")
    list_filter = ("state",)
    list_select_related = ("prefix",)
    ordering = ("-found_at",)
    facts = (
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
    questions = (
        Question(
            name="again",
            title="Try again now",
            text="Link the folder again without waiting for the next attempt.",
            do=_again,
        ),
    )

    @admin.display(description="state")
    def shown_state(self, row: FolderRestore) -> object:
        return badge(row.state)

    @admin.display(description="build")
    def build_link(self, row: FolderRestore) -> object:
        return link(row.build) if row.build else "none any more"

    @admin.display(description="problem")
    def problem(self, row: FolderRestore) -> str:
        return (row.failure or {}).get("message", "")

    @admin.display(description="what to do")
    def hint(self, row: FolderRestore) -> str:
        return (row.failure or {}).get("hint") or ""

    @admin.display(description="found missing")
    def found(self, row: FolderRestore) -> object:
        return moment(row.found_at)


class WebhookForm(forms.Form):
    url = forms.CharField(max_length=500, label="URL", help_text="https://…")
    namespace = forms.CharField(
        required=False, max_length=64, help_text="Empty: told of all namespaces."
    )
    events = forms.MultipleChoiceField(
        choices=Event.choices,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None chosen: all kinds.",
    )


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    namespace = None
    if name := answers["namespace"].strip().lower():
        namespace = Namespace.objects.filter(name=name).first()
        if namespace is None:
            raise NotFoundError(f"There is no namespace {name!r}.", where="namespace")
    made = notifications.create_webhook(
        actor=actor, namespace=namespace, url=answers["url"], events=answers["events"]
    )
    return f"{made.webhook} is told. Its secret, shown this once: {made.secret}"


def _delete(actor: Actor, row: Webhook, answers: Mapping[str, Any]) -> None:
    notifications.delete_webhook(actor=actor, webhook=row)


@admin.register(Webhook)
class WebhookRoom(Room):
    list_display = ("url", "place", "events", "enabled", "created_at")
    list_select_related = ("namespace",)
    ordering = ("-pk",)
    facts = ("url", "place", "events", "enabled", "created_at")
    questions = (
        Question(name="new", title="Add a webhook", do=_create, form=WebhookForm, rows=False),
        Question(
            name="remove",
            title="Remove",
            text="With the messages that it did not get yet.",
            do=_delete,
            removes=True,
        ),
    )

    @admin.display(description="told of")
    def place(self, hook: Webhook) -> str:
        return str(hook.namespace or "all namespaces")

    def panels(self, actor: Actor, row: Webhook) -> Sequence[Panel]:
        sent = row.notifications.order_by("-pk")[:BESIDE]
        return (
            Panel(
                title="Messages, the newest first",
                headers=("Message", "State", "Attempts", "Problem"),
                rows=[
                    (link(one, one.subject), _state(one), one.attempts, one.problem) for one in sent
                ],
                more=list_url(Notification, webhook__id__exact=row.pk),
            ),
        )


def _state(message: Notification) -> object:
    if message.delivered_at:
        return badge("delivered")
    return badge("given-up" if message.failed_at else "waiting")


@admin.register(Notification)
class NotificationRoom(Room):
    title = "Messages"
    list_display = ("subject", "event", "recipient", "shown_state", "attempts", "age")
    list_filter = (
        "event",
        ("delivered_at", admin.EmptyFieldListFilter),
        ("failed_at", admin.EmptyFieldListFilter),
    )
    search_fields = ("=email",)
    ordering = ("-pk",)
    deferred = ("content",)
    facts = (
        "subject",
        "event",
        "recipient",
        "shown_state",
        "attempts",
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

    @admin.display(description="made")
    def age(self, message: Notification) -> object:
        return moment(message.created_at)

    def panels(self, actor: Actor, row: Notification) -> Sequence[Panel]:
        text = row.content.get("text", "")
        return (Panel(title="What a mail says", headers=(), rows=(), text=text),)
