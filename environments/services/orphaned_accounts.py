"""Notify owners of namespaces about service accounts whose owner has left."""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.db.models import Q, QuerySet

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from condastore.mail_texts import compose
from environments.models import AuditEvent, Build, HostedPackage, Namespace, Notification
from environments.models.notifications import Event


def namespaces_of(account: User) -> QuerySet[Namespace]:
    """Return namespaces in which the account has a role and has built or uploaded something.

    A role alone does not count: anybody may grant one in a namespace of their own, and would learn
    whether the account exists and who owns it.
    """
    mine = Q(user_grants__user=account) | Q(group_grants__group__user=account)
    built = Build.objects.filter(requested_by=account).values("environment__namespace")
    uploaded = HostedPackage.objects.filter(uploaded_by=account).values("channel__namespace")
    active = Q(pk__in=built) | Q(pk__in=uploaded)
    return Namespace.objects.filter(mine, active).distinct()


def notify_orphaned(owner: User, *, by: Actor | None) -> Sequence[str]:
    """Notify namespace owners and administrators of each service account that `owner` had.

    The accounts stay active, as nightly jobs may depend on them, unless the settings suspend them.
    Call it in the transaction that closes the owner's account.

    Returns:
        Names of the service accounts.
    """
    accounts = list(User.objects.filter(owner=owner, is_service=True, is_active=True))
    for account in accounts:
        locations = list(namespaces_of(account))
        if not locations:
            _notify(account, owner, None)
        for namespace in locations:
            _notify(account, owner, namespace)
        for namespace in locations:
            changes = {"owner": owner.username}
            AuditEvent.record(by, "account.owner-left", account, changes, namespace=namespace)
    return [account.username for account in accounts]


def _notify(account: User, owner: User, namespace: Namespace | None) -> None:
    suspended = settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS
    mail = compose(
        "owner_left", owner=owner, account=account, namespace=namespace, suspended=suspended
    )
    Notification.tell(
        Event.OWNER_LEFT,
        namespace=namespace.pk if namespace else None,
        subject=mail.subject,
        text=mail.text,
        data={
            "service_account": account.username,
            "owner": owner.username,
            "namespace": namespace.name if namespace else None,
            "suspended": suspended,
        },
        emails=_responsible(namespace).values_list("email", flat=True).distinct(),
    )


def _responsible(namespace: Namespace | None) -> QuerySet[User]:
    who = Q(is_superuser=True)
    if namespace is not None:
        role = Role.ADMIN.codename
        who |= Q(pk__in=namespace.user_grants.filter(permission__codename=role).values("user"))
        groups = namespace.group_grants.filter(permission__codename=role).values("group")
        who |= Q(groups__in=groups)
    return User.objects.filter(who, is_active=True).exclude(email="")
