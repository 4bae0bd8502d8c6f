"""What a solve gave: the exact packages of every platform, named by one digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from environments.domain.records import CondaPackage, PypiPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformLock:
    """The packages of one platform; conda in an order in which dependencies come first."""

    platform: str
    conda: tuple[CondaPackage, ...]
    pypi: tuple[PypiPackage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """`channels` are base URLs in the order of priority, without credentials."""

    channels: tuple[str, ...]
    platforms: tuple[PlatformLock, ...]

    @property
    def digest(self) -> str:
        """sha256, hex: of which packages with which bytes, for which platforms; of nothing else."""
        content = {
            part.platform: {
                "conda": sorted([package.url, package.sha256] for package in part.conda),
                "pypi": sorted([package.url, package.sha256] for package in part.pypi),
            }
            for part in self.platforms
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def on(self, platform: str) -> PlatformLock | None:
        return next((part for part in self.platforms if part.platform == platform), None)

    def __iter__(self) -> Iterator[PlatformLock]:
        return iter(self.platforms)
