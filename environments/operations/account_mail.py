"""Queue mails about accounts: links that set passwords, and notices about changes."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.dispatch import receiver

from accounts.models import User
from accounts.password_reset import by_mail
from accounts.signals import mail_wanted, password_reset_asked
from condastore.mail_texts import one_line, subject_of
from environments.models import Notification
from environments.models.notifications import ACCOUNT
from environments.services.account_mail import INVITATION, PASSWORD_LINK, RESET


@receiver(password_reset_asked, dispatch_uid="account-mail")
def queue_links(email: str, address: str, **kwargs: Any) -> None:
    """Queue a message whether or not an account has this address, so that timing tells nothing."""
    if by_mail():
        _queue(email, subject_of("password_reset"), "", {RESET: True, "address": address})


@receiver(mail_wanted, dispatch_uid="account-mail")
def queue_mail(email: str, subject: str, text: str, **kwargs: Any) -> None:
    if settings.EMAIL_URL:
        _queue(email, subject, text, {})


def queue_invitation(user: User, *, inviter: str) -> None:
    """Queue a mail with a link that sets the first password of a new account."""
    _queue(user.email, subject_of("invitation"), "", {INVITATION: user.pk, "inviter": inviter})


def queue_password_link(user: User) -> None:
    """Queue a mail with a link that sets a new password, asked for by an administrator."""
    _queue(user.email, subject_of("password_link"), "", {PASSWORD_LINK: user.pk})


def _queue(email: str, subject: str, text: str, data: dict[str, Any]) -> None:
    from environments.operations.queueing import queue_due  # it connects to the broker

    subject = one_line(subject)
    content = {"text": text, "data": data}
    Notification.objects.create(email=email, event=ACCOUNT, subject=subject, content=content)
    queue_due(Notification)
