"""Cache of extracted and validated packages, shared by builds and never changed by them.

    <folder>/<sha256>/<name>-<version>-<build>/   the extracted archive
    <folder>/<sha256>/contents.json               its contents; the mtime is the last use
    <folder>/<sha256>/origins/<key of a URL>      one file per URL that served these bytes
    <folder>/downloads/                           partial downloads
    <folder>/.extracting/                         unfinished extractions
    <folder>/views/                               what rattler sees during one link

An entry appears by a rename, complete and validated: its tree holds only what a package may hold
(see `extracted_tree.py`), and its metadata equals the lock's. Entries are named by the archive's
digest, so packages of two channels with the same name and different bytes never mix.

Entries of older releases are validated at their next use. Their hard links cannot be checked,
because prefixes share the files; extraction never created links that lead out of the package.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from condastore.errors import DiskSpaceError, LinkError
from environments.domain.linking import PackageContents, PackageFile
from environments.domain.progress import Cancelled, Report, ignore, never
from environments.domain.records import CondaPackage, require_sha256
from environments.domain.unpacking import DEFAULT_LIMITS, Limits
from environments.engine.channels.credentials import CredentialSource, no_credentials
from environments.engine.packages import downloads
from environments.engine.packages.contents import (
    CONTENTS,
    UNVALIDATED_VERSION,
    VALIDATED,
    contents_from,
    describe,
    is_complete,
    package_label,
    refuse_differences,
    validate,
    write_contents,
)
from environments.engine.packages.download_types import (
    PATIENCE,
    Archive,
    Download,
    Patience,
    WrongBytes,
    origin_key,
)
from environments.engine.packages.extraction import ExtractionError, ExtractorEndedError, Extractors
from environments.engine.system.disk import remove_tree

ORIGINS = "origins"
_NO_SPACE = tuple(f"os error {code}" for code in (errno.ENOSPC, errno.EDQUOT))
_TOO_LARGE = f"os error {errno.EFBIG}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPackage:
    """A package that is extracted and complete."""

    package: CondaPackage
    folder: Path  # the extracted archive
    contents: PackageContents


class PackageCache:
    """Extracted packages below one folder; any number of processes may use it at once."""

    def __init__(
        self,
        folder: Path,
        *,
        archive: Archive | None = None,
        limits: Limits = DEFAULT_LIMITS,
        allow_md5: bool = False,
    ) -> None:
        """
        Args:
            archive: archive of original packages; None stores only extracted ones.
            limits: limits of what a package may unpack to.
            allow_md5: accept packages whose record has no sha256.
        """
        self.folder = folder
        self.archive = archive
        self.limits = limits
        self.allow_md5 = allow_md5
        self.downloads = folder / "downloads"
        self.views = folder / "views"
        self._extracting = folder / ".extracting"
        self._extractors = Extractors(
            readable=self.downloads, writable=self._extracting, limits=limits
        )

    def warm_up(self) -> None:
        """Start processes for the first extractions."""
        self._extractors.warm_up()

    def ensure(
        self,
        packages: Sequence[CondaPackage],
        *,
        credentials: CredentialSource = no_credentials,
        cancelled: Cancelled = never,
        progress: Report = ignore,
        parallel: int = 8,
        patience: Patience = PATIENCE,
    ) -> list[CachedPackage]:
        """Return all of `packages` in order; fetch and extract what is missing or damaged.

        Raises:
            DownloadError, DiskSpaceError: a package could not be fetched; complete ones stay.
            LinkError: an archive cannot be read, holds what no package may, has metadata that
                differs from the lock, or has no accepted digest.
            LeaseLostError: `cancelled` returned True.
        """
        found: dict[str, CachedPackage] = {}
        if not self.allow_md5:
            require_sha256(packages)
        requested = [Download.from_package(package) for package in packages]
        unproven = self._unproven(requested)
        by_key = {
            download.key: package for download, package in zip(requested, packages, strict=True)
        }

        def present(download: Download) -> bool:
            package = by_key[download.key]
            if download.key in unproven and not self._delivered(download):
                return False
            if download.key not in found and (cached := self._find(package, download)):
                found[download.key] = cached
            return download.key in found

        async def extract(download: Download, archive: Path) -> None:
            size = archive.stat().st_size
            await extract_now(download, archive, lambda: size)

        async def extract_now(download: Download, archive: Path, packed: Callable[[], int]) -> None:
            package = by_key[download.key]
            found[download.key] = await self._extract(
                package, download, archive, packed, patience.reserve
            )
            self._note_delivery(download)

        async def extract_pipe(download: Download, pipe: Path, arrived: Callable[[], int]) -> bool:
            try:
                await extract_now(download, pipe, arrived)
            except (LinkError, WrongBytes):
                return False  # extracting from the file gives a better error than a cut pipe
            return True

        downloads.download_all(
            requested,
            folder=self.downloads,
            present=present,
            use=extract,
            stream=extract_pipe,
            credentials=credentials,
            cancelled=cancelled,
            progress=progress,
            parallel=parallel,
            patience=patience,
            verify=False,  # extraction computes the digests as it reads
            archive=self.archive,
            unproven=unproven,
        )
        return [found[download.key] for download in requested]

    @contextlib.contextmanager
    def view(self, packages: Sequence[CachedPackage]) -> Iterator[Path]:
        """Create a temporary folder that rattler reads as a package cache with these packages.

        rattler names entries without a digest, and locks its whole cache during an install: with
        a view per link, equal names cannot collide, and builds do not wait for each other.
        """
        self.views.mkdir(parents=True, exist_ok=True)
        view = self.views / secrets.token_hex(8)
        view.mkdir()
        try:
            for cached in packages:
                (view / package_label(cached.package)).symlink_to(cached.folder)
            yield view
        finally:
            shutil.rmtree(view, ignore_errors=True)

    def extracted(self, package: CondaPackage) -> Path | None:
        """Return the folder of `package` if it came from its URL; its files are not checked."""
        download = Download.from_package(package)
        if self.archive is not None and not self._delivered(download):
            # For a foreign file the archive knows more than the origin files of this cache.
            unproven = not download.is_foreign or bool(self._unproven([download]))
            if unproven:
                return None
        folder = self.folder / download.key / package_label(package)
        try:
            with (folder.parent / CONTENTS).open("rb") as file:
                if file.read(len(VALIDATED)) == VALIDATED:
                    return folder if folder.is_dir() else None
        except FileNotFoundError:
            return None
        found = self._find(package, download)
        return found.folder if found else None

    # All tenants share the entries, and knowing a digest gives no right to the bytes: a channel may
    # list the digest of a private package. So an entry serves only URLs that gave these bytes.

    def _unproven(self, wanted: Sequence[Download]) -> set[str]:
        """Return the keys of packages that must be fetched even if their bytes are here.

        Without an archive all packages come from one server, which checks access.
        """
        if self.archive is None:
            return set()
        new = [download for download in wanted if not self._delivered(download)]
        if not new:
            return set()
        proven = set(self.archive.delivered(new))
        for download in new:
            if download.key in proven and (self.folder / download.key).is_dir():
                self._note_delivery(download)
        return {download.key for download in new} - proven

    def _delivered(self, download: Download) -> bool:
        # A channel may list a file of another channel that needs a credential: ask the archive.
        return not download.is_foreign and self._delivery(download).exists()

    def _note_delivery(self, download: Download) -> None:
        if download.is_foreign:
            return
        note = self._delivery(download)
        with contextlib.suppress(OSError):  # the entry was removed concurrently
            note.parent.mkdir(exist_ok=True)
            note.touch()

    def _delivery(self, download: Download) -> Path:
        return self.folder / download.key / ORIGINS / origin_key(download.url)

    def entries(self) -> Iterator[tuple[str, datetime]]:
        """Yield (digest, last use) of every entry."""
        for path in self.folder.glob(f"*/{CONTENTS}"):
            with contextlib.suppress(FileNotFoundError):
                yield path.parent.name, datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def remove(self, digest: str, *, trash: Path) -> None:
        """Move an entry into `trash`. Prefixes that were linked from it keep their files."""
        trash.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / digest).rename(trash / f"package-{digest[:12]}-{secrets.token_hex(4)}")

    def remove_leftovers(self, *, older_than: timedelta) -> None:
        """Remove old temporary files of killed workers."""
        downloads.remove_leftovers(self.downloads, older_than=older_than)
        limit = time.time() - older_than.total_seconds()
        for path in [
            *self.views.glob("*"),
            *self._extracting.glob("*"),
            *self.folder.glob(".extracting-*"),  # location used by older releases
        ]:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    with contextlib.suppress(OSError):
                        remove_tree(path)

    def _find(self, package: CondaPackage, download: Download) -> CachedPackage | None:
        """Return the entry if it is complete; discard a damaged one.

        Raises:
            LinkError: the package's metadata differs from the record.
        """
        entry = self.folder / download.key
        folder = entry / package_label(package)
        try:
            document = json.loads((entry / CONTENTS).read_bytes())
            if document["version"] == UNVALIDATED_VERSION:
                document = self._validated_again(package, folder, document)
            contents = contents_from(document)
        except FileNotFoundError:
            if entry.exists():
                self._discard(entry)
            return None
        except (ValueError, TypeError, KeyError, LinkError):
            self._discard(entry)
            return None
        refuse_differences(package, contents)
        if not is_complete(folder, contents):
            self._discard(entry)
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(entry / CONTENTS)
        return CachedPackage(package=package, folder=folder, contents=contents)

    def _validated_again(
        self, package: CondaPackage, folder: Path, old: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Validate an entry of an older release, and rewrite its contents file.

        Raises:
            LinkError: it holds what no package may.
        """
        if old["label"] != folder.name:
            raise LinkError(f"{package.file_name} was extracted under a different name.")
        listed = tuple(map(PackageFile._make, old["files"]))
        # Those releases removed empty folders from the list in the archive.
        folders = tuple(file for file in listed if file.kind == "folder")
        document = describe(
            package,
            folder,
            packed=package.size or self.limits.unpacked,
            limits=self.limits,
            folders=folders,
            linked_elsewhere=True,
        )
        new = folder.parent / f".{CONTENTS}.{secrets.token_hex(8)}"
        write_contents(document, new)
        new.replace(folder.parent / CONTENTS)
        return document

    async def _extract(
        self,
        package: CondaPackage,
        download: Download,
        archive: Path,
        packed: Callable[[], int],
        reserve: int,
    ) -> CachedPackage:
        """Create the entry of an archive, after its digest is verified.

        Args:
            packed: returns the bytes of the archive that arrived so far.
            reserve: bytes that must stay free on the disk.
        """
        work = self._extracting / secrets.token_hex(8)
        folder = work / package_label(package)
        # rattler recognizes the format by the file name.
        ending = ".conda" if package.file_name.endswith(".conda") else ".tar.bz2"
        named = archive.with_name(f".extracting-{work.name}{ending}")
        try:
            work.mkdir(parents=True)
            os.link(archive, named)
            await self._unpack(download, named, folder, packed, reserve)
            contents = await asyncio.to_thread(
                validate, package, folder, packed=packed(), limits=self.limits
            )
            try:
                work.rename(self.folder / download.key)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another process that took this one for stopped was faster; its entry is equal.
        finally:
            named.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                remove_tree(work)
        entry = self.folder / download.key
        return CachedPackage(
            package=package, folder=entry / package_label(package), contents=contents
        )

    async def _unpack(
        self,
        download: Download,
        archive: Path,
        folder: Path,
        packed: Callable[[], int],
        reserve: int,
    ) -> None:
        """Extract `archive`, and compute its digest on the way.

        Raises:
            WrongBytes: it is not the archive of the lock.
            LinkError: it is, but it cannot be read, or unpacks to more than the limits allow.
        """
        try:
            sha256, md5 = await self._extractors.extract(
                archive, folder, name=download.name, packed=packed, reserve=reserve
            )
        except (ExtractionError, ExtractorEndedError) as error:
            message = str(error)
            if any(code in message for code in _NO_SPACE):
                raise DiskSpaceError(
                    f"The disk is full: {download.name} could not be extracted.",
                    hint="Ask an administrator to free disk space, then try again.",
                ) from error
            if archive.is_fifo():  # the bytes that went through a pipe cannot be hashed again
                raise WrongBytes(f"it cannot be extracted: {message}") from error
            with archive.open("rb") as file:
                hashed = await asyncio.to_thread(hashlib.file_digest, file, download.hasher)
            download.compare(sha256=hashed.hexdigest(), md5=hashed.hexdigest())
            if isinstance(error, ExtractorEndedError):
                message = "the program that reads it crashes"
            elif _TOO_LARGE in message:
                message = self.limits.size_fault(packed()).rstrip(".")
            reason = "".join(letter for letter in message if letter.isprintable())
            raise LinkError(
                f"The archive {download.name} cannot be extracted: {reason[:500]}.",
                where=download.url,
                hint="Use another build or version, and report it to the channel's owner.",
            ) from error
        download.compare(sha256=sha256, md5=md5)

    def _discard(self, entry: Path) -> None:
        """Hide `entry` at once by a rename, then remove it."""
        self._extracting.mkdir(parents=True, exist_ok=True)
        doomed = self._extracting / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            entry.rename(doomed)
        with contextlib.suppress(OSError):
            remove_tree(doomed)
