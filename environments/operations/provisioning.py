"""Operations of SCIM provisioning: create, change and remove people and groups of a directory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from accounts import directories
from accounts.access import Actor, require_directory
from accounts.directories import Person
from accounts.models import DirectoryGroup, Identity, ProvisionedPerson, User
from accounts.provisioning import Provisioning
from condastore.errors import ConflictError, InvalidInputError
from environments.models import AuditEvent, audited
from environments.models.role_mappings import materialise

#: Number of members named in one audit event; the rest is counted.
MAX_NAMED_MEMBERS = 200
_LONGEST = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonAttributes:
    """Attributes of one person; `said` is stored unchanged, to be returned to the directory."""

    username: str
    external_id: str = ""
    active: bool = True
    email: str = ""
    first_name: str = ""
    last_name: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAttributes:
    """Attributes of one group; `members` are the keys of all its provisioned people."""

    name: str
    external_id: str = ""
    members: Collection[int] = ()


def people(actor: Actor) -> QuerySet[ProvisionedPerson]:
    """People provisioned by the actor's directory; others are not visible to it."""
    found = ProvisionedPerson.objects.filter(identity__directory=actor.directory or None)
    return found.select_related("identity__user").order_by("pk")


def groups(actor: Actor) -> QuerySet[DirectoryGroup]:
    found = DirectoryGroup.objects.filter(directory=actor.directory or None, provisioned=True)
    return found.order_by("pk")


def members(group: DirectoryGroup) -> QuerySet[ProvisionedPerson]:
    inside = ProvisionedPerson.objects.filter(identity__user__groups=group.group_id)
    return inside.filter(identity__directory=group.directory).order_by("pk")


def _scim() -> Provisioning:
    assert settings.SCIM is not None, "SCIM routes exist only if it is configured"
    return settings.SCIM


# --- people ---------------------------------------------------------------------------------------


@audited()
def add_person(*, actor: Actor, words: PersonAttributes) -> ProvisionedPerson:
    """Create the account of issuer and subject, or take over the one that has signed in before."""
    require_directory(actor)
    person = _person(words)
    _require_free(words)
    identity = _enrolled(person)
    if ProvisionedPerson.objects.filter(identity=identity).exists():
        raise _taken(_scim().subject, person.subject)
    try:
        with transaction.atomic():
            row = ProvisionedPerson.objects.create(
                identity=identity,
                username=words.username,
                external_id=words.external_id,
                said=dict(words.said),
            )
    except IntegrityError:  # created concurrently
        raise _taken("userName", words.username) from None
    _set_active(identity, words.active)
    AuditEvent.record(actor, "account.provision", identity.user, {"subject": person.subject})
    return row


@audited()
def change_person(
    *, actor: Actor, row: ProvisionedPerson, words: PersonAttributes
) -> ProvisionedPerson:
    """Change a person; the user name stays as it was first, as a namespace may have that name."""
    require_directory(actor)
    row = people(actor).select_for_update(of=("self",)).get(pk=row.pk)
    person = _person(words)
    _require_free(words, but=row)
    identity = row.identity
    changes: dict[str, Any] = {}
    if identity.subject != person.subject:
        same = Identity.objects.filter(issuer=identity.issuer, subject=person.subject)
        if same.exists():
            raise _taken(_scim().subject, person.subject)
        changes["subject"] = [identity.subject, person.subject]
        identity.subject = person.subject
        identity.save(update_fields=["subject"])
    directories.enrol(person)
    identity.refresh_from_db()
    for name, value in (
        ("username", words.username),
        ("external_id", words.external_id),
        ("said", dict(words.said)),
    ):
        if getattr(row, name) != value:
            changes.setdefault(name, [getattr(row, name), value] if name != "said" else "changed")
            setattr(row, name, value)
    row.save()
    before = row.active
    _set_active(identity, words.active)
    if row.active != before:
        changes["active"] = row.active
    if changes:
        AuditEvent.record(actor, "account.provision", identity.user, changes)
    return row


@audited()
def remove_person(*, actor: Actor, row: ProvisionedPerson) -> None:
    """Close the account with its groups, sessions and tokens; its builds stay its own."""
    require_directory(actor)
    row = people(actor).select_for_update(of=("self",)).get(pk=row.pk)
    directories.lost(row.identity)
    row.delete()
    AuditEvent.record(actor, "account.deprovision", row.identity.user)


def _person(words: PersonAttributes) -> Person:
    scim = _scim()
    subject = words.external_id if scim.subject == "externalId" else words.username
    if not subject:
        raise InvalidInputError(
            f"{scim.subject} is required: it identifies the person at sign-in.",
            where=scim.subject,
            hint="Map it to the subject of the identity provider.",
        )
    for name, value in (("userName", words.username), ("externalId", words.external_id)):
        if len(value) > _LONGEST:
            raise InvalidInputError(f"{name} has at most {_LONGEST} characters.", where=name)
    return Person(
        directory=scim.directory,
        issuer=scim.issuer,
        subject=subject,
        username=words.username,
        email=words.email,
        first_name=words.first_name,
        last_name=words.last_name,
    )


def _enrolled(person: Person) -> Identity:
    try:
        with transaction.atomic():
            return directories.enrol(person)
    except IntegrityError:  # the person is signing in concurrently
        return directories.enrol(person)


def _require_free(words: PersonAttributes, *, but: ProvisionedPerson | None = None) -> None:
    others = ProvisionedPerson.objects.all()
    if but is not None:
        others = others.exclude(pk=but.pk)
    if others.filter(username__iexact=words.username).exists():
        raise _taken("userName", words.username)


def _taken(attribute: str, value: str) -> ConflictError:
    return ConflictError(f"The {attribute} {value!r} is already in use.", where=attribute)


def _set_active(identity: Identity, active: bool) -> None:
    if active:
        directories.restore(identity)
    else:
        directories.suspend(identity)


# --- groups ---------------------------------------------------------------------------------------


@audited()
def add_group(*, actor: Actor, words: GroupAttributes) -> DirectoryGroup:
    """Create a group, or take over one that sign-ins have mirrored so far."""
    require_directory(actor)
    name = _group_name(words)
    mirrors = DirectoryGroup.objects.select_for_update().filter(directory=actor.directory)
    group = mirrors.filter(name=name).first()
    if group is not None and group.provisioned:
        raise _taken("displayName", name)
    try:
        with transaction.atomic():
            group = group or directories.make_mirror(actor.directory, name)
    except IntegrityError:  # created concurrently
        raise _taken("displayName", name) from None
    group.provisioned, group.external_id = True, words.external_id
    group.save()
    changes = _set_members(actor, group, words.members)
    materialise(groups=[group.group])
    AuditEvent.record(actor, "group.provision", group, {"created": True} | changes)
    return group


@audited()
def change_group(*, actor: Actor, group: DirectoryGroup, words: GroupAttributes) -> DirectoryGroup:
    """Change a group; roles of its members by role mappings change at once."""
    require_directory(actor)
    group = groups(actor).select_for_update().get(pk=group.pk)
    name = _group_name(words)
    changes: dict[str, Any] = {}
    renamed = group.name != name
    if renamed:
        if DirectoryGroup.objects.filter(directory=group.directory, name=name).exists():
            raise _taken("displayName", name)
        changes["name"] = [group.name, name]
        group.name = name
        group.group.name = directories.mirrored_name(group.directory, name)
        group.group.save(update_fields=["name"])
    group.external_id = words.external_id
    group.save()
    changes |= _set_members(actor, group, words.members)
    if renamed:
        directories.mirror_administration(User.objects.filter(groups=group.group_id))
    if changes:
        materialise(groups=[group.group])
        AuditEvent.record(actor, "group.provision", group, changes)
    return group


@audited()
def remove_group(*, actor: Actor, group: DirectoryGroup) -> None:
    """Delete a group with the roles it gave."""
    require_directory(actor)
    group = groups(actor).select_for_update().get(pk=group.pk)
    inside = list(User.objects.filter(groups=group.group_id))
    name, count = str(group), len(inside)
    group.group.delete()
    directories.mirror_administration(inside)
    AuditEvent.record(actor, "group.deprovision", name, {"members": count})


def _group_name(words: GroupAttributes) -> str:
    name = words.name.strip()
    if not name or len(name) > _LONGEST:
        raise InvalidInputError(
            f"A group name has 1 to {_LONGEST} characters.", where="displayName"
        )
    return name


def _set_members(actor: Actor, group: DirectoryGroup, keys: Collection[int]) -> dict[str, Any]:
    requested = dict(
        people(actor)
        .filter(pk__in=set(keys))
        .values_list("identity__user", "identity__user__username")
    )
    if len(requested) != len(set(keys)):
        known = set(people(actor).filter(pk__in=set(keys)).values_list("pk", flat=True))
        missing = sorted(set(keys) - known)
        raise InvalidInputError(
            f"Unknown members: {', '.join(map(str, missing[:10]))}.",
            where="members",
            hint="Provision people before the groups that contain them.",
        )
    held = dict(User.objects.filter(groups=group.group_id).values_list("pk", "username"))
    added, removed = requested.keys() - held.keys(), held.keys() - requested.keys()
    group.group.user_set.add(*added)
    group.group.user_set.remove(*removed)
    directories.mirror_administration(User.objects.filter(pk__in=added | removed))
    reported = {"added": sorted(requested[key] for key in added)}
    reported["removed"] = sorted(held[key] for key in removed)
    return {
        key: names
        if len(names) <= MAX_NAMED_MEMBERS
        else [*names[:MAX_NAMED_MEMBERS], f"and {len(names) - MAX_NAMED_MEMBERS} more"]
        for key, names in reported.items()
        if names
    }
