"""Policies: the rules of each in plain language, and all its versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from accounts.access import Actor
from environments.admin.access import ManagersRoom
from environments.admin.base import Panel, Question, actor_of, badge, link, list_url, moment
from environments.admin.changelist import text_filter
from environments.admin.rule_forms import RuleForm, typed
from environments.admin.rules import add, summary, try_new, try_policy
from environments.domain.policy.rules import KINDS
from environments.models import Policy, PolicyRule, PolicyVersion
from environments.operations.policies import built_in_rules

VERSIONS = 20


@admin.register(Policy)
class PolicyRoom(ManagersRoom):
    title = "Policies"
    list_display = ("__str__", "version", "rules_on", "in_words")
    list_filter = (text_filter("namespace", "namespace", "namespace__name", lower=True),)
    ordering = ("namespace__name", "pk")
    facts = ("place", "version")
    questions = (
        Question(
            name="add-rule",
            title="Add a rule",
            superuser=False,
            text="It acts at once where it is on: on the next solve, and on builds that wait.",
            do=add,
            form=RuleForm,
            rows=False,
            tries="Try it on all current environments",
            tried=try_new,
        ),
        Question(
            name="try",
            title="Hold against current environments",
            superuser=False,
            text="What the rules in force would say of each environment's current build.",
            do=None,
            tries="Try it",
            tried=try_policy,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        on = PolicyRule.objects.filter(policy=OuterRef("pk"), enabled=True).order_by()
        count = on.values("policy").annotate(n=Count("pk")).values("n")
        rows = super().get_queryset(request).select_related("namespace")
        return rows.prefetch_related("rules").annotate(on=Coalesce(Subquery(count), 0))

    def get_urls(self) -> list[URLPattern]:
        kinds = self.admin_site.admin_view(self.kinds)
        return [path("kinds/", kinds, name="environments_policy_kinds"), *super().get_urls()]

    def kinds(self, request: HttpRequest) -> HttpResponse:
        """Which kind of rule is to be added?"""
        question = self.questions[0]
        if question not in self._open(request):
            raise PermissionDenied
        rows = [
            (
                format_html(
                    '<a href="{}?{}">{}</a>',
                    self._url(question),
                    urlencode(request.GET.dict() | {"kind": kind.kind}),
                    kind.title,
                ),
                (kind.__doc__ or "").partition("\n")[0],
            )
            for kind in KINDS.values()
        ]
        panel = Panel(title="Of which kind?", headers=("Kind", "What it looks at"), rows=rows)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": question.title,
            "name": self.name,
            "panels": [panel],
            "media": self.media,
        }
        return TemplateResponse(request, "admin/ask.html", context)

    def ask(self, request: HttpRequest, question: Question) -> HttpResponse:
        if question.name == "add-rule" and request.GET.get("kind") not in KINDS:
            return self.kinds(request)
        return super().ask(request, question)

    def form_options(self, request: HttpRequest, question: Question, about: Any) -> dict[str, Any]:
        if question.name != "add-rule":
            return {}
        return {"kind": request.GET["kind"], "everywhere": actor_of(request).is_superuser}

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        answer = super().render_change_form(request, context, *args, obj=obj, **options)
        if obj is not None:
            place = urlencode({"namespace": obj.namespace.name if obj.namespace else ""})
            url = f"{reverse('admin:environments_policy_kinds')}?{place}"
            context["tools"].insert(0, (self.questions[0].title, url))
        return answer

    @admin.display(description="of")
    def place(self, policy: Policy) -> object:
        return policy.namespace or "the whole installation"

    @admin.display(description="rules on")
    def rules_on(self, policy: Any) -> int:
        return int(policy.on)

    @admin.display(description="in words")
    def in_words(self, policy: Policy) -> str:
        rules = [rule for rule in policy.rules.all() if rule.enabled]
        words = "; ".join(summary(rule) for rule in rules[:3])
        return words + ("; …" if len(rules) > 3 else "")

    def panels(self, actor: Actor, row: Policy) -> Sequence[Panel]:
        rules = list(row.rules.all())
        for rule in rules:
            rule.policy = row
        made = row.versions.select_related("changed_by").order_by("-number")
        versions = list(made[: VERSIONS + 1])
        earlier = [*versions[1:], None]
        return (
            Panel(
                title="Rules, in their order",
                headers=("Rule", "Kind", "Effect", "In words", "On"),
                rows=[
                    (
                        link(rule),
                        getattr(KINDS.get(rule.kind), "title", rule.kind),
                        badge(rule.effect),
                        summary(rule),
                        "yes" if rule.enabled else "no",
                    )
                    for rule in rules
                ],
                empty="No rules: everything is allowed here that the installation allows.",
            ),
            Panel(
                title="Built-in rules, until the installation has one of the same kind",
                headers=("Rule", "Kind", "Effect", "In words"),
                rows=[
                    (rule.name, rule.title, badge(rule.effect.value), rule.summary)
                    for rule in built_in_rules()
                ],
            ),
            Panel(
                title="Versions, the newest first",
                headers=("Version", "By", "When", "Change", "Difference", "Why"),
                rows=[
                    (
                        version.number,
                        version.changed_by or "",
                        moment(version.changed_at),
                        version.change,
                        "\n".join(differences(before.rules if before else [], version.rules)),
                        version.comment,
                    )
                    for version, before in zip(versions, earlier, strict=True)
                ][:VERSIONS],
                more=list_url(PolicyVersion, policy__id__exact=row.pk),
            ),
        )


def differences(before: Sequence[Any], after: Sequence[Any]) -> Iterator[str]:
    """What changed between two versions of a policy, a line for each rule."""
    old, new = ({rule["name"]: rule for rule in rules} for rules in (before, after))
    for name in old.keys() - new.keys():
        yield f"- {name}"
    for name, rule in new.items():
        if name not in old:
            yield f"+ {name} ({rule['kind']}, {rule['effect']})"
            continue
        for key in ("kind", "effect", "enabled"):
            if rule[key] != old[name][key]:
                yield f"{name}: {key} {old[name][key]} → {rule[key]}"
        was, now = old[name]["settings"], rule["settings"]
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                yield f"{name}: {key} {was.get(key, '—')} → {now.get(key, '—')}"
    shared = [name for name in new if name in old]
    if shared != [name for name in old if name in new]:
        yield "the order"


@admin.register(PolicyVersion)
class VersionRoom(ManagersRoom):
    way = "policy__namespace"
    title = "Versions of policies"
    list_display = ("__str__", "change", "comment", "changed_by", "age")
    list_filter = (text_filter("policy__id__exact", "policy's number", "policy"),)
    list_select_related = ("policy__namespace", "changed_by")
    ordering = ("-pk",)
    facts = ("policy", "number", "change", "comment", "changed_by", "changed_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        return rows.select_related("policy__namespace", "changed_by").defer("rules")

    @admin.display(description="changed")
    def age(self, version: PolicyVersion) -> object:
        return moment(version.changed_at)

    def panels(self, actor: Actor, row: PolicyVersion) -> Sequence[Panel]:
        before = PolicyVersion.objects.filter(policy=row.policy_id, number__lt=row.number)
        last = before.order_by("-number").first()
        return (
            Panel(
                title="What it changed",
                headers=(),
                rows=(),
                text="\n".join(differences(last.rules if last else [], row.rules)),
            ),
            Panel(
                title="The rules as they were then",
                headers=("Rule", "Kind", "Effect", "On", "Settings"),
                rows=[
                    (
                        rule["name"],
                        rule["kind"],
                        badge(rule["effect"]),
                        "yes" if rule["enabled"] else "no",
                        typed(rule["settings"]),
                    )
                    for rule in row.rules
                ],
            ),
        )
