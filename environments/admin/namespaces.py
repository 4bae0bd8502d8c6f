"""Namespaces: how much each holds of what it may, and who may do what there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from accounts.access import Actor
from accounts.roles import Role
from environments.admin.base import BESIDE, Panel, Question, Room, link, list_url, size
from environments.models import Environment, Namespace, PolicyRule
from environments.operations import approvals, images, namespaces, quotas

BYTES = "bytes"


def amount(kind: quotas.Kind, number: int | None) -> str:
    if number is None:
        return "no limit"
    return filesizeformat(number) if kind.name == BYTES else f"{number:,}"


class QuotaForm(forms.Form):
    """0: no limit; empty: the installation's default."""

    bytes = forms.IntegerField(required=False, help_text="On the disk, in bytes.")
    environments = forms.IntegerField(required=False)
    builds_at_once = forms.IntegerField(required=False, help_text="Queued or running.")
    builds_a_day = forms.IntegerField(required=False, help_text="Within 24 hours.")

    def __init__(self, *args: Any, namespace: Namespace | None = None, **options: Any) -> None:
        if namespace is not None:
            held = {kind.name: getattr(namespace, kind.limit) for kind in quotas.KINDS}
            options["initial"] = held | options.get("initial", {})
        super().__init__(*args, **options)


class BaseForm(forms.Form):
    base = forms.CharField(
        required=False,
        max_length=300,
        help_text="registry.example.org/team/debian:12, or a name that was loaded. Empty: what "
        "the installation has.",
    )

    def __init__(self, *args: Any, namespace: Namespace | None = None, **options: Any) -> None:
        if namespace is not None:
            options["initial"] = {"base": namespace.base_image} | options.get("initial", {})
        super().__init__(*args, **options)


class GrantForm(forms.Form):
    user = forms.CharField(required=False, max_length=150, help_text="A user name, or")
    group = forms.CharField(required=False, max_length=150, help_text="the name of a group.")
    role = forms.ChoiceField(
        choices=[("", "none: take the role away"), *((role.value, role.value) for role in Role)],
        required=False,
        help_text="It takes the place of the role that is held now.",
    )


class NewNamespaceForm(forms.Form):
    name = forms.CharField(max_length=64)
    description = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    public = forms.BooleanField(required=False, help_text="Everybody may see and download.")


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    made = namespaces.create_namespace(actor=actor, **answers)
    return f"{made} is made; you are its admin."


def _grant(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    holder = {"user": answers["user"].strip(), "group": answers["group"].strip()}
    who = holder["user"] or f"the group {holder['group']}"
    if not answers["role"]:
        namespaces.revoke_role(actor=actor, namespace=namespace, **holder)
        return f"{who} holds no granted role in {namespace} any more."
    role = Role(answers["role"])
    namespaces.grant_role(actor=actor, namespace=namespace, role=role, **holder)
    return f"{who} is {role.value} of {namespace}."


def _two_people(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    two = not namespace.two_person_approval
    approvals.require_two_people(actor=actor, namespace=namespace, two=two)
    return f"In {namespace} a package is approved by {'two people' if two else 'one person'} now."


def _add_pip(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    on = not namespace.add_pip_as_python_dependency
    namespaces.set_add_pip(actor=actor, namespace=namespace, on=on)
    added = "add pip as a dependency of Python" if on else "no longer add pip beside Python"
    return f"New solves of {namespace} {added}."


def _quota(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    quotas.set_quota(actor=actor, namespace=namespace, limits=answers)
    return f"The quotas of {namespace} are set."


def _base(actor: Actor, namespace: Namespace, answers: Mapping[str, Any]) -> str:
    images.set_base_image(actor=actor, namespace=namespace, name=answers["base"])
    now = namespace.base_image or "what the installation has"
    return f"Container images of {namespace} lie on {now}."


@admin.register(Namespace)
class NamespaceRoom(Room):
    list_display = ("name", "environments_held", "personal", "public", "created_at")
    list_filter = ("personal", "public")
    search_fields = ("name", "description")
    facts = (
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
    questions = (
        Question(name="new", title="New namespace", do=_create, form=NewNamespaceForm, rows=False),
        Question(
            name="quota",
            title="Set quotas",
            text="0 means no limit; what is left empty is the installation's default.",
            do=_quota,
            form=QuotaForm,
        ),
        Question(name="base", title="Choose the base of images", do=_base, form=BaseForm),
        Question(name="grant", title="Grant or take a role", do=_grant, form=GrantForm),
        Question(
            name="two-people",
            title="Switch approval by two people",
            text="Where it is on, two people must agree before a package is approved.",
            do=_two_people,
        ),
        Question(
            name="add-pip",
            title="Switch pip beside Python",
            text="Where it is on, new solves add pip as a dependency of Python, as conda and mamba "
            "do. Specifications with a pip: part get it in any case.",
            do=_add_pip,
        ),
    )

    def form_options(self, request: HttpRequest, question: Question, about: Any) -> dict[str, Any]:
        return {"namespace": about} if question.name in ("quota", "base") else {}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        inside = Environment.objects.present().filter(namespace=OuterRef("pk")).order_by()
        count = inside.values("namespace").annotate(n=Count("pk")).values("n")
        rows = super().get_queryset(request).select_related("created_by")
        return rows.annotate(held=Coalesce(Subquery(count), 0))

    @admin.display(description="environments")
    def environments_held(self, namespace: Any) -> int:
        return int(namespace.held)

    def panels(self, actor: Actor, row: Namespace) -> Sequence[Panel]:
        return (self._quotas(row), self._largest(row), self._people(row), self._rules(row))

    def _quotas(self, namespace: Namespace) -> Panel:
        return Panel(
            title="Quotas",
            headers=("Of", "Used", "Limit", ""),
            rows=[
                (
                    use.kind.what,
                    amount(use.kind, use.used),
                    amount(use.kind, use.limit),
                    "near or over the limit" if use.is_near() else "",
                )
                for use in quotas.usage(namespace)
            ],
        )

    def _largest(self, namespace: Namespace) -> Panel:
        rows = Environment.objects.present().filter(namespace=namespace, current__prefix__gt=0)
        rows = rows.select_related("namespace", "current__prefix")
        rows = rows.defer("current__source", "current__log_archive", "current__verdicts")
        return Panel(
            title="Environments, the largest first",
            headers=("Environment", "Current build", "On its own", "With what it shares"),
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

    def _people(self, namespace: Namespace) -> Panel:
        own: Any = namespace.user_grants.select_related("user", "permission").order_by(
            "user__username"
        )
        shared: Any = namespace.group_grants.select_related("group", "permission").order_by(
            "group__name"
        )
        mapped: Any = namespace.mapped_roles.select_related("group", "user", "mapping").order_by(
            "group__name"
        )
        return Panel(
            title="People",
            headers=("Who", "Role", "By"),
            rows=[
                *((link(one.user), _role(one), "a grant") for one in own[:BESIDE]),
                *((f"group {one.group}", _role(one), "a grant") for one in shared[:BESIDE]),
                *(
                    (one.label, one.role, "a grant; the name does not exist yet")
                    for one in namespace.pending_grants.order_by("holder")[:BESIDE]
                ),
                *(
                    (
                        f"{one.user or 'members'} of {one.group}",
                        one.role,
                        link(one.mapping, "a role mapping"),
                    )
                    for one in mapped[:BESIDE]
                ),
            ],
        )

    def _rules(self, namespace: Namespace) -> Panel:
        rules = PolicyRule.objects.filter(policy__namespace=namespace).order_by("position", "pk")
        return Panel(
            title="Its own rules, beside the installation's",
            headers=("Rule", "Effect", "On"),
            rows=[(rule.name, rule.effect, "yes" if rule.enabled else "no") for rule in rules],
        )


def _role(grant: Any) -> str:
    return str(grant.permission.codename).removeprefix("role_")
