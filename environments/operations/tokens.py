"""Operations on API tokens and service accounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.access import Actor, require_superuser
from accounts.models import OWNER_LEFT, ApiToken, User, new_token_secret, token_digest
from accounts.roles import ROLES, Perm, Role
from condastore.errors import AccessDeniedError, ConflictError, InvalidInputError, NotFoundError
from environments.domain.names import parse_name
from environments.models import (
    AuditEvent,
    Build,
    HostedPackage,
    Namespace,
    NamespaceUserObjectPermission,
    audited,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """`secret` is shown only here."""

    token: ApiToken
    secret: str


@audited()
def create_token(
    *,
    actor: Actor,
    name: str,
    role: Role | None = None,
    namespaces: Sequence[str] = (),
    days: int = 90,
    service_account: str = "",
) -> NewToken:
    """Create a token that acts for the actor, or for a service account that the actor owns.

    A token can never create one with more permissions than its own.
    """
    account = _account(actor, service_account)
    name = parse_name(name, what="token")
    longest = settings.TOKEN_MAX_AGE
    if not timedelta(0) < timedelta(days=min(days, 36_500)) <= longest:
        raise InvalidInputError(f"A token is valid for 1 to {longest.days} days.", where="days")
    unknown = set(namespaces) - set(
        Namespace.objects.visible_to(actor)
        .filter(name__in=namespaces)
        .values_list("name", flat=True)
    )
    if unknown:
        raise NotFoundError(f"There is no namespace {min(unknown)!r}.", where="namespaces")
    _require_within(actor, role, namespaces)
    secret = new_token_secret()
    expires_at = timezone.now() + timedelta(days=days)
    if actor.token is not None:
        expires_at = min(expires_at, actor.token.expires_at)
    try:
        with transaction.atomic():
            token = ApiToken.objects.create(
                user=account,
                name=name,
                digest=token_digest(secret),
                hint=secret[:8],
                role=role.value if role else "",
                namespaces=sorted(set(namespaces)),
                expires_at=expires_at,
            )
    except IntegrityError:
        raise ConflictError(
            f"A token named {name!r} already exists.",
            hint="Revoke it first, or choose another name.",
        ) from None
    AuditEvent.record(actor, "token.create", token, {"role": token.role, "for": account.username})
    return NewToken(token=token, secret=secret)


def tokens_of(actor: Actor) -> QuerySet[ApiToken]:
    """Return the tokens that the actor may see: its own and those of its service accounts."""
    if not actor.signed_in:
        return ApiToken.objects.none()
    account = actor.account
    mine = ApiToken.objects.filter(user=account) | ApiToken.objects.filter(user__owner=account)
    if actor.token is not None and (actor.token.role or actor.token.namespaces):
        mine = mine.filter(pk=actor.token.pk)  # a limited token sees itself only
    return mine


@audited()
def revoke_token(*, actor: Actor, token_id: int | str) -> ApiToken:
    mine = ApiToken.objects.filter(pk=token_id, revoked_at=None)
    if not actor.is_superuser:
        account = actor.account
        mine = mine.filter(user=account) | mine.filter(user__owner=account)
    if actor.token is not None and (actor.token.role or actor.token.namespaces):
        mine = mine.filter(pk=actor.token.pk)  # a limited token can revoke only itself
    token = mine.select_related("user").first()
    if token is None:
        raise NotFoundError("There is no such token.")
    token.revoked_at = timezone.now()
    token.save(update_fields=["revoked_at"])
    AuditEvent.record(actor, "token.revoke", token)
    return token


@audited()
def create_service_account(*, actor: Actor, name: str) -> User:
    """Create an account without a password, which acts by tokens only and gets roles by grants."""
    require_superuser(actor)
    name = parse_name(name, what="namespace")
    if User.objects.filter(username=name).exists():
        raise ConflictError(f"An account named {name!r} already exists.")
    account = User(username=name, is_service=True, owner=actor.account)
    account.set_unusable_password()
    account.save()
    AuditEvent.record(actor, "account.create", account.username, {"service": True})
    return account


def service_accounts(actor: Actor, *, owner_left: bool | None = None) -> QuerySet[User]:
    """All service accounts for administrators; otherwise one's own, and active ones with a role in
    a namespace in which one grants roles, if they have built or uploaded there.

    A role alone shows nothing: the grantor must not learn whether the account exists.
    """
    found = User.objects.filter(is_service=True).select_related("owner").order_by("username")
    if owner_left is not None:
        found = found.filter(OWNER_LEFT) if owner_left else found.exclude(OWNER_LEFT)
    if actor.is_superuser:
        return found
    if not actor.signed_in:
        return found.none()
    run = Namespace.objects.with_perm(actor, Perm.GRANT).order_by().values("pk")
    grants = NamespaceUserObjectPermission.objects.filter(content_object__in=run)
    built = Build.objects.filter(environment__namespace__in=run, requested_by__is_service=True)
    uploaded = HostedPackage.objects.filter(channel__namespace__in=run)
    active = Q(pk__in=built.order_by().values("requested_by"))
    active |= Q(pk__in=uploaded.order_by().values("uploaded_by"))
    return found.filter(Q(owner=actor.account) | Q(active, pk__in=grants.values("user")))


@audited()
def assign_service_account(*, actor: Actor, name: str, owner: str) -> User:
    """Make another person the owner, who is responsible for the account and creates its tokens."""
    require_superuser(actor)
    account = User.objects.filter(is_service=True, username=name).select_related("owner").first()
    if account is None:
        raise NotFoundError(f"There is no service account {name!r}.", where="name")
    person = User.objects.filter(is_service=False, is_active=True, username=owner).first()
    if person is None:
        raise NotFoundError(f"There is no person {owner!r} who could own it.", where="owner")
    before = account.owner.username if account.owner else None
    account.owner = person
    account.save(update_fields=["owner"])
    AuditEvent.record(actor, "account.assign", account, {"owner": [before, person.username]})
    return account


def _account(actor: Actor, service_account: str) -> User:
    account = actor.account
    if not service_account:
        return account
    services = User.objects.filter(is_service=True, username=service_account)
    if not actor.is_superuser:
        services = services.filter(owner=account)
    found = services.first()
    if found is None:
        raise NotFoundError(f"You do not own a service account {service_account!r}.")
    return found


def _require_within(actor: Actor, role: Role | None, namespaces: Sequence[str]) -> None:
    token = actor.token
    if token is None:
        return
    ceiling = token.ceiling
    if ceiling is not None and (role is None or not ROLES[role] <= ROLES[ceiling]):
        raise AccessDeniedError(
            f"This token can create tokens up to the role {ceiling.value} only."
        )
    limits = actor.only_namespaces
    if limits is not None and not (namespaces and set(namespaces) <= set(limits)):
        raise AccessDeniedError(f"This token can create tokens for {', '.join(limits)} only.")
