"""What administrators ask of accounts: close one, and let its person set a new password."""

from __future__ import annotations

from django.utils import timezone

from accounts.access import Actor, require_superuser
from accounts.models import ApiToken, Identity, User
from accounts.password_reset import link_for, may_reset
from condastore.errors import ConflictError, InvalidInputError
from environments.models import AuditEvent, audited
from environments.services.orphaned_accounts import notify_orphaned


@audited()
def close_account(*, actor: Actor, user: User) -> User:
    """Nobody signs in with it any more; its tokens end. What it did stays its own."""
    require_superuser(actor)
    if user.pk == actor.account.pk:
        raise ConflictError("This is your own account.", hint="Let another administrator do it.")
    User.objects.filter(pk=user.pk).update(is_active=False)
    # Closed by a person from now on, and not by a directory, which could open it again.
    Identity.objects.filter(user=user).update(gone_at=None)
    ended = ApiToken.objects.filter(user=user, revoked_at=None).update(revoked_at=timezone.now())
    user.refresh_from_db()
    changes = {"tokens": ended, "service_accounts": list(notify_orphaned(user, by=actor))}
    AuditEvent.record(actor, "account.close", user, changes)
    return user


@audited()
def make_password_link(*, actor: Actor, user: User, site: str = "") -> str:
    """Make a link by which whoever gets it sets the account's password, once.

    Raises:
        InvalidInputError: the account is closed, or its password is not kept here.
    """
    require_superuser(actor)
    if not may_reset(user):
        raise InvalidInputError(
            f"{user.username} has no password here.",
            hint="Accounts of directories sign in there; closed ones are opened first.",
        )
    AuditEvent.record(actor, "account.password-link", user)
    return link_for(user, site=site)
