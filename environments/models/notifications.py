"""Webhooks, and notifications: messages to webhooks and mail addresses until they are delivered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from accounts.sealing import seal, unseal
from condastore.errors import StoreError
from environments.models.leased_work import LeasedWork, LeasedWorkQuerySet, RetryPolicy
from environments.models.namespaces import Namespace

WEBHOOK_SECRETS = "webhook-secrets"


class Event(models.TextChoices):
    """Types of events that notifications are sent for."""

    REQUEST_OPENED = "request.opened"
    REQUEST_DECIDED = "request.decided"
    BUILD_FINISHED = "build.finished"
    RECALL = "recall"
    QUOTA_WARNING = "quota.warning"
    OWNER_LEFT = "service-account.owner-left"
    TEST = "webhook.test"


#: Type of mails about the recipient's own account; webhooks do not receive it.
ACCOUNT = "account"


class WebhookQuerySet(models.QuerySet["Webhook"]):
    def visible_to(self, actor: Actor) -> Self:
        """Webhooks of namespaces the actor manages; all for administrators."""
        run = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by().values("pk")
        shown = Q(namespace__in=run)
        return self.filter(shown | Q(namespace=None) if actor.is_superuser else shown)


class Webhook(models.Model):
    """An address that receives the events of a namespace, or of all (no namespace)."""

    namespace = models.ForeignKey(
        Namespace, models.CASCADE, null=True, blank=True, related_name="webhooks"
    )
    url = models.URLField("URL", max_length=500)
    sealed_secret = models.TextField(editable=False, help_text="Signs what is sent.")
    events: Any = models.JSONField(default=list, blank=True, help_text="Kinds; empty means all.")
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = WebhookQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.url

    def seal(self, secret: str) -> None:
        self.sealed_secret = seal(secret, purpose=WEBHOOK_SECRETS)

    @property
    def secret(self) -> str:
        return unseal(self.sealed_secret, purpose=WEBHOOK_SECRETS)


class DeliveryState(models.TextChoices):
    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED = "failed"


class NotificationQuerySet(LeasedWorkQuerySet["Notification"]):
    pass


class Notification(LeasedWork):
    """One message to one webhook or one mail address; retried until it is delivered."""

    WAITING: ClassVar = (DeliveryState.WAITING,)
    QUEUED_STATE: ClassVar = DeliveryState.WAITING
    LEASED: ClassVar = (DeliveryState.SENDING,)
    FAILED_STATE: ClassVar = DeliveryState.FAILED
    MOVES: ClassVar = {
        DeliveryState.WAITING: (DeliveryState.SENDING,),
        DeliveryState.SENDING: (
            DeliveryState.DELIVERED,
            DeliveryState.FAILED,
            DeliveryState.WAITING,
        ),
    }
    #: The longest wait between two attempts.
    LONGEST_WAIT = timedelta(hours=6)
    KEPT = timedelta(days=30)

    webhook = models.ForeignKey(Webhook, models.CASCADE, null=True, related_name="notifications")
    email = models.EmailField(blank=True)
    event = models.CharField(max_length=64, choices=[*Event.choices, (ACCOUNT, ACCOUNT)])
    subject = models.CharField(max_length=200)
    #: {"text": what a mail says, "data": what a program gets}
    content: Any = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    state = models.CharField(
        max_length=9, choices=DeliveryState.choices, default=DeliveryState.WAITING
    )
    delivered_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True, help_text="Given up for good.")
    problem = models.TextField(blank=True)

    objects = NotificationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()
        indexes = [
            models.Index(fields=["created_at"]),
            models.Index(fields=["state", "not_before"], name="notification_state"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state=DeliveryState.SENDING) ^ Q(lease_expires_at=None),
                name="notification_leased_iff_sending",
            ),
            models.CheckConstraint(
                condition=Q(state=DeliveryState.DELIVERED) ^ Q(delivered_at=None),
                name="notification_delivered_at_iff_delivered",
            ),
            models.CheckConstraint(
                condition=Q(state=DeliveryState.FAILED) ^ Q(failed_at=None),
                name="notification_failed_at_iff_failed",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.email or self.webhook}"

    @classmethod
    def tell(
        cls,
        event: Event,
        *,
        namespace: int | None,
        subject: str,
        text: str = "",
        data: Mapping[str, Any],
        emails: Iterable[str] = (),
    ) -> None:
        """Write the messages of one event, in the transaction of the change it reports.

        Args:
            namespace: whose webhooks receive it, beside those of the whole installation.
            emails: addresses that receive `text`; ignored if no mail server is configured.
        """
        receivers = Q(namespace=None) | Q(namespace=namespace)
        hooks = [
            hook
            for hook in Webhook.objects.filter(receivers, enabled=True).only("pk", "events")
            if not hook.events or event.value in hook.events
        ]
        addresses = sorted({address for address in emails if address})
        if not settings.EMAIL_URL:
            addresses = []
        message = {
            "event": event.value,
            "subject": " ".join(subject.split())[:200],
            "content": {"text": text, "data": dict(data)},
        }
        cls.objects.bulk_create(
            [
                *(cls(webhook=hook, **message) for hook in hooks),
                *(cls(email=address, **message) for address in addresses),
            ]
        )

    @classmethod
    def try_out(cls, webhook: Webhook) -> Notification:
        """Write a test message to one webhook."""
        return cls.objects.create(
            webhook=webhook,
            event=Event.TEST,
            subject="A test of this webhook.",
            content={"text": "", "data": {"webhook": webhook.pk}},
        )

    @classmethod
    def retry_policy(cls) -> RetryPolicy:
        return RetryPolicy(
            attempts=settings.NOTIFICATION_ATTEMPTS,
            backoff=settings.NOTIFICATION_BACKOFF,
            longest=cls.LONGEST_WAIT,
        )

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        if state == DeliveryState.DELIVERED:
            return {"delivered_at": now, "problem": ""}
        return {"failed_at": now} if state == DeliveryState.FAILED else {}

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        return {"problem": str(error)}
