"""Policies: their rules in plain language, and their versions."""

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
from condastore.admin_site import ConsoleGroup
from environments.admin.access import NamespaceManagerAdmin
from environments.admin.confirmed_actions import ConfirmedAction, actor_of
from environments.admin.display import RelatedTable, badge, link, list_url, long_text, relative_time
from environments.admin.filters import date_range, text_filter
from environments.admin.rule_forms import RuleForm, typed
from environments.admin.rules import add, summary, try_new, try_policy
from environments.domain.policy.rules import KINDS
from environments.models import Policy, PolicyRule, PolicyVersion
from environments.operations.policies import built_in_rules

VERSIONS = 20


@admin.register(Policy)
class PolicyAdmin(NamespaceManagerAdmin):
    title = "Policies"
    console_group, console_position = ConsoleGroup.POLICIES, 1
    list_display = ("policy_of", "version", "enabled_rules", "summary_text")
    list_filter = (text_filter("namespace", "namespace", "namespace__name", lower=True),)
    ordering = ("namespace__name", "pk")
    fields = ("policy_of", "version")
    confirmed_actions = (
        ConfirmedAction(
            name="add-rule",
            title="Add a rule",
            superuser_only=False,
            text="An enabled rule takes effect at once: on the next solve, and on builds that "
            "wait.",
            run=add,
            form=RuleForm,
            rows=False,
            dry_run_label="Dry run on all current environments",
            dry_run=try_new,
        ),
        ConfirmedAction(
            name="try",
            title="Check current environments",
            superuser_only=False,
            text="Evaluates the enabled rules against the current build of each environment.",
            run=None,
            dry_run_label="Dry run",
            dry_run=try_policy,
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
        """List the kinds of rules, to choose the one to add."""
        action = self.confirmed_actions[0]
        if action not in self._permitted(request):
            raise PermissionDenied
        rows = [
            (
                format_html(
                    '<a href="{}?{}">{}</a>',
                    self._url(action),
                    urlencode(request.GET.dict() | {"kind": kind.kind}),
                    kind.title,
                ),
                (kind.__doc__ or "").partition("\n")[0],
            )
            for kind in KINDS.values()
        ]
        table = RelatedTable(title="Kind of rule", headers=("Kind", "What it checks"), rows=rows)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": action.title,
            "name": self.name,
            "related_tables": [table],
            "media": self.media,
        }
        return TemplateResponse(request, "admin/confirm.html", context)

    def confirm(self, request: HttpRequest, action: ConfirmedAction) -> HttpResponse:
        if action.name == "add-rule" and request.GET.get("kind") not in KINDS:
            return self.kinds(request)
        return super().confirm(request, action)

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        if action.name != "add-rule":
            return {}
        return {"kind": request.GET["kind"], "actor": actor_of(request)}

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        answer = super().render_change_form(request, context, *args, obj=obj, **options)
        if obj is not None:
            query = urlencode({"namespace": obj.namespace_id or ""})
            url = f"{reverse('admin:environments_policy_kinds')}?{query}"
            context["tools"].insert(0, (self.confirmed_actions[0].title, url))
        return answer

    @admin.display(description="policy of")
    def policy_of(self, policy: Policy) -> object:
        return str(policy.namespace or "the whole installation")

    @admin.display(description="enabled rules")
    def enabled_rules(self, policy: Any) -> int:
        return int(policy.on)

    @admin.display(description="summary")
    def summary_text(self, policy: Policy) -> object:
        rules = [rule for rule in policy.rules.all() if rule.enabled]
        words = "; ".join(summary(rule) for rule in rules[:3])
        return long_text(words + ("; …" if len(rules) > 3 else ""))

    def related_tables(self, actor: Actor, row: Policy) -> Sequence[RelatedTable]:
        rules = list(row.rules.all())
        for rule in rules:
            rule.policy = row
        newest = row.versions.select_related("changed_by").order_by("-number")
        versions = list(newest[: VERSIONS + 1])
        earlier = [*versions[1:], None]
        return (
            RelatedTable(
                title="Rules, in order",
                headers=("Rule", "Kind", "Effect", "Summary", "Enabled"),
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
                empty="No rules: everything that the installation allows is allowed.",
            ),
            RelatedTable(
                title="Built-in rules, replaced by the installation's rules of the same kind",
                headers=("Rule", "Kind", "Effect", "Summary"),
                rows=[
                    (rule.name, rule.title, badge(rule.effect.value), rule.summary)
                    for rule in built_in_rules()
                ],
            ),
            RelatedTable(
                title="Versions, newest first",
                headers=("Version", "By", "Changed", "Change", "Difference", "Comment"),
                rows=[
                    (
                        version.number,
                        version.changed_by or "",
                        relative_time(version.changed_at),
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
    """Yield what changed between two versions of a policy, one line per change."""
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
class VersionAdmin(NamespaceManagerAdmin):
    namespace_path = "policy__namespace"
    title = "Policy versions"
    console_group, console_position = ConsoleGroup.POLICIES, 3
    list_display = ("version", "change_text", "comment_text", "changed_by", "age")
    list_filter = (
        text_filter("policy__id__exact", "number of the policy", "policy"),
        date_range("changed_at", "change date"),
    )
    list_select_related = ("policy__namespace", "changed_by")
    ordering = ("-pk",)
    fields = ("policy", "number", "change", "comment", "changed_by", "changed_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        return rows.select_related("policy__namespace", "changed_by").defer("rules")

    @admin.display(description="version")
    def version(self, version: PolicyVersion) -> str:
        return str(version)

    @admin.display(description="change")
    def change_text(self, version: PolicyVersion) -> object:
        return long_text(version.change)

    @admin.display(description="comment")
    def comment_text(self, version: PolicyVersion) -> object:
        return long_text(version.comment)

    @admin.display(description="changed")
    def age(self, version: PolicyVersion) -> object:
        return relative_time(version.changed_at)

    def related_tables(self, actor: Actor, row: PolicyVersion) -> Sequence[RelatedTable]:
        before = PolicyVersion.objects.filter(policy=row.policy_id, number__lt=row.number)
        last = before.order_by("-number").first()
        return (
            RelatedTable(
                title="Changes",
                headers=(),
                rows=(),
                text="\n".join(differences(last.rules if last else [], row.rules)),
            ),
            RelatedTable(
                title="Rules of this version",
                headers=("Rule", "Kind", "Effect", "Enabled", "Settings"),
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
