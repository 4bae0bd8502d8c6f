"""The form of a policy rule: one field for each setting of the rule's kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from accounts.access import Actor
from accounts.roles import Perm
from condastore.errors import RuleError
from environments.admin.confirmed_actions import show_faults
from environments.domain.policy import Effect
from environments.domain.policy.rules import KINDS, parse_rule
from environments.models import Namespace, PolicyRule

EFFECTS = [
    (Effect.ENFORCE.value, "enforce: refuse the build"),
    (Effect.ASK.value, "ask: hold the build for approval"),
    (Effect.WARN.value, "warn: build, and show a warning"),
]
#: Settings with one item on each line.
LINES = frozenset({"allow", "deny", "except", "packages"})
#: Settings (kind, key) with one `key: value` on each line.
PAIRS = frozenset(
    {("channels", "packages"), ("pins", "packages"), ("licenses", "map"), ("age", "channels")}
)
FLAGS = frozenset({("required", "add")})
WORDS = frozenset({("size", "packages")})
#: Settings that take one of a few words; the first is the default.
_REFUSE_OR_ACCEPT = (("refuse", "refuse"), ("accept", "accept"))
CHOICES: Mapping[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("licenses", "unknown"): _REFUSE_OR_ACCEPT,
    ("licenses", "missing"): _REFUSE_OR_ACCEPT,
    ("pypi", "packages"): (
        ("none", "none: nothing from a Python index"),
        ("wheels", "wheels: no source distributions"),
    ),
}


class RuleForm(forms.Form):
    """Adds or changes a rule. All faults of its settings are shown together with the form's own.

    `actor` limits the namespaces that are offered for a new rule.
    """

    def __init__(
        self,
        *args: Any,
        kind: str = "",
        actor: Actor | None = None,
        rule: PolicyRule | None = None,
        initial: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.kind = rule.kind if rule else kind
        given = dict(initial or {})
        if rule is not None:
            saved = {key: typed(value) for key, value in rule.settings.items()}
            given |= saved | {"name": rule.name, "effect": rule.effect, "enabled": rule.enabled}
            given["version"] = rule.policy.version
        super().__init__(*args, initial=given, **options)
        self.fields["name"] = forms.CharField(max_length=100)
        if rule is not None:
            self.fields["version"] = forms.IntegerField(widget=forms.HiddenInput)
        elif actor is not None:
            self.fields["namespace"] = _namespace_field(actor)
        self.fields["effect"] = forms.ChoiceField(
            choices=EFFECTS, widget=forms.RadioSelect, initial=Effect.ENFORCE.value
        )
        for key, text in self._help.items():
            self.fields[key] = _field(self.kind, key, text)
        self.fields["enabled"] = forms.BooleanField(required=False, initial=True)
        self.fields["comment"] = forms.CharField(
            required=False,
            max_length=2000,
            help_text="Reason for the change, recorded with the version.",
        )

    @property
    def _help(self) -> Mapping[str, str]:
        known = KINDS.get(self.kind)  # None for a rule that an older release saved
        return known.settings_help if known else {}

    @property
    def settings(self) -> dict[str, Any]:
        found = {key: _read(self.kind, key, self.cleaned_data.get(key, "")) for key in self._help}
        return {key: value for key, value in found.items() if value not in ("", None, [], {})}

    def clean(self) -> dict[str, Any]:
        """Check the settings even if other fields are wrong, so that all faults are shown."""
        cleaned = super().clean() or {}
        cleaned["settings"], cleaned["kind"] = self.settings, self.kind
        try:
            parse_rule(
                kind=self.kind,
                effect=cleaned.get("effect", Effect.ENFORCE.value),
                name=cleaned.get("name", "unnamed"),
                settings=cleaned["settings"],
            )
        except RuleError as error:
            show_faults(self, error)
        return cleaned


def _namespace_field(actor: Actor) -> forms.Field:
    namespaces = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by("name")
    if actor.is_superuser:
        return forms.ModelChoiceField(
            namespaces,
            required=False,
            empty_label="the whole installation",
            help_text="Where the rule applies.",
        )
    return forms.ModelChoiceField(namespaces, help_text="A namespace that you administer.")


def _field(kind: str, key: str, text: str) -> forms.Field:
    if (kind, key) in FLAGS:
        return forms.BooleanField(required=False, initial=True, help_text=text)
    if choices := CHOICES.get((kind, key)):
        return forms.ChoiceField(
            choices=choices, initial=choices[0][0], required=False, help_text=text
        )
    if (kind, key) in PAIRS:
        area = forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})
        return forms.CharField(
            required=False, widget=area, help_text=f"{text} One `key: value` per line."
        )
    if key in LINES and (kind, key) not in WORDS:
        area = forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})
        return forms.CharField(required=False, widget=area, help_text=f"{text} One per line.")
    return forms.CharField(required=False, help_text=text)


def _read(kind: str, key: str, value: Any) -> Any:
    """Return the value of a setting from what was typed."""
    if (kind, key) in FLAGS:
        return bool(value)
    if (kind, key) in CHOICES:
        # The default is not saved: a rule that says nothing follows it.
        return "" if value == CHOICES[kind, key][0][0] else value
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    if (kind, key) in PAIRS:
        pairs = (line.partition(": ") for line in lines)
        several = kind == "channels"
        return {
            name.strip().rstrip(":"): [part.strip() for part in text.split(",")]
            if several
            else text.strip()
            for name, _, text in pairs
        }
    if key in LINES and (kind, key) not in WORDS:
        return lines
    if kind == "size" and value.strip().isdecimal():
        return int(value)
    return value.strip()


def typed(value: Any) -> Any:
    """Return a setting as it is typed into its field."""
    if isinstance(value, Mapping):
        return "\n".join(
            f"{key}: {', '.join(map(str, item)) if isinstance(item, list) else item}"
            for key, item in value.items()
        )
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value
