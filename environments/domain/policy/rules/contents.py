"""Rules about what packages contain: install scripts, replaced files, total size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from environments.domain.linking import PathConflict
from environments.domain.lock import PlatformLock
from environments.domain.names import printable
from environments.domain.policy.reading import Settings
from environments.domain.policy.rules.base import (
    EXCEPT_HELP,
    REASON_HELP,
    Check,
    ExemptingRule,
    Rule,
    any_matches,
    except_text,
    joined,
)
from environments.domain.policy.subjects import Evidence, Subject
from environments.domain.policy.verdicts import Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallScripts(ExemptingRule):
    """Packages that run programs when they are linked or unlinked."""

    kind = "install-scripts"
    title = "Install scripts"
    settings_help = {"except": EXCEPT_HELP, "reason": REASON_HELP}

    @property
    def summary(self) -> str:
        return f"No packages with install scripts{except_text(self.exempt)}"

    def check(self, manager: str, name: str, evidence: Evidence) -> Check | None:
        if manager != "conda":
            return None

        def check_subject(subject: Subject) -> str:
            scripts = evidence.scripts(subject)
            if not scripts or any_matches(self.exempt, subject):
                return ""
            return f"has install scripts ({', '.join(scripts[:3])})"

        return check_subject


@dataclass(frozen=True, slots=True, kw_only=True)
class PathConflicts(ExemptingRule):
    """Packages that replace files of others, which is known only after they were fetched."""

    kind = "path-conflicts"
    title = "Path conflicts"
    settings_help = {
        "except": "Packages that may replace files of others, as MatchSpecs.",
        "reason": REASON_HELP,
    }

    @property
    def summary(self) -> str:
        return f"No packages that replace files of others{except_text(self.exempt)}"

    def hides(self) -> bool:
        return False

    def check_conflicts(self, winner: Subject, conflicts: Sequence[PathConflict]) -> str:
        """Return the objection to `winner`, which replaces files of others; "" if there is none."""
        if not conflicts or any_matches(self.exempt, winner):
            return ""
        others = dict.fromkeys(label for each in conflicts for label in each.replaced)
        more = f" and {len(conflicts) - 1} more files" if len(conflicts) > 1 else ""
        return f"replaces {printable(conflicts[0].path)}{more} of {joined(tuple(others))}"


#: Default rule, used if the installation has none of this kind.
PATH_CONFLICTS = PathConflicts(name="path-conflicts", effect=Effect.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size(Rule):
    """Maximum size and number of packages of one platform of an environment."""

    kind = "size"
    title = "Size"
    settings_help = {
        "bytes": "Maximum download size of all packages of a platform: 5 GB (10^9 bytes).",
        "packages": "Maximum number of packages of a platform.",
        "reason": REASON_HELP,
    }

    bytes: int | None = None
    packages: int | None = None

    @classmethod
    def read(cls, settings: Settings) -> dict[str, Any]:
        found = {"bytes": settings.size("bytes"), "packages": settings.count("packages")}
        if not settings.given("bytes") and not settings.given("packages"):
            settings.fault("", "One of bytes and packages must be given.", "Write bytes: 5 GB.")
        return found

    @property
    def summary(self) -> str:
        parts = [f"{self.bytes / 1e9:.3g} GB"] if self.bytes else []
        parts += [f"{self.packages} packages"] if self.packages else []
        return f"At most {' and '.join(parts)}"

    def check_lock(self, part: PlatformLock) -> Iterator[str]:
        size = sum(p.size for p in part.conda) + sum(p.size for p in part.pypi)
        yield from self.check_totals(part.platform, size, len(part.conda) + len(part.pypi))

    def check_totals(self, platform: str, size: int, packages: int) -> Iterator[str]:
        """Yield objections to a size in bytes and a number of packages; see `check_lock`."""
        if self.bytes is not None and size > self.bytes:
            yield (
                f"The packages for {platform} are {size / 1e9:.3g} GB to download; "
                f"{self.bytes / 1e9:.3g} GB are allowed"
            )
        if self.packages is not None and packages > self.packages:
            yield f"{platform} has {packages} packages; {self.packages} are allowed"
