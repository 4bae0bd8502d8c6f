"""Can these packages stand in one prefix together, and where does each of their files go?"""

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

#: Major and minor version of a Python, as every reader of versions takes them.
_MINOR = re.compile(r"([1-9][0-9]?\.(?:0|[1-9][0-9]{0,2}))(?=\.|\Z)")
#: What a package may not bring: conda's own notes about the prefix.
_RESERVED = re.compile(r"conda-meta(/(history|frozen|state|pinned|[^/]*\.json))?")
#: Where rattler puts files that another package replaces while it links.
CLOBBERS = "__clobbers__"
#: Conflicting paths of one environment; more are refused, so that the record of them is complete.
MOST_CONFLICTS = 10_000
#: Names without a dot in front, so neither `.` nor `..`.
_SITE_PACKAGES = re.compile(r"\w[\w.+-]*(?:/\w[\w.+-]*)*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class PackageFile(NamedTuple):
    """One path of a package. (A tuple: an environment has tens of thousands of them.)"""

    path: str  # in the package, with slashes
    kind: FileKind
    size: int  # bytes
    sha256: str  # hex, of a file's content before its prefix is replaced; "" for others
    target: str  # of a link
    placeholder: int  # bytes of the prefix to replace; 0 for none
    binary: bool  # the placeholder stands among bytes whose length must not change


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageContents:
    """What the archive of one package holds, `info/` left out."""

    name: str
    label: str  # name-version-build
    noarch_python: bool
    files: tuple[PackageFile, ...]
    entry_points: tuple[str, ...] = ()  # `command = module:function`
    link_scripts: tuple[str, ...] = ()  # paths of scripts that conda would run
    #: What the package says of itself in `info/index.json`, as far as it is judged.
    index: Mapping[str, Any] = field(default_factory=dict)


def is_site_packages(path: str) -> bool:
    """Whether `path` is a plain relative path, as `python_site_packages_path` must be."""
    return _SITE_PACKAGES.fullmatch(path) is not None and len(path) <= 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonInfo:
    """The Python of an environment, as far as paths depend on it."""

    version: str  # 3.11
    site_packages: str  # lib/python3.11/site-packages
    scripts: str = "bin"

    @classmethod
    def of(cls, version: str, *, platform: str, site_packages: str = "") -> PythonInfo:
        """Derive the paths from a python package.

        Args:
            site_packages: `python_site_packages_path` of its record, or "".
        Raises:
            LinkError: it is no plain path within a prefix, or the version has no minor release
                that is read in one way only. Whoever links puts files there.
        """
        found = _MINOR.match(version)
        if found is None:
            raise LinkError(
                f"The version {printable(version)} of python does not begin like 3.12: where it "
                "looks for modules is unknown."
            )
        minor = found[1]
        if site_packages and not is_site_packages(site_packages):
            raise LinkError(
                f"python {printable(version)} has a record whose python_site_packages_path is "
                f"{printable(site_packages)}: that is no path within an environment."
            )
        if platform.startswith("win-"):
            return cls(
                version=minor, site_packages=site_packages or "Lib/site-packages", scripts="Scripts"
            )
        return cls(version=minor, site_packages=site_packages or f"lib/python{minor}/site-packages")


#: How the content of an entry point begins in a claim: `file runs module:function`.
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
    """One path for which several packages bring different files: the last one linked is kept."""

    path: str  # in the prefix
    winner: str  # label of the package whose file is there
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
    """What there is to say of the paths of packages that are to be linked together."""

    faults: tuple[LinkFault, ...] = ()
    conflicts: tuple[PathConflict, ...] = ()  # by path


def replaced_paths(conflicts: Iterable[PathConflict]) -> dict[str, set[str]]:
    """Label of a package -> paths in the prefix at which another package's file is."""
    found: dict[str, set[str]] = {}
    for conflict in conflicts:
        for label in conflict.replaced:
            found.setdefault(label, set()).add(conflict.path)
    return found


def prefix_path(path: str, *, noarch_python: bool, python: PythonInfo | None) -> str:
    """Where a file of a package goes, relative to the prefix."""
    if noarch_python and python is not None:
        if path.startswith("site-packages/"):
            return python.site_packages + path.removeprefix("site-packages")
        if path.startswith("python-scripts/"):
            return python.scripts + path.removeprefix("python-scripts")
    return path


def is_reserved(path: str) -> bool:
    """Return True for a file or link that no package may bring: notes of conda and rattler."""
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
    if faults:  # paths that make no sense would make none among others either
        return PathCheck(faults=tuple(faults))
    return _check_together(packages, python=python, platform=platform)


class _Claim(NamedTuple):
    label: str
    path: str
    holds: str  # kind, and what tells its content from another


def _check_together(
    packages: Sequence[PackageContents], *, python: PythonInfo | None, platform: str
) -> PathCheck:
    """Paths that two packages claim with different contents, and links that lead out.

    The same content twice is no conflict, unless a prefix is written into it. On file systems that
    ignore case two spellings of a path are one path, and so are two forms of an accented letter.
    """
    ignores_case = platform.startswith(("osx-", "win-"))
    claims: dict[str, _Claim] = {}
    same: dict[str, list[_Claim]] = {}  # later claims of a path that equal the first
    rivals: dict[str, list[_Claim]] = {}  # all claims of a path that has different ones, in order
    links: dict[str, str] = {}
    folders: dict[str, str] = {}  # folder: the label of a package that has something in it
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
        reason = f"{conflict.sentence}, and {label} brings {path}, which Python would run instead."
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
        reason = f"Packages replace {len(conflicts)} files of others; {MOST_CONFLICTS} are allowed."
        faults[("",)] = LinkFault(packages=labels, path="", reason=reason)
    return PathCheck(faults=tuple(faults.values()), conflicts=tuple(conflicts))


def _folded(path: str) -> str:
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _conflict(rival: Sequence[_Claim]) -> PathConflict | None:
    """The conflict of one path; None where it must be refused.

    Only ordinary files of different packages replace each other. A link could lead elsewhere than
    the file it replaces, entry points are written while packages are linked, in no fixed order, and
    Python runs compiled files that nobody reads.
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
    """(conflict, label, path) of compiled files for a source that another package's replaces."""
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
    """(path in the prefix, kind, what tells its content from another) of everything it brings."""
    noarch = package.noarch_python
    for file in package.files:
        path = prefix_path(file.path, noarch_python=noarch, python=python) if noarch else file.path
        holds = file.target if file.kind == "link" else file.sha256
        if file.placeholder:  # which bytes of it become the prefix is the package's own word
            holds = f"{holds} of {package.label}"
        yield path, file.kind, holds
    if python is not None:
        for entry_point in package.entry_points:
            command, _, function = entry_point.partition("=")
            yield f"{python.scripts}/{command.strip()}", "file", f"runs {function.strip()}"


def _own_faults(
    package: PackageContents, python: PythonInfo | None, prefix: str
) -> Iterator[LinkFault]:
    """What is wrong with a package whatever the others are."""

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
                yield fault(path, f"the path {path!r} has no single meaning.")
                continue
        if not path or _CONTROL.search(path):
            yield fault(path, f"the path {path!r} has control characters in it or is empty.")
        elif file.kind != "folder" and is_reserved(path):
            yield fault(path, f"{path} is conda's own note and cannot come from a package.")
        elif file.binary and 0 < file.placeholder < length:
            yield fault(
                path,
                f"{path} has room for a prefix of {file.placeholder} bytes, but {prefix} has "
                f"{length}. Choose shorter names, or move the store to a shorter path.",
            )
    for entry_point in package.entry_points:
        command = entry_point.partition("=")[0].strip()
        if not command or "/" in command or "\\" in command or command in (".", ".."):
            yield fault(command, f"the entry point {entry_point!r} is no name of a program.")


def _clash(first: str, first_path: str, second: str, path: str) -> LinkFault:
    if first == second:
        reason = f"{first} brings {first_path} and {path}, which are one path on this platform."
    elif first_path != path:
        reason = f"{first} brings {first_path} and {second} brings {path}: one path there."
    else:
        reason = f"{first} and {second} both bring {path}, with different contents."
    return LinkFault(packages=(first, second), path=path, reason=reason)


def _blocked(label: str, path: str, other: str, *, is_link: bool) -> LinkFault:
    kind = "a link" if is_link else "a file"
    return LinkFault(
        packages=(label, other),
        path=path,
        reason=f"{path} is {kind} in {label} and a folder in {other}.",
    )
