"""Packages of a build for pages: requested apart from dependencies, and differences of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from environments.domain import diff as differences
from environments.domain.diff import ChangeKind, PackageChange, channel_of, manager_of
from environments.domain.lock import PlatformLock, required_name
from environments.domain.records import CondaPackage, Package
from environments.domain.sizes import format_size
from environments.models import Build

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A package of a lock; `chain` leads from a requested package to it."""

    package: Package
    requirement: str
    chain: tuple[str, ...]

    @property
    def manager(self) -> str:
        return manager_of(self.package)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    requested: tuple[Row, ...] = ()
    dependencies: tuple[Row, ...] = ()
    licenses: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        return len(self.requested) + len(self.dependencies)


def locked_part(build: Build | None) -> PlatformLock | None:
    """Return the lock of the build's platform; None for a build without one."""
    return None if build is None or build.lock is None else build.lock.value().on(build.platform)


def _all(part: PlatformLock | None) -> tuple[Package, ...]:
    return () if part is None else (*part.conda, *part.pypi)


def requirements_of(build: Build) -> dict[str, str]:
    """Return the requirements of the specification, by the name of the package."""
    value = build.specification.value()
    if value.lock is not None:  # the submitted lock names every package
        return {one.name: one.version for one in _all(locked_part(build))}
    texts = (*value.dependencies.get(build.platform, ()), *value.pip.get(build.platform, ()))
    return {required_name(text): text for text in texts}


def packages_of(build: Build | None) -> Packages:
    part = locked_part(build)
    if build is None or part is None:
        return Packages()
    requirements = requirements_of(build)
    chains = differences.shortest_chains(part, list(requirements.values()))
    rows = [
        Row(
            package=one,
            requirement=requirements.get(one.name, ""),
            chain=chains.get(one.name, ()),
        )
        for one in sorted(_all(part), key=lambda package: package.name)
    ]
    licenses = Counter(row.package.license or "not stated" for row in rows)
    return Packages(
        requested=tuple(row for row in rows if row.package.name in requirements),
        dependencies=tuple(row for row in rows if row.package.name not in requirements),
        licenses=tuple(sorted(licenses.items(), key=lambda item: (-item[1], item[0]))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One package that differs; `sign` is the class of its mark, `change` its name."""

    name: str
    sign: str
    mark: str
    change: str
    before: str
    after: str
    license: str
    channel: str
    size: int
    requested: bool

    @property
    def size_text(self) -> str:
        return _signed(self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    rows: tuple[Difference, ...] = field(default=())
    size: int = 0
    same: int = 0

    @property
    def requested(self) -> list[Difference]:
        return [row for row in self.rows if row.requested]

    @property
    def dependencies(self) -> list[Difference]:
        return [row for row in self.rows if not row.requested]

    @property
    def size_text(self) -> str:
        return _signed(self.size)

    def count(self, *signs: str) -> int:
        return sum(row.sign in signs for row in self.rows)

    @property
    def changed(self) -> int:
        return self.count("up", "down", "same")

    @property
    def added(self) -> int:
        return self.count("add")

    @property
    def removed(self) -> int:
        return self.count("del")

    @property
    def licenses(self) -> int:
        return sum("→" in row.license for row in self.rows)

    def markdown(self, title: str) -> str:
        """Return the comparison as a Markdown table."""
        lines = [f"### {title}", "", "| Package | Change | Before | After |", "|---|---|---|---|"]
        for row in self.rows:
            cells = (row.name, row.change, row.before, row.after)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines)


def _signed(size: int) -> str:
    return f"{MINUS if size < 0 else '+'}{format_size(abs(size))}" if size else "no change"


def compare(before: Build, after: Build) -> Comparison:
    """Compare the locks of two builds, on the platform of the later one."""
    old = None if before.lock is None else before.lock.value().on(after.platform)
    new = locked_part(after)
    found = differences.diff(old, new)
    requested = {*requirements_of(before), *requirements_of(after)}
    rows = sorted(_differences(found, requested), key=lambda row: (not row.requested, row.name))
    unchanged = len(_all(new)) - len(found.added) - len(found.changed)
    return Comparison(rows=tuple(rows), size=found.size_delta, same=unchanged)


def _differences(found: differences.LockDiff, requested: set[str]) -> Iterable[Difference]:
    for one in found.added:
        yield _single(one, "add", "+", "added", requested)
    for one in found.removed:
        yield _single(one, "del", MINUS, "removed", requested)
    for change in found.changed:
        yield _changed(change, requested)


def _single(package: Package, sign: str, mark: str, change: str, requested: set[str]) -> Difference:
    added = sign == "add"
    return Difference(
        name=package.name,
        sign=sign,
        mark=mark,
        change=change,
        before="" if added else package.version,
        after=package.version if added else "",
        license=package.license,
        channel=channel_of(package),
        size=package.size if added else -package.size,
        requested=package.name in requested,
    )


SIGNS = {
    ChangeKind.UPGRADE: ("up", "↑", "updated"),
    ChangeKind.DOWNGRADE: ("down", "↓", "downgraded"),
    ChangeKind.REBUILD: ("same", "≈", "rebuilt"),
}


def _changed(change: PackageChange, requested: set[str]) -> Difference:
    sign, mark, word = SIGNS[change.kind]
    old, new = change.old, change.new
    before, after = old.version, new.version
    if isinstance(old, CondaPackage) and isinstance(new, CondaPackage) and before == after:
        before, after = f"{before} {old.build}", f"{after} {new.build}"
    return Difference(
        name=change.name,
        sign=sign,
        mark=mark,
        change=word,
        before=before,
        after=after,
        license=_both(old.license, new.license),
        channel=_both(channel_of(old), channel_of(new)),
        size=change.size_delta,
        requested=change.name in requested,
    )


def _both(old: str, new: str) -> str:
    return new if old == new else f"{old or 'none'} → {new or 'none'}"
