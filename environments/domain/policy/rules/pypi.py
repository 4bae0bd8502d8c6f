"""Rules about Python indexes: packages from PyPI, and sources that a pip part names itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from environments.domain.names import channel_allowed
from environments.domain.pip_requirements import DirectReference
from environments.domain.policy.package_specs import (
    PackageSpec,
)
from environments.domain.policy.reading import Settings, plain, source_pattern
from environments.domain.policy.rules.base import (
    REASON_HELP,
    Check,
    Rule,
    any_matches,
    except_text,
    joined,
)
from environments.domain.policy.subjects import Evidence, Subject
from environments.domain.policy.verdicts import Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Pypi(Rule):
    """Whether packages may come from a Python index, and in which form."""

    kind = "pypi"
    title = "PyPI packages"
    settings_help = {
        "packages": "none (default): no packages from a Python index; wheels: no source "
        "distributions.",
        "except": "PyPI packages that the rule does not apply to: pypi:httpx.",
        "reason": REASON_HELP,
    }

    packages: str = "none"
    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        exempt = settings.specs("except", wide=True)
        return {"packages": settings.choice("packages", ("none", "wheels")), "exempt": exempt}

    @property
    def summary(self) -> str:
        what = "Nothing from PyPI" if self.packages == "none" else "Only wheels from PyPI"
        return what + except_text(self.exempt)

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "pypi":
            return None

        def check_subject(subject: Subject) -> str:
            if any_matches(self.exempt, subject):
                return ""
            if self.packages == "none":
                return "comes from a Python index"
            return "" if subject.file_name.endswith(".whl") else "is a source distribution"

        return check_subject

    def check_name(self, manager: str, name: str) -> str:
        if manager != "pypi" or self.packages != "none":
            return ""
        if any(spec.concerns(manager, name) for spec in self.exempt):
            return ""
        return "comes from a Python index"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipSources(Rule):
    """Sources that a pip part may name itself: wheels by URL, Git at a commit, other indexes.

    Only the installation can allow them; if it has no rule of this kind, a built-in one refuses
    all. Its rules of this kind are merged (`merged`); a rule of a namespace restricts the result.
    """

    kind = "pip-sources"
    title = "Sources of pip parts"
    settings_help = {
        "wheels": "URL patterns of wheels that may be named with their sha256: "
        "https://github.com/acme/*.",
        "git": "URL patterns of Git repositories that may be named at a full commit and are built "
        "in the sandbox: https://github.com/acme/*.",
        "indexes": "URL patterns for --extra-index-url, --index-url and --find-links, beside the "
        "indexes of the installation: https://download.pytorch.org/whl/*.",
        "namespaces": "Names or globs of the namespaces to which a rule of the installation "
        "applies; empty means all.",
        "reason": REASON_HELP,
    }

    wheels: tuple[str, ...] = ()
    git: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    #: The indexes of the installation, which may always be named.
    configured: tuple[str, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {
            "wheels": settings.listed("wheels", source_pattern),
            "git": settings.listed("git", source_pattern),
            "indexes": settings.listed("indexes", source_pattern),
            "namespaces": settings.listed("namespaces", plain),
        }

    @classmethod
    def merged(cls, rules: Sequence[PipSources]) -> PipSources:
        """Merge rules into one that allows what any of them allows, with the mildest effect."""
        mildest = max(rules, key=lambda rule: [*Effect].index(rule.effect))
        return replace(
            mildest,
            wheels=tuple(dict.fromkeys(text for rule in rules for text in rule.wheels)),
            git=tuple(dict.fromkeys(text for rule in rules for text in rule.git)),
            indexes=tuple(dict.fromkeys(text for rule in rules for text in rule.indexes)),
        )

    @property
    def summary(self) -> str:
        parts = [
            f"{what} {joined(patterns)}"
            for what, patterns in (
                ("wheels of", self.wheels),
                ("Git repositories of", self.git),
                ("indexes", self.indexes),
            )
            if patterns
        ]
        where = f" in {joined(self.namespaces)}" if self.namespaces else ""
        if not parts:
            return f"Pip parts take packages from the installation's indexes only{where}"
        return f"Pip parts may name {', '.join(parts)}{where}"

    def applies_to(self, namespace: str) -> bool:
        return not self.namespaces or any(fnmatchcase(namespace, one) for one in self.namespaces)

    def hides(self) -> bool:
        return False  # the named source has no other version of the package

    def objection_to(self, reference: DirectReference) -> str:
        """Return the objection to a source, as a predicate; "" if there is none."""
        patterns = self.git if reference.kind == "git" else self.wheels
        if any(channel_allowed(reference.url, (pattern,)) for pattern in patterns):
            return ""
        what = "Git repositories" if reference.kind == "git" else "wheels by URL"
        why = f"only {joined(patterns)} may be named" if patterns else f"{what} are not allowed"
        return f"comes from {reference.location}: {why} here"

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "pypi":
            return None

        def check_subject(subject: Subject) -> str:
            if not subject.source:
                return ""
            return self.objection_to(
                DirectReference.of_location(subject.source, sha256=subject.sha256)
            )

        return check_subject

    def refused_sources(
        self, direct: Mapping[str, DirectReference], indexes: tuple[str, ...]
    ) -> Iterator[tuple[str, str]]:
        if self.effect is not Effect.ASK:  # with ASK the lock is judged
            for name, reference in direct.items():
                if objection := self.objection_to(reference):
                    yield name, f"{name} {objection}"
        for url in indexes:
            if url in self.configured or channel_allowed(url, self.indexes):
                continue
            allowed = (*self.configured, *self.indexes)
            named = f"Allowed are {joined(allowed, most=10)}" if allowed else "No index is allowed"
            yield url, f"The Python index {url} is not allowed here. {named}"


#: Default rule, used if the installation has none of this kind.
PIP_SOURCES = PipSources(
    name="pip-sources",
    effect=Effect.ENFORCE,
    because="an administrator of the installation allows other sources of pip parts, by a rule of "
    "the kind pip-sources",
)
