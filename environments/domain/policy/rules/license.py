"""Rule about the licenses of packages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from environments.domain.names import printable
from environments.domain.policy.licenses import (
    FREE_TEXT,
    acceptable,
    expression,
    license_pattern,
)
from environments.domain.policy.package_specs import (
    PackageSpec,
)
from environments.domain.policy.reading import Settings, plain
from environments.domain.policy.rules.base import (
    EXCEPT_HELP,
    REASON_HELP,
    Check,
    Rule,
    any_matches,
    except_text,
    joined,
)
from environments.domain.policy.subjects import Evidence, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Licenses(Rule):
    """Licenses that packages may have, by their channel's record and by their own metadata."""

    kind = "licenses"
    title = "Licenses"
    settings_help = {
        "allow": "SPDX names or globs (MIT, BSD-*, GPL-2.0-only WITH Classpath-exception-2.0); "
        "empty means all that are not denied.",
        "deny": "SPDX names or globs; takes precedence over allow.",
        "unknown": "Licenses that are neither SPDX expressions nor mapped: refuse (default) "
        "or accept.",
        "missing": "Packages without a license: refuse (default) or accept.",
        "map": "SPDX expressions for free texts: {BSD 3-Clause License: BSD-3-Clause}.",
        "except": EXCEPT_HELP,
        "reason": REASON_HELP,
    }

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unknown: str = "refuse"
    missing: str = "refuse"
    words: tuple[tuple[str, str], ...] = ()
    exempt: tuple[PackageSpec, ...] = ()
    #: Cache of objections by license: a channel has few licenses and many packages.
    _objections: dict[str, str] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        words = []
        for text, meanings in settings.mapping("map", plain, plain):
            if len(meanings) != 1 or (meanings[0] and expression(meanings[0]) is None):
                settings.fault(
                    f"map.{text}",
                    f"{printable(' '.join(meanings))} is not an SPDX expression.",
                    "Write the SPDX expression of the text, such as MIT OR Apache-2.0.",
                )
            else:
                words.append((text.lower(), meanings[0]))
        return {
            "allow": settings.listed("allow", license_pattern),
            "deny": settings.listed("deny", license_pattern),
            "unknown": settings.choice("unknown", ("refuse", "accept")),
            "missing": settings.choice("missing", ("refuse", "accept")),
            "words": tuple(words),
            "exempt": settings.specs("except", wide=False),
        }

    @property
    def summary(self) -> str:
        parts = []
        if self.allow:
            parts.append(f"Only under {joined(self.allow)}")
        if self.deny:
            parts.append(f"Not under {joined(self.deny)}")
        refused = [
            word
            for word, choice in (("unknown", self.unknown), ("missing", self.missing))
            if choice == "refuse"
        ]
        if refused:
            parts.append(f"no {' or '.join(refused)} licenses")
        return ("; ".join(parts) or "Any license") + except_text(self.exempt)

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        exempt = tuple(spec for spec in self.exempt if spec.concerns(manager, name))
        if any(spec.by_name and not spec.channel for spec in exempt):
            return None
        objection_to = self.objection_to

        def check_subject(subject: Subject) -> str:
            objection = objection_to(subject.license or "")
            if not objection and (own := evidence.own_license(subject)):
                # The channel may have corrected the license, or hidden it: only a person can judge.
                objection = objection_to(own)
                objection = objection and f"says of itself that it {objection}"
            if objection and exempt and any_matches(exempt, subject):
                return ""
            return objection

        return check_subject

    def objection_to(self, text: str) -> str:
        """Return the objection to this license, as a predicate; "" if there is none."""
        objection = self._objections.get(text)
        if objection is None:
            objection = self._judge(text)
            if len(self._objections) < 10_000:
                self._objections[text] = objection
        return objection

    def _judge(self, text: str) -> str:
        text = " ".join(text.split())
        if not text or text.lower() in ("none", "unknown", "noassertion"):
            return "has no license" if self.missing == "refuse" else ""
        words = dict(self.words)
        meaning = words.get(text.lower())
        tree = expression(text if meaning is None else meaning)
        if tree is None and meaning is None and text.lower() in FREE_TEXT:
            tree = expression(FREE_TEXT[text.lower()])
        if tree is None:
            if self.unknown == "accept":
                return ""
            return f"is under {printable(text)}, which is not an SPDX expression"
        if acceptable(tree, allow=self.allow, deny=self.deny):
            return ""
        return f"is under {text}, which is not allowed"
