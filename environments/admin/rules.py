"""Rules of policies: adding, changing and removing them, with a dry run."""

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
from condastore.admin_site import ConsoleGroup
from condastore.errors import StoreError
from environments.admin.access import NamespaceManagerAdmin
from environments.admin.confirmed_actions import ConfirmedAction
from environments.admin.display import RelatedTable, badge, link, long_text
from environments.admin.filters import date_range, flag_filter, text_filter
from environments.admin.rule_forms import RuleForm
from environments.models import Namespace, Policy, PolicyRule
from environments.operations import policies, policy_simulation
from environments.services.policies import rule_of


def summary(rule: PolicyRule) -> str:
    try:
        return rule_of(rule).summary
    except StoreError as error:  # saved by an older release
        return f"cannot be read: {error}"


# --- actions ------------------------------------------------------------------------------------


def add(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    rule = policies.add_rule(
        actor=actor,
        namespace=answers["namespace"],
        kind=answers["kind"],
        effect=answers["effect"],
        name=answers["name"],
        settings=answers["settings"],
        enabled=answers["enabled"],
        comment=answers["comment"],
    )
    return f"The rule “{rule.name}” was added and is {'on' if rule.enabled else 'off'}."


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
    return f"The rule “{rule.name}” was changed."


class CommentForm(forms.Form):
    comment = forms.CharField(
        required=False,
        max_length=2000,
        help_text="Reason for the change, recorded with the version.",
    )


class MoveForm(CommentForm):
    position = forms.IntegerField(min_value=0, help_text="Place in the order; 0 is the first.")
    field_order = ("position", "comment")


def _switch(actor: Actor, row: PolicyRule, answers: Mapping[str, Any], *, on: bool) -> str:
    policies.change_rule(actor=actor, rule=row, enabled=on, comment=answers["comment"])
    return f"The rule “{row.name}” was switched {'on' if on else 'off'}."


def _move(actor: Actor, row: PolicyRule, answers: Mapping[str, Any]) -> None:
    policies.move_rule(
        actor=actor, rule=row, position=answers["position"], comment=answers["comment"]
    )


def _remove(actor: Actor, row: PolicyRule, answers: Mapping[str, Any]) -> str:
    policies.remove_rule(actor=actor, rule=row, comment=answers["comment"])
    return f"The rule “{row.name}” was removed."


# --- dry run ------------------------------------------------------------------------------------


def try_new(actor: Actor, row: None, answers: Mapping[str, Any]) -> Sequence[RelatedTable]:
    return _simulated(actor, answers["namespace"], [_draft(answers)])


def _try_changed(
    actor: Actor, row: PolicyRule, answers: Mapping[str, Any]
) -> Sequence[RelatedTable]:
    return _simulated(actor, row.policy.namespace, [_draft(answers)])


def try_policy(actor: Actor, row: Policy, answers: Mapping[str, Any]) -> Sequence[RelatedTable]:
    return _simulated(actor, row.namespace, [])


def _draft(answers: Mapping[str, Any]) -> policy_simulation.Draft:
    return policy_simulation.Draft(
        kind=answers["kind"],
        effect=answers["effect"],
        name=answers["name"],
        settings=answers["settings"],
    )


def _simulated(
    actor: Actor, namespace: Namespace | None, drafts: Sequence[policy_simulation.Draft]
) -> Sequence[RelatedTable]:
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
        f"Of {found.environments:,} current environments, {found.blocked:,} would be refused, "
        f"{found.asked:,} held for approval and {found.warned:,} warned about"
    )
    headers = ("Environment", "Effect", "Package", "Reason", "Required by")
    empty = "No environment is affected."
    return (RelatedTable(title=title, headers=headers, rows=rows, empty=empty),)


# --- list and page ------------------------------------------------------------------------------


@admin.register(PolicyRule)
class RuleAdmin(NamespaceManagerAdmin):
    namespace_path = "policy__namespace"
    title = "Policy rules"
    console_group, console_position = ConsoleGroup.POLICIES, 2
    list_display = ("name", "policy", "kind", "shown_effect", "summary_text", "enabled")
    export_fields = ("name", "policy", "kind", "effect", "in_words", "enabled", "settings")
    list_filter = (
        "effect",
        ("enabled", flag_filter("state", yes="Enabled", no="Disabled")),
        text_filter("namespace", "namespace", "policy__namespace__name", lower=True),
        text_filter("kind", "kind", "kind"),
        date_range("created_at", "creation"),
    )
    search_fields = ("name", "settings")
    ordering = ("policy", "position", "pk")
    fields = ("name", "policy_link", "position", "kind", "shown_effect", "in_words", "enabled",
             "shown_settings", "created_at")  # fmt: skip
    confirmed_actions = (
        ConfirmedAction(
            name="edit",
            title="Change",
            superuser_only=False,
            single=True,
            run=_change,
            form=RuleForm,
            dry_run_label="Dry run on all current environments",
            dry_run=_try_changed,
        ),
        ConfirmedAction(
            name="on",
            title="Switch on",
            superuser_only=False,
            run=partial(_switch, on=True),
            form=CommentForm,
            applies_to=lambda row: not row.enabled,
        ),
        ConfirmedAction(
            name="off",
            title="Switch off",
            superuser_only=False,
            run=partial(_switch, on=False),
            form=CommentForm,
            applies_to=lambda row: row.enabled,
        ),
        ConfirmedAction(
            name="move", title="Move", run=_move, form=MoveForm, single=True, superuser_only=False
        ),
        ConfirmedAction(
            name="remove",
            title="Remove",
            run=_remove,
            form=CommentForm,
            superuser_only=False,
            deletes=True,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("policy__namespace")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        tools = [("Add a rule", _kinds()), ("Export as CSV", self.export_url(request))]
        return super().changelist_view(request, {"tools": tools})

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        return {"rule": about} if action.name == "edit" else {}

    @admin.display(description="policy")
    def policy_link(self, rule: PolicyRule) -> object:
        return link(rule.policy)

    @admin.display(description="effect")
    def shown_effect(self, rule: PolicyRule) -> object:
        return badge(rule.effect)

    @admin.display(description="summary")
    def in_words(self, rule: PolicyRule) -> str:
        return summary(rule)

    @admin.display(description="summary")
    def summary_text(self, rule: PolicyRule) -> object:
        return long_text(summary(rule))

    @admin.display(description="settings")
    def shown_settings(self, rule: PolicyRule) -> object:
        lines = "\n".join(f"{key}: {value}" for key, value in rule.settings.items())
        return format_html("<pre>{}</pre>", lines)


def _kinds() -> str:
    return reverse("admin:environments_policy_kinds")
