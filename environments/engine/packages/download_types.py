"""Values and interfaces of downloads."""

from __future__ import annotations

import hashlib
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
)
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from condastore.errors import LinkError
from environments.domain.records import CondaPackage, Package, PypiPackage, folder_url


def origin_key(url: str) -> str:
    """Return the file name that stands for an origin; `url` has no credentials."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file to fetch, with its expected digest: `sha256`, `md5`, or both."""

    name: str  # for messages: numpy-2.3.1-py311_0.conda
    url: str  # without credentials
    sha256: str
    md5: str = ""
    size: int = 0  # bytes; 0 if unknown
    channel: str = ""  # the conda channel that lists it; "" if none does
    wheel: bool = False  # by the package's type; a channel may give a file any name

    @classmethod
    def from_package(cls, package: Package) -> Download:
        md5 = package.md5 if isinstance(package, CondaPackage) else ""
        if not package.sha256 and not md5:
            raise LinkError(
                f"{package.file_name} has no digest, so its bytes cannot be checked.",
                where=package.url,
                hint="Ask the channel's owner to index it again.",
            )
        return cls(
            name=package.file_name,
            url=package.url,
            sha256=package.sha256,
            md5=md5,
            size=package.size,
            channel=package.channel if isinstance(package, CondaPackage) else "",
            wheel=isinstance(package, PypiPackage),
        )

    @property
    def is_foreign(self) -> bool:
        """True if its channel lists it at a URL outside the channel (`base_url`, CEP 15)."""
        return bool(self.channel) and folder_url(self.url) != self.channel

    @property
    def key(self) -> str:
        """The digest that names the file."""
        return self.sha256 or f"md5-{self.md5}"

    @property
    def stem(self) -> str:
        """Base name of partial files; a download is resumed from the same origin only.

        Another channel that lists a file of the same server is a different origin.
        """
        origin = f"{self.channel} {self.url}" if self.is_foreign else self.url
        return f"{self.key}.{origin_key(origin)}"

    def hasher(self) -> hashlib._Hash:
        return hashlib.sha256() if self.sha256 else hashlib.md5(usedforsecurity=False)

    def compare(self, *, sha256: str, md5: str) -> None:
        """Raise WrongBytes unless the digest that the lock has is equal."""
        kind, got, expected = (
            ("sha256", sha256, self.sha256) if self.sha256 else ("md5", md5, self.md5)
        )
        if got != expected:  # do not reveal the received digest: it may be of a private file
            raise WrongBytes(f"its {kind} differs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Time limits, retries and size limits of downloads."""

    connect: timedelta = timedelta(seconds=15)
    read: timedelta = timedelta(seconds=30)  # for the response's headers, and between two pieces
    rate: int = 1024  # minimum bytes per second, averaged over `read`; 0: no minimum
    total: timedelta | None = None  # for all files together
    attempts: int = 6  # per file, with exponential backoff
    longest_pause: timedelta = timedelta(seconds=20)
    #: A process that holds a file's lock and writes nothing for this time counts as stopped.
    stalled: timedelta = timedelta(seconds=20)
    largest: int = 20 * 1024**3  # bytes; limit of a file of unknown size
    reserve: int = 0  # bytes that must stay free on the disk while files arrive and are unpacked


PATIENCE = Patience()


class WrongBytes(Exception):  # noqa: N818  # always caught in this package
    """The server sent different bytes than the lock names."""


class OpenArchive(Protocol):
    """An opened archive: what it had when it was opened, and additions to it. Thread-safe."""

    def has(self, sha256: str) -> bool: ...

    def copy_to_file(self, sha256: str, to: Path) -> bool:
        """Write the file to `to`; return False if it is missing or damaged."""
        ...

    def add(self, sha256: str, path: Path) -> None:
        """Add a verified file, which may be moved away. Failures are not raised."""
        ...


class Archive(Protocol):
    """Archive of original packages by sha256, for packages that their channel no longer has."""

    def opened(self, digests: Collection[str]) -> AbstractContextManager[OpenArchive]: ...

    def delivered(self, downloads: Collection[Download]) -> Collection[str]:
        """Return the keys of files that came from their own URL before, or need not.

        Knowing a digest gives no right to the bytes: a channel may list files it never had.
        """
        ...


Use = Callable[[Download, Path], Awaitable[None]]
#: Uses a file while it arrives through a pipe; returns False if it was incomplete or a wrong file.
#: The function argument returns the number of bytes that arrived so far.
Stream = Callable[[Download, Path, Callable[[], int]], Awaitable[bool]]
