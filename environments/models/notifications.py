"""Who is told of what: webhooks, and each message until it is delivered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from accounts.sealing import seal, unseal
from environments.models.namespaces import Namespace

WEBHOOK_SECRETS = "webhook-secrets"


class Event(models.TextChoices):
    """What may be told of."""

    REQUEST_OPENED = "request.opened"
    REQUEST_DECIDED = "request.decided"
    BUILD_FINISHED = "build.finished"
    RECALL = "recall"
    QUOTA_WARNING = "quota.warning"
    OWNER_LEFT = "service-account.owner-left"
    TEST = "webhook.test"


#: The kind of mails about somebody's own account, which no webhook is told of.
ACCOUNT = "account"


class WebhookQuerySet(models.QuerySet["Webhook"]):
    def visible_to(self, actor: Actor) -> Self:
        """For those who run the namespace; those of the installation for who runs that."""
        run = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by().values("pk")
        shown = Q(namespace__in=run)
        return self.filter(shown | Q(namespace=None) if actor.is_superuser else shown)


class Webhook(models.Model):
    """An address that is told of events of a namespace, or of all (no namespace)."""

    namespace = models.ForeignKey(
        Namespace, models.CASCADE, null=True, blank=True, related_name="webhooks"
    )
    url = models.URLField(max_length=500)
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


class NotificationQuerySet(models.QuerySet["Notification"]):
    def due(self, now: datetime) -> Self:
        return self.filter(delivered_at=None, failed_at=None, not_before__lte=now)


class Notification(models.Model):
    """One message to one webhook or one mail address; tried again until it is delivered."""

    KEPT = timedelta(days=30)

    webhook = models.ForeignKey(Webhook, models.CASCADE, null=True, related_name="notifications")
    email = models.EmailField(blank=True)
    event = models.CharField(max_length=64, choices=[*Event.choices, (ACCOUNT, ACCOUNT)])
    subject = models.CharField(max_length=200)
    #: {"text": what a mail says, "data": what a program gets}
    content: Any = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    message_sent_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0)
    not_before = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True, help_text="Given up for good.")
    problem = models.TextField(blank=True)

    objects = NotificationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()
        indexes = [
            models.Index(fields=["created_at"]),
            models.Index(
                fields=["not_before"],
                condition=Q(delivered_at=None, failed_at=None),
                name="notification_due",
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
        """Write the messages of one event, in the transaction of what it tells of.

        Args:
            namespace: whose webhooks are told, beside those of the whole installation.
            emails: who gets a mail with `text`; nobody where no mail server is configured.
        """
        told = Q(namespace=None) | Q(namespace=namespace)
        hooks = [
            hook
            for hook in Webhook.objects.filter(told, enabled=True).only("pk", "events")
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
        """Write a message that tells of nothing, to see whether one webhook gets it."""
        return cls.objects.create(
            webhook=webhook,
            event=Event.TEST,
            subject="A test of this webhook.",
            content={"text": "", "data": {"webhook": webhook.pk}},
        )

    def claim(self, *, patience: timedelta) -> bool:
        """Start the next attempt; False where it is not due, or another tries at this moment."""
        now = timezone.now()
        claimed = Notification.objects.due(now).filter(pk=self.pk)
        if not claimed.update(attempts=F("attempts") + 1, not_before=now + patience):
            return False
        self.refresh_from_db()
        return True

    def give_back(self) -> bool:
        """Make the attempt undone; False where another has begun."""
        mine = Notification.objects.filter(pk=self.pk, attempts=self.attempts)
        again = {"not_before": timezone.now(), "message_sent_at": None}
        return bool(mine.update(attempts=F("attempts") - 1, **again))
