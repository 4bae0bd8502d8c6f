"""Lock: the exact packages of every platform, identified by one digest."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Self

from environments.domain.records import CondaPackage, Package, PypiPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformLock:
    """The packages of one platform; conda packages are sorted dependencies first."""

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
        """sha256 (hex) of the packages, their bytes and their platforms; of nothing else."""
        content = {
            part.platform: {
                "conda": sorted([package.url, package.sha256] for package in part.conda),
                "pypi": sorted([package.url, package.sha256] for package in part.pypi),
            }
            for part in self.platforms
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def claims(self) -> str:
        """sha256 (hex) of the records: locks with one digest may differ in them."""
        content: dict[str, list[list[str]]] = {}
        for part in self.platforms:
            packages: tuple[Package, ...] = (*part.conda, *part.pypi)
            content[part.platform] = sorted([p.url, p.sha256, p.claim] for p in packages)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def on(self, platform: str) -> PlatformLock | None:
        return next((part for part in self.platforms if part.platform == platform), None)

    def __iter__(self) -> Iterator[PlatformLock]:
        return iter(self.platforms)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, from which `from_json` restores an equal lock with its records."""
        return {
            "channels": list(self.channels),
            "platforms": [
                {
                    "platform": part.platform,
                    "conda": [_conda_json(package) for package in part.conda],
                    "pypi": [_pypi_json(package) for package in part.pypi],
                }
                for part in self.platforms
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(
            channels=tuple(content["channels"]),
            platforms=tuple(
                PlatformLock(
                    platform=part["platform"],
                    conda=tuple(
                        CondaPackage.from_record(
                            package["record"],
                            url=package["url"],
                            channel=package["channel"],
                            file_name=package["file_name"],
                        )
                        for package in part["conda"]
                    ),
                    pypi=tuple(
                        PypiPackage(**(package | {"requires": tuple(package["requires"])}))
                        for package in part["pypi"]
                    ),
                )
                for part in content["platforms"]
            ),
        )


def _conda_json(package: CondaPackage) -> dict[str, Any]:
    return {
        "record": dict(package.record),
        "url": package.url,
        "channel": package.channel,
        "file_name": package.file_name,
    }


def _pypi_json(package: PypiPackage) -> dict[str, Any]:
    content = asdict(package) | {"requires": list(package.requires)}
    if not package.direct:  # older agents do not know the key
        del content["direct"]
    return content


_NAME = re.compile(r"(?:[^\s\[]*::)?([^\s=<>!~\[;,]+)")


@lru_cache(maxsize=16_384)
def required_name(depends: str) -> str:
    """Return the package name of an entry of `depends`: `python >=3.11` -> `python`."""
    match = _NAME.match(depends.strip())
    return match[1].lower() if match else ""


def takes_pip(python_version: str) -> bool:
    """Whether conda and mamba add pip to this Python, by their rule for records."""
    return python_version.startswith(("2.", "3."))


def lacks_pip(part: PlatformLock) -> bool:
    """Whether conda and mamba would add a pip that is not in the lock."""
    python = any(p.name == "python" and takes_pip(p.version) for p in part.conda)
    return python and all(package.name != "pip" for package in part.conda)


def dependency_order(packages: Iterable[CondaPackage]) -> tuple[CondaPackage, ...]:
    """Sort packages dependencies first, then by name.

    The order depends on the packages only, as files are written in it. In a cycle
    (python needs pip, pip needs python) the package with the fewest open dependencies comes first,
    python before all others.
    """
    by_name = {package.name: package for package in packages}
    needs = {
        name: {required_name(text) for text in package.depends} & by_name.keys() - {name}
        for name, package in by_name.items()
    }
    wanted_by: dict[str, list[str]] = {name: [] for name in by_name}
    for name, others in needs.items():
        for other in others:
            wanted_by[other].append(name)
    ready = [name for name, others in needs.items() if not others]
    heapq.heapify(ready)
    waiting = {name: others for name, others in needs.items() if others}
    ordered: list[CondaPackage] = []
    while ready or waiting:
        if not ready:
            name = min(waiting, key=lambda key: (key != "python", len(waiting[key]), key))
            del waiting[name]
            ready.append(name)
        name = heapq.heappop(ready)
        ordered.append(by_name[name])
        for other in wanted_by[name]:
            if other in waiting:
                waiting[other].discard(name)
                if not waiting[other]:
                    del waiting[other]
                    heapq.heappush(ready, other)
    return tuple(ordered)
