"""Accounts and groups of directories: identity by issuer and subject, mirrored groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import structlog
from django.conf import settings
from django.contrib.auth.models import Group
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.module_loading import import_string

from accounts.models import DirectoryGroup, Identity, User
from accounts.signals import account_closed, account_opened, groups_mirrored
from condastore.errors import AccessDeniedError, ConflictError, UnavailableError

logger = structlog.get_logger(__name__)
#: A round that would end more accounts than this number and this fraction is treated as a fault of
#: the directory (a filter, a missing permission) and ends none.
MOST_GONE, MOST_GONE_PART = 5, 0.2
#: Maximum accounts checked in one round.
ROUND = 500
_LONGEST_NAME = 150  # of a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A person as described by a directory, at a sign-in or a later check."""

    directory: str  # its name in the settings
    issuer: str
    subject: str
    username: str
    email: str = ""
    first_name: str = ""
    last_name: str = ""
    groups: frozenset[str] | None = None  # None: groups are unknown


class Directory(Protocol):
    """A directory that can be queried between sign-ins."""

    name: str

    def askable(self, identities: QuerySet[Identity]) -> QuerySet[Identity]:
        """Identities that can be checked."""

    def look_up(self, identity: Identity) -> Person | None:
        """Return the person, or None if removed or disabled.

        Raises:
            UnavailableError: it does not answer, or not reliably.
        """


# --- at a sign-in ---------------------------------------------------------------------------------


def welcome(person: Person, *, refresh_token: str = "") -> User:
    """Return the account of a person who signed in, created at the first sign-in.

    Raises:
        ConflictError: the user name belongs to another account.
        AccessDeniedError: the account was closed by an administrator, or by the directory (SCIM).
    """
    try:
        return _welcome(person, refresh_token)
    except IntegrityError:  # a concurrent sign-in of the same person created the account
        return _welcome(person, refresh_token)


@transaction.atomic
def _welcome(person: Person, refresh_token: str) -> User:
    identity = _known(person) or _first_time(person)
    if identity.gone_at is None and not identity.user.is_active:
        raise AccessDeniedError(
            f"The account {identity.user.username} is closed.",
            hint="Ask an administrator to open it.",
        )
    if identity.gone_at is not None and provisions(identity):
        raise AccessDeniedError(
            f"The directory has ended the account {identity.user.username}.",
            hint="Ask those who run the directory to assign you to condastore.",
        )
    identity.seen_at = timezone.now()
    if refresh_token:
        identity.refresh_token = refresh_token
    _follow(identity, person)
    restore(identity)  # it was closed because the directory no longer had the person
    if person.groups is not None:
        mirror_groups(identity.user, person.directory, person.groups)
    return identity.user


def provisions(identity: Identity) -> bool:
    """Whether the directory provisions its accounts itself (SCIM)."""
    return settings.SCIM is not None and identity.issuer == settings.SCIM.issuer


@transaction.atomic
def enrol(person: Person) -> Identity:
    """Return the identity of a person without a sign-in, created if it does not exist.

    Raises:
        ConflictError: the user name belongs to another account.
    """
    identity = _known(person) or _first_time(person)
    _follow(identity, person)
    return identity


def _known(person: Person) -> Identity | None:
    known = Identity.objects.select_for_update().select_related("user")
    return known.filter(issuer=person.issuer, subject=person.subject).first()


def _follow(identity: Identity, person: Person) -> None:
    """Store the directory's data of the person; the user name never changes."""
    identity.directory = person.directory
    identity.save()
    user = identity.user
    user.email = person.email[:254]
    user.first_name, user.last_name = person.first_name[:150], person.last_name[:150]
    user.save(update_fields=["email", "first_name", "last_name"])


def _first_time(person: Person) -> Identity:
    try:
        UnicodeUsernameValidator()(person.username)
    except ValidationError:
        raise ConflictError(
            f"{person.username!r} cannot be a user name here.",
            hint="An administrator can name another attribute of the directory for user names.",
        ) from None
    # Case-insensitive: a personal namespace has the name in lower case.
    if User.objects.filter(username__iexact=person.username).exists():
        logger.warning(
            "a directory's user name is taken",
            username=person.username,
            issuer=person.issuer,
            subject=person.subject,
        )
        raise ConflictError(
            f"The user name {person.username!r} belongs to another account.",
            hint="If it is yours, ask an administrator to add this identity to it: "
            f"{person.subject} at {person.issuer}.",
        )
    user = User(username=person.username[:_LONGEST_NAME])
    user.set_unusable_password()
    user.save()
    account_opened.send(sender=User, user=user, directory=person.directory)
    return Identity(user=user, issuer=person.issuer, subject=person.subject)


# --- groups ---------------------------------------------------------------------------------------


@transaction.atomic
def mirror_groups(user: User, directory: str, names: Iterable[str]) -> None:
    """Set the groups of `user` in the directory to `names`; other groups are not changed.

    Groups that the directory provisions by SCIM are not changed by a sign-in. Groups of different
    directories and local groups never share a row, so that none can forge another's.
    """
    mirrors = DirectoryGroup.objects.filter(directory=directory).select_related("group")
    other = set(mirrors.filter(provisioned=True).values_list("name", flat=True))
    requested = {name[:255] for name in names if name.strip()} - other
    mirrors = mirrors.filter(provisioned=False)
    held = {mirror.name: mirror.group for mirror in mirrors.filter(group__user=user)}
    known = {mirror.name: mirror.group for mirror in mirrors.filter(name__in=requested)}
    created = [make_mirror(directory, name).group for name in sorted(requested - set(known))]
    added = [known[name] for name in sorted(requested & set(known) - set(held))] + created
    removed = [held[name] for name in sorted(set(held) - requested)]
    _change_groups(user, directory, added=added, removed=removed, made=created)


@transaction.atomic
def leave_groups(user: User, directory: str) -> None:
    """Return the user's groups of the directory."""
    held = list(Group.objects.filter(user=user, mirror__directory=directory).order_by("name"))
    _change_groups(user, directory, added=(), removed=held, made=())


def _change_groups(
    user: User,
    directory: str,
    *,
    added: Sequence[Group],
    removed: Sequence[Group],
    made: Sequence[Group],
) -> None:
    if added:
        user.groups.add(*added)
    if removed:
        user.groups.remove(*removed)
    mirror_administration([user])
    groups_mirrored.send(
        sender=User,
        user=user,
        directory=directory,
        added=[group.name for group in added],
        removed=[group.name for group in removed],
        made=made,
    )


def make_mirror(directory: str, name: str, **values: Any) -> DirectoryGroup:
    group = Group.objects.create(name=mirrored_name(directory, name))
    return DirectoryGroup.objects.create(group=group, directory=directory, name=name, **values)


def mirrored_name(directory: str, name: str) -> str:
    """Return a unique local name of the group."""
    full = f"{directory}:{name}"
    if len(full) > _LONGEST_NAME or Group.objects.filter(name=full).exists():
        # Too long, or the name of a local group, which has other members.
        digest = hashlib.sha256(full.encode()).hexdigest()[:12]
        full = f"{full[: _LONGEST_NAME - 13]}~{digest}"
    return full


def mirror_administration(users: Iterable[User]) -> None:
    """Set the administrator flag by membership in CONDASTORE_ADMIN_GROUPS."""
    if not settings.ADMIN_GROUPS:
        return
    for user in users:
        mirrored = user.groups.exclude(mirror=None)
        runs = mirrored.filter(name__in=settings.ADMIN_GROUPS).exists()
        if (user.is_superuser, user.is_staff) != (runs, runs):
            user.is_superuser = user.is_staff = runs
            user.save(update_fields=["is_superuser", "is_staff"])


# --- who is gone ----------------------------------------------------------------------------------


@transaction.atomic
def lost(identity: Identity) -> None:
    """Handle a person whom the directory no longer has: groups go, and so may the account."""
    leave_groups(identity.user, identity.directory)
    suspend(identity)


@transaction.atomic
def suspend(identity: Identity) -> None:
    """Disable the account of a person whom the directory disabled, unless it has another identity.

    The groups stay with the closed account until the person returns; they grant nothing meanwhile.
    """
    user = identity.user
    if not user.is_active:
        return  # already closed; a directory must not reopen what an administrator closed
    identity.gone_at = timezone.now()
    identity.refresh_token = ""
    identity.save(update_fields=["gone_at", "sealed_refresh_token"])
    if user.identities.present().exists():
        leave_groups(user, identity.directory)
    else:
        close(user, directory=identity.directory)


@transaction.atomic
def restore(identity: Identity) -> None:
    """Reopen the account of a person, unless an administrator closed it."""
    if identity.gone_at is None:
        return
    identity.gone_at = None
    identity.save(update_fields=["gone_at"])
    user = identity.user
    if not user.is_active:
        user.is_active = True
        user.save(update_fields=["is_active"])
        account_opened.send(sender=User, user=user, directory=identity.directory)


@transaction.atomic
def close(user: User, *, directory: str = "") -> None:
    """Close the account and delete its tokens and sessions."""
    user.is_active = False
    user.set_unusable_password()  # sessions are bound to the password
    user.save(update_fields=["is_active", "password"])
    user.tokens.filter(revoked_at=None).update(revoked_at=timezone.now())
    account_closed.send(sender=User, user=user, directory=directory)


def directories() -> Sequence[Directory]:
    """Return the directories that can be queried; their libraries are imported lazily."""
    return [import_string(maker)(**options) for maker, options in settings.DIRECTORIES]


def check_people() -> None:
    """Check the accounts that a directory did not confirm recently."""
    before = timezone.now() - settings.DIRECTORY_INTERVAL / 2
    for directory in directories():
        try:
            check_directory(directory, before=before)
        except UnavailableError as error:
            logger.warning("a directory could not be asked", directory=directory.name, why=error)


def check_directory(directory: Directory, *, before: datetime) -> None:
    """Run one round: update groups and close accounts of removed people.

    Raises:
        UnavailableError: the directory did not answer; nothing was changed.
    """
    present = Identity.objects.present().filter(directory=directory.name, user__is_active=True)
    due = directory.askable(present.exclude(seen_at__gt=before))
    gone = []
    looked_at = 0
    for identity in due.select_related("user").order_by("seen_at", "pk")[:ROUND]:
        looked_at += 1
        person = directory.look_up(identity)
        if person is None:
            gone.append(identity)
        elif (person.issuer, person.subject) == (identity.issuer, identity.subject):
            _welcome(person, "")
    if len(gone) > max(MOST_GONE, MOST_GONE_PART * looked_at):
        logger.error(
            "a directory no longer knows too many at once; nobody was closed",
            directory=directory.name,
            gone=len(gone),
            looked_at=looked_at,
        )
        return
    for identity in gone:
        lost(identity)
