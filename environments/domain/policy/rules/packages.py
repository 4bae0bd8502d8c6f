"""Rules about names and versions: denied, allowed, constrained, pinned, required, recalled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from condastore.errors import RuleError
from environments.domain.lock import PlatformLock
from environments.domain.policy.package_specs import (
    PackageSpec,
    pypi_keeping,
    pypi_leaving_out,
)
from environments.domain.policy.reading import Settings, plain
from environments.domain.policy.rules.base import (
    EXCEPT_HELP,
    REASON_HELP,
    Check,
    Rule,
    exact_specs,
    except_text,
    joined,
    required_specs,
)
from environments.domain.policy.subjects import Evidence, LockedPackage, Subject
from environments.domain.policy.verdicts import Effect
from environments.domain.records import Package

#: Predicate of the objection, by the effect of the rule.
_DENIED = {
    Effect.ENFORCE: "is denied",
    Effect.ASK: "needs an approval",
    Effect.WARN: "is advised against",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagesDenied(Rule):
    """Packages that may not be used."""

    kind = "packages-denied"
    title = "Denied packages"
    settings_help = {
        "packages": "MatchSpecs, with stars in names: numpy <2, *-gpl, conda-forge::openssl <3. "
        "A line means packages of conda and PyPI alike, unless it starts with conda: or pypi:.",
        "except": EXCEPT_HELP,
        "reason": REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()
    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {
            "packages": required_specs(settings, "packages", wide=True),
            "exempt": settings.specs("except", wide=False),
        }

    @property
    def summary(self) -> str:
        return f"Not {joined(self.packages)}{except_text(self.exempt)}"

    @property
    def pypi_constraints(self) -> tuple[str, ...]:
        if self.effect is not Effect.ENFORCE:
            return ()
        constraints = (
            pypi_leaving_out(spec)
            for spec in self.packages
            if not any(free.concerns("pypi", spec.name) for free in self.exempt)
        )
        return tuple(filter(None, constraints))

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        specs = [spec for spec in self.packages if spec.concerns(manager, name)]
        if not specs:
            return None
        exempt = tuple(spec for spec in self.exempt if spec.concerns(manager, name))
        verdict = _DENIED[self.effect]

        def check_subject(subject: Subject) -> str:
            for spec in specs:
                if spec.takes(subject) and not any(free.takes(subject) for free in exempt):
                    return f"{verdict} ({spec})"
            return ""

        return check_subject

    def check_name(self, manager: str, name: str) -> str:
        if any(spec.concerns(manager, name) for spec in self.exempt):
            return ""
        for spec in self.packages:
            if spec.by_name and not spec.channel and spec.concerns(manager, name):
                return f"{_DENIED[self.effect]} ({spec})"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagesAllowed(Rule):
    """List of packages that may be used; the rule objects to all others."""

    kind = "packages-allowed"
    title = "Only listed packages"
    settings_help = {
        "packages": "MatchSpecs of what may be used, with stars in names. A line means conda "
        "packages; those of PyPI start with pypi:.",
        "reason": REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        settings.given("packages")  # an empty list is valid: every package needs a decision
        return {"packages": settings.specs("packages", wide=False)}

    @property
    def summary(self) -> str:
        if not self.packages:
            return "Every package needs a decision" if self._asks else "No package at all"
        return f"Only {joined(self.packages)}"

    @property
    def _asks(self) -> bool:
        return self.effect is Effect.ASK

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        specs = [spec for spec in self.packages if spec.concerns(manager, name)]
        if any(spec.by_name and not spec.channel for spec in specs):
            return None

        def check_subject(subject: Subject) -> str:
            if any(spec.takes(subject) for spec in specs):
                return ""
            return "is not on the list of allowed packages"

        return check_subject

    def check_name(self, manager: str, name: str) -> str:
        if any(spec.concerns(manager, name) for spec in self.packages):
            return ""
        return "is not on the list of allowed packages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints(Rule):
    """Version constraints on packages, where an environment has them."""

    kind = "constraints"
    title = "Constraints"
    settings_help = {
        "packages": "MatchSpecs that hold in every environment that has the package: "
        "openssl >=3.0.13.",
        "reason": REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {"packages": exact_specs(settings, "packages")}

    @property
    def summary(self) -> str:
        return f"Wherever it is used: {joined(self.packages)}"

    @property
    def constraints(self) -> tuple[str, ...]:
        if self.effect is not Effect.ENFORCE:
            return ()
        return tuple(spec.matcher for spec in self.packages if spec.manager != "pypi")

    @property
    def pypi_constraints(self) -> tuple[str, ...]:
        if self.effect is not Effect.ENFORCE:
            return ()
        return tuple(filter(None, map(pypi_keeping, self.packages)))

    def hides(self) -> bool:
        return self.effect is Effect.ASK  # ENFORCE: the solver applies the constraints itself

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        specs = [spec for spec in self.packages if spec.concerns(manager, name)]
        if not specs:
            return None

        def check_subject(subject: Subject) -> str:
            for spec in specs:
                if not spec.takes(subject):
                    return f"does not match {spec}"
            return ""

        return check_subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins(Constraints):
    """Versions that are the same in every environment."""

    kind = "pins"
    title = "Pins"
    settings_help = {
        "packages": "Package and version: {python: 3.12.*, numpy: 1.26.*}.",
        "reason": REASON_HELP,
    }

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        pairs = settings.mapping("packages", plain, plain)
        lines = [f"{name} {version}" for name, versions in pairs for version in versions]
        parsed = Settings({"packages": lines})
        specs = exact_specs(parsed, "packages")
        try:
            parsed.finish()
        except RuleError as error:
            for fault in error.faults:
                settings.fault(fault.where.removeprefix("settings."), fault.message, fault.hint)
        return {"packages": specs}

    @property
    def summary(self) -> str:
        return f"Always {joined(self.packages)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Required(Rule):
    """Packages that every environment has."""

    kind = "required"
    title = "Required packages"
    settings_help = {
        "packages": "MatchSpecs of what every environment must have: ca-certificates.",
        "add": "Whether they are added automatically (default: true) or must be written in "
        "the specification.",
        "reason": REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()
    add: bool = True

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {
            "packages": exact_specs(settings, "packages"),
            "add": settings.flag("add", default=True),
        }

    @property
    def summary(self) -> str:
        return f"Always with {joined(self.packages)}" + (
            ", added automatically" if self.add else ""
        )

    @property
    def added(self) -> tuple[str, ...]:
        return tuple(spec.matcher for spec in self.packages) if self.add else ()

    def check_lock(self, part: PlatformLock) -> Iterator[str]:
        packages: tuple[Package, ...] = (*part.conda, *part.pypi)
        subjects = [LockedPackage(package) for package in packages]
        for spec in self.packages:
            if not any(spec.matches(subject) for subject in subjects):
                yield f"{spec} is required in every environment; it is missing on {part.platform}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled(Rule):
    """Recalls in force; people do not write rules of this kind."""

    kind = "recall"
    title = "Recalled packages"

    specs: tuple[tuple[PackageSpec, str], ...] = ()  # with the reason
    digests: tuple[tuple[str, str], ...] = ()

    @property
    def summary(self) -> str:
        return f"{len(self.specs) + len(self.digests)} recalls"

    @property
    def pypi_constraints(self) -> tuple[str, ...]:
        return tuple(filter(None, (pypi_leaving_out(spec) for spec, _ in self.specs)))

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        specs = [(spec, why) for spec, why in self.specs if spec.concerns(manager, name)]
        if not specs and not self.digests:
            return None
        digests = dict(self.digests)

        def check_subject(subject: Subject) -> str:
            for spec, why in specs:
                if spec.takes(subject):
                    return f"was recalled: {why}"
            if digests and subject.sha256 in digests:
                return f"was recalled: {digests[subject.sha256]}"
            return ""

        return check_subject
