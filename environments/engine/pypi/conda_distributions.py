"""Python distributions that conda packages hold, read from the packages' own lists of paths."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from rattler.package_streaming import PackageArchive

from condastore.errors import (
    ChannelUnavailableError,
    LinkError,
    StoreError,
    TimeLimitError,
)
from environments.domain.json_text import parse_json
from environments.domain.lock import PlatformLock
from environments.domain.progress import Cancelled, obey
from environments.domain.records import CondaPackage
from environments.engine.channels.credentials import request_url
from environments.engine.channels.repodata import Channels
from environments.engine.network import forward_proxy
from environments.engine.network.addresses import guard

Answer = TypeVar("Answer")

#: In site-packages itself; deeper ones are vendored and not importable by others.
_DIST_INFO = re.compile(
    r"(?:lib/python[\d.]+t?/|Lib/)?site-packages/(?P<stem>[^/]+)"
    r"\.(?:dist-info/METADATA|egg-info/PKG-INFO|egg-info)"
)
#: Maximum bytes that are read of a package: of METADATA, of the list of paths, and of a package of
#: unknown size whose server does not support ranges.
_LARGEST_METADATA, _LARGEST_PATHS, _LARGEST_SPOOL = 4 << 20, 64 << 20, 4 << 30
_STEM = re.compile(r"(?P<name>.+?)-(?P<version>\d[^-]*)(?:-py[\d.]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """A Python distribution that a conda package holds."""

    name: str  # normalized (PEP 503)
    version: str
    path: str  # path of its metadata in the package
    package: CondaPackage

    def __str__(self) -> str:
        return f"{self.name} {self.version} of the conda package {self.package.name}"


class CondaDistributions:
    """Reads which Python distributions conda packages hold; results are cached per package."""

    def __init__(
        self,
        *,
        cache: Path,
        channels: Channels,
        extracted: Callable[[CondaPackage], Path | None],
    ) -> None:
        """
        Args:
            cache: folder of the cached lists.
            channels: reads packages that are not extracted.
            extracted: returns the folder of an extracted package, or None.
        """
        self._cache = cache
        self._channels = channels
        self._extracted = extracted

    def of_lock(
        self,
        platform_lock: PlatformLock,
        *,
        cancelled: Cancelled,
        deadline: float | None = None,
    ) -> dict[str, Provided]:
        """Return the distributions that the conda packages hold, by name, from their files.

        Args:
            deadline: a value of `time.monotonic()`.
        Raises:
            ChannelUnavailableError: a package cannot be read.
            TimeLimitError: `deadline` passed.
            LeaseLostError: `cancelled` returned True.
        """
        found: dict[str, Provided] = {}
        unread: list[CondaPackage] = []
        for package in platform_lock.conda:
            if not _is_python(package):
                continue
            listed = self._known(package)
            if listed is None:
                unread.append(package)
                continue
            found |= _distributions(package, listed)
        for package in unread:
            obey(cancelled)
            listed = self._look(package, cancelled, deadline)
            self._remember(package, listed)
            found |= _distributions(package, listed)
        return found

    def _known(self, package: CondaPackage) -> list[str] | None:
        try:
            return list(json.loads(self._note(package).read_bytes()))
        except (OSError, ValueError):
            return None

    def _remember(self, package: CondaPackage, listed: Sequence[str]) -> None:
        note = self._note(package)
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}.{id(package)}")
        temporary.write_text(json.dumps(list(listed)))
        temporary.replace(note)

    def _note(self, package: CondaPackage) -> Path:
        # The key has the URL too: its server may serve other bytes than the digest says.
        known_as = f"{package.sha256 or package.md5} {package.url}"
        digest = hashlib.sha256(known_as.encode()).hexdigest()
        return self._cache / "provided" / digest[:2] / f"{digest}.json"

    def _look(
        self, package: CondaPackage, cancelled: Cancelled, deadline: float | None
    ) -> list[str]:
        """Return the paths of the package's metadata files, from its list of paths."""
        folder = self._extracted(package)
        if folder is None:
            paths = self._fetch(
                self._remote_paths(package), package, cancelled=cancelled, deadline=deadline
            )
        elif (listed := _bounded(folder / "info" / "paths.json", _LARGEST_PATHS)) is not None:
            paths = _listed(listed)
        else:  # packages without info/paths.json
            lines = _bounded(folder / "info" / "files", _LARGEST_PATHS) or b""
            paths = lines.decode(errors="replace").splitlines()
        return sorted(path for path in paths if _DIST_INFO.fullmatch(path))

    def _fetch(
        self,
        work: Coroutine[Any, Any, Answer],
        package: CondaPackage,
        *,
        cancelled: Cancelled,
        deadline: float | None,
    ) -> Answer:
        """Read parts of a package that is not extracted.

        rattler reads through the forward proxy, which enforces the minimum rate.
        """
        try:
            return self._channels.run(work, cancelled=cancelled, deadline=deadline)
        except TimeLimitError as error:
            raise TimeLimitError(
                f"{package.file_name} was not read within the time limit.", where=package.url
            ) from error

    async def _open(self, package: CondaPackage) -> PackageArchive:
        if package.url.startswith("file:"):
            return await PackageArchive.from_path(guard().path(package.url))
        return await PackageArchive.from_url(
            self._channels.client,
            request_url(self._channels.credential(package.url), package.url),
            # If the server supports no ranges, the whole package is fetched.
            max_spool_size=package.size or _LARGEST_SPOOL,
        )

    async def _remote_paths(self, package: CondaPackage) -> list[str]:
        try:
            archive = await self._open(package)
            listed = await _read_bounded(archive, "info", "info/paths.json", _LARGEST_PATHS)
            if listed is not None:
                return _listed(listed)
            lines = await _read_bounded(archive, "info", "info/files", _LARGEST_PATHS)
            return (lines or b"").decode(errors="replace").splitlines()
        except Exception as error:  # rattler's errors have no common base
            raise await self._unreadable(package, error) from error

    async def _unreadable(self, package: CondaPackage, error: Exception) -> StoreError:
        message = self._channels.clean(str(error))
        if isinstance(error, StoreError):
            return error
        if refused := await asyncio.to_thread(forward_proxy.refusal_in, message):
            return refused
        return ChannelUnavailableError(
            f"{package.file_name} could not be read: {message}", where=package.url
        )

    def metadata(
        self, items: Iterable[Provided], *, cancelled: Cancelled, deadline: float
    ) -> dict[str, bytes]:
        """Return the metadata files of `items`, by name of the distribution."""
        found: dict[str, bytes] = {}
        for item in items:
            folder = self._extracted(item.package)
            content = (
                _bounded(folder / item.path, _LARGEST_METADATA)
                if folder is not None
                else self._fetch(
                    self._read(item), item.package, cancelled=cancelled, deadline=deadline
                )
            )
            if content is not None:
                found[item.name] = content
        return found

    async def _read(self, item: Provided) -> bytes | None:
        try:
            archive = await self._open(item.package)
            return await _read_bounded(archive, "pkg", item.path, _LARGEST_METADATA)
        except Exception as error:  # rattler's errors have no common base
            raise await self._unreadable(item.package, error) from error


def _listed(content: bytes) -> list[str]:
    """Return the paths of `info/paths.json`."""
    return [str(entry["_path"]) for entry in parse_json(content)["paths"]]


def _bounded(path: Path, largest: int) -> bytes | None:
    """Read a file of an extracted package; return None if it does not exist.

    Raises:
        LinkError: it is larger than `largest` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        return None
    if len(content) > largest:
        raise LinkError(f"{path.name} of a package is larger than {largest:,} bytes.")
    return content


async def _read_bounded(
    archive: PackageArchive, section: Literal["info", "pkg"], path: str, largest: int
) -> bytes | None:
    """Read a file of a package that is not extracted; return None if it does not exist.

    Raises:
        LinkError: it is larger than `largest` bytes.
    """
    async for entry in archive.stream(section):
        if entry.name == path:
            if entry.size > largest:
                raise LinkError(f"{path} of a package is larger than {largest:,} bytes.")
            return await entry.read()
    return None


def _is_python(package: CondaPackage) -> bool:
    return package.noarch == "python" or any(
        re.match(r"(python|python_abi)(?![\w.-])", entry) for entry in package.depends
    )


def _distributions(package: CondaPackage, paths: Iterable[str]) -> dict[str, Provided]:
    found: dict[str, Provided] = {}
    for path in paths:
        match = _DIST_INFO.fullmatch(path)
        stem = _STEM.fullmatch(match["stem"]) if match else None
        if stem is None:
            continue
        try:
            version = str(Version(stem["version"]))
        except InvalidVersion:
            continue  # not a version that uv accepts
        name = canonicalize_name(stem["name"])
        found[name] = Provided(name=name, version=version, path=path, package=package)
    return found
