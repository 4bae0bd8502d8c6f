"""Conversion between SCIM resources (users, groups) and rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from django.conf import settings
from django.db.models import QuerySet
from django.http import HttpRequest
from scim2_models import (
    GroupMembership,
    InvalidValueException,
    Meta,
    PatchOp,
    Reference,
    Resource,
    ResponseParameters,
    SearchRequest,
)

from accounts.access import Actor
from accounts.models import DirectoryGroup, ProvisionedPerson
from environments.operations import provisioning
from environments.operations.provisioning import GroupAttributes, PersonAttributes
from environments.rest.scim.filters import Column, is_key
from environments.rest.scim.service import Group, Member, User

#: Attributes that are stored unchanged, beside those with a column.
_SAID = {"name", "display_name", "emails"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """Request models of one resource type, created once as it takes milliseconds."""

    search: type[SearchRequest[Any]]
    patch: type[PatchOp[Any]]
    parameters: type[ResponseParameters[Any]]


class Kind(Protocol):
    """A resource type: users or groups."""

    @property
    def model(self) -> type[Resource[Any]]: ...
    @property
    def messages(self) -> Messages: ...
    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, Column]: ...
    def rows(self, actor: Actor) -> QuerySet[Any]: ...
    def show(
        self, rows: Sequence[Any], root: str, *, asked: Callable[[str], bool]
    ) -> list[Any]: ...
    def add(self, actor: Actor, resource: Any) -> Any: ...
    def change(self, actor: Actor, row: Any, resource: Any) -> Any: ...
    def remove(self, actor: Actor, row: Any) -> None: ...


def root_of(request: HttpRequest) -> str:
    """Return the external base URL of SCIM."""
    public: str = settings.PUBLIC_URL or request.build_absolute_uri("/")
    return f"{public.rstrip('/')}/scim/v2"


def _meta(name: str, key: int, root: str) -> Meta:
    return Meta(resource_type=name, location=f"{root}/{name}s/{key}")


class People:
    model = User
    messages = Messages(
        search=SearchRequest[User], patch=PatchOp[User], parameters=ResponseParameters[User]
    )
    name = "User"
    columns: ClassVar[Mapping[str, Column]] = {
        "id": Column(lookup="pk", key=True),
        "username": Column(lookup="username"),
        "externalid": Column(lookup="external_id", exact=True),
        "emails": Column(lookup="identity__user__email"),
    }

    def rows(self, actor: Actor) -> QuerySet[ProvisionedPerson]:
        return provisioning.people(actor)

    def show(
        self, rows: Sequence[ProvisionedPerson], root: str, *, asked: Callable[[str], bool]
    ) -> list[User]:
        groups = _groups_of(rows) if asked("groups") else {}
        return [
            User(
                id=str(row.pk),
                external_id=row.external_id or None,
                user_name=row.username,
                active=row.active,
                groups=[
                    GroupMembership(
                        value=str(key),
                        ref=Reference(f"{root}/Groups/{key}"),
                        display=name,
                        type="direct",
                    )
                    for key, name in groups.get(row.identity.user_id, ())
                ]
                or None,
                meta=_meta(self.name, row.pk, root),
                **row.said,
            )
            for row in rows
        ]

    def add(self, actor: Actor, resource: User) -> ProvisionedPerson:
        return provisioning.add_person(actor=actor, words=self._words(resource, active=True))

    def change(self, actor: Actor, row: ProvisionedPerson, resource: User) -> ProvisionedPerson:
        words = self._words(resource, active=row.active)  # an absent attribute is not changed
        return provisioning.change_person(actor=actor, row=row, words=words)

    def remove(self, actor: Actor, row: ProvisionedPerson) -> None:
        provisioning.remove_person(actor=actor, row=row)

    def _words(self, resource: User, *, active: bool) -> PersonAttributes:
        name, emails = resource.name, resource.emails or []
        first = (name.given_name if name else "") or ""
        last = (name.family_name if name else "") or ""
        if not first and not last:
            last = (name.formatted if name else "") or resource.display_name or ""
        primary = next((one for one in emails if one.primary), emails[0] if emails else None)
        return PersonAttributes(
            username=resource.user_name or "",
            external_id=resource.external_id or "",
            active=active if resource.active is None else resource.active,
            email=str(primary.value or "") if primary else "",
            first_name=first,
            last_name=last,
            said=resource.model_dump(
                scim_ctx=None, mode="json", include=_SAID, exclude_none=True, by_alias=False
            ),
        )


def _groups_of(rows: Iterable[ProvisionedPerson]) -> Mapping[int, list[tuple[int, str]]]:
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)
    users = [row.identity.user_id for row in rows]
    inside = DirectoryGroup.objects.filter(
        provisioned=True,
        group__user__in=users,
        directory__in={row.identity.directory for row in rows},
    )
    for user, key, name in inside.order_by("pk").values_list("group__user", "pk", "name"):
        if user is not None:
            found[user].append((key, name))
    return found


class Groups:
    model = Group
    messages = Messages(
        search=SearchRequest[Group], patch=PatchOp[Group], parameters=ResponseParameters[Group]
    )
    name = "Group"
    columns: ClassVar[Mapping[str, Column]] = {
        "id": Column(lookup="pk", key=True),
        "displayname": Column(lookup="name"),
        "externalid": Column(lookup="external_id", exact=True),
        "members": Column(lookup="group__user__identities__provisioned", key=True),
    }

    def rows(self, actor: Actor) -> QuerySet[DirectoryGroup]:
        return provisioning.groups(actor)

    def show(
        self, rows: Sequence[DirectoryGroup], root: str, *, asked: Callable[[str], bool]
    ) -> list[Group]:
        inside = _members_of(rows) if asked("members") else {}
        return [
            Group(
                id=str(row.pk),
                external_id=row.external_id or None,
                display_name=row.name,
                members=[
                    Member(value=str(key), ref=Reference(f"{root}/Users/{key}"), type="User")
                    for key in inside.get(row.group_id, ())
                ]
                or None,
                meta=_meta(self.name, row.pk, root),
            )
            for row in rows
        ]

    def add(self, actor: Actor, resource: Group) -> DirectoryGroup:
        return provisioning.add_group(actor=actor, words=self._words(resource))

    def change(self, actor: Actor, row: DirectoryGroup, resource: Group) -> DirectoryGroup:
        return provisioning.change_group(actor=actor, group=row, words=self._words(resource))

    def remove(self, actor: Actor, row: DirectoryGroup) -> None:
        provisioning.remove_group(actor=actor, group=row)

    def _words(self, resource: Group) -> GroupAttributes:
        members = resource.members or []
        if any((one.type or "User").lower() != "user" for one in members):
            raise InvalidValueException(
                detail="Members of groups must be users: nested groups would grant nobody "
                "its rights. Provision the people themselves as members."
            )
        values = [one.value or "" for one in members]
        if wrong := [value for value in values if not is_key(value)]:
            raise InvalidValueException(detail=f"User {', '.join(wrong[:10])} does not exist.")
        return GroupAttributes(
            name=resource.display_name or "",
            external_id=resource.external_id or "",
            members=frozenset(map(int, values)),
        )


def _members_of(rows: Iterable[DirectoryGroup]) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    people = ProvisionedPerson.objects.filter(
        identity__user__groups__in=[row.group_id for row in rows],
        identity__directory__in={row.directory for row in rows},
    )
    for group, key in people.order_by("pk").values_list("identity__user__groups", "pk"):
        if group is not None:
            found[group].append(key)
    return found


PEOPLE, GROUPS = People(), Groups()
