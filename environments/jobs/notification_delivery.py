"""One attempt to deliver one message: by mail, or to a webhook."""

from __future__ import annotations

import json
from datetime import timedelta
from smtplib import SMTPException, SMTPRecipientsRefused

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.utils import timezone

from condastore import __version__
from condastore.errors import RequestError, StoreError, UnavailableError
from condastore.outages import DATABASE_ERRORS, is_outage, persist
from environments.engine.network import webhooks
from environments.engine.network.addresses import guard, parse_networks
from environments.models import Notification, Webhook
from environments.models.builds import backoff_delay
from environments.services.account_mail import texts_of

logger = structlog.get_logger(__name__)
#: How long a receiver may take to answer.
TIMEOUT = timedelta(seconds=10)
#: An attempt that was not heard of for so long is made again.
PATIENCE = timedelta(minutes=5)
LONGEST_WAIT = timedelta(hours=6)


class MailRefusedError(RequestError):
    """The mail server says that nobody has this address."""

    code = "mail-refused"


class MailUnavailableError(UnavailableError):
    """The mail server cannot be reached, or takes no mail now."""

    code = "mail-unavailable"


def deliver(notification_id: int) -> None:
    """Deliver it, or say when to try again. Asked for twice, the second does nothing."""
    rows = Notification.objects.select_related("webhook")
    message = rows.filter(pk=notification_id).first()
    if message is None or not message.claim(patience=PATIENCE):
        return
    row = Notification.objects.filter(pk=message.pk)
    mine = row.filter(attempts=message.attempts)  # until another attempt begins
    try:
        if message.webhook is not None:
            _call(message, message.webhook)
        else:
            _mail(message)
    except DATABASE_ERRORS as error:
        if not is_outage(error):
            raise
        logger.warning("not delivered", notification=message.pk, error=str(error).strip())
        persist(message.give_back)  # an outage of the database is no attempt
    except StoreError as error:
        now = timezone.now()
        logger.warning("not delivered", notification=message.pk, code=error.code, error=str(error))
        if isinstance(error, webhooks.WebhookGoneError):
            persist(lambda: Webhook.objects.filter(notifications=message).update(enabled=False))
        if not error.transient or message.attempts >= settings.NOTIFICATION_ATTEMPTS:
            problem = str(error)
            persist(lambda: mine.update(failed_at=now, problem=problem))
            return
        delay = backoff_delay(
            message.attempts, first=settings.NOTIFICATION_BACKOFF, ceiling=LONGEST_WAIT
        )
        again = {"not_before": now + delay, "message_sent_at": None, "problem": str(error)}
        persist(lambda: mine.update(**again))
    else:
        persist(lambda: row.update(delivered_at=timezone.now(), problem=""))


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
