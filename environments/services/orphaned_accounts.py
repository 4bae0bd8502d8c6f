"""What follows when somebody leaves: who is told of the service accounts that stay behind?"""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.db.models import Q, QuerySet

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from environments.models import AuditEvent, Build, HostedPackage, Namespace, Notification
from environments.models.notifications import Event


def namespaces_of(account: User) -> QuerySet[Namespace]:
    """Namespaces in which the account holds a role and has built or uploaded.

    A role alone does not count: anybody may grant one in a namespace of their own, and would be
    told whether the account exists and who owns it.
    """
    mine = Q(user_grants__user=account) | Q(group_grants__group__user=account)
    built = Build.objects.filter(requested_by=account).values("environment__namespace")
    uploaded = HostedPackage.objects.filter(uploaded_by=account).values("channel__namespace")
    active = Q(pk__in=built) | Q(pk__in=uploaded)
    return Namespace.objects.filter(mine, active).distinct()


def orphan(owner: User, *, by: Actor | None) -> Sequence[str]:
    """Tell those who run the namespaces, and the installation, of each account that `owner` had.

    The account goes on, as what it does may be needed every night; unless the settings suspend it.
    In the transaction in which the owner's account ends. Gives the accounts' names.
    """
    accounts = list(User.objects.filter(owner=owner, is_service=True, is_active=True))
    for account in accounts:
        places = list(namespaces_of(account))
        if not places:
            _tell(account, owner, None)
        for place in places:
            _tell(account, owner, place)
        for place in places:
            changes = {"owner": owner.username}
            AuditEvent.record(by, "account.owner-left", account, changes, namespace=place)
    return [account.username for account in accounts]


def _tell(account: User, owner: User, place: Namespace | None) -> None:
    suspended = settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS
    state = (
        "Its tokens do not work until it has another owner."
        if suspended
        else "Its tokens go on working; revoke those that the owner knew."
    )
    where = f" It holds a role in {place}." if place else ""
    Notification.tell(
        Event.OWNER_LEFT,
        namespace=place.pk if place else None,
        subject=f"The owner of the service account {account} has left",
        text=f"{owner} owned the service account {account}, and has left.{where} {state}\n\n"
        "An administrator of the installation gives it another owner.\n",
        data={
            "service_account": account.username,
            "owner": owner.username,
            "namespace": place.name if place else None,
            "suspended": suspended,
        },
        emails=_responsible(place).values_list("email", flat=True).distinct(),
    )


def _responsible(place: Namespace | None) -> QuerySet[User]:
    who = Q(is_superuser=True)
    if place is not None:
        role = Role.ADMIN.codename
        who |= Q(pk__in=place.user_grants.filter(permission__codename=role).values("user"))
        groups = place.group_grants.filter(permission__codename=role).values("group")
        who |= Q(groups__in=groups)
    return User.objects.filter(who, is_active=True).exclude(email="")
