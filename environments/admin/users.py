"""Users and groups: invitations, password links, second factors, closing accounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from allauth.mfa.models import Authenticator
from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse

from accounts.access import Actor
from accounts.models import OWNER_LEFT, ApiToken, Identity, User
from accounts.password_reset import by_mail, may_reset
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ConsoleList
from environments.admin.confirmed_actions import ConfirmedAction, OneTimeText, actor_of
from environments.admin.display import (
    RELATED_ROWS,
    RelatedTable,
    badge,
    link,
    list_url,
    relative_time,
)
from environments.admin.filters import date_range, flag_filter
from environments.admin.roles import role_of
from environments.models import (
    AuditEvent,
    MappedRole,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
    audited,
)
from environments.models.namespaces import DECIDE_EVERYWHERE, READ_METRICS, RECALL_PACKAGES
from environments.operations import people
from environments.services.orphaned_accounts import notify_orphaned

#: Permissions that apply to the whole installation; rights in a namespace are roles.
GLOBAL_PERMISSIONS = (DECIDE_EVERYWHERE, RECALL_PACKAGES, READ_METRICS)
LINK_TEXT = (
    "Give this link to {user} over a private channel. It sets the password once, and is shown "
    "only now."
)


def global_permissions() -> QuerySet[Permission]:
    found = Permission.objects.filter(
        codename__in=GLOBAL_PERMISSIONS, content_type__app_label="environments"
    )
    return found.select_related("content_type")


class PermissionsField(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Check boxes of the permissions that apply to the whole installation."""

    widget = forms.CheckboxSelectMultiple

    def label_from_instance(self, obj: Any) -> str:
        return str(obj.name)


class AuditedAdmin(ConsoleList):
    """Base of the editable pages of users and groups: records changes in the audit log."""

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
            return PermissionsField(
                global_permissions(),
                required=False,
                label="Permissions",
                help_text="These apply to all namespaces. Rights in one namespace are roles.",
            )
        if db_field.name == "groups":  # the members of the others are mirrored from a directory
            options["queryset"] = Group.objects.filter(mirror=None).order_by("name")
            options["widget"] = forms.CheckboxSelectMultiple
            field = super().formfield_for_manytomany(db_field, request, **options)
            if field is not None:
                field.help_text = "Groups of a directory are listed below; they follow it."
            return field
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

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        context["name"] = self.name
        if obj is not None:
            context["tools"] = self.row_tools(request, obj)
        return super().render_change_form(request, context, *args, obj=obj, **options)


# --- users --------------------------------------------------------------------------------------


class OwnerLeftFilter(admin.SimpleListFilter):
    title = "owner"
    parameter_name = "owner"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("left", "Service accounts without an active owner")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(OWNER_LEFT) if self.value() == "left" else queryset


class OwnerField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """The owner of a service account, typed as a user name: there may be many users."""

    widget = forms.TextInput

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, int):  # the key of the current owner
            return User.objects.filter(pk=value).values_list("username", flat=True).first()
        return super().prepare_value(value)


class IdentityInline(admin.TabularInline):  # type: ignore[type-arg]
    """Identities at directories. Added by hand for accounts that are older than the directory."""

    model = Identity
    extra = 0
    readonly_fields = ("seen_at", "gone_at")


class UserForm(forms.ModelForm):  # type: ignore[type-arg]
    """Without the password: it is set by its owner, through a link."""

    class Meta:
        model = User
        fields = (
            "username",
            "first_name",
            "last_name",
            "email",
            "is_active",
            "is_staff",
            "is_superuser",
            "user_permissions",
            "groups",
            "is_service",
            "owner",
        )
        labels = {
            "is_active": "Active",
            "is_staff": "Opens the console",
            "is_superuser": "Administrator of the installation",
            "is_service": "Service account",
        }
        help_texts = {
            "username": "Letters, digits and @ . + - _ only; at most 150 characters.",
            "email": "Receives notifications and password links.",
            "is_active": "If off, the user cannot sign in and their tokens do not work. Accounts "
            "are closed, not deleted, so that the history stays readable.",
            "is_staff": "The user may open this console. Approvers and namespace admins may do so "
            "in any case. What the console shows depends on the user's rights.",
            "is_superuser": "The user may do everything, in all namespaces.",
            "is_service": "A service account signs in with API tokens only.",
        }


DELIVERIES = (
    ("mail", "send it by e-mail"),
    ("link", "show it here, to hand it over"),
)


class DeliveryForm(forms.Form):
    """How a link reaches its user; mail is offered only if the server sends mail."""

    delivery = forms.ChoiceField(
        label="Link", choices=DELIVERIES, widget=forms.RadioSelect, initial="mail"
    )

    def __init__(self, *args: Any, site: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.site = site
        if not by_mail():
            field: Any = self.fields["delivery"]
            field.choices = DELIVERIES[1:]
            field.initial = "link"
            field.help_text = "This server sends no e-mail."

    def clean(self) -> dict[str, Any]:
        return {**(super().clean() or {}), "site": self.site}


class InviteForm(DeliveryForm):
    username = forms.CharField(
        label="User name",
        max_length=150,
        validators=[UnicodeUsernameValidator()],
        help_text="Letters, digits and @ . + - _ only.",
    )
    email = forms.EmailField(label="E-mail address", required=False, max_length=254)
    first_name = forms.CharField(required=False, max_length=150)
    last_name = forms.CharField(required=False, max_length=150)
    administrator = forms.BooleanField(
        required=False,
        label="Administrator of the installation",
        help_text="The user may do everything, in all namespaces.",
    )
    field_order = ("username", "email", "first_name", "last_name", "administrator", "delivery")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if cleaned.get("delivery") == "mail" and "email" in cleaned and not cleaned["email"]:
            self.add_error("email", "An e-mail address is needed to send the link.")
        return cleaned


def _invite(actor: Actor, row: None, answers: Mapping[str, Any]) -> str | OneTimeText:
    mail = answers["delivery"] == "mail"
    invited = people.invite(
        actor=actor,
        username=answers["username"],
        email=answers["email"],
        first_name=answers["first_name"],
        last_name=answers["last_name"],
        administrator=answers["administrator"],
        mail=mail,
        site=answers["site"],
    )
    name = invited.user.username
    if mail:
        return f"{name} was created, and the invitation is sent to {invited.user.email}."
    return OneTimeText(
        title=f"{name} was created", text=LINK_TEXT.format(user=name), value=invited.link
    )


def _password_link(actor: Actor, row: User, answers: Mapping[str, Any]) -> str | OneTimeText:
    if answers["delivery"] == "mail":
        people.mail_password_link(actor=actor, user=row)
        return f"A link that sets a new password is sent to {row.email}."
    url = people.make_password_link(actor=actor, user=row, site=answers["site"])
    text = LINK_TEXT.format(user=row.username)
    return OneTimeText(title=f"New password for {row.username}", text=text, value=url)


def _reset_second_factors(actor: Actor, row: User, answers: Mapping[str, Any]) -> str:
    removed = people.reset_second_factors(actor=actor, user=row)
    return f"Removed {removed} second factor{'' if removed == 1 else 's'} of {row.username}."


def _close(actor: Actor, row: User, answers: Mapping[str, Any]) -> str:
    people.close_account(actor=actor, user=row)
    return f"The account {row.username} was closed."


admin.site.unregister(Group)


@admin.register(User)
class AccountAdmin(AuditedAdmin, DjangoUserAdmin):  # type: ignore[type-arg]
    """Users and service accounts. Accounts are closed, never deleted."""

    title = "Users"
    console_group, console_position = ConsoleGroup.PEOPLE, 1
    form = UserForm
    list_display = (
        "username",
        "full_name",
        "email",
        "shown_state",
        "shown_rights",
        "service",
        "last_sign_in",
    )
    export_fields = (
        "username",
        "first_name",
        "last_name",
        "email",
        "is_active",
        "is_staff",
        "is_superuser",
        "is_service",
        "owner",
        "date_joined",
        "last_login",
    )
    list_select_related = ("owner",)
    list_filter: Any = (
        ("is_active", flag_filter("state", yes="Active", no="Inactive")),
        ("is_superuser", flag_filter("role", yes="Administrators", no="Other accounts")),
        ("is_service", flag_filter("kind", yes="Service accounts", no="People")),
        OwnerLeftFilter,
        date_range("date_joined", "creation"),
        date_range("last_login", "last sign-in", prefix="login_"),
    )
    sortable_by: Any = ("username", "email")
    search_help_text = "Part of a user name, a name or an e-mail address."
    inlines = (IdentityInline,)
    change_form_template = "admin/account_form.html"
    filter_horizontal: Any = ()
    fieldsets: Any = (
        (None, {"fields": ("username", "first_name", "last_name", "email")}),
        ("Sign-in", {"fields": ("sign_in", "second_factors", "last_login", "date_joined")}),
        (
            "Rights in the whole installation",
            {"fields": ("is_active", "is_staff", "is_superuser", "user_permissions", "groups")},
        ),
        ("Service account", {"fields": ("is_service", "owner")}),
    )
    readonly_fields: Any = ("sign_in", "second_factors", "last_login", "date_joined", "is_service")
    confirmed_actions = (
        ConfirmedAction(
            name="invite",
            title="Invite a user",
            text="Creates an account without a password, and a link that sets it.",
            run=_invite,
            form=InviteForm,
            prefilled=False,  # a link must not choose the address and the rights
            rows=False,
        ),
        ConfirmedAction(
            name="password-link",
            title="Password link",
            text="A link that sets a new password. The current password works until it is used.",
            run=_password_link,
            form=DeliveryForm,
            single=True,
            applies_to=may_reset,
        ),
        ConfirmedAction(
            name="reset-second-factors",
            title="Reset second factors",
            text="Removes authenticator apps, security keys and recovery codes, for somebody who "
            "has lost their devices. Make sure that the request is genuine.",
            run=_reset_second_factors,
            applies_to=lambda row: Authenticator.objects.filter(user=row).exists(),
        ),
        ConfirmedAction(
            name="close",
            title="Close",
            text="The user can no longer sign in, and their tokens are revoked. An administrator "
            "can open the account again.",
            run=_close,
            applies_to=lambda row: row.is_active,
        ),
    )

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # see the action `invite`; service accounts are created by their owners

    def get_form(self, request: HttpRequest, obj: Any = None, **options: Any) -> Any:
        # UserAdmin would use its form for new users where there is no row.
        return admin.ModelAdmin.get_form(self, request, obj, **options)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fieldsets

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        if action.name not in {"invite", "password-link"}:
            return {}
        return {"site": request.build_absolute_uri("/")}

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        if db_field.name == "owner":
            return OwnerField(
                User.objects.filter(is_service=False),
                to_field_name="username",
                required=False,
                help_text="User name of the person responsible for a service account.",
                error_messages={"invalid_choice": "There is no user with this name."},
            )
        return super().formfield_for_foreignkey(db_field, request, **options)

    def row_tools(self, request: HttpRequest, row: Any) -> list[tuple[str, str]]:
        tools = super().row_tools(request, row)
        if may_reset(row):
            url = reverse("admin:auth_user_password_change", args=[row.pk])
            tools.append(("Set the password", url))
        return tools

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

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        if obj is not None:
            context["related_tables"] = _tables(obj)
        return super().render_change_form(request, context, *args, obj=obj, **options)

    @admin.display(description="name")
    def full_name(self, user: User) -> str:
        return user.get_full_name()

    @admin.display(description="state")
    def shown_state(self, user: User) -> object:
        return badge("active" if user.is_active else "closed")

    @admin.display(description="rights")
    def shown_rights(self, user: User) -> str:
        if user.is_superuser:
            return "administrator"
        return "console" if user.is_staff else ""

    @admin.display(description="service account")
    def service(self, user: User) -> str:
        if not user.is_service:
            return ""
        owner = user.owner.username if user.owner else "nobody"
        return f"of {owner}, who has left" if user.owner_left else f"of {owner}"

    @admin.display(description="last sign-in")
    def last_sign_in(self, user: User) -> object:
        return relative_time(user.last_login) or "never"

    @admin.display(description="signs in with")
    def sign_in(self, user: User) -> str:
        if user.is_service:
            return "API tokens"
        directories = sorted({one.directory for one in user.identities.all() if not one.gone_at})
        if directories:
            return f"the directory {', '.join(directories)}"
        if not may_reset(user):
            return "nothing at present"
        return "a password" if user.has_usable_password() else "nothing yet: no password is set"

    @admin.display(description="second factors")
    def second_factors(self, user: User) -> str:
        kinds = Authenticator.objects.filter(user=user).order_by("type").values_list("type")
        labels = dict(Authenticator.Type.choices)
        return ", ".join(str(labels.get(kind, kind)) for (kind,) in kinds) or "none"


def _tables(user: User) -> Sequence[RelatedTable]:
    own = NamespaceUserObjectPermission.objects.filter(user=user)
    shared = NamespaceGroupObjectPermission.objects.filter(group__user=user)
    mapped = MappedRole.objects.filter(Q(user=None) | Q(user=user), group__user=user)
    rows: list[Sequence[object]] = [
        (link(one.content_object), role_of(one.permission.codename), "grant")
        for one in own.select_related("content_object", "permission")[:RELATED_ROWS]
    ]
    rows += [
        (
            link(one.content_object),
            role_of(one.permission.codename),
            f"grant to the group {one.group}",
        )
        for one in shared.select_related("content_object", "permission", "group")[:RELATED_ROWS]
    ]
    rows += [
        (link(one.namespace), one.role, link(one.mapping, f"mapping of {one.group}"))
        for one in mapped.select_related("namespace", "group", "mapping")[:RELATED_ROWS]
    ]
    newest = ApiToken.objects.filter(user=user).order_by("-pk")[:RELATED_ROWS]
    mirrored = Group.objects.filter(user=user).exclude(mirror=None).order_by("name")
    return (
        RelatedTable(title="Roles", headers=("Namespace", "Role", "Through"), rows=rows),
        RelatedTable(
            title="Groups of directories",
            headers=("Group",),
            rows=[(group.name,) for group in mirrored[:RELATED_ROWS]],
        ),
        RelatedTable(
            title="API tokens",
            headers=("Token", "Limited to", "Expires", "Last used"),
            rows=[
                (
                    link(token, token.name),
                    token.role or "all rights of the user",
                    "revoked" if token.revoked_at else relative_time(token.expires_at),
                    relative_time(token.last_used_at) or "never",
                )
                for token in newest
            ],
        ),
        RelatedTable(
            title="Activity",
            headers=(),
            rows=(),
            more=list_url(AuditEvent, actor=user.username),
            empty="",
        ),
    )


# --- groups -------------------------------------------------------------------------------------


@admin.register(Group)
class GroupAdmin(AuditedAdmin, DjangoGroupAdmin):
    """Local groups can be edited; groups of a directory are only shown."""

    title = "Groups"
    console_group, console_position = ConsoleGroup.PEOPLE, 2
    kind = "group"
    change_form_template = "admin/account_form.html"
    filter_horizontal: Any = ()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        allowed = super().has_change_permission(request, obj)
        return allowed and not hasattr(obj, "mirror")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and not hasattr(obj, "mirror")

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {}  # Django's action would delete groups of directories too
