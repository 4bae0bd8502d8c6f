"""Rules about channels: which may be used, and packages that their channel does not list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from environments.domain.names import in_channel
from environments.domain.policy.package_specs import (
    PackageSpec,
    package_spec,
)
from environments.domain.policy.reading import Settings, channel_pattern
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
from environments.domain.policy.verdicts import Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels(Rule):
    """Channels that may be used, for all packages or for single ones."""

    kind = "channels"
    title = "Channels"
    settings_help = {
        "allow": "URL patterns (https://*.example.com/*) or channel names; others are refused.",
        "deny": "URL patterns or channel names that are refused.",
        "packages": "Channels from which single packages must come: {pytorch*: [pytorch]}.",
        "reason": REASON_HELP,
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
            settings.fault("", "One of allow, deny and packages must be given.")
        return found

    @property
    def summary(self) -> str:
        parts = []
        if self.allow:
            parts.append(f"Only channels {joined(self.allow)}")
        if self.deny:
            parts.append(f"No channels {joined(self.deny)}")
        for spec, channels in self.packages:
            parts.append(f"{_without_manager(spec)} only from {joined(channels)}")
        return "; ".join(parts)

    def _refused(self, url: str) -> bool:
        if any(in_channel(url, pattern) for pattern in self.deny):
            return True
        return bool(self.allow) and not any(in_channel(url, pattern) for pattern in self.allow)

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "conda":
            return None
        only = [(spec, urls) for spec, urls in self.packages if spec.concerns(manager, name)]
        # A refused channel is reported once (`refused_channels`), not for each package.
        whole = self.effect is Effect.ASK and bool(self.allow or self.deny)
        if not only and not whole:
            return None

        def check_subject(subject: Subject) -> str:
            if whole and self._refused(subject.channel):
                return f"comes from the channel {subject.channel}"
            for spec, urls in only:
                if spec.takes(subject) and not any(in_channel(subject.channel, u) for u in urls):
                    return f"comes from {subject.channel}; only {joined(urls)} is allowed"
            return ""

        return check_subject

    def refused_channels(self, channels: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        if self.effect is Effect.ASK:
            return
        for url in channels:
            if self._refused(url):
                yield url, f"The channel {url} is not allowed here."


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlistedPackages(Rule):
    """Packages of submitted locks that their channel does not list."""

    kind = "unlisted-packages"
    title = "Unlisted packages"
    settings_help = {
        "allow": "Channels whose unlisted packages are accepted: URL patterns or names; * is all.",
        "except": EXCEPT_HELP,
        "reason": REASON_HELP,
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
        but = f", except from {joined(self.allow)}" if self.allow else ""
        return f"No packages that their channel does not list{but}{except_text(self.exempt)}"

    def hides(self) -> bool:
        return False  # a solver sees listed packages only

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        def check_subject(subject: Subject) -> str:
            if subject.listed or any(in_channel(subject.channel, one) for one in self.allow):
                return ""
            if subject.source:  # its lock names no index; see `PipSources`
                return ""
            if any_matches(self.exempt, subject):
                return ""
            return f"is not listed by {subject.channel or 'its Python index'}"

        return check_subject


#: Default rule, used if the installation has none of this kind.
UNLISTED = UnlistedPackages(name="unlisted-packages", effect=Effect.ASK)


def _without_manager(spec: PackageSpec) -> str:
    return spec.text.removeprefix("conda:").strip()
