"""Policies in plain language: their rules, what a drafted one would do, and all versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from accounts.access import Actor
from environments.admin.lists import text_filter
from environments.admin.rooms import (
    Panel,
    Question,
    Room,
    badge,
    link,
    list_url,
    moment,
)
from environments.domain.errors import NotFoundError, StoreError
from environments.domain.policy import Effect
from environments.domain.policy.rules import KINDS
from environments.models import Namespace, Policy, PolicyRule, PolicyVersion
from environments.operations import policies
from environments.policies import rule_of

VERSIONS = 20
EFFECTS = [
    (Effect.ENFORCE.value, "enforce: refuse"),
    (Effect.ASK.value, "ask: hold for approval"),
    (Effect.WARN.value, "warn"),
]
#: How a setting is typed: a line for each item, or for each pair of key and value.
LINES = frozenset({"allow", "deny", "except", "packages"})
PAIRS = frozenset({("channels", "packages"), ("pins", "packages"), ("licences", "map"),
                   ("age", "channels")})  # fmt: skip
FLAGS = frozenset({("required", "add")})
WORDS = frozenset({("size", "packages"), ("pypi", "packages")})


def summary(rule: PolicyRule) -> str:
    try:
        return rule_of(rule).summary
    except StoreError as error:  # kept by an older release
        return f"cannot be read: {error}"


# --- a rule as a form ---------------------------------------------------------------------------


class RuleForm(forms.Form):
    """One field for each setting of the kind."""

    def __init__(
        self,
        *args: Any,
        kind: str = "",
        rule: PolicyRule | None = None,
        initial: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.kind = rule.kind if rule else kind
        given = dict(initial or {})
        if rule is not None:
            held = {key: _typed(value) for key, value in rule.settings.items()}
            given |= held | {"name": rule.name, "effect": rule.effect, "enabled": rule.enabled}
            given["version"] = rule.policy.version
        super().__init__(*args, initial=given, **options)
        self.fields["name"] = forms.CharField(max_length=100)
        if rule is None:
            self.fields["namespace"] = forms.CharField(
                required=False, max_length=64, help_text="Empty: the whole installation."
            )
        else:
            self.fields["version"] = forms.IntegerField(widget=forms.HiddenInput)
        self.fields["effect"] = forms.ChoiceField(
            choices=EFFECTS, widget=forms.RadioSelect, initial=Effect.WARN.value
        )
        for key, text in self._help.items():
            self.fields[key] = _field(self.kind, key, text)
        self.fields["enabled"] = forms.BooleanField(required=False, initial=True, label="On")
        self.fields["comment"] = forms.CharField(
            required=False, max_length=2000, help_text="Why it changes: kept with the version."
        )

    @property
    def _help(self) -> Mapping[str, str]:
        known = KINDS.get(self.kind)  # none: a rule that an older release kept
        return known.settings_help if known else {}

    @property
    def settings(self) -> dict[str, Any]:
        found = {key: _read(self.kind, key, self.cleaned_data[key]) for key in self._help}
        return {key: value for key, value in found.items() if value not in ("", None, [], {})}

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            cleaned["settings"] = self.settings
            cleaned["kind"] = self.kind
        return cleaned


def _field(kind: str, key: str, text: str) -> forms.Field:
    if (kind, key) in FLAGS:
        return forms.BooleanField(required=False, initial=True, help_text=text)
    if (kind, key) in PAIRS:
        area = forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})
        text += " One a line, as key: value."
        return forms.CharField(required=False, widget=area, help_text=text)
    if key in LINES and (kind, key) not in WORDS:
        area = forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})
        return forms.CharField(required=False, widget=area, help_text=f"{text} One a line.")
    return forms.CharField(required=False, help_text=text)


def _read(kind: str, key: str, value: Any) -> Any:
    if (kind, key) in FLAGS:
        return bool(value)
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    if (kind, key) in PAIRS:
        pairs = (line.partition(": ") for line in lines)
        several = kind == "channels"
        return {
            name.strip().rstrip(":"): [part.strip() for part in said.split(",")]
            if several
            else said.strip()
            for name, _, said in pairs
        }
    if key in LINES and (kind, key) not in WORDS:
        return lines
    if kind == "size" and value.strip().isdecimal():
        return int(value)
    return value.strip()


def _typed(value: Any) -> Any:
    """A setting as it is typed into its field."""
    if isinstance(value, Mapping):
        return "\n".join(
            f"{key}: {', '.join(map(str, said)) if isinstance(said, list) else said}"
            for key, said in value.items()
        )
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value


def _place(name: str) -> Namespace | None:
    if not name:
        return None
    found = Namespace.objects.filter(name=name.strip().lower()).first()
    if found is None:
        raise NotFoundError(f"There is no namespace {name!r}.", where="namespace")
    return found


# --- what questions do --------------------------------------------------------------------------


def _add(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    rule = policies.add_rule(
        actor=actor,
        namespace=_place(answers["namespace"]),
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


def _try_new(actor: Actor, row: None, answers: Mapping[str, Any]) -> Sequence[Panel]:
    return _tried(actor, _place(answers["namespace"]), [_draft(answers)])


def _try_changed(actor: Actor, row: PolicyRule, answers: Mapping[str, Any]) -> Sequence[Panel]:
    return _tried(actor, row.policy.namespace, [_draft(answers)])


def _try_policy(actor: Actor, row: Policy, answers: Mapping[str, Any]) -> Sequence[Panel]:
    return _tried(actor, row.namespace, [])


def _draft(answers: Mapping[str, Any]) -> policies.Draft:
    return policies.Draft(
        kind=answers["kind"],
        effect=answers["effect"],
        name=answers["name"],
        settings=answers["settings"],
    )


def _tried(
    actor: Actor, namespace: Namespace | None, drafts: Sequence[policies.Draft]
) -> Sequence[Panel]:
    found = policies.simulate(actor=actor, namespace=namespace, drafts=drafts)
    rows = [
        (
            link(touched.environment),
            badge(touched.effect.value),
            hit.package,
            hit.reason,
            " → ".join(hit.chain),
        )
        for touched in found.touched
        for hit in touched.hits
    ]
    title = (
        f"Of {found.environments:,} current environments it would refuse {found.blocked:,}, "
        f"hold {found.asked:,} and warn of {found.warned:,}"
    )
    headers = ("Environment", "Effect", "Package", "Why", "Needed through")
    return (Panel(title=title, headers=headers, rows=rows, empty="It objects to nothing."),)


# --- rooms --------------------------------------------------------------------------------------


@admin.register(Policy)
class PolicyRoom(Room):
    title = "Policies"
    list_display = ("__str__", "version", "rules_on", "in_words")
    list_filter = (text_filter("namespace", "namespace", "namespace__name", lower=True),)
    ordering = ("namespace__name", "pk")
    facts = ("place", "version")
    questions = (
        Question(
            name="add-rule",
            title="Add a rule",
            text="It acts at once where it is on: on the next solve, and on builds that wait.",
            do=_add,
            form=RuleForm,
            rows=False,
            tries="Try it on all current environments",
            tried=_try_new,
        ),
        Question(
            name="try",
            title="Hold against current environments",
            text="What the rules in force would say of each environment's current build.",
            do=None,
            tries="Try it",
            tried=_try_policy,
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
                    '<a href="{}?kind={}">{}</a>', self._url(question), kind.kind, kind.title
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
        return {"kind": request.GET["kind"]} if question.name == "add-rule" else {}

    @admin.display(description="of")
    def place(self, policy: Policy) -> object:
        return link(policy.namespace) or "the whole installation"

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


@admin.register(PolicyRule)
class RuleRoom(Room):
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
            alone=True,
            do=_change,
            form=RuleForm,
            tries="Try it on all current environments",
            tried=_try_changed,
        ),
        Question(
            name="on",
            title="Switch on",
            do=partial(_switch, on=True),
            form=CommentForm,
            fits=lambda row: not row.enabled,
        ),
        Question(
            name="off",
            title="Switch off",
            do=partial(_switch, on=False),
            form=CommentForm,
            fits=lambda row: row.enabled,
        ),
        Question(name="move", title="Move", do=_move, form=MoveForm, alone=True),
        Question(name="remove", title="Remove", do=_remove, form=CommentForm, removes=True),
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


@admin.register(PolicyVersion)
class VersionRoom(Room):
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
                        _typed(rule["settings"]),
                    )
                    for rule in row.rules
                ],
            ),
        )
