"""The kinds of rules: what each looks at, and what it says of one package or of a whole lock.

A rule only objects. What nothing objects to is allowed; so rules can be added in any order, and
those of a namespace can tighten what the installation says, never loosen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from condastore.errors import FaultError, RuleError
from environments.domain.linking import PathConflict
from environments.domain.lock import PlatformLock
from environments.domain.names import channel_allowed, did_you_mean, in_channel, printable
from environments.domain.pip_requirements import DirectReference
from environments.domain.policy.licences import (
    FREE_TEXT,
    acceptable,
    expression,
    licence_pattern,
)
from environments.domain.policy.package_specs import (
    PackageSpec,
    package_spec,
    pypi_keeping,
    pypi_leaving_out,
)
from environments.domain.policy.reading import Settings, channel_pattern, plain, source_pattern
from environments.domain.policy.subjects import Evidence, LockedPackage, Subject
from environments.domain.policy.verdicts import Effect
from environments.domain.records import Package

#: What a rule has against one package, in words that follow its name; "" is nothing.
Check = Callable[[Subject], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of a policy, its settings read."""

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""
    #: What each setting means, for people who write rules.
    settings_help: ClassVar[Mapping[str, str]] = {}
    #: What it says of a package changes as time goes by.
    ages: ClassVar[bool] = False

    name: str
    effect: Effect
    because: str = ""  # the organisation's own words

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        """The rule's own fields, of its settings."""
        return {}

    @property
    def summary(self) -> str:
        """One line in plain language."""
        return self.title

    @property
    def constraints(self) -> tuple[str, ...]:
        """MatchSpecs that join every solve."""
        return ()

    @property
    def pypi_constraints(self) -> tuple[str, ...]:
        """PEP 508, for what a solve takes from PyPI: as much of the rule as such can say."""
        return ()

    @property
    def added(self) -> tuple[str, ...]:
        """MatchSpecs of packages that are asked for in every environment."""
        return ()

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        """How to look at packages of this name; None where the rule has nothing to say of them."""
        return None

    def hides(self) -> bool:
        """Whether the solver must be kept from seeing what the rule objects to."""
        return self.effect is not Effect.WARN

    def of_channels(self, channels: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """(channel, sentence) of each that may not be used at all."""
        yield from ()

    def of_name(self, manager: str, name: str) -> str:
        """What there is against this name, whatever the version."""
        return ""

    def of_sources(
        self, direct: Mapping[str, DirectReference], indexes: tuple[str, ...]
    ) -> Iterator[tuple[str, str]]:
        """(subject, sentence) of sources that a pip part names itself and may not use.

        Args:
            direct: by the name of the package.
            indexes: URLs of indexes and of pages of links.
        """
        yield from ()

    def of_whole(self, part: PlatformLock) -> Iterator[str]:
        """Sentences about everything in one platform's lock."""
        yield from ()

    def holds_in(self, namespace: str) -> bool:
        """Whether a rule of the installation holds in the namespace of this name."""
        return True


_REASON_HELP = "Why, in your own words; shown to people with every refusal."
_EXCEPT_HELP = "Packages that the rule does not look at, as MatchSpecs."


def _covered(specs: tuple[PackageSpec, ...], subject: Subject) -> bool:
    return any(spec.matches(subject) for spec in specs)


def _listed(items: tuple[Any, ...], *, most: int = 4) -> str:
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:most])
    return f"{shown} and {len(texts) - most} more" if len(texts) > most else shown


def _but(specs: tuple[PackageSpec, ...]) -> str:
    return f", except {_listed(specs)}" if specs else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels(Rule):
    """Which channels may be used, for everything or for single packages."""

    kind = "channels"
    title = "Channels"
    settings_help = {
        "allow": "URL patterns (https://*.example.com/*) or channel names; others are refused.",
        "deny": "URL patterns or channel names that are refused.",
        "packages": "Which packages come only from which channels: {pytorch*: [pytorch]}.",
        "reason": _REASON_HELP,
    }

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    packages: tuple[tuple[PackageSpec, tuple[str, ...]], ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        found = {
            "allow": settings.listed("allow", channel_pattern),
            "deny": settings.listed("deny", channel_pattern),
            "packages": settings.mapping(
                "packages", lambda text: package_spec(f"conda:{text}", wide=True), channel_pattern
            ),
        }
        if not any(found.values()) and not any(map(settings.given, found)):
            settings.fault("", "None of allow, deny and packages is given.")
        return found

    @property
    def summary(self) -> str:
        parts = []
        if self.allow:
            parts.append(f"Only channels {_listed(self.allow)}")
        if self.deny:
            parts.append(f"No channels {_listed(self.deny)}")
        for spec, channels in self.packages:
            parts.append(f"{_plain_spec(spec)} only from {_listed(channels)}")
        return "; ".join(parts)

    def _refused(self, url: str) -> bool:
        if any(in_channel(url, pattern) for pattern in self.deny):
            return True
        return bool(self.allow) and not any(in_channel(url, pattern) for pattern in self.allow)

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "conda":
            return None
        only = [(spec, urls) for spec, urls in self.packages if spec.concerns(manager, name)]
        # What is refused as a whole channel is said once (`of_channels`), not of each package.
        whole = self.effect is Effect.ASK and bool(self.allow or self.deny)
        if not only and not whole:
            return None

        def look(subject: Subject) -> str:
            if whole and self._refused(subject.channel):
                return f"comes from the channel {subject.channel}"
            for spec, urls in only:
                if spec.takes(subject) and not any(in_channel(subject.channel, u) for u in urls):
                    return f"comes from {subject.channel}; allowed is only {_listed(urls)}"
            return ""

        return look

    def of_channels(self, channels: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        if self.effect is Effect.ASK:
            return
        for url in channels:
            if self._refused(url):
                yield url, f"The channel {url} is not allowed here."


#: What such a rule says of a package, in the words of who reads it.
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
        "except": _EXCEPT_HELP,
        "reason": _REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()
    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {
            "packages": _needed(settings, "packages", wide=True),
            "exempt": settings.specs("except", wide=False),
        }

    @property
    def summary(self) -> str:
        return f"Not {_listed(self.packages)}{_but(self.exempt)}"

    @property
    def pypi_constraints(self) -> tuple[str, ...]:
        if self.effect is not Effect.ENFORCE:
            return ()
        told = (
            pypi_leaving_out(spec)
            for spec in self.packages
            if not any(free.concerns("pypi", spec.name) for free in self.exempt)
        )
        return tuple(filter(None, told))

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        specs = [spec for spec in self.packages if spec.concerns(manager, name)]
        if not specs:
            return None
        exempt = tuple(spec for spec in self.exempt if spec.concerns(manager, name))
        verdict = _DENIED[self.effect]

        def look(subject: Subject) -> str:
            for spec in specs:
                if spec.takes(subject) and not any(free.takes(subject) for free in exempt):
                    return f"{verdict} ({spec})"
            return ""

        return look

    def of_name(self, manager: str, name: str) -> str:
        if any(spec.concerns(manager, name) for spec in self.exempt):
            return ""
        for spec in self.packages:
            if spec.by_name and not spec.channel and spec.concerns(manager, name):
                return f"{_DENIED[self.effect]} ({spec})"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagesAllowed(Rule):
    """A list of what may be used; the rule objects to everything else."""

    kind = "packages-allowed"
    title = "Only listed packages"
    settings_help = {
        "packages": "MatchSpecs of what may be used, with stars in names. A line means conda "
        "packages; those of PyPI start with pypi:.",
        "reason": _REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        settings.given("packages")  # an empty list is a policy too: nothing without a decision
        return {"packages": settings.specs("packages", wide=False)}

    @property
    def summary(self) -> str:
        if not self.packages:
            return "Every package needs a decision" if self._asks else "No package at all"
        return f"Only {_listed(self.packages)}"

    @property
    def _asks(self) -> bool:
        return self.effect is Effect.ASK

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        specs = [spec for spec in self.packages if spec.concerns(manager, name)]
        if any(spec.by_name and not spec.channel for spec in specs):
            return None

        def look(subject: Subject) -> str:
            if any(spec.takes(subject) for spec in specs):
                return ""
            return "is not on the list of allowed packages"

        return look

    def of_name(self, manager: str, name: str) -> str:
        if any(spec.concerns(manager, name) for spec in self.packages):
            return ""
        return "is not on the list of allowed packages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Licences(Rule):
    """Under which licences packages may be: by their records, and by what they say themselves."""

    kind = "licences"
    title = "Licences"
    settings_help = {
        "allow": "SPDX names or globs (MIT, BSD-*, GPL-2.0-only WITH Classpath-exception-2.0); "
        "none means all that are not denied.",
        "deny": "SPDX names or globs; goes before allow.",
        "unknown": "What is no SPDX expression, mapped neither: refuse (default) or accept.",
        "missing": "Packages that name no licence: refuse (default) or accept.",
        "map": "What free texts mean: {BSD 3-Clause License: BSD-3-Clause}.",
        "except": _EXCEPT_HELP,
        "reason": _REASON_HELP,
    }

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unknown: str = "refuse"
    missing: str = "refuse"
    words: tuple[tuple[str, str], ...] = ()
    exempt: tuple[PackageSpec, ...] = ()
    #: What was found before: a channel has few licences and many packages.
    _said: dict[str, str] = field(
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
                    "Write the expression that the text stands for, such as MIT OR Apache-2.0.",
                )
            else:
                words.append((text.lower(), meanings[0]))
        return {
            "allow": settings.listed("allow", licence_pattern),
            "deny": settings.listed("deny", licence_pattern),
            "unknown": settings.choice("unknown", ("refuse", "accept")),
            "missing": settings.choice("missing", ("refuse", "accept")),
            "words": tuple(words),
            "exempt": settings.specs("except", wide=False),
        }

    @property
    def summary(self) -> str:
        parts = []
        if self.allow:
            parts.append(f"Only under {_listed(self.allow)}")
        if self.deny:
            parts.append(f"Not under {_listed(self.deny)}")
        refused = [
            word
            for word, choice in (("unknown", self.unknown), ("missing", self.missing))
            if choice == "refuse"
        ]
        if refused:
            parts.append(f"no {' or '.join(refused)} licences")
        return ("; ".join(parts) or "Any licence") + _but(self.exempt)

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        exempt = tuple(spec for spec in self.exempt if spec.concerns(manager, name))
        if any(spec.by_name and not spec.channel for spec in exempt):
            return None
        objection_to = self.objection_to

        def look(subject: Subject) -> str:
            objection = objection_to(subject.license or "")
            if not objection and (own := evidence.own_license(subject)):
                # The channel may correct a licence. Only people can tell that from a disguise.
                objection = objection_to(own)
                objection = objection and f"says of itself that it {objection}"
            if objection and exempt and _covered(exempt, subject):
                return ""
            return objection

        return look

    def objection_to(self, text: str) -> str:
        """Return what is wrong with this licence, as a predicate; "" if nothing is."""
        objection = self._said.get(text)
        if objection is None:
            objection = self._judge(text)
            if len(self._said) < 10_000:
                self._said[text] = objection
        return objection

    def _judge(self, text: str) -> str:
        text = " ".join(text.split())
        if not text or text.lower() in ("none", "unknown", "noassertion"):
            return "names no licence" if self.missing == "refuse" else ""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumAge(Rule):
    """How long a release must have been out."""

    kind = "age"
    title = "Minimum age"
    ages = True
    settings_help = {
        "minimum": "For all channels: 14 days, 36h, 2 weeks.",
        "channels": "Other ages for some channels: {https://conda.example.com/*: 0 days}; "
        "pypi stands for the Python index.",
        "publisher_timestamp": "Whether the publisher's own date counts: never (default), "
        "baseline (for what was there when we first looked), or always.",
        "except": _EXCEPT_HELP,
        "reason": _REASON_HELP,
    }

    minimum: timedelta = timedelta()
    channels: tuple[tuple[str, timedelta], ...] = ()
    publisher_timestamp: str = "never"
    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        minimum = settings.age("minimum")
        channels = settings.ages("channels", channel_pattern)
        if not settings.given("minimum") and not settings.given("channels"):
            settings.fault("minimum", "An age is needed.", "Write it like 14 days.")
        return {
            "minimum": minimum or timedelta(),
            "channels": tuple(channels.items()),
            "publisher_timestamp": settings.choice(
                "publisher_timestamp", ("never", "baseline", "always")
            ),
            "exempt": settings.specs("except", wide=False),
        }

    @property
    def summary(self) -> str:
        parts = [f"Released at least {_span(self.minimum)} ago"] if self.minimum else []
        parts += [f"{_span(age)} for {channel}" for channel, age in self.channels]
        return ", ".join(parts) + _but(self.exempt)

    def age_of(self, channel: str) -> timedelta:
        """`channel`: a URL, or "" for the Python index."""
        for pattern, age in self.channels:
            if (pattern == "pypi") if not channel else in_channel(channel, pattern):
                return age
        return self.minimum

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        exempt = tuple(spec for spec in self.exempt if spec.concerns(manager, name))
        if any(spec.by_name and not spec.channel for spec in exempt):
            return None
        wanted: dict[str, float] = {}
        now, publisher = evidence.now, self.publisher_timestamp

        def look(subject: Subject) -> str:
            channel = subject.channel
            least = wanted.get(channel)
            if least is None:
                least = wanted.setdefault(channel, self.age_of(channel).total_seconds())
            if not least:
                return ""
            oldest = now - least
            # In the order of what costs least: one piece of evidence is enough.
            indexed = subject.indexed
            if indexed is not None and indexed <= oldest:
                return ""
            if publisher == "always":
                published = subject.published
                if published is not None and published <= oldest:
                    return ""
            seen = evidence.first_seen(subject)
            if seen is not None:
                if seen.at <= oldest:
                    return ""
                if publisher == "baseline" and seen.baseline:
                    published = subject.published
                    if published is not None and published <= oldest:
                        return ""
            if exempt and _covered(exempt, subject):
                return ""
            known = [moment for moment in (indexed, seen.at if seen else None) if moment]
            if not known:
                return f"has no date that can be trusted; {_span(least)} are required"
            return f"is known for {_span(now - min(known))} only; {_span(least)} are required"

        return look


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints(Rule):
    """Versions that hold wherever a package is used; it need not be used."""

    kind = "constraints"
    title = "Constraints"
    settings_help = {
        "packages": "MatchSpecs that hold in every environment that has the package: "
        "openssl >=3.0.13.",
        "reason": _REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {"packages": _exact(settings, "packages")}

    @property
    def summary(self) -> str:
        return f"Wherever it is used: {_listed(self.packages)}"

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
        return self.effect is Effect.ASK  # ENFORCE: the solver keeps to the constraints itself

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        specs = [spec for spec in self.packages if spec.concerns(manager, name)]
        if not specs:
            return None

        def look(subject: Subject) -> str:
            for spec in specs:
                if not spec.takes(subject):
                    return f"does not fit {spec}"
            return ""

        return look


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins(Constraints):
    """Versions that are the same in every environment."""

    kind = "pins"
    title = "Pins"
    settings_help = {
        "packages": "Package and version: {python: 3.12.*, numpy: 1.26.*}.",
        "reason": _REASON_HELP,
    }

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        pairs = settings.mapping("packages", plain, plain)
        lines = [f"{name} {version}" for name, versions in pairs for version in versions]
        again = Settings({"packages": lines})
        specs = _exact(again, "packages")
        try:
            again.finish()
        except RuleError as error:
            for fault in error.faults:
                settings.fault(fault.where.removeprefix("settings."), fault.message, fault.hint)
        return {"packages": specs}

    @property
    def summary(self) -> str:
        return f"Always {_listed(self.packages)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Required(Rule):
    """Packages that every environment has."""

    kind = "required"
    title = "Required packages"
    settings_help = {
        "packages": "MatchSpecs of what every environment must have: ca-certificates.",
        "add": "Whether they are asked for by themselves (default: true), or must be written.",
        "reason": _REASON_HELP,
    }

    packages: tuple[PackageSpec, ...] = ()
    add: bool = True

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {"packages": _exact(settings, "packages"), "add": settings.flag("add", default=True)}

    @property
    def summary(self) -> str:
        return f"Always with {_listed(self.packages)}" + (", added by itself" if self.add else "")

    @property
    def added(self) -> tuple[str, ...]:
        return tuple(spec.matcher for spec in self.packages) if self.add else ()

    def of_whole(self, part: PlatformLock) -> Iterator[str]:
        packages: tuple[Package, ...] = (*part.conda, *part.pypi)
        held = [LockedPackage(package) for package in packages]
        for spec in self.packages:
            if not any(spec.matches(subject) for subject in held):
                yield f"{spec} is required in every environment; it is missing on {part.platform}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallScripts(Rule):
    """Packages that want to run programs when they are linked or unlinked."""

    kind = "install-scripts"
    title = "Install scripts"
    settings_help = {"except": _EXCEPT_HELP, "reason": _REASON_HELP}

    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {"exempt": settings.specs("except", wide=False)}

    @property
    def summary(self) -> str:
        return f"No packages with install scripts{_but(self.exempt)}"

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "conda":
            return None

        def look(subject: Subject) -> str:
            scripts = evidence.scripts(subject)
            if not scripts or _covered(self.exempt, subject):
                return ""
            return f"has install scripts ({', '.join(scripts[:3])})"

        return look


@dataclass(frozen=True, slots=True, kw_only=True)
class Size(Rule):
    """How much one platform of an environment may hold."""

    kind = "size"
    title = "Size"
    settings_help = {
        "bytes": "To download, all packages of a platform together: 5 GB.",
        "packages": "How many packages a platform may have.",
        "reason": _REASON_HELP,
    }

    bytes: int | None = None
    packages: int | None = None

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        found = {"bytes": settings.size("bytes"), "packages": settings.count("packages")}
        if not settings.given("bytes") and not settings.given("packages"):
            settings.fault("", "Neither bytes nor packages is given.", "Write bytes: 5 GB.")
        return found

    @property
    def summary(self) -> str:
        parts = [f"{self.bytes / 1e9:.3g} GB"] if self.bytes else []
        parts += [f"{self.packages} packages"] if self.packages else []
        return f"At most {' and '.join(parts)}"

    def of_whole(self, part: PlatformLock) -> Iterator[str]:
        size = sum(p.size for p in part.conda) + sum(p.size for p in part.pypi)
        yield from self.of_sums(part.platform, size, len(part.conda) + len(part.pypi))

    def of_sums(self, platform: str, size: int, packages: int) -> Iterator[str]:
        """As `of_whole`, where the sums are known."""
        if self.bytes is not None and size > self.bytes:
            yield (
                f"The packages for {platform} are {size / 1e9:.3g} GB to download; "
                f"{self.bytes / 1e9:.3g} GB are allowed"
            )
        if self.packages is not None and packages > self.packages:
            yield f"{platform} has {packages} packages; {self.packages} are allowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pypi(Rule):
    """Whether packages may come from a Python index, and in which form."""

    kind = "pypi"
    title = "PyPI packages"
    settings_help = {
        "packages": "none (default): nothing from a Python index; wheels: no source distributions.",
        "except": "PyPI packages that the rule does not look at: pypi:httpx.",
        "reason": _REASON_HELP,
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
        return what + _but(self.exempt)

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "pypi":
            return None

        def look(subject: Subject) -> str:
            if _covered(self.exempt, subject):
                return ""
            if self.packages == "none":
                return "comes from a Python index"
            return "" if subject.file_name.endswith(".whl") else "is a source distribution"

        return look

    def of_name(self, manager: str, name: str) -> str:
        if manager != "pypi" or self.packages != "none":
            return ""
        if any(spec.concerns(manager, name) for spec in self.exempt):
            return ""
        return "comes from a Python index"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlistedPackages(Rule):
    """Packages of brought locks that their channel does not list."""

    kind = "unlisted-packages"
    title = "Unlisted packages"
    settings_help = {
        "allow": "Channels whose unlisted packages are accepted: URL patterns or names; * is all.",
        "except": _EXCEPT_HELP,
        "reason": _REASON_HELP,
    }

    allow: tuple[str, ...] = ()
    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {
            "allow": settings.listed("allow", channel_pattern),
            "exempt": settings.specs("except", wide=False),
        }

    @property
    def summary(self) -> str:
        but = f", except from {_listed(self.allow)}" if self.allow else ""
        return f"No packages that their channel does not list{but}{_but(self.exempt)}"

    def hides(self) -> bool:
        return False  # a solver is offered listed packages only

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        def look(subject: Subject) -> str:
            if subject.listed or any(in_channel(subject.channel, one) for one in self.allow):
                return ""
            if subject.source:  # no index is said to have it; see `PipSources`
                return ""
            if _covered(self.exempt, subject):
                return ""
            return f"is not listed by {subject.channel or 'its Python index'}"

        return look


@dataclass(frozen=True, slots=True, kw_only=True)
class PipSources(Rule):
    """Sources that a pip part may name itself: wheels by URL, Git at a commit, other indexes.

    Only the installation can allow them: without a rule of its own a built-in one refuses all. Its
    rules of this kind grant together (`merged`); one of a namespace narrows what they grant.
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
        "namespaces": "Names or globs of the namespaces in which a rule of the installation "
        "holds; none means all.",
        "reason": _REASON_HELP,
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
        """One rule that allows what any of these does, with the mildest effect among them."""
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
            f"{what} {_listed(patterns)}"
            for what, patterns in (
                ("wheels of", self.wheels),
                ("Git repositories of", self.git),
                ("indexes", self.indexes),
            )
            if patterns
        ]
        where = f" in {_listed(self.namespaces)}" if self.namespaces else ""
        if not parts:
            return f"Pip parts take packages from the installation's indexes only{where}"
        return f"Pip parts may name {', '.join(parts)}{where}"

    def holds_in(self, namespace: str) -> bool:
        return not self.namespaces or any(fnmatchcase(namespace, one) for one in self.namespaces)

    def hides(self) -> bool:
        return False  # no other version of the package is at the source that was named

    def against(self, reference: DirectReference) -> str:
        """What there is against a source, in words that follow the package's name."""
        patterns = self.git if reference.kind == "git" else self.wheels
        if any(channel_allowed(reference.url, (pattern,)) for pattern in patterns):
            return ""
        what = "Git repositories" if reference.kind == "git" else "wheels by URL"
        why = f"only {_listed(patterns)} may be named" if patterns else f"{what} are not allowed"
        return f"comes from {reference.location}: {why} here"

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "pypi":
            return None

        def look(subject: Subject) -> str:
            if not subject.source:
                return ""
            return self.against(DirectReference.of_location(subject.source, sha256=subject.sha256))

        return look

    def of_sources(
        self, direct: Mapping[str, DirectReference], indexes: tuple[str, ...]
    ) -> Iterator[tuple[str, str]]:
        if self.effect is not Effect.ASK:  # what is asked is judged in the lock
            for name, reference in direct.items():
                if against := self.against(reference):
                    yield name, f"{name} {against}"
        for url in indexes:
            if url in self.configured or channel_allowed(url, self.indexes):
                continue
            allowed = (*self.configured, *self.indexes)
            named = f"Allowed are {_listed(allowed, most=10)}" if allowed else "None is allowed"
            yield url, f"The Python index {url} is not allowed here. {named}"


#: The rule that holds where the installation has none of this kind.
PIP_SOURCES = PipSources(
    name="pip-sources",
    effect=Effect.ENFORCE,
    because="an administrator of the installation allows other sources of pip parts, by a rule of "
    "the kind pip-sources",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathConflicts(Rule):
    """Packages that replace files of others: known once they are fetched, not to the solver."""

    kind = "path-conflicts"
    title = "Path conflicts"
    settings_help = {
        "except": "Packages that may replace files of others, as MatchSpecs.",
        "reason": _REASON_HELP,
    }

    exempt: tuple[PackageSpec, ...] = ()

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        return {"exempt": settings.specs("except", wide=False)}

    @property
    def summary(self) -> str:
        return f"No packages that replace files of others{_but(self.exempt)}"

    def hides(self) -> bool:
        return False

    def of_conflicts(self, winner: Subject, conflicts: Sequence[PathConflict]) -> str:
        """What the rule has against `winner`, which replaces files of others; "" is nothing."""
        if not conflicts or _covered(self.exempt, winner):
            return ""
        others = dict.fromkeys(label for each in conflicts for label in each.replaced)
        more = f" and {len(conflicts) - 1} more files" if len(conflicts) > 1 else ""
        return f"replaces {printable(conflicts[0].path)}{more} of {_listed(tuple(others))}"


#: The rule that holds where the installation has none of this kind.
PATH_CONFLICTS = PathConflicts(name="path-conflicts", effect=Effect.WARN)

#: The rule that holds where the installation has none of this kind.
UNLISTED = UnlistedPackages(name="unlisted-packages", effect=Effect.ASK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled(Rule):
    """What was called back: nobody writes this rule, it is made of the recalls in force."""

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

        def look(subject: Subject) -> str:
            for spec, why in specs:
                if spec.takes(subject):
                    return f"was recalled: {why}"
            if digests and subject.sha256 in digests:
                return f"was recalled: {digests[subject.sha256]}"
            return ""

        return look


#: The kinds that people write, in the order in which they are offered.
KINDS: Mapping[str, type[Rule]] = {
    kind.kind: kind
    for kind in (
        Channels,
        PackagesDenied,
        PackagesAllowed,
        Licences,
        MinimumAge,
        Constraints,
        Pins,
        Required,
        InstallScripts,
        Size,
        Pypi,
        PipSources,
        UnlistedPackages,
        PathConflicts,
    )
}


def parse_rule(*, kind: str, effect: str, name: str, settings: object) -> Rule:
    """A rule as people write it: `settings` is the JSON object of its kind.

    Raises:
        RuleError: every fault, with the key.
    """
    reading = Settings(settings)
    faults: list[FaultError] = []
    known = KINDS.get(kind)
    if known is None:
        hint = did_you_mean(kind, KINDS) or f"Use one of {', '.join(KINDS)}."
        faults.append(FaultError(f"There is no kind {printable(kind)}.", where="kind", hint=hint))
    if effect not in {each.value for each in Effect}:
        hint = "Use enforce (refuse), ask (hold for approval) or warn."
        message = f"There is no effect {printable(effect)}."
        faults.append(FaultError(message, where="effect", hint=hint))
    if not name.strip() or len(name) > 100 or not name.isprintable():
        message = "A rule has a name of 1 to 100 printable characters."
        faults.append(FaultError(message, where="name"))
    if known is None:
        raise RuleError(faults)
    because = reading.text("reason")
    fields = known.read(reading)
    try:
        reading.finish()
    except RuleError as error:
        raise RuleError([*faults, *error.faults]) from None
    if faults:
        raise RuleError(faults)
    return known(name=name.strip(), effect=Effect(effect), because=because, **fields)


def _needed(settings: Settings, key: str, *, wide: bool) -> tuple[PackageSpec, ...]:
    if not settings.given(key):
        settings.fault(key, "At least one package is needed.", "Write MatchSpecs: numpy <2.")
    return settings.specs(key, wide=wide)


def _exact(settings: Settings, key: str) -> tuple[PackageSpec, ...]:
    """Specs that name one package each: what a solver can be told."""
    specs = _needed(settings, key, wide=False)
    for i, spec in enumerate(specs):
        if "*" in spec.name or spec.channel:
            settings.fault(
                f"{key}[{i}]",
                f"{printable(spec.text)} does not name one package by its name.",
                "Write the name and the version: openssl >=3.0.13.",
            )
    return specs


def _plain_spec(spec: PackageSpec) -> str:
    return spec.text.removeprefix("conda:").strip()


def _span(age: timedelta | float) -> str:
    seconds = age.total_seconds() if isinstance(age, timedelta) else max(age, 0)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size or size == 60:
            number = round(seconds / size, 1)
            return f"{number:g} {word}{'' if number == 1 else 's'}"
    raise AssertionError
