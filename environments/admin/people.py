"""Who is here, who holds which role where, and by what: grants, groups, role mappings, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin
from django.contrib.auth.models import Group, Permission
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from accounts.access import Actor
from accounts.admin import OwnerLeft, UserAdmin
from accounts.models import ApiToken, User
from accounts.roles import Role
from condastore.errors import StoreError
from environments.admin.base import (
    BESIDE,
    Panel,
    Question,
    Room,
    actor_of,
    badge,
    link,
    list_url,
    moment,
)
from environments.admin.changelist import text_filter
from environments.models import (
    AuditEvent,
    MappedRole,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
    RoleMapping,
    audited,
)
from environments.models.namespaces import DECIDE_EVERYWHERE, READ_METRICS, RECALL_PACKAGES
from environments.operations import namespaces, people, role_mappings, tokens
from environments.services.orphaned_accounts import notify_orphaned

#: The permissions that mean something here; the rights of namespaces are roles.
GIVEN = (DECIDE_EVERYWHERE, RECALL_PACKAGES, READ_METRICS)


def role_of(codename: str) -> str:
    return codename.removeprefix("role_")


def permissions() -> QuerySet[Permission]:
    found = Permission.objects.filter(codename__in=GIVEN, content_type__app_label="environments")
    return found.select_related("content_type")


class Audited:
    """Django's own forms of accounts and groups: what they change is written to the audit log."""

    kind = "account"

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        with audited():
            return super().changeform_view(request, *args, **options)

    def changelist_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        with audited():
            return super().changelist_view(request, *args, **options)

    def delete_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        with audited():
            return super().delete_view(request, *args, **options)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        AuditEvent.record(actor_of(request), f"{self.kind}.create", obj, {"said": message})
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        AuditEvent.record(actor_of(request), f"{self.kind}.change", obj, {"said": message})
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for row in queryset:
            AuditEvent.record(actor_of(request), f"{self.kind}.delete", row)
        return super().log_deletions(request, queryset)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        if db_field.name in {"user_permissions", "permissions"}:
            options["queryset"] = permissions()
        if db_field.name == "groups":  # who is in the others, their directory says
            options["queryset"] = Group.objects.filter(mirror=None)
        return super().formfield_for_manytomany(db_field, request, **options)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actor_of(request).is_superuser

    def has_module_permission(self, request: HttpRequest) -> bool:
        return actor_of(request).is_superuser

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actor_of(request).is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actor_of(request).is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


admin.site.unregister(User)
admin.site.unregister(ApiToken)
admin.site.unregister(Group)


@admin.register(User)
class AccountRoom(Audited, UserAdmin):
    """An account is closed, never deleted: what it did stays its own."""

    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    paginator = Room.paginator
    show_facets = admin.ShowFacets.NEVER
    list_filter: Any = ("is_active", "is_superuser", "is_service", OwnerLeft)
    change_form_template = "admin/account_form.html"
    filter_horizontal: Any = ("groups", "user_permissions")
    fieldsets: Any = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        (
            "Rights in the whole installation",
            {"fields": ("is_active", "is_staff", "is_superuser", "user_permissions", "groups")},
        ),
        ("Service account", {"fields": ("is_service", "owner")}),
        ("Times", {"fields": ("last_login", "date_joined")}),
    )
    readonly_fields: Any = ("last_login", "date_joined")
    actions: Any = ("remove_second_factors", "make_password_link", "close")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Sequence[Any]:
        """What an account is, is said once: a person's does not become a service's."""
        given = super().get_readonly_fields(request, obj)
        return given if obj is None else (*given, "is_service")

    def user_change_password(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        with audited():
            return super().user_change_password(request, *args, **options)

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if change and "is_active" in form.changed_data and not obj.is_active:
            notify_orphaned(obj, by=actor_of(request))

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        mirrored = list(Group.objects.filter(user=form.instance).exclude(mirror=None))
        super().save_related(request, form, formsets, change)
        form.instance.groups.add(*mirrored)

    @admin.action(description="Close the selected accounts, with their tokens")
    def close(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        closed = 0
        for user in queryset.order_by("pk")[:BESIDE]:
            try:
                people.close_account(actor=actor_of(request), user=user)
                closed += 1
            except StoreError as error:
                self.message_user(request, f"{error} {error.hint}".strip(), "WARNING")
        self.message_user(request, f"{closed} closed.")

    @admin.action(description="Make a link that sets a new password (one account)")
    def make_password_link(
        self, request: HttpRequest, queryset: QuerySet[User]
    ) -> HttpResponse | None:
        if queryset.count() != 1:
            self.message_user(request, "Select one account.", "WARNING")
            return None
        user = queryset.get()
        try:
            link = people.make_password_link(
                actor=actor_of(request), user=user, site=request.build_absolute_uri("/")
            )
        except StoreError as error:
            self.message_user(request, f"{error} {error.hint}".strip(), "WARNING")
            return None
        minutes = settings.PASSWORD_RESET_TIMEOUT // 60
        context = {
            **admin.site.each_context(request),
            "opts": User._meta,
            "name": "Users",
            "title": f"A new password for {user.username}",
            "text": f"Hand this link to {user.username} over a private channel. It works "
            f"once, for {minutes} minutes, and is shown this once.",
            "rows": [link],
            "back": list_url(User),
        }
        return render(request, "admin/ask.html", context)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        if obj is not None:
            context["panels"] = _roles(obj)
        return super().render_change_form(request, context, *args, obj=obj, **options)


def _roles(user: User) -> Sequence[Panel]:
    own = NamespaceUserObjectPermission.objects.filter(user=user)
    shared = NamespaceGroupObjectPermission.objects.filter(group__user=user)
    mapped = MappedRole.objects.filter(Q(user=None) | Q(user=user), group__user=user)
    rows: list[Sequence[object]] = [
        (link(one.content_object), role_of(one.permission.codename), "a grant")
        for one in own.select_related("content_object", "permission")[:BESIDE]
    ]
    rows += [
        (
            link(one.content_object),
            role_of(one.permission.codename),
            f"a grant to the group {one.group}",
        )
        for one in shared.select_related("content_object", "permission", "group")[:BESIDE]
    ]
    rows += [
        (link(one.namespace), one.role, link(one.mapping, f"a mapping of {one.group}"))
        for one in mapped.select_related("namespace", "group", "mapping")[:BESIDE]
    ]
    held = ApiToken.objects.filter(user=user).order_by("-pk")[:BESIDE]
    mirrored = Group.objects.filter(user=user).exclude(mirror=None).order_by("name")
    return (
        Panel(title="Roles", headers=("Namespace", "Role", "By"), rows=rows),
        Panel(
            title="Groups, by its directory",
            headers=("Group",),
            rows=[(group.name,) for group in mirrored[:BESIDE]],
        ),
        Panel(
            title="API tokens",
            headers=("Token", "At most", "Until", "Last used"),
            rows=[
                (
                    link(token, token.name),
                    token.role or "all that the account may",
                    "revoked" if token.revoked_at else moment(token.expires_at),
                    moment(token.last_used_at),
                )
                for token in held
            ],
        ),
        Panel(
            title="What it did",
            headers=(),
            rows=(),
            more=list_url(AuditEvent, actor=user.username),
            empty="",
        ),
    )


@admin.register(Group)
class GroupRoom(Audited, GroupAdmin):
    """Groups of our own; those of a directory are only shown."""

    kind = "group"
    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    paginator = Room.paginator

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        allowed = super().has_change_permission(request, obj)
        return allowed and not hasattr(obj, "mirror")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and not hasattr(obj, "mirror")

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {}  # the one there is would delete groups of directories too


def _revoke(actor: Actor, row: ApiToken, answers: Mapping[str, Any]) -> None:
    tokens.revoke_token(actor=actor, token_id=row.pk)


@admin.register(ApiToken)
class TokenRoom(Room):
    """The secret is stored as its digest: nobody can show it again."""

    title = "API tokens"
    list_display = ("name", "user", "role", "namespaces", "shown_state", "used")
    list_filter = (
        ("revoked_at", admin.EmptyFieldListFilter),
        "role",
        text_filter("user", "user", "user__username"),
    )
    search_fields = ("name__startswith",)
    ordering = ("-pk",)
    facts = (
        "name",
        "user",
        "hint",
        "role",
        "namespaces",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
        "last_used_address",
    )
    questions = (
        Question(
            name="revoke",
            title="Revoke",
            text="What uses it is signed out at once.",
            do=_revoke,
            fits=lambda row: row.revoked_at is None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("user")

    @admin.display(description="state")
    def shown_state(self, token: ApiToken) -> object:
        return badge("revoked") if token.revoked_at else moment(token.expires_at)

    @admin.display(description="last used")
    def used(self, token: ApiToken) -> object:
        return moment(token.last_used_at) or "never"


# --- roles --------------------------------------------------------------------------------------


def _take_from_user(actor: Actor, row: Any, answers: Mapping[str, Any]) -> None:
    namespaces.revoke_role(actor=actor, namespace=row.content_object, user=row.user.username)


def _take_from_group(actor: Actor, row: Any, answers: Mapping[str, Any]) -> None:
    namespaces.revoke_role(actor=actor, namespace=row.content_object, group=row.group.name)


class GrantRoom(Room):
    """Who holds a role by a grant. It is given on the page of the namespace."""

    holder = ""
    list_display = ("who", "role", "place")
    facts = ("who", "role", "place")
    ordering = ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        return rows.select_related("content_object", "permission", self.holder)

    @admin.display
    def who(self, grant: Any) -> str:
        return str(getattr(grant, self.holder))

    @admin.display
    def role(self, grant: Any) -> str:
        return role_of(grant.permission.codename)

    @admin.display(description="namespace")
    def place(self, grant: Any) -> object:
        return str(grant.content_object)


_IN = text_filter("namespace", "namespace", "content_object__name", lower=True)
_TAKE = "The role is taken away at once; roles by groups and mappings stay."


@admin.register(NamespaceUserObjectPermission)
class UserGrantRoom(GrantRoom):
    title = "Roles of people"
    holder = "user"
    list_filter = (_IN, text_filter("user", "user", "user__username"))
    questions = (
        Question(name="take", title="Take away", text=_TAKE, do=_take_from_user, removes=True),
    )


@admin.register(NamespaceGroupObjectPermission)
class GroupGrantRoom(GrantRoom):
    title = "Roles of groups"
    holder = "group"
    list_filter = (_IN, text_filter("group", "group", "group__name"))
    questions = (
        Question(name="take", title="Take away", text=_TAKE, do=_take_from_group, removes=True),
    )


class MappingForm(forms.Form):
    group = forms.CharField(
        max_length=200, help_text="A directory's name, a colon, and a pattern: ldap:physics-*"
    )
    namespace = forms.CharField(
        max_length=200, help_text="A pattern, such as physics-*; or {username}, for personal ones."
    )
    role = forms.ChoiceField(choices=[(role.value, role.value) for role in Role])


def _map(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    made = role_mappings.add_role_mapping(
        actor=actor,
        group=answers["group"],
        namespace=answers["namespace"],
        role=Role(answers["role"]),
    )
    return f"{made}: it holds now."


def _unmap(actor: Actor, row: RoleMapping, answers: Mapping[str, Any]) -> str:
    said = f"{row}: it holds no more."
    role_mappings.remove_role_mapping(actor=actor, mapping=row)
    return said


@admin.register(RoleMapping)
class RoleMappingRoom(Room):
    """Added and removed; another pattern is another mapping."""

    list_display = ("group", "role", "namespace", "created_by", "created_at")
    list_select_related = ("created_by",)
    list_filter = ("role",)
    search_fields = ("group", "namespace")
    facts = ("group", "role", "namespace", "created_by", "created_at")
    questions = (
        Question(
            name="new",
            title="Add a role mapping",
            text="Members of the directory groups that match hold the role in the namespaces "
            "that match: those of today, and those who come.",
            do=_map,
            form=MappingForm,
            rows=False,
        ),
        Question(name="remove", title="Remove", do=_unmap, removes=True),
    )

    def panels(self, actor: Actor, row: RoleMapping) -> Sequence[Panel]:
        held = row.mapped.select_related("group", "namespace", "user").order_by("pk")
        return (
            Panel(
                title="What it comes to",
                headers=("Who", "Namespace"),
                rows=[
                    (f"{one.user or 'members'} of {one.group}", link(one.namespace))
                    for one in held[: 4 * BESIDE]
                ],
            ),
        )
