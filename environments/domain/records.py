"""Records of packages, as a channel or an index describes them; a lock consists of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from condastore.errors import LinkError
from environments.domain.names import printable

_ARCHIVES = (".conda", ".tar.bz2")


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaPackage:
    """One record of a conda channel.

    `url` holds no credentials. `record` is the channel's JSON object for the package (from
    `repodata.json`, plus `sha256`, `md5`, `size`), with which it can be solved and linked again.
    """

    name: str
    version: str
    build: str
    build_number: int
    subdir: str
    channel: str  # base URL of the channel, no trailing slash, no credentials
    file_name: str
    url: str
    sha256: str  # hex
    md5: str  # hex, or ""
    size: int  # bytes; 0 if the channel does not say
    license: str  # as the channel writes it, or ""
    timestamp: int | None  # milliseconds since the epoch
    noarch: str  # "python", "generic" or ""
    depends: tuple[str, ...]
    constrains: tuple[str, ...]
    record: Mapping[str, Any] = field(repr=False, compare=False, hash=False)
    #: True if the channel lists the record; False if only the package itself states it.
    listed: bool = True
    _claim: str = field(default="", init=False, repr=False, compare=False, hash=False)

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        *,
        url: str,
        channel: str,
        file_name: str,
        listed: bool = True,
    ) -> CondaPackage:
        """Return the package of a repodata record; `channel` is the base URL without subdir."""
        noarch = record.get("noarch") or ""
        return cls(
            name=record["name"].lower(),  # as conda compares names
            version=str(record["version"]),
            build=record.get("build", ""),
            build_number=int(record.get("build_number", 0)),
            subdir=record["subdir"],
            channel=channel.rstrip("/"),
            file_name=file_name,
            url=url,
            sha256=record.get("sha256") or "",
            md5=record.get("md5") or "",
            size=int(record.get("size") or 0),
            license=record.get("license") or "",
            timestamp=record.get("timestamp"),
            noarch=noarch if isinstance(noarch, str) else "generic",
            depends=tuple(record.get("depends", ())),
            constrains=tuple(record.get("constrains", ())),
            record=record,
            listed=listed,
        )

    @property
    def is_foreign(self) -> bool:
        """Whether the channel lists it at a URL outside the channel (`base_url`, CEP 15)."""
        return folder_url(self.url) != self.channel

    @property
    def claim(self) -> str:
        """sha256 (hex) of the whole description: one file may have several descriptions."""
        if not self._claim:  # used several times when a lock is stored
            said = _digest([self.channel, self.file_name, self.listed, self.record_json()])
            object.__setattr__(self, "_claim", said)
        return self._claim

    def record_json(self) -> str:
        return json.dumps(self.record, sort_keys=True, separators=(",", ":"))


def record_differences(package: CondaPackage, index: Mapping[str, Any]) -> list[str]:
    """Compare a record with `info/index.json` of the package.

    Compared are the fields that identify the package. Channels patch other fields of their
    records (dependencies, licenses), so a difference there is not a fault. Fields that older
    builders omit are compared if the package has them.

    Args:
        index: the JSON object, or the part of it that is compared.

    Returns:
        The differences with both values; empty if there are none.
    """
    found: list[str] = []
    own = dict(index)
    noarch = own.get("noarch") or ""
    own["noarch"] = noarch if isinstance(noarch, str) else "generic"
    for key, required, ours in (
        ("name", True, package.name.lower()),
        ("version", True, package.version),
        ("build", True, package.build),
        ("build_number", False, package.build_number),
        ("subdir", False, package.subdir),
        ("noarch", True, package.noarch),
    ):
        theirs = own.get(key)
        if theirs is None and not required:
            continue
        if key == "name" and isinstance(theirs, str):
            theirs = theirs.lower()
        if isinstance(ours, str) and isinstance(theirs, float | int):  # of old builders
            theirs = str(theirs)
        if type(theirs) is not type(ours) or theirs != ours:
            found.append(f"its {key} is {_shown(theirs)}, and {_shown(ours)} in the record")
    return found


def _shown(value: object) -> str:
    return "missing" if value in (None, "") else printable(str(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiPackage:
    """One wheel. `url` holds no credentials; for one built from Git see `DirectReference`."""

    name: str  # normalized (PEP 503)
    version: str
    file_name: str
    url: str
    sha256: str  # hex
    size: int  # bytes; 0 if the index does not say
    requires: tuple[str, ...]  # names of the locked PyPI packages and conda names it needs
    requires_python: str
    license: str
    uploaded: int | None = None  # milliseconds since the epoch, by the index's clock
    #: Whether a Python index of this installation links to the file.
    listed: bool = True
    #: Whether the specification or the lock names the source: a wheel URL, or Git.
    direct: bool = False

    @property
    def claim(self) -> str:
        """As `CondaPackage.claim`."""
        said = (self.name, self.version, self.file_name, self.size, self.requires)
        said_of_file = (self.requires_python, self.license, self.uploaded, self.listed)
        return _digest([*said, *said_of_file, *(["direct"] if self.direct else [])])

    @property
    def built(self) -> bool:
        """Whether the wheel was built from a Git repository, so that its URL is not a file."""
        return self.url.startswith("git+")


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


Package = CondaPackage | PypiPackage


def folder_url(url: str) -> str:
    """Return the URL of the channel to which a package's URL belongs: without subdir and file."""
    return url.rsplit("/", 2)[0]


def require_archives(packages: Iterable[CondaPackage]) -> None:
    """Refuse packages whose file is not a conda package by its name.

    Raises:
        LinkError: names all of them.
    """
    others = sorted({p.file_name for p in packages if not p.file_name.endswith(_ARCHIVES)})
    if others:
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        raise LinkError(
            f"{', '.join(others[:10])}{more}: a conda package is a .conda or a .tar.bz2 file.",
            hint="Ask the owner of the channel to index it again, or ask for another version.",
        )


def require_sha256(packages: Iterable[Package]) -> None:
    """Refuse packages whose record names an md5 only: files with equal ones can be made.

    Raises:
        LinkError: names all of them.
    """
    weak = sorted({package.file_name for package in packages if not package.sha256})
    if weak:
        more = f" and {len(weak) - 10} more" if len(weak) > 10 else ""
        raise LinkError(
            f"No sha256 is known for {', '.join(weak[:10])}{more}: an md5 is no proof.",
            hint="Use packages whose channel lists their sha256, or ask an administrator to allow "
            "md5 (CONDASTORE_ALLOW_MD5).",
        )
