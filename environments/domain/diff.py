"""What changed between two locks, and why is a package in one?"""

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
#: Chains that `why` gives at most, and the packages in one of them.
MAX_CHAINS = 10
MAX_CHAIN_LENGTH = 30


class ChangeKind(StrEnum):
    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    REBUILD = "rebuild"  # the version is the same, the bytes are not


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageChange:
    """One package that both locks hold, with other bytes."""

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
    """What `new` has beyond `old`, what it lost, and what is another file now.

    A package that moves from conda to PyPI is removed and added: two files of different kinds.
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
        return old.sha256 == new.sha256  # the same file from a mirror is no change
    return old.url == new.url


def _kind(old: Package, new: Package) -> ChangeKind:
    order = compare_versions(old.version, new.version, manager_of(new))
    if order == 0:
        return ChangeKind.REBUILD
    return ChangeKind.UPGRADE if order < 0 else ChangeKind.DOWNGRADE


def compare_versions(old: str, new: str, manager: Manager) -> int:
    """-1, 0 or 1, by conda's order or by that of PEP 440; by text where it cannot be read."""
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


# --- why is it here? --------------------------------------------------------------------------


def why(
    platform_lock: PlatformLock,
    requested: Sequence[str],
    name: str,
    *,
    limit: int = MAX_CHAINS,
) -> tuple[tuple[str, ...], ...]:
    """Chains of names from what was asked for to `name`, the shortest first, at most `limit`.

    Args:
        requested: names, or requirements (`numpy >=1.26`, `httpx[http2]>=0.28`).
    Returns:
        Chains such as `("pandas", "python-dateutil", "six")`; `(name,)` where it was asked for
        itself, and nothing where nothing that was asked for needs it. Among chains of one length
        the order is that of the names.
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
    # From the package upwards: only what leads to it is ever looked at, and each chain ends at
    # the first requested package, for what stands above that one explains no more.
    distance = _distances(roots, graph)
    chains: list[tuple[str, ...]] = []
    # The length that a chain will have at least when it is finished comes first.
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
    """As the first chain of `why`, for every package that something asked for needs."""
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
    """Steps from the nearest root, of all that a root needs."""
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
    """Name -> the names of the locked packages that it needs. PyPI's may need conda's."""
    conda = {package.name for package in lock.conda}
    pypi = {package.name for package in lock.pypi}
    # Both managers may hold one name; then conda's stands for both, as for the reader.
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
    """`graph` with the edge from python to pip where nothing else explains that pip is there.

    The solver adds pip beside Python, which the records of the channel do not say.
    """
    if "pip" not in graph or "python" not in graph or "pip" in roots:
        return graph
    if any("pip" in others for others in graph.values()):
        return graph
    return {**graph, "python": (*graph["python"], "pip")}


def needed_by(platform_lock: PlatformLock, name: str) -> tuple[str, ...]:
    """The locked packages that need `name` directly, sorted."""
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
