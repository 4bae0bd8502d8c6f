"""Plan of a prefix: the path of each package file, and conflicts between packages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from condastore.errors import LinkError
from environments.domain.names import printable
from environments.domain.unpacking import LinkEnd, link_end

FileKind = Literal["file", "link", "folder"]

#: Major and minor version of Python in a version string.
_MINOR = re.compile(r"([1-9][0-9]?\.(?:0|[1-9][0-9]{0,2}))(?=\.|\Z)")
#: Folder of conda's metadata about the prefix, which packages must not contain.
_RESERVED = re.compile(r"conda-meta(/(history|frozen|state|pinned|[^/]*\.json))?")
#: Folder in which rattler puts files that another package replaces while linking.
CLOBBERS = "__clobbers__"
#: Maximum conflicting paths of one environment, so that their record stays complete.
MOST_CONFLICTS = 10_000
#: Names without a leading dot, so neither `.` nor `..`.
_SITE_PACKAGES = re.compile(r"\w[\w.+-]*(?:/\w[\w.+-]*)*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class PackageFile(NamedTuple):
    """One path of a package; a tuple, as an environment has tens of thousands."""

    path: str  # in the package, with slashes
    kind: FileKind
    size: int  # bytes
    sha256: str  # hex, of the content before its prefix is replaced; "" if not a file
    target: str  # of a link
    placeholder: int  # bytes of the prefix to replace; 0 for none
    binary: bool  # binary: the length must not change when the placeholder is replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageContents:
    """Contents of one package archive, without `info/`."""

    name: str
    label: str  # name-version-build
    noarch_python: bool
    files: tuple[PackageFile, ...]
    entry_points: tuple[str, ...] = ()  # `command = module:function`
    link_scripts: tuple[str, ...] = ()  # paths of scripts that conda would run
    #: Fields of `info/index.json` that rules judge.
    index: Mapping[str, Any] = field(default_factory=dict)


def is_site_packages(path: str) -> bool:
    """Whether `path` is a plain relative path, as `python_site_packages_path` must be."""
    return _SITE_PACKAGES.fullmatch(path) is not None and len(path) <= 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonInfo:
    """Properties of the Python of an environment on which paths depend."""

    version: str  # 3.11
    site_packages: str  # lib/python3.11/site-packages
    scripts: str = "bin"

    @classmethod
    def of(cls, version: str, *, platform: str, site_packages: str = "") -> PythonInfo:
        """Derive the paths from a python package.

        Args:
            site_packages: `python_site_packages_path` of its record, or "".
        Raises:
            LinkError: it is not a plain path within a prefix, or the minor version is ambiguous.
                Linking writes files there.
        """
        found = _MINOR.match(version)
        if found is None:
            raise LinkError(
                f"The version {printable(version)} of python does not start like 3.12, so its "
                "module path is unknown."
            )
        minor = found[1]
        if site_packages and not is_site_packages(site_packages):
            raise LinkError(
                f"python {printable(version)} has a record whose python_site_packages_path is "
                f"{printable(site_packages)}, which is not a path within an environment."
            )
        if platform.startswith("win-"):
            return cls(
                version=minor, site_packages=site_packages or "Lib/site-packages", scripts="Scripts"
            )
        return cls(version=minor, site_packages=site_packages or f"lib/python{minor}/site-packages")


#: Start of the content of an entry point in a claim: `file runs module:function`.
_ENTRY_POINT = "file runs "


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFault:
    """Why packages cannot be linked."""

    packages: tuple[str, ...]
    path: str
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PathConflict:
    """A path for which packages have different files: the file linked last wins."""

    path: str  # in the prefix
    winner: str  # label of the package whose file wins
    replaced: tuple[str, ...]  # labels of the others, in the order in which they are linked

    @property
    def sentence(self) -> str:
        others = " and ".join(self.replaced)
        return f"{self.winner} replaces {printable(self.path)} of {others}"

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "winner": self.winner, "replaced": list(self.replaced)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PathConflict:
        return cls(
            path=content["path"], winner=content["winner"], replaced=tuple(content["replaced"])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PathCheck:
    """Faults and conflicts of the paths of packages that are linked together."""

    faults: tuple[LinkFault, ...] = ()
    conflicts: tuple[PathConflict, ...] = ()  # by path


def replaced_paths(conflicts: Iterable[PathConflict]) -> dict[str, set[str]]:
    """Paths at which another package's file wins, by label of the package."""
    found: dict[str, set[str]] = {}
    for conflict in conflicts:
        for label in conflict.replaced:
            found.setdefault(label, set()).add(conflict.path)
    return found


def prefix_path(path: str, *, noarch_python: bool, python: PythonInfo | None) -> str:
    """Return the path of a package's file, relative to the prefix."""
    if noarch_python and python is not None:
        if path.startswith("site-packages/"):
            return python.site_packages + path.removeprefix("site-packages")
        if path.startswith("python-scripts/"):
            return python.scripts + path.removeprefix("python-scripts")
    return path


def is_reserved(path: str) -> bool:
    """Whether a file or link is metadata of conda or rattler, which packages must not contain."""
    if path.startswith(CLOBBERS):
        return path == CLOBBERS or path.startswith(f"{CLOBBERS}/")
    return path.startswith("conda-meta") and _RESERVED.fullmatch(path) is not None


def check_paths(
    packages: Sequence[PackageContents],
    *,
    python: PythonInfo | None,
    platform: str,
    prefix: str,
) -> PathCheck:
    """Check that `packages` can be linked into `prefix`: all faults and conflicts at once.

    Args:
        packages: in the order in which they are linked, dependencies first (`dependency_order`).
    """
    faults = [fault for package in packages for fault in _own_faults(package, python, prefix)]
    if faults:  # invalid paths cannot be compared
        return PathCheck(faults=tuple(faults))
    return _check_together(packages, python=python, platform=platform)


class _Claim(NamedTuple):
    label: str
    path: str
    holds: str  # kind and content identity


def _check_together(
    packages: Sequence[PackageContents], *, python: PythonInfo | None, platform: str
) -> PathCheck:
    """Find paths that packages claim with different contents, and links out of the prefix.

    Equal contents do not conflict, unless a prefix is written into them. On case-insensitive file
    systems two spellings of a path are one path, as are two forms of an accented letter.
    """
    ignores_case = platform.startswith(("osx-", "win-"))
    claims: dict[str, _Claim] = {}
    same: dict[str, list[_Claim]] = {}  # later claims of a path that equal the first
    rivals: dict[str, list[_Claim]] = {}  # all claims of a path that has different ones, in order
    links: dict[str, str] = {}
    folders: dict[str, str] = {}  # folder: label of a package with a path in it
    for package in packages:
        for path, kind, content in _claims(package, python):
            key = _folded(path) if ignores_case else path
            folder = key.rpartition("/")[0]
            while folder and folder not in folders:
                folders[folder] = package.label
                folder = folder.rpartition("/")[0]
            if kind == "folder":
                folders.setdefault(key, package.label)
                continue
            if kind == "link":
                links[key] = content
            claim = _Claim(package.label, path, f"{kind} {content}")
            held = claims.setdefault(key, claim)
            if held is claim:
                continue
            if key in rivals:
                rivals[key].append(claim)
            elif held[1:] == claim[1:]:
                same.setdefault(key, []).append(claim)
            else:
                rivals[key] = [held, *same.pop(key, ()), claim]
    faults: dict[tuple[str, ...], LinkFault] = {}
    conflicts: list[PathConflict] = []
    for key, rival in sorted(rivals.items()):
        conflict = _conflict(rival)
        if conflict is not None:
            conflicts.append(conflict)
            continue
        first, other = rival[0], next(each for each in rival if each[1:] != rival[0][1:])
        fault = _clash(first.label, first.path, other.label, other.path)
        faults[(*fault.packages, key)] = fault
    for conflict, label, path in _compiled_of_others(conflicts, claims):
        reason = (
            f"{conflict.sentence}, and {label} contains {path}, which Python would run instead."
        )
        packages_of = (conflict.winner, *conflict.replaced)
        faults[path,] = LinkFault(packages=packages_of, path=path, reason=reason)
    for key, (label, path, _) in claims.items():
        if key in folders:
            faults[key,] = _blocked(label, path, folders[key], is_link=key in links)
        elif key in links and link_end(key, links) is LinkEnd.OUTSIDE:
            reason = f"{label}: the link {path} -> {links[key]} leads out of the environment."
            faults[key,] = LinkFault(packages=(label,), path=path, reason=reason)
    if len(conflicts) > MOST_CONFLICTS:
        labels = tuple(dict.fromkeys(conflict.winner for conflict in conflicts))
        reason = f"Packages replace {len(conflicts)} files of others; at most {MOST_CONFLICTS}."
        faults[("",)] = LinkFault(packages=labels, path="", reason=reason)
    return PathCheck(faults=tuple(faults.values()), conflicts=tuple(conflicts))


def _folded(path: str) -> str:
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _conflict(rival: Sequence[_Claim]) -> PathConflict | None:
    """Return the conflict of one path, or None if it must be refused.

    Only regular files of different packages replace each other. A link could point to another
    place than the file it replaces, entry points are written in no fixed order, and Python runs
    compiled files that nobody reads.
    """
    labels = [claim.label for claim in rival]
    path = rival[-1].path
    if (
        len(set(labels)) < len(labels)
        or any(claim.path != path or not claim.holds.startswith("file ") for claim in rival)
        or any(claim.holds.startswith(_ENTRY_POINT) for claim in rival)
        or path.casefold().endswith((".pyc", ".pyo"))
    ):
        return None
    return PathConflict(path=path, winner=labels[-1], replaced=tuple(labels[:-1]))


def _compiled_of_others(
    conflicts: Sequence[PathConflict], claims: Mapping[str, _Claim]
) -> Iterator[tuple[PathConflict, str, str]]:
    """Yield (conflict, label, path) of compiled files whose source another package replaces."""
    sources = {c.path: c for c in conflicts if c.path.endswith(".py")}
    if not sources:
        return
    for claim in claims.values():
        if not claim.path.endswith(".pyc"):
            continue
        folder, _, name = claim.path.rpartition("/")
        if folder == "__pycache__" or folder.endswith("/__pycache__"):
            source = f"{folder.removesuffix('__pycache__')}{name.partition('.')[0]}.py"
        else:
            source = claim.path.removesuffix("c")
        conflict = sources.get(source)
        if conflict is not None and claim.label != conflict.winner:
            yield conflict, claim.label, claim.path


def _claims(
    package: PackageContents, python: PythonInfo | None
) -> Iterator[tuple[str, FileKind, str]]:
    """Yield (path in the prefix, kind, content identity) of every path of the package."""
    noarch = package.noarch_python
    for file in package.files:
        path = prefix_path(file.path, noarch_python=noarch, python=python) if noarch else file.path
        holds = file.target if file.kind == "link" else file.sha256
        if file.placeholder:  # the package itself states where its prefix placeholder is
            holds = f"{holds} of {package.label}"
        yield path, file.kind, holds
    if python is not None:
        for entry_point in package.entry_points:
            command, _, function = entry_point.partition("=")
            yield f"{python.scripts}/{command.strip()}", "file", f"runs {function.strip()}"


def _own_faults(
    package: PackageContents, python: PythonInfo | None, prefix: str
) -> Iterator[LinkFault]:
    """Yield faults of a package that do not depend on other packages."""

    def fault(path: str, reason: str) -> LinkFault:
        return LinkFault(packages=(package.label,), path=path, reason=f"{package.label}: {reason}")

    if package.noarch_python and python is None:
        yield fault("", "it is a Python package, and the environment has no python.")
    length = len(prefix.encode())
    for file in package.files:
        path = file.path
        if path.startswith("/") or ".." in path or "//" in path or "./" in path or "\\" in path:
            parts = path.split("/")
            if path.startswith("/") or ".." in parts:
                yield fault(path, f"the path {path!r} leads out of the environment.")
                continue
            if "" in parts or "." in parts or "\\" in path:
                yield fault(path, f"the path {path!r} is ambiguous.")
                continue
        if not path or _CONTROL.search(path):
            yield fault(path, f"the path {path!r} is empty or contains control characters.")
        elif file.kind != "folder" and is_reserved(path):
            yield fault(path, f"{path} is metadata of conda and cannot come from a package.")
        elif file.binary and 0 < file.placeholder < length:
            yield fault(
                path,
                f"{path} has room for a prefix of {file.placeholder} bytes, but {prefix} has "
                f"{length}. Choose shorter names, or move the store to a shorter path.",
            )
    for entry_point in package.entry_points:
        command = entry_point.partition("=")[0].strip()
        if not command or "/" in command or "\\" in command or command in (".", ".."):
            yield fault(command, f"the entry point {entry_point!r} is not a name of a program.")


def _clash(first: str, first_path: str, second: str, path: str) -> LinkFault:
    if first == second:
        reason = f"{first} contains {first_path} and {path}, which are one path here."
    elif first_path != path:
        reason = f"{first} contains {first_path} and {second} contains {path}: one path here."
    else:
        reason = f"{first} and {second} both contain {path}, with different contents."
    return LinkFault(packages=(first, second), path=path, reason=reason)


def _blocked(label: str, path: str, other: str, *, is_link: bool) -> LinkFault:
    kind = "a link" if is_link else "a file"
    return LinkFault(
        packages=(label, other),
        path=path,
        reason=f"{path} is {kind} in {label} and a folder in {other}.",
    )
