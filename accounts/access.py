"""Access control: the one check of permissions on objects.

Lists and checks use the same query (`with_perm`), so they agree.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from django.contrib.auth.models import AnonymousUser

from accounts.models import ApiToken, User
from accounts.roles import ROLES, Perm, Role
from condastore.errors import AccessDeniedError, NotSignedInError
from condastore.statements import KEY, marks, values_of


@dataclass(frozen=True, slots=True)
class Actor:
    """The caller: a user or nobody, with the API token (if any) and the address.

    Or a directory that provisions accounts by SCIM. `session` is the key of the browser session, by
    which long-lived connections check that it is still valid.
    """

    user: User | AnonymousUser
    token: ApiToken | None = None
    address: str = ""
    directory: str = ""
    session: str = field(default="", repr=False, compare=False)

    @property
    def signed_in(self) -> bool:
        return isinstance(self.user, User) and self.user.is_active

    @property
    def account(self) -> User:
        """The signed-in user.

        Raises:
            NotSignedInError: nobody is signed in.
        """
        if not isinstance(self.user, User) or not self.user.is_active:
            raise NotSignedInError("Sign-in is required.")
        return self.user

    @property
    def is_superuser(self) -> bool:
        """Whether the actor administers the installation; never with a limited token."""
        return (
            self.signed_in
            and self.user.is_superuser
            and (self.token is None or (not self.token.role and not self.token.namespaces))
        )

    @property
    def rules_everything(self) -> bool:
        """Whether the actor sees all namespaces that its token allows, without a role there."""
        ceiling = self.token.ceiling if self.token else None
        return self.signed_in and self.user.is_superuser and ceiling is None

    @property
    def sees_everything(self) -> bool:
        return self.rules_everything and self.only_namespaces is None

    @property
    def name(self) -> str:
        if self.directory:
            return f"directory:{self.directory}"  # names of accounts contain no colon
        return self.user.get_username() if self.signed_in else "anonymous"

    def allows(self, perm: Perm) -> bool:
        """Whether the limit of the token permits `perm`, independent of the user's roles."""
        ceiling = self.token.ceiling if self.token else None
        return ceiling is None or perm in ROLES[ceiling]

    @property
    def only_namespaces(self) -> Sequence[str] | None:
        """Names that the token is limited to; None for all."""
        return self.token.namespaces or None if self.token else None


ANONYMOUS = Actor(AnonymousUser())


def kind_of(actor: Actor) -> tuple[Hashable, ...]:
    """Key of the text of a statement with permission conditions (condastore.statements)."""
    names = actor.only_namespaces
    return (
        actor.signed_in,
        actor.rules_everything,
        actor.token.role if actor.token else "",
        None if names is None else len(names),
    )


def stand_in(actor: Actor) -> Actor:
    """Return an actor of the same kind with placeholders for key and names."""
    if not actor.signed_in:
        return ANONYMOUS
    user = User(pk=KEY, is_active=True, is_superuser=actor.user.is_superuser)
    if actor.token is None:
        return Actor(user)
    names = marks(actor.only_namespaces) or []
    return Actor(user, token=ApiToken(user=user, role=actor.token.role, namespaces=names))


def values_for(actor: Actor) -> dict[Any, Any]:
    """Return the values of the placeholders of `stand_in`."""
    return values_of(actor.account.pk if actor.signed_in else 0, actor.only_namespaces)


@runtime_checkable
class Guarded(Protocol):
    """A row whose queryset has `with_perm(actor, perm)`."""

    pk: Any
    objects: Any


def may(actor: Actor, perm: Perm, guarded: Guarded) -> bool:
    return bool(type(guarded).objects.with_perm(actor, perm).filter(pk=guarded.pk).exists())


def require(actor: Actor, perm: Perm, guarded: Guarded) -> None:
    """Require a permission: the first line of every operation.

    Raises:
        NotSignedInError: nobody is signed in, and the public may not do this.
        AccessDeniedError: the roles of the actor do not permit it.
    """
    if may(actor, perm, guarded):
        return
    if not actor.signed_in:
        raise NotSignedInError(f"Sign-in is required ({perm.value} on {guarded}).")
    raise AccessDeniedError(f"You may not {perm.value} in {guarded}.")


def require_superuser(actor: Actor) -> None:
    if not actor.is_superuser:
        raise AccessDeniedError("Only an administrator of the installation may do this.")


def require_directory(actor: Actor) -> None:
    if not actor.directory:
        raise AccessDeniedError("Only a directory may provision accounts.")


def highest(roles: Sequence[Role]) -> Role | None:
    return max(roles, key=lambda role: len(ROLES[role]), default=None)
