"""Roles in namespaces: grants to users and groups, and role mappings of directory groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from accounts.roles import Role
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction
from environments.admin.display import RELATED_ROWS, RelatedTable, link, relative_time
from environments.admin.filters import date_range, text_filter
from environments.models import (
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
    RoleMapping,
)
from environments.operations import namespaces, role_mappings


def role_of(codename: str) -> str:
    return codename.removeprefix("role_")


def _revoke_from_user(actor: Actor, row: Any, answers: Mapping[str, Any]) -> None:
    namespaces.revoke_role(actor=actor, namespace=row.content_object, user=row.user.username)


def _revoke_from_group(actor: Actor, row: Any, answers: Mapping[str, Any]) -> None:
    namespaces.revoke_role(actor=actor, namespace=row.content_object, group=row.group.name)


class GrantAdmin(ReadOnlyAdmin):
    """Granted roles. They are granted on the page of the namespace."""

    holder = ""
    list_display = ("grantee", "role", "namespace")
    fields = ("grantee", "role", "namespace")
    ordering = ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        return rows.select_related("content_object", "permission", self.holder)

    @admin.display(description="granted to")
    def grantee(self, grant: Any) -> str:
        return str(getattr(grant, self.holder))

    @admin.display
    def role(self, grant: Any) -> str:
        return role_of(grant.permission.codename)

    @admin.display(description="namespace")
    def namespace(self, grant: Any) -> object:
        return str(grant.content_object)


_IN = text_filter("namespace", "namespace", "content_object__name", lower=True)
_REVOKE_TEXT = "The role is revoked at once. Roles through groups and mappings stay."


@admin.register(NamespaceUserObjectPermission)
class UserGrantAdmin(GrantAdmin):
    title = "Roles of users"
    console_group, console_position = ConsoleGroup.PEOPLE, 3
    holder = "user"
    list_filter = (_IN, text_filter("user", "user", "user__username"))
    confirmed_actions = (
        ConfirmedAction(
            name="revoke", title="Revoke", text=_REVOKE_TEXT, run=_revoke_from_user, deletes=True
        ),
    )


@admin.register(NamespaceGroupObjectPermission)
class GroupGrantAdmin(GrantAdmin):
    title = "Roles of groups"
    console_group, console_position = ConsoleGroup.PEOPLE, 4
    holder = "group"
    list_filter = (_IN, text_filter("group", "group", "group__name"))
    confirmed_actions = (
        ConfirmedAction(
            name="revoke", title="Revoke", text=_REVOKE_TEXT, run=_revoke_from_group, deletes=True
        ),
    )


class MappingForm(forms.Form):
    group = forms.CharField(
        max_length=200, help_text="Name of a directory, a colon and a pattern: ldap:physics-*"
    )
    namespace = forms.CharField(
        max_length=200,
        help_text="A pattern such as physics-*, or {username} for personal namespaces.",
    )
    role = forms.ChoiceField(choices=[(role.value, role.value) for role in Role])


def _map(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    mapping = role_mappings.add_role_mapping(
        actor=actor,
        group=answers["group"],
        namespace=answers["namespace"],
        role=Role(answers["role"]),
    )
    return f"{mapping}: the mapping was added."


def _unmap(actor: Actor, row: RoleMapping, answers: Mapping[str, Any]) -> str:
    text = f"{row}: the mapping was removed."
    role_mappings.remove_role_mapping(actor=actor, mapping=row)
    return text


@admin.register(RoleMapping)
class RoleMappingAdmin(ReadOnlyAdmin):
    """Role mappings are added and removed; to change a pattern, add another mapping."""

    title = "Role mappings"
    console_group, console_position = ConsoleGroup.PEOPLE, 5
    list_display = ("group", "role", "namespace", "created_by", "created")
    list_select_related = ("created_by",)
    list_filter = ("role", date_range("created_at", "creation"))
    search_fields = ("group", "namespace")
    fields = ("group", "role", "namespace", "created_by", "created_at")
    confirmed_actions = (
        ConfirmedAction(
            name="new",
            title="Add a role mapping",
            text="Members of the directory groups that match get the role in the namespaces that "
            "match, now and in the future.",
            run=_map,
            form=MappingForm,
            rows=False,
        ),
        ConfirmedAction(name="remove", title="Remove", run=_unmap, deletes=True),
    )

    @admin.display(description="created")
    def created(self, mapping: RoleMapping) -> object:
        return relative_time(mapping.created_at)

    def related_tables(self, actor: Actor, row: RoleMapping) -> Sequence[RelatedTable]:
        held = row.mapped.select_related("group", "namespace", "user").order_by("pk")
        return (
            RelatedTable(
                title="Resulting roles",
                headers=("Who", "Namespace"),
                rows=[
                    (f"{one.user or 'members'} of {one.group}", link(one.namespace))
                    for one in held[: 4 * RELATED_ROWS]
                ],
            ),
        )
