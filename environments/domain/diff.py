"""Differences between two locks, and the dependency chains that explain a package."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion
from packaging.version import Version as PypiVersion
from rattler import Version
from rattler.exceptions import InvalidVersionError

from environments.domain.lock import PlatformLock, required_name
from environments.domain.records import CondaPackage, Package, PypiPackage

Manager = Literal["conda", "pypi"]
#: Maximum number of chains of `why`, and maximum length of a chain.
MAX_CHAINS = 10
MAX_CHAIN_LENGTH = 30


class ChangeKind(StrEnum):
    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    REBUILD = "rebuild"  # same version, different bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageChange:
    """A package that both locks contain with different bytes."""

    old: Package
    new: Package
    kind: ChangeKind

    @property
    def name(self) -> str:
        return self.new.name

    @property
    def manager(self) -> Manager:
        return manager_of(self.new)

    @property
    def size_delta(self) -> int:  # bytes
        return self.new.size - self.old.size

    @property
    def channel_changed(self) -> bool:
        return channel_of(self.old) != channel_of(self.new)

    @property
    def license_changed(self) -> bool:
        return self.old.license != self.new.license


@dataclass(frozen=True, slots=True, kw_only=True)
class LockDiff:
    """Each part by manager, then name: conda first."""

    added: tuple[Package, ...]
    removed: tuple[Package, ...]
    changed: tuple[PackageChange, ...]

    @property
    def size_delta(self) -> int:  # bytes to download, not bytes on disk
        return (
            sum(package.size for package in self.added)
            - sum(package.size for package in self.removed)
            + sum(change.size_delta for change in self.changed)
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def manager_of(package: Package) -> Manager:
    return "conda" if isinstance(package, CondaPackage) else "pypi"


def channel_of(package: Package) -> str:
    """The base URL of a conda package's channel; "" for packages of an index."""
    return package.channel if isinstance(package, CondaPackage) else ""


def diff(old: PlatformLock | None, new: PlatformLock | None) -> LockDiff:
    """Compare two locks: added, removed and changed packages.

    A package that moves from conda to PyPI counts as removed and added.
    """
    before, after = _packages(old), _packages(new)
    changed = [
        PackageChange(old=held, new=after[key], kind=_kind(held, after[key]))
        for key, held in before.items()
        if key in after and not _same_bytes(held, after[key])
    ]
    return LockDiff(
        added=tuple(after[key] for key in sorted(after.keys() - before.keys())),
        removed=tuple(before[key] for key in sorted(before.keys() - after.keys())),
        changed=tuple(sorted(changed, key=lambda change: (change.manager, change.name))),
    )


def _packages(lock: PlatformLock | None) -> dict[tuple[str, str], Package]:
    if lock is None:
        return {}
    packages: tuple[Package, ...] = (*lock.conda, *lock.pypi)
    return {(manager_of(package), package.name): package for package in packages}


def _same_bytes(old: Package, new: Package) -> bool:
    if old.sha256 and new.sha256:
        return old.sha256 == new.sha256  # the same file from a mirror is not a change
    return old.url == new.url


def _kind(old: Package, new: Package) -> ChangeKind:
    order = compare_versions(old.version, new.version, manager_of(new))
    if order == 0:
        return ChangeKind.REBUILD
    return ChangeKind.UPGRADE if order < 0 else ChangeKind.DOWNGRADE


def compare_versions(old: str, new: str, manager: Manager) -> int:
    """Return -1, 0 or 1, by conda's order or PEP 440; as text if a version cannot be parsed."""
    try:
        if manager == "conda":
            one, two = _conda_version(old), _conda_version(new)
            return (one > two) - (one < two)
        first, second = PypiVersion(old), PypiVersion(new)
        return (first > second) - (first < second)
    except (InvalidVersionError, InvalidVersion):
        return (old > new) - (old < new)


@lru_cache(maxsize=16_384)
def _conda_version(text: str) -> Version:
    return Version(text)


# --- dependency chains --------------------------------------------------------------------------


def why(
    platform_lock: PlatformLock,
    requested: Sequence[str],
    name: str,
    *,
    limit: int = MAX_CHAINS,
) -> tuple[tuple[str, ...], ...]:
    """Return chains of names from requested packages to `name`, shortest first, at most `limit`.

    Args:
        requested: names, or requirements (`numpy >=1.26`, `httpx[http2]>=0.28`).
    Returns:
        Chains such as `("pandas", "python-dateutil", "six")`; `(name,)` if it was requested
        itself, and none if no requested package needs it. Chains of equal length are sorted
        by name.
    """
    graph = _dependency_graph(platform_lock)
    target = _node_of(name, graph)
    if target is None:
        return ()
    roots = {node for text in requested if (node := _node_of(required_name(text), graph))}
    graph = _with_added_pip(graph, roots)
    wanted_by: dict[str, list[str]] = {}
    for node, others in graph.items():
        for other in others:
            wanted_by.setdefault(other, []).append(node)
    # From the package upwards, so that only its dependents are visited. Each chain ends at
    # the first requested package: its own dependents explain nothing more.
    distance = _distances(roots, graph)
    chains: list[tuple[str, ...]] = []
    # Ordered by the minimum length of the finished chain.
    heap: list[tuple[int, tuple[str, ...]]] = []
    if target in distance:
        heap.append((1 + distance[target], (target,)))
    budget = 20_000
    while heap and len(chains) < limit and budget:
        budget -= 1
        _, chain = heapq.heappop(heap)
        if not distance[chain[0]]:
            chains.append(chain)
            continue
        for node in wanted_by.get(chain[0], ()):
            length = len(chain) + 1 + distance.get(node, MAX_CHAIN_LENGTH)
            if length <= MAX_CHAIN_LENGTH and node not in chain:
                heapq.heappush(heap, (length, (node, *chain)))
    return tuple(sorted(chains, key=lambda chain: (len(chain), chain)))


def shortest_chains(
    platform_lock: PlatformLock, requested: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the first chain of `why` for every package that a requested one needs."""
    graph = _dependency_graph(platform_lock)
    roots = {node for text in requested if (node := _node_of(required_name(text), graph))}
    graph = _with_added_pip(graph, roots)
    chains: dict[str, tuple[str, ...]] = {root: (root,) for root in sorted(roots)}
    queue = deque(chains)
    while queue:
        node = queue.popleft()
        for other in graph.get(node, ()):
            if other not in chains:
                chains[other] = (*chains[node], other)
                queue.append(other)
    return chains


def _distances(roots: Iterable[str], graph: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the distance from the nearest root for every package that a root needs."""
    distance = dict.fromkeys(roots, 0)
    queue = deque(distance)
    while queue:
        node = queue.popleft()
        for other in graph.get(node, ()):
            if other not in distance:
                distance[other] = distance[node] + 1
                queue.append(other)
    return distance


def _node_of(name: str, graph: Mapping[str, Sequence[str]]) -> str | None:
    if name.lower() in graph:
        return name.lower()
    pypi = canonicalize_name(name)
    return pypi if pypi in graph else None


@lru_cache(maxsize=8)
def _dependency_graph(lock: PlatformLock) -> Mapping[str, tuple[str, ...]]:
    """Return the locked dependencies by name. PyPI packages may need conda packages."""
    conda = {package.name for package in lock.conda}
    pypi = {package.name for package in lock.pypi}
    # If both managers have a name, the conda package represents both.
    normal = {canonicalize_name(name): name for name in sorted(conda)}
    graph: dict[str, dict[str, None]] = {}
    for package in lock.conda:
        needs = graph.setdefault(package.name, {})
        for text in package.depends:
            other = required_name(text)
            if other in conda and other != package.name:
                needs.setdefault(other)
    for wheel in lock.pypi:
        needs = graph.setdefault(wheel.name, {})
        for text in wheel.requires:
            other = required_name(text)
            found = other if other in conda | pypi else normal.get(canonicalize_name(other), "")
            if not found and canonicalize_name(other) in pypi:
                found = canonicalize_name(other)
            if found and found != wheel.name:
                needs.setdefault(found)
        if "python" in conda:
            needs.setdefault("python")
    return {name: tuple(sorted(needs)) for name, needs in graph.items()}


def _with_added_pip(
    graph: Mapping[str, tuple[str, ...]], roots: Collection[str]
) -> Mapping[str, tuple[str, ...]]:
    """Add the edge from python to pip to `graph` if no other package needs pip.

    The solver adds pip as a dependency of Python, which the channel's records do not contain.
    """
    if "pip" not in graph or "python" not in graph or "pip" in roots:
        return graph
    if any("pip" in others for others in graph.values()):
        return graph
    return {**graph, "python": (*graph["python"], "pip")}


def needed_by(platform_lock: PlatformLock, name: str) -> tuple[str, ...]:
    """Return the sorted names of the locked packages that depend on `name` directly."""
    graph = _dependency_graph(platform_lock)
    target = _node_of(name, graph)
    return tuple(sorted(node for node, others in graph.items() if target in others))


__all__ = [
    "MAX_CHAINS",
    "ChangeKind",
    "LockDiff",
    "Manager",
    "PackageChange",
    "PypiPackage",
    "channel_of",
    "compare_versions",
    "diff",
    "manager_of",
    "needed_by",
    "shortest_chains",
    "why",
]
