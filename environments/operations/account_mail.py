"""Queue mails about accounts: links to new passwords, and notices of what changed."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.dispatch import receiver

from accounts.password_reset import by_mail
from accounts.signals import mail_wanted, password_reset_asked
from environments.models import Notification
from environments.models.notifications import ACCOUNT
from environments.services.account_mail import RESET


@receiver(password_reset_asked, dispatch_uid="account-mail")
def queue_links(email: str, address: str, **kwargs: Any) -> None:
    """Queue a message, whether or not an account has this mail address: it takes the same time."""
    if by_mail():
        _queue(email, "Set a new password", "", {RESET: True, "address": address})


@receiver(mail_wanted, dispatch_uid="account-mail")
def queue_mail(email: str, subject: str, text: str, **kwargs: Any) -> None:
    if settings.EMAIL_URL:
        _queue(email, subject, text, {})


def _queue(email: str, subject: str, text: str, data: dict[str, Any]) -> None:
    from environments.operations.queueing import queue_notifications  # it makes the broker

    subject = " ".join(subject.split())[:200]
    content = {"text": text, "data": data}
    Notification.objects.create(email=email, event=ACCOUNT, subject=subject, content=content)
    queue_notifications()
