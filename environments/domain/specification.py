"""Specification of an environment: an immutable value, named by its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self

from environments.domain.default_channels import CONDA_DEFAULTS
from environments.domain.exclude_newer import newest_allowed
from environments.domain.lock import Lock
from environments.domain.names import (
    Credential,
)
from environments.domain.pip_requirements import (
    PipOptions,
    direct_reference,
)

MAX_DESCRIPTION = 4_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTests:
    """Tests that a finished environment must pass before it is published."""

    imports: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """A normalized specification: immutable, and named by its digest."""

    kind: Literal["environment", "lock", "explicit"]
    channels: tuple[str, ...]  # canonical base URLs, the first wins, no credentials
    platforms: tuple[str, ...]  # sorted
    #: Sorted MatchSpecs by platform, in rattler's strict syntax; selectors are applied.
    dependencies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Sorted PEP 508 requirements by platform, with their markers.
    pip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Options of the pip part by platform; only platforms that have options.
    pip_options: Mapping[str, PipOptions] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    virtual_packages: tuple[str, ...] = ()  # "__cuda=12", sorted
    exclude_newer: str = ""  # "", an ISO date or time in UTC, or an age such as "P7D"
    smoke_tests: SmokeTests = SmokeTests()
    description: str = ""  # not part of the digest
    name: str = ""  # from the file, or ""; not part of the digest
    lock: Lock | None = None  # of the kinds "lock" and "explicit"

    @property
    def digest(self) -> str:
        """sha256, hex, of everything but `name` and `description`."""
        content = self.to_json()
        del content["name"], content["description"]
        if self.lock is not None:
            # Locks may claim different metadata for equal bytes: claims are part of the digest.
            content["lock"] = self.lock.claims
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def cutoff(self, now: datetime) -> datetime | None:
        """Upper bound on package timestamps; None if `exclude_newer` is empty."""
        return newest_allowed(self.exclude_newer, now)

    @property
    def pip_urls(self) -> tuple[str, ...]:
        """URLs of wheels, repositories and indexes that the pip part names itself."""
        direct = (direct_reference(text) for texts in self.pip.values() for text in texts)
        found = [reference.url for reference in direct if reference is not None]
        found += [url for options in self.pip_options.values() for url in options.urls]
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, from which `from_json` restores an equal specification."""
        options = {key: value.to_json() for key, value in self.pip_options.items()}
        return {
            # Omitted if empty, so that digests of older specifications do not change.
            **({"pip_options": options} if options else {}),
            "kind": self.kind,
            "channels": list(self.channels),
            "platforms": list(self.platforms),
            "dependencies": {key: list(value) for key, value in self.dependencies.items()},
            "pip": {key: list(value) for key, value in self.pip.items()},
            "variables": dict(self.variables),
            "virtual_packages": list(self.virtual_packages),
            "exclude_newer": self.exclude_newer,
            "smoke_tests": {
                "imports": list(self.smoke_tests.imports),
                "commands": list(self.smoke_tests.commands),
            },
            "description": self.description,
            "name": self.name,
            "lock": self.lock.to_json() if self.lock is not None else None,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        lock = content["lock"]
        return cls(
            kind=content["kind"],
            channels=tuple(content["channels"]),
            platforms=tuple(content["platforms"]),
            dependencies={key: tuple(value) for key, value in content["dependencies"].items()},
            pip={key: tuple(value) for key, value in content["pip"].items()},
            pip_options={
                key: PipOptions.from_json(value)
                for key, value in content.get("pip_options", {}).items()
            },
            variables=dict(content["variables"]),
            virtual_packages=tuple(content["virtual_packages"]),
            exclude_newer=content["exclude_newer"],
            smoke_tests=SmokeTests(
                imports=tuple(content["smoke_tests"]["imports"]),
                commands=tuple(content["smoke_tests"]["commands"]),
            ),
            description=content["description"],
            name=content["name"],
            lock=Lock.from_json(lock) if lock is not None else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A parsed specification, its source text without credentials, and those credentials."""

    specification: Specification
    source: str
    credentials: tuple[Credential, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Defaults for what the text leaves out, and limits."""

    channels: tuple[str, ...] = ("conda-forge",)
    channel_alias: str = "https://conda.anaconda.org"
    #: Base URL of hosted channels; "" if there are none.
    hosted_channels: str = ""
    platforms: tuple[str, ...] = ("linux-64",)
    max_bytes: int = 2**20
    max_lock_bytes: int = 16 * 2**20  # of a conda-lock.yml or an explicit list
    #: Channels that `defaults` stands for.
    default_channels: tuple[str, ...] = CONDA_DEFAULTS
