"""Operations of administrators on accounts: invite, close, password links, second factors."""

from __future__ import annotations

from dataclasses import dataclass

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.access import Actor, require_superuser
from accounts.models import ApiToken, Identity, User
from accounts.password_reset import by_mail, link_for, may_reset
from condastore.errors import ConflictError, InvalidInputError
from environments.models import AuditEvent, audited
from environments.operations.account_mail import queue_invitation, queue_password_link
from environments.services.orphaned_accounts import notify_orphaned


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """A new account; `link` sets its first password, and is empty if it was sent by mail."""

    user: User
    link: str


@audited()
def invite(
    *,
    actor: Actor,
    username: str,
    email: str = "",
    first_name: str = "",
    last_name: str = "",
    administrator: bool = False,
    mail: bool = False,
    site: str = "",
) -> Invited:
    """Create a local account without a password, and a link that sets its first password.

    Args:
        administrator: of the whole installation.
        mail: send the link to `email`; otherwise the link is returned, to be handed over.
        site: what the link starts with if no public URL is configured.
    Raises:
        InvalidInputError: local accounts are switched off, or a field is not valid.
        ConflictError: the user name is taken.
    """
    require_superuser(actor)
    if not settings.LOCAL_ACCOUNTS:
        raise InvalidInputError(
            "Local accounts are switched off.",
            hint="People sign in through a directory or an identity provider.",
        )
    if mail:
        _require_mail(email)
    user = User(
        username=username.strip(),
        email=email.strip(),
        first_name=first_name.strip(),
        last_name=last_name.strip(),
        is_superuser=administrator,
        is_staff=administrator,
    )
    user.set_unusable_password()
    if User.objects.filter(username__iexact=user.username).exists():
        raise ConflictError(f"There is a user {user.username} already.", where="username")
    try:
        user.full_clean(exclude=["password"])
        with transaction.atomic():
            user.save()
    except ValidationError as error:
        where, messages = next(iter(error.message_dict.items()))
        raise InvalidInputError(messages[0], where=where) from error
    except IntegrityError:  # created by another administrator meanwhile
        raise ConflictError(f"There is a user {user.username} already.", where="username") from None
    changes = {"invited_by": "mail" if mail else "link", "administrator": administrator}
    AuditEvent.record(actor, "account.create", user, changes)
    if mail:
        queue_invitation(user, inviter=actor.name)
        return Invited(user=user, link="")
    return Invited(user=user, link=link_for(user, site=site))


@audited()
def close_account(*, actor: Actor, user: User) -> User:
    """Close an account: its owner can no longer sign in, and its tokens are revoked."""
    require_superuser(actor)
    if user.pk == actor.account.pk:
        raise ConflictError(
            "You cannot close your own account.", hint="Ask another administrator to close it."
        )
    User.objects.filter(pk=user.pk).update(is_active=False)
    # Without `gone_at` the account was closed by a person: a directory does not open it again.
    Identity.objects.filter(user=user).update(gone_at=None)
    ended = ApiToken.objects.filter(user=user, revoked_at=None).update(revoked_at=timezone.now())
    user.refresh_from_db()
    changes = {"tokens": ended, "service_accounts": list(notify_orphaned(user, by=actor))}
    AuditEvent.record(actor, "account.close", user, changes)
    return user


@audited()
def make_password_link(*, actor: Actor, user: User, site: str = "") -> str:
    """Return a link that sets the account's password once.

    Raises:
        InvalidInputError: the account is closed, or its password is not stored here.
    """
    require_superuser(actor)
    _require_password(user)
    AuditEvent.record(actor, "account.password-link", user, {"by": "link"})
    return link_for(user, site=site)


@audited()
def mail_password_link(*, actor: Actor, user: User) -> None:
    """Send the account's owner a mail with a link that sets the password once.

    Raises:
        InvalidInputError: the account is closed, has no e-mail address, or its password is not
            stored here; or the server sends no mail.
    """
    require_superuser(actor)
    _require_password(user)
    _require_mail(user.email)
    AuditEvent.record(actor, "account.password-link", user, {"by": "mail"})
    queue_password_link(user)


@audited()
def reset_second_factors(*, actor: Actor, user: User) -> int:
    """Remove all second factors of an account, for somebody who has lost their devices.

    Returns:
        The number of removed factors.
    """
    require_superuser(actor)
    removed: int = Authenticator.objects.filter(user=user).delete()[0]
    AuditEvent.record(actor, "account.reset-second-factors", user, {"removed": removed})
    return removed


def _require_password(user: User) -> None:
    if not may_reset(user):
        raise InvalidInputError(
            f"The password of {user.username} is not stored here.",
            hint="Accounts of directories sign in there; open a closed account first.",
        )


def _require_mail(email: str) -> None:
    if not by_mail():
        raise InvalidInputError(
            "This server sends no e-mail.", where="delivery", hint="Hand the link over instead."
        )
    if not email.strip():
        raise InvalidInputError("An e-mail address is needed.", where="email")
