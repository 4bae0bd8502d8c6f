"""Rules of policies in plain language: what is asked of one, and what it would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from accounts.access import Actor
from condastore.errors import NotFoundError, StoreError
from environments.admin.access import ManagersRoom
from environments.admin.base import Panel, Question, badge, link
from environments.admin.changelist import text_filter
from environments.admin.rule_forms import RuleForm
from environments.models import Namespace, Policy, PolicyRule
from environments.operations import policies, policy_simulation
from environments.services.policies import rule_of


def summary(rule: PolicyRule) -> str:
    try:
        return rule_of(rule).summary
    except StoreError as error:  # kept by an older release
        return f"cannot be read: {error}"


def _place(actor: Actor, name: str) -> Namespace | None:
    if not name:
        return None
    found = Namespace.objects.visible_to(actor).filter(name=name.strip().lower()).first()
    if found is None:
        raise NotFoundError(f"There is no namespace {name!r}.", where="namespace")
    return found


# --- what questions do --------------------------------------------------------------------------


def add(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    rule = policies.add_rule(
        actor=actor,
        namespace=_place(actor, answers["namespace"]),
        kind=answers["kind"],
        effect=answers["effect"],
        name=answers["name"],
        settings=answers["settings"],
        enabled=answers["enabled"],
        comment=answers["comment"],
    )
    return f"The rule “{rule.name}” is {'on' if rule.enabled else 'kept, and off'}."


def _change(actor: Actor, row: PolicyRule, answers: Mapping[str, Any]) -> str:
    rule = policies.change_rule(
        actor=actor,
        rule=row,
        effect=answers["effect"],
        name=answers["name"],
        settings=answers["settings"],
        enabled=answers["enabled"],
        comment=answers["comment"],
        version=answers["version"],
    )
    return f"The rule “{rule.name}” is changed."


class CommentForm(forms.Form):
    comment = forms.CharField(
        required=False, max_length=2000, help_text="Why it changes: kept with the version."
    )


class MoveForm(CommentForm):
    position = forms.IntegerField(min_value=0, help_text="From 0, the first.")
    field_order = ("position", "comment")


def _switch(actor: Actor, row: PolicyRule, answers: Mapping[str, Any], *, on: bool) -> str:
    policies.change_rule(actor=actor, rule=row, enabled=on, comment=answers["comment"])
    return f"The rule “{row.name}” is {'on' if on else 'off'}."


def _move(actor: Actor, row: PolicyRule, answers: Mapping[str, Any]) -> None:
    policies.move_rule(
        actor=actor, rule=row, position=answers["position"], comment=answers["comment"]
    )


def _remove(actor: Actor, row: PolicyRule, answers: Mapping[str, Any]) -> str:
    policies.remove_rule(actor=actor, rule=row, comment=answers["comment"])
    return f"The rule “{row.name}” is removed."


# --- what a rule would do -----------------------------------------------------------------------


def try_new(actor: Actor, row: None, answers: Mapping[str, Any]) -> Sequence[Panel]:
    return _tried(actor, _place(actor, answers["namespace"]), [_draft(answers)])


def _try_changed(actor: Actor, row: PolicyRule, answers: Mapping[str, Any]) -> Sequence[Panel]:
    return _tried(actor, row.policy.namespace, [_draft(answers)])


def try_policy(actor: Actor, row: Policy, answers: Mapping[str, Any]) -> Sequence[Panel]:
    return _tried(actor, row.namespace, [])


def _draft(answers: Mapping[str, Any]) -> policy_simulation.Draft:
    return policy_simulation.Draft(
        kind=answers["kind"],
        effect=answers["effect"],
        name=answers["name"],
        settings=answers["settings"],
    )


def _tried(
    actor: Actor, namespace: Namespace | None, drafts: Sequence[policy_simulation.Draft]
) -> Sequence[Panel]:
    found = policy_simulation.simulate(actor=actor, namespace=namespace, drafts=drafts)
    rows = [
        (
            link(affected.environment) if actor.is_superuser else affected.environment,
            badge(affected.effect.value),
            hit.package,
            hit.reason,
            " → ".join(hit.chain),
        )
        for affected in found.affected
        for hit in affected.hits
    ]
    title = (
        f"Of {found.environments:,} current environments it would refuse {found.blocked:,}, "
        f"hold {found.asked:,} and warn of {found.warned:,}"
    )
    headers = ("Environment", "Effect", "Package", "Why", "Needed through")
    return (Panel(title=title, headers=headers, rows=rows, empty="It objects to nothing."),)


# --- the room -----------------------------------------------------------------------------------


@admin.register(PolicyRule)
class RuleRoom(ManagersRoom):
    way = "policy__namespace"
    title = "Rules"
    list_display = ("name", "policy", "kind", "shown_effect", "in_words", "enabled")
    list_filter = (
        "effect",
        "enabled",
        text_filter("namespace", "namespace", "policy__namespace__name", lower=True),
        text_filter("kind", "kind", "kind"),
    )
    search_fields = ("name", "settings")
    ordering = ("policy", "position", "pk")
    facts = ("name", "policy_link", "position", "kind", "shown_effect", "in_words", "enabled",
             "shown_settings", "created_at")  # fmt: skip
    questions = (
        Question(
            name="edit",
            title="Change",
            superuser=False,
            alone=True,
            do=_change,
            form=RuleForm,
            tries="Try it on all current environments",
            tried=_try_changed,
        ),
        Question(
            name="on",
            title="Switch on",
            superuser=False,
            do=partial(_switch, on=True),
            form=CommentForm,
            fits=lambda row: not row.enabled,
        ),
        Question(
            name="off",
            title="Switch off",
            superuser=False,
            do=partial(_switch, on=False),
            form=CommentForm,
            fits=lambda row: row.enabled,
        ),
        Question(name="move", title="Move", do=_move, form=MoveForm, alone=True, superuser=False),
        Question(
            name="remove",
            title="Remove",
            do=_remove,
            form=CommentForm,
            superuser=False,
            removes=True,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("policy__namespace")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return super().changelist_view(request, {"tools": [("Add a rule", _kinds())]})

    def form_options(self, request: HttpRequest, question: Question, about: Any) -> dict[str, Any]:
        return {"rule": about} if question.name == "edit" else {}

    @admin.display(description="policy")
    def policy_link(self, rule: PolicyRule) -> object:
        return link(rule.policy)

    @admin.display(description="effect")
    def shown_effect(self, rule: PolicyRule) -> object:
        return badge(rule.effect)

    @admin.display(description="in words")
    def in_words(self, rule: PolicyRule) -> str:
        return summary(rule)

    @admin.display(description="settings")
    def shown_settings(self, rule: PolicyRule) -> object:
        lines = "\n".join(f"{key}: {value}" for key, value in rule.settings.items())
        return format_html("<pre>{}</pre>", lines)


def _kinds() -> str:
    return reverse("admin:environments_policy_kinds")
