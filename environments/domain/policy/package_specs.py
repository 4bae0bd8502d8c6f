"""Package specs in rules: MatchSpecs with globs, for conda, PyPI or both."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from rattler import MatchSpec

from condastore.errors import InvalidInputError
from environments.domain.names import SUBDIRS, in_channel, printable
from environments.domain.policy.subjects import Subject

MANAGERS = ("conda", "pypi")
#: Characters that make a name a glob.
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSpec:
    """`numpy >=1.26`, `*-gpl`, `conda-forge::openssl <3`, `pypi:requests`, `conda:tables`.

    Without a manager, a spec that restricts (`wide`) applies to both managers, and one that
    permits applies to conda only. So a mistake refuses too much rather than too little.
    """

    text: str
    manager: str  # "conda", "pypi", or "" for both
    name: str  # exact or a glob, lower case
    matcher: str  # for rattler: the text without manager and channel
    channel: str = ""  # a URL pattern, or the end of a URL (`conda-forge`)
    by_name: bool = False  # nothing but the name decides
    wide: bool = field(default=False)

    def concerns(self, manager: str, name: str) -> bool:
        """Whether a package of this name can match at all."""
        if self.manager and manager != self.manager:
            return False
        glob = self.name
        if manager == "pypi":
            if self.channel:
                return False
            name, glob = canonicalize_name(name), _pypi_name(glob)
        if name == glob:
            return True
        return not _WILD.isdisjoint(glob) and fnmatchcase(name, glob)

    def matches(self, subject: Subject) -> bool:
        return self.concerns(subject.manager, subject.name) and self.takes(subject)

    def takes(self, subject: Subject) -> bool:
        """As `matches`, for a subject whose name is known to match."""
        if self.channel and not in_channel(subject.channel, self.channel):
            return False
        if self.by_name:
            return True
        record = subject.record
        if record is None:  # its version cannot be parsed
            return self.wide
        spec = match_spec(self.matcher)
        if subject.manager == "pypi":  # the name was compared by the rules of PyPI
            spec = match_spec("*" + self.matcher[len(self.name) :])
        return bool(spec.matches(record))

    def __str__(self) -> str:
        return self.text


def _pypi_name(glob: str) -> str:
    return glob.replace("_", "-").replace(".", "-")


# --- constraints for uv --------------------------------------------------------------------------

_CLAUSE = re.compile(r"(?P<mark>==|!=|<=|>=|~=|=|<|>|)\s*(?P<version>\d[\w.!+]*?)(?P<star>\.?\*)?")
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


def pypi_keeping(spec: PackageSpec) -> str:
    """Return the spec as a PEP 508 constraint; "" if it cannot be expressed."""
    clauses = _clauses(spec)
    return f"{_pypi_name(spec.name)}{','.join(map(''.join, clauses))}" if clauses else ""


def pypi_leaving_out(spec: PackageSpec) -> str:
    """Return the complement of the spec, as `pypi_keeping`."""
    clauses = _clauses(spec)
    if len(clauses) != 1 or clauses[0][0] not in _OPPOSITE:
        return ""  # below one or above the other: PEP 508 has no `or`
    [(mark, version)] = clauses
    return f"{_pypi_name(spec.name)}{_OPPOSITE[mark]}{version}"


def _clauses(spec: PackageSpec) -> list[tuple[str, str]]:
    """Return the version clauses as PEP 440 pairs; none if they cannot be expressed."""
    wild = not _WILD.isdisjoint(spec.name)
    if spec.manager == "conda" or spec.channel or spec.by_name or wild:
        return []
    found: list[tuple[str, str]] = []
    for text in spec.matcher[len(spec.name) :].split(","):
        clause = _CLAUSE.fullmatch(text.strip())
        if clause is None:
            return []
        mark, version, star = clause["mark"] or "==", clause["version"], bool(clause["star"])
        if mark == "=":
            mark, star = "==", True
        try:
            Version(version)
        except InvalidVersion:
            return []
        if star and mark not in ("==", "!="):
            return []
        found.append((mark, f"{version}.*" if star else version))
    return found


@lru_cache(maxsize=10_000)
def match_spec(text: str) -> MatchSpec:
    return MatchSpec(text, strict=False, exact_names_only=False)


def package_spec(text: str, *, wide: bool) -> PackageSpec:
    """Parse a package spec of a rule.

    Raises:
        InvalidInputError: it cannot be parsed.
    """
    written = " ".join(text.split())
    rest, manager = written, ""
    for known in MANAGERS:
        if written.startswith(f"{known}:") and not written.startswith(f"{known}::"):
            rest, manager = written[len(known) + 1 :].strip(), known
    head, mark, tail = rest.partition("::")
    channel = ""
    if mark:
        channel, rest = head.rstrip("/"), tail
        base, _, last = channel.rpartition("/")
        if last in SUBDIRS:
            channel = base
            rest = f"{rest}[subdir={last}]" if "[" not in rest else rest
    try:
        if not rest or len(rest) > 1000 or not rest.isprintable():
            raise ValueError("it is empty, too long, or not printable")
        spec = match_spec(rest)
        name = spec.name.normalized if spec.name is not None else "*"
        if name.startswith("^"):
            raise ValueError("write a name with stars, not a regular expression")
    except Exception as error:  # rattler's errors have no common base
        raise InvalidInputError(
            f"{printable(text)} cannot be read: {' '.join(str(error).split())}",
            hint="Write it like numpy >=1.26, scipy-*, conda-forge::openssl <3, pypi:requests.",
        ) from error
    by_name = rest.strip().lower() == name
    return PackageSpec(
        text=written,
        manager=manager or ("" if wide and not channel else "conda"),
        name=name,
        matcher=name + rest.strip()[len(name) :],
        channel=channel,
        by_name=by_name,
        wide=wide,
    )
