"""Base class of the rules of policies, and what their kinds share.

A rule only objects. What no rule objects to is allowed. So rules can be added in any order, and
those of a namespace can tighten what the installation requires, never loosen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from environments.domain.lock import PlatformLock
from environments.domain.names import printable
from environments.domain.pip_requirements import DirectReference
from environments.domain.policy.package_specs import (
    PackageSpec,
)
from environments.domain.policy.reading import Settings
from environments.domain.policy.subjects import Evidence, Subject
from environments.domain.policy.verdicts import Effect

#: Objection of a rule to one package, as a predicate that follows its name; "" if there is none.
Check = Callable[[Subject], str]


REASON_HELP = "Reason in your own words, shown with every refusal."
EXCEPT_HELP = "Packages that the rule does not apply to, as MatchSpecs."


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of a policy with its parsed settings."""

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""
    #: Description of each setting, for people who write rules.
    settings_help: ClassVar[Mapping[str, str]] = {}
    #: True if the verdict on a package changes with time alone.
    ages: ClassVar[bool] = False

    name: str
    effect: Effect
    because: str = ""  # reason in the organization's own words

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        """Parse the fields of the kind from `settings`."""
        return {}

    @property
    def summary(self) -> str:
        """Summary of the rule in one line of plain language."""
        return self.title

    @property
    def constraints(self) -> tuple[str, ...]:
        """MatchSpecs that constrain every solve."""
        return ()

    @property
    def pypi_constraints(self) -> tuple[str, ...]:
        """Constraints on PyPI packages in a solve (PEP 508), as far as they express the rule."""
        return ()

    @property
    def added(self) -> tuple[str, ...]:
        """MatchSpecs of packages that are added to every specification."""
        return ()

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        """Return the check for packages of this name, or None if the rule does not concern them."""
        return None

    def hides(self) -> bool:
        """Whether packages that the rule objects to are hidden from the solver."""
        return self.effect is not Effect.WARN

    def refused_channels(self, channels: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Yield (channel, sentence) of each channel that may not be used at all."""
        yield from ()

    def check_name(self, manager: str, name: str) -> str:
        """Return the objection to every version of this name; "" if there is none."""
        return ""

    def refused_sources(
        self, direct: Mapping[str, DirectReference], indexes: tuple[str, ...]
    ) -> Iterator[tuple[str, str]]:
        """Yield (subject, sentence) of sources that a pip part names itself and may not use.

        Args:
            direct: references by package name.
            indexes: URLs of indexes and of pages of links (`--find-links`).
        """
        yield from ()

    def check_lock(self, part: PlatformLock) -> Iterator[str]:
        """Yield objections to the lock of one platform as a whole."""
        yield from ()

    def applies_to(self, namespace: str) -> bool:
        """Whether a rule of the installation applies to the namespace of this name."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExemptingRule(Rule):
    """Rule whose only setting is the list of packages that it does not apply to."""

    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {"exempt": settings.specs("except", wide=False)}


def any_matches(specs: tuple[PackageSpec, ...], subject: Subject) -> bool:
    """Whether one of `specs` matches the package."""
    return any(spec.matches(subject) for spec in specs)


def joined(items: tuple[Any, ...], *, most: int = 4) -> str:
    """Join `items` by commas; those after the first `most` are counted only."""
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:most])
    return f"{shown} and {len(texts) - most} more" if len(texts) > most else shown


def except_text(specs: tuple[PackageSpec, ...]) -> str:
    """Return the end of a summary that names the exempt packages."""
    return f", except {joined(specs)}" if specs else ""


def required_specs(settings: Settings, key: str, *, wide: bool) -> tuple[PackageSpec, ...]:
    """Parse specs of which at least one must be given."""
    if not settings.given(key):
        settings.fault(key, "At least one package is required.", "Write MatchSpecs: numpy <2.")
    return settings.specs(key, wide=wide)


def exact_specs(settings: Settings, key: str) -> tuple[PackageSpec, ...]:
    """Parse specs that name one package each, which a solver can use as constraints."""
    specs = required_specs(settings, key, wide=False)
    for i, spec in enumerate(specs):
        if "*" in spec.name or spec.channel:
            settings.fault(
                f"{key}[{i}]",
                f"{printable(spec.text)} does not name exactly one package.",
                "Write a name and a version: openssl >=3.0.13.",
            )
    return specs
