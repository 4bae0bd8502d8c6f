"""Namespaces: quotas and their use, members, base image and switches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from accounts.access import Actor
from accounts.roles import Role
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction
from environments.admin.display import (
    RELATED_ROWS,
    RelatedTable,
    link,
    list_url,
    relative_time,
    size,
)
from environments.admin.filters import date_range, flag_filter
from environments.domain.sizes import format_size, parse_size
from environments.models import Environment, Namespace, PolicyRule
from environments.operations import approvals, images, namespaces, quotas

BYTES = "bytes"


def amount(kind: quotas.Kind, number: int | None) -> str:
    if number is None:
        return "no limit"
    return format_size(number) if kind.name == BYTES else f"{number:,}"


def quota_status(use: quotas.Use) -> str:
    """Say whether the use is over or near its limit; "" otherwise."""
    if use.limit is not None and use.used > use.limit:
        return "over the limit"
    return "near the limit" if use.is_near() else ""


class SizeField(forms.CharField):
    """A size in bytes, typed as `5 GB`, `1.5 GiB` or a number; None for an empty field."""

    def prepare_value(self, value: Any) -> Any:
        return f"{value:,} B".replace(",", "") if isinstance(value, int) and value else value

    def clean(self, value: Any) -> int | None:
        text = super().clean(value)
        if not text:
            return None
        try:
            return parse_size(text)
        except ValueError:
            raise forms.ValidationError("Enter a size such as 5 GB.") from None


class QuotaForm(forms.Form):
    """Limits of a namespace; 0 means no limit, an empty field the installation's default."""

    bytes = SizeField(
        required=False, label="Disk space", help_text="Such as 5 GB, 1.5 TB or 500 GiB."
    )
    environments = forms.IntegerField(required=False, help_text="Number of environments.")
    builds_at_once = forms.IntegerField(
        required=False, label="Builds at once", help_text="Builds queued or running."
    )
    builds_a_day = forms.IntegerField(
        required=False, label="Builds per day", help_text="Builds submitted within 24 hours."
    )

    def __init__(self, *args: Any, namespace: Namespace | None = None, **options: Any) -> None:
        if namespace is not None:
            current = {kind.name: getattr(namespace, kind.limit) for kind in quotas.KINDS}
            options["initial"] = current | options.get("initial", {})
        super().__init__(*args, **options)


class BaseForm(forms.Form):
    base = forms.CharField(
        required=False,
        max_length=300,
        help_text="A reference such as registry.example.org/team/debian:12, or the name of a "
        "loaded image. Empty: the installation's default.",
    )

    def __init__(self, *args: Any, namespace: Namespace | None = None, **options: Any) -> None:
        if namespace is not None:
            options["initial"] = {"base": namespace.base_image} | options.get("initial", {})
        super().__init__(*args, **options)


class GrantForm(forms.Form):
    user = forms.CharField(required=False, max_length=150, help_text="User name. Or:")
    group = forms.CharField(required=False, max_length=150, help_text="Name of a group.")
    role = forms.ChoiceField(
        choices=[("", "none: revoke the role"), *((role.value, role.value) for role in Role)],
        required=False,
        help_text="Replaces the role that the user or group has now.",
    )


class NewNamespaceForm(forms.Form):
    name = forms.CharField(max_length=64)
    description = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    public = forms.BooleanField(
        required=False, help_text="Everyone may see and download its environments."
    )


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    created = namespaces.create_namespace(actor=actor, **answers)
    return f"{created} was created; you are its admin."


def _grant(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    holder = {"user": answers["user"].strip(), "group": answers["group"].strip()}
    who = holder["user"] or f"the group {holder['group']}"
    if not answers["role"]:
        namespaces.revoke_role(actor=actor, namespace=namespace, **holder)
        return f"{who} no longer has a granted role in {namespace}."
    role = Role(answers["role"])
    namespaces.grant_role(actor=actor, namespace=namespace, role=role, **holder)
    return f"{who} is now {role.value} in {namespace}."


def _two_people(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    two = not namespace.two_person_approval
    approvals.require_two_people(actor=actor, namespace=namespace, two=two)
    return f"{namespace} now requires {'two people' if two else 'one person'} to approve a package."


def _add_pip(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    on = not namespace.add_pip_as_python_dependency
    namespaces.set_add_pip(actor=actor, namespace=namespace, on=on)
    effect = "add pip as a dependency of Python" if on else "no longer add pip"
    return f"New solves in {namespace} {effect}."


def _quota(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    quotas.set_quota(actor=actor, namespace=namespace, limits=answers)
    return f"The quotas of {namespace} were set."


def _base(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    images.set_base_image(actor=actor, namespace=namespace, name=answers["base"])
    base = namespace.base_image or "the installation's default base image"
    return f"Container images of {namespace} are now based on {base}."


@admin.register(Namespace)
class NamespaceAdmin(ReadOnlyAdmin):
    title = "Namespaces"
    console_group, console_position = ConsoleGroup.ENVIRONMENTS, 1
    list_display = ("name", "environment_count", "personal", "public", "created")
    list_filter = (
        ("personal", flag_filter("kind", yes="Personal", no="Shared")),
        ("public", flag_filter("visibility", yes="Public", no="Private")),
        date_range("created_at", "creation"),
    )
    search_fields = ("name", "description")
    fields = (
        "name",
        "description",
        "personal",
        "public",
        "two_person_approval",
        "base_image",
        "add_pip_as_python_dependency",
        "created_at",
        "created_by",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="new", title="Add a namespace", run=_create, form=NewNamespaceForm, rows=False
        ),
        ConfirmedAction(
            name="quota",
            title="Set quotas",
            text="0 means no limit. An empty field means the installation's default.",
            run=_quota,
            form=QuotaForm,
        ),
        ConfirmedAction(name="base", title="Choose the base image", run=_base, form=BaseForm),
        ConfirmedAction(name="grant", title="Grant or revoke a role", run=_grant, form=GrantForm),
        ConfirmedAction(
            name="two-people",
            title="Switch two-person approval",
            text="If it is on, two people must agree before a package is approved.",
            run=_two_people,
        ),
        ConfirmedAction(
            name="add-pip",
            title="Switch adding pip",
            text="If it is on, new solves add pip as a dependency of Python, as conda and mamba "
            "do. Specifications with a pip: section always get pip.",
            run=_add_pip,
        ),
    )

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        return {"namespace": about} if action.name in ("quota", "base") else {}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        inside = Environment.objects.present().filter(namespace=OuterRef("pk")).order_by()
        count = inside.values("namespace").annotate(n=Count("pk")).values("n")
        rows = super().get_queryset(request).select_related("created_by")
        return rows.annotate(held=Coalesce(Subquery(count), 0))

    @admin.display(description="created")
    def created(self, namespace: Namespace) -> object:
        return relative_time(namespace.created_at)

    @admin.display(description="environments")
    def environment_count(self, namespace: Any) -> int:
        return int(namespace.held)

    def related_tables(self, actor: Actor, row: Namespace) -> Sequence[RelatedTable]:
        return (self._quotas(row), self._largest(row), self._people(row), self._rules(row))

    def _quotas(self, namespace: Namespace) -> RelatedTable:
        return RelatedTable(
            title="Quotas",
            headers=("Quota", "Used", "Limit", "Status"),
            rows=[
                (
                    use.kind.what,
                    amount(use.kind, use.used),
                    amount(use.kind, use.limit),
                    quota_status(use),
                )
                for use in quotas.usage(namespace)
            ],
        )

    def _largest(self, namespace: Namespace) -> RelatedTable:
        rows = Environment.objects.present().filter(namespace=namespace, current__prefix__gt=0)
        rows = rows.select_related("namespace", "current__prefix")
        rows = rows.defer("current__source", "current__log_archive", "current__verdicts")
        return RelatedTable(
            title="Largest environments",
            headers=("Environment", "Current build", "Own size", "With shared files"),
            rows=[
                (
                    link(environment),
                    environment.current.number,
                    size(environment.current.prefix.unique_size),
                    size(environment.current.prefix.apparent_size),
                )
                for environment in rows.order_by("-current__prefix__unique_size", "pk")[:10]
                if environment.current and environment.current.prefix
            ],
            more=list_url(Environment, namespace=namespace.name),
        )

    def _people(self, namespace: Namespace) -> RelatedTable:
        own: Any = namespace.user_grants.select_related("user", "permission").order_by(
            "user__username"
        )
        shared: Any = namespace.group_grants.select_related("group", "permission").order_by(
            "group__name"
        )
        mapped: Any = namespace.mapped_roles.select_related("group", "user", "mapping").order_by(
            "group__name"
        )
        return RelatedTable(
            title="People",
            headers=("Who", "Role", "Through"),
            rows=[
                *((link(one.user), _role(one), "grant") for one in own[:RELATED_ROWS]),
                *((f"group {one.group}", _role(one), "grant") for one in shared[:RELATED_ROWS]),
                *(
                    (one.label, one.role, "grant; the name does not exist yet")
                    for one in namespace.pending_grants.order_by("holder")[:RELATED_ROWS]
                ),
                *(
                    (
                        f"{one.user or 'members'} of {one.group}",
                        one.role,
                        link(one.mapping, "role mapping"),
                    )
                    for one in mapped[:RELATED_ROWS]
                ),
            ],
        )

    def _rules(self, namespace: Namespace) -> RelatedTable:
        rules = PolicyRule.objects.filter(policy__namespace=namespace).order_by("position", "pk")
        return RelatedTable(
            title="Rules of the namespace, in addition to the installation's",
            headers=("Rule", "Effect", "On"),
            rows=[(rule.name, rule.effect, "yes" if rule.enabled else "no") for rule in rules],
        )


def _role(grant: Any) -> str:
    return str(grant.permission.codename).removeprefix("role_")
