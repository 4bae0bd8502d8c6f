"""Delivery of notifications: by mail, or to a webhook."""

from __future__ import annotations

import json
from datetime import timedelta
from smtplib import SMTPException, SMTPRecipientsRefused
from typing import Any

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.utils import timezone

from condastore import __version__
from condastore.errors import (
    LeaseLostError,
    RequestError,
    StoreError,
    TransitionError,
    UnavailableError,
)
from condastore.outages import persist
from environments.engine.network import webhooks
from environments.engine.network.addresses import guard, parse_networks
from environments.jobs.leased_run import LeasedRun, claim
from environments.models import Notification, Webhook
from environments.models.notifications import DeliveryState
from environments.services.account_mail import texts_of

logger = structlog.get_logger(__name__)
#: How long a receiver may take to answer.
TIMEOUT = timedelta(seconds=10)
#: How long one attempt may take.
TIME_LIMIT = timedelta(minutes=5)


class MailRefusedError(RequestError):
    """The mail server says that nobody has this address."""

    code = "mail-refused"


class MailUnavailableError(UnavailableError):
    """The mail server cannot be reached, or takes no mail now."""

    code = "mail-unavailable"


def deliver(notification_id: int) -> None:
    """Run the next attempt of a notification, if it is due."""
    rows = Notification.objects.select_related("webhook")
    message = rows.filter(pk=notification_id).first()
    lease = claim(message) if message is not None else None
    if message is None or lease is None:
        return
    with DeliveryRun(message, lease, time_limit=TIME_LIMIT) as run:
        run.carry_out(run.deliver)


class DeliveryRun(LeasedRun[Notification]):
    """One attempt to deliver one notification."""

    time_limit_error = UnavailableError

    def deliver(self) -> None:
        self.confirm()  # a worker that was stopped sends nothing that another has sent
        if self.row.webhook is not None:
            _call(self.row, self.row.webhook)
        else:
            _mail(self.row)
        try:
            self.finish(DeliveryState.DELIVERED)
        except (LeaseLostError, TransitionError):
            # It was delivered all the same: nobody may send it again.
            waiting = Notification.objects.filter(
                pk=self.row.pk, state__in=(DeliveryState.WAITING, DeliveryState.FAILED)
            )
            persist(lambda: waiting.update(**_delivered_late()))
            raise

    def fail(self, error: StoreError) -> None:
        if isinstance(error, webhooks.WebhookGoneError):
            hooks = Webhook.objects.filter(notifications=self.row)
            self.persist(lambda: hooks.update(enabled=False))
        super().fail(error)


def _delivered_late() -> dict[str, Any]:
    """Return the changes of a requeued notification whose former attempt has delivered it."""
    return {
        "state": DeliveryState.DELIVERED,
        "delivered_at": timezone.now(),
        "failed_at": None,
        "problem": "",
        "message_sent_at": None,
    }


def _call(message: Notification, hook: Webhook) -> None:
    if not hook.enabled:
        raise webhooks.WebhookRefusedError("The webhook was switched off.")
    if not hook.secret:
        raise webhooks.WebhookRefusedError(
            "The webhook's secret cannot be read: the installation's key has changed."
        )
    body = {
        "type": message.event,
        "timestamp": message.created_at.isoformat(),
        "data": message.content["data"],
    }
    webhooks.post(
        hook.url,
        secret=hook.secret,
        message_id=f"msg_{message.pk}",
        body=json.dumps(body, separators=(",", ":"), ensure_ascii=False),
        now=timezone.now(),
        timeout=TIMEOUT,
        within=guard().allowing(parse_networks(settings.WEBHOOK_PRIVATE_NETWORKS)),
        agent=f"condastore/{__version__}",
    )


def _mail(message: Notification) -> None:
    mails = [
        EmailMessage(
            subject=f"[condastore] {message.subject}",
            body=text,
            to=[address],
            # So that absence notes are not sent in answer.
            headers={"Auto-Submitted": "auto-generated"},
        )
        for address, text in texts_of(message).items()
    ]
    try:
        for mail in mails:
            mail.send()
    except SMTPRecipientsRefused as error:
        code = next(iter(error.recipients.values()), (550, b""))[0]
        kind = MailRefusedError if code >= 500 else MailUnavailableError
        raise kind(f"The mail server refuses {message.email} ({code}).") from error
    except (SMTPException, OSError) as error:
        raise MailUnavailableError(f"The mail was not taken: {error}") from error
