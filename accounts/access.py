"""May this actor do that to this object? The one check of rights.

What a list shows and what a check says come from the same query (`with_perm`), so they agree.
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
    """Who asks: a user or nobody, by which token (if any), from which address.

    Or a directory, that tells of its people and is nobody's account. `session` is the key of the
    browser's session, by which a long answer asks again whether it lasts.
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
        """The signed-in user; NotSignedInError for everybody else."""
        if not isinstance(self.user, User) or not self.user.is_active:
            raise NotSignedInError("This needs a sign-in.")
        return self.user

    @property
    def is_superuser(self) -> bool:
        """Runs the installation. A token with a ceiling never does."""
        return (
            self.signed_in
            and self.user.is_superuser
            and (self.token is None or (not self.token.role and not self.token.namespaces))
        )

    @property
    def rules_everything(self) -> bool:
        """In each namespace that its token is not kept out of, without holding a role there."""
        ceiling = self.token.ceiling if self.token else None
        return self.signed_in and self.user.is_superuser and ceiling is None

    @property
    def sees_everything(self) -> bool:
        return self.rules_everything and self.only_namespaces is None

    @property
    def name(self) -> str:
        if self.directory:
            return f"directory:{self.directory}"  # no account's name has a colon
        return self.user.get_username() if self.signed_in else "anonymous"

    def allows(self, perm: Perm) -> bool:
        """False where the token's ceiling forbids it, whatever roles the user holds."""
        ceiling = self.token.ceiling if self.token else None
        return ceiling is None or perm in ROLES[ceiling]

    @property
    def only_namespaces(self) -> Sequence[str] | None:
        """Names that the token is limited to; None for all."""
        return self.token.namespaces or None if self.token else None


ANONYMOUS = Actor(AnonymousUser())


def kind_of(actor: Actor) -> tuple[Hashable, ...]:
    """What the text of a statement with conditions of rights depends on (condastore.statements)."""
    names = actor.only_namespaces
    return (
        actor.signed_in,
        actor.rules_everything,
        actor.token.role if actor.token else "",
        None if names is None else len(names),
    )


def stand_in(actor: Actor) -> Actor:
    """An actor of the same kind, whose key and names are those that are replaced later."""
    if not actor.signed_in:
        return ANONYMOUS
    user = User(pk=KEY, is_active=True, is_superuser=actor.user.is_superuser)
    if actor.token is None:
        return Actor(user)
    names = marks(actor.only_namespaces) or []
    return Actor(user, token=ApiToken(user=user, role=actor.token.role, namespaces=names))


def values_for(actor: Actor) -> dict[Any, Any]:
    """What replaces the key and names of `stand_in`."""
    return values_of(actor.account.pk if actor.signed_in else 0, actor.only_namespaces)


@runtime_checkable
class Guarded(Protocol):
    """A row whose queryset knows `with_perm(actor, perm)`."""

    pk: Any
    objects: Any


def may(actor: Actor, perm: Perm, guarded: Guarded) -> bool:
    return bool(type(guarded).objects.with_perm(actor, perm).filter(pk=guarded.pk).exists())


def require(actor: Actor, perm: Perm, guarded: Guarded) -> None:
    """First line of every operation.

    Raises:
        NotSignedInError: nobody is signed in, and nobody may do this signed out.
        AccessDeniedError: the actor's roles do not allow it.
    """
    if may(actor, perm, guarded):
        return
    if not actor.signed_in:
        raise NotSignedInError(f"This needs a sign-in ({perm.value} on {guarded}).")
    raise AccessDeniedError(f"You may not {perm.value} in {guarded}.")


def require_superuser(actor: Actor) -> None:
    if not actor.is_superuser:
        raise AccessDeniedError("Only an administrator of the installation may do this.")


def require_directory(actor: Actor) -> None:
    if not actor.directory:
        raise AccessDeniedError("Only a directory may tell of its people.")


def highest(roles: Sequence[Role]) -> Role | None:
    return max(roles, key=lambda role: len(ROLES[role]), default=None)
