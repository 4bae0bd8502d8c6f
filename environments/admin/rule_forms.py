"""How is a rule of a policy typed? One field for each setting of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from environments.domain.policy import Effect
from environments.domain.policy.rules import KINDS
from environments.models import PolicyRule

EFFECTS = [
    (Effect.ENFORCE.value, "enforce: refuse"),
    (Effect.ASK.value, "ask: hold for approval"),
    (Effect.WARN.value, "warn"),
]
#: How a setting is typed: a line for each item, or for each pair of key and value.
LINES = frozenset({"allow", "deny", "except", "packages"})
PAIRS = frozenset({("channels", "packages"), ("pins", "packages"), ("licenses", "map"),
                   ("age", "channels")})  # fmt: skip
FLAGS = frozenset({("required", "add")})
WORDS = frozenset({("size", "packages"), ("pypi", "packages")})


class RuleForm(forms.Form):
    """A new rule, or one that is changed; `everywhere`: it may be one of the installation."""

    def __init__(
        self,
        *args: Any,
        kind: str = "",
        everywhere: bool = False,
        rule: PolicyRule | None = None,
        initial: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.kind = rule.kind if rule else kind
        given = dict(initial or {})
        if rule is not None:
            held = {key: typed(value) for key, value in rule.settings.items()}
            given |= held | {"name": rule.name, "effect": rule.effect, "enabled": rule.enabled}
            given["version"] = rule.policy.version
        super().__init__(*args, initial=given, **options)
        self.fields["name"] = forms.CharField(max_length=100)
        if rule is None:
            text = "Empty: the whole installation." if everywhere else "One that you run."
            self.fields["namespace"] = forms.CharField(
                required=not everywhere, max_length=64, help_text=text
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


def typed(value: Any) -> Any:
    """A setting as it is typed into its field."""
    if isinstance(value, Mapping):
        return "\n".join(
            f"{key}: {', '.join(map(str, said)) if isinstance(said, list) else said}"
            for key, said in value.items()
        )
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value
