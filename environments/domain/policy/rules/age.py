"""Rule about the minimum age of releases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from environments.domain.names import in_channel
from environments.domain.policy.package_specs import (
    PackageSpec,
)
from environments.domain.policy.reading import Settings, channel_pattern
from environments.domain.policy.rules.base import (
    EXCEPT_HELP,
    REASON_HELP,
    Check,
    Rule,
    any_matches,
    except_text,
)
from environments.domain.policy.subjects import Evidence, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumAge(Rule):
    """Minimum time since the release of a package."""

    kind = "age"
    title = "Minimum age"
    ages = True
    settings_help = {
        "minimum": "Minimum age for all channels: 14 days, 36h, 2 weeks.",
        "channels": "Other ages for some channels: {https://conda.example.com/*: 0 days}; "
        "pypi stands for the Python index.",
        "publisher_timestamp": "Whether the publisher's own date counts: never (default), "
        "baseline (for packages that were there when the channel was first read), or always.",
        "except": EXCEPT_HELP,
        "reason": REASON_HELP,
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
            settings.fault("minimum", "An age is required.", "Write it like 14 days.")
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
        parts = [f"Released at least {_duration_text(self.minimum)} ago"] if self.minimum else []
        parts += [f"{_duration_text(age)} for {channel}" for channel, age in self.channels]
        return ", ".join(parts) + except_text(self.exempt)

    def age_of(self, channel: str) -> timedelta:
        """Return the minimum age for a channel URL, or for the Python index if `channel` is ""."""
        for pattern, age in self.channels:
            if (pattern == "pypi") if not channel else in_channel(channel, pattern):
                return age
        return self.minimum

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        exempt = tuple(spec for spec in self.exempt if spec.concerns(manager, name))
        if any(spec.by_name and not spec.channel for spec in exempt):
            return None
        minimums: dict[str, float] = {}  # seconds by channel
        now, publisher = evidence.now, self.publisher_timestamp

        def check_subject(subject: Subject) -> str:
            channel = subject.channel
            least = minimums.get(channel)
            if least is None:
                least = minimums.setdefault(channel, self.age_of(channel).total_seconds())
            if not least:
                return ""
            oldest = now - least
            # Cheapest first: one piece of evidence is enough.
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
            if exempt and any_matches(exempt, subject):
                return ""
            known = [moment for moment in (indexed, seen.at if seen else None) if moment]
            if not known:
                return f"has no date that can be trusted; {_duration_text(least)} are required"
            age = _duration_text(now - min(known))
            return f"is known for {age} only; {_duration_text(least)} are required"

        return check_subject


def _duration_text(age: timedelta | float) -> str:
    seconds = age.total_seconds() if isinstance(age, timedelta) else max(age, 0)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size or size == 60:
            number = round(seconds / size, 1)
            return f"{number:g} {word}{'' if number == 1 else 's'}"
    raise AssertionError
