"""Where is a package extracted, so that every build can link it and none can spoil another?

    <folder>/<sha256>/<name>-<version>-<build>/   the extracted archive
    <folder>/<sha256>/contents.json               what is in it; its time is the last use
    <folder>/downloads/                           what is being fetched
    <folder>/views/                               what rattler sees during one link

An entry appears by a rename, complete. It is named by the archive's digest: two channels whose
packages have the same name and other bytes never meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rattler import Client
from rattler.exceptions import IoError
from rattler.package import PathsJson
from rattler.package_streaming import download_and_extract

from environments.domain.errors import DiskSpaceError, LinkError
from environments.domain.json_text import parse_json
from environments.domain.linking import PackageContents, PackageFile
from environments.domain.progress import Cancelled, Report, ignore, never
from environments.domain.records import CondaPackage
from environments.engine import downloads
from environments.engine.credentials import CredentialSource, no_credentials
from environments.engine.downloads import PATIENCE, Archive, Download, Patience

CONTENTS = "contents.json"
_CONTENTS_VERSION = 1
_NO_SPACE = tuple(f"os error {code}" for code in (errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPackage:
    """A package that is extracted and whole."""

    package: CondaPackage
    folder: Path  # the extracted archive
    contents: PackageContents


class PackageCache:
    """The extracted packages below one folder; any number of processes may use it at once."""

    def __init__(self, folder: Path, *, archive: Archive | None = None) -> None:
        self.folder = folder
        self.archive = archive
        self.downloads = folder / "downloads"
        self.views = folder / "views"

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
        """All of `packages`, fetched and extracted where they are missing or damaged, in order.

        Raises:
            DownloadError, DiskSpaceError: they could not be had; what is whole stays.
            LinkError: an archive cannot be read, or has no digest.
            LeaseLostError: `cancelled` said so.
        """
        found: dict[str, CachedPackage] = {}
        by_key = {Download.of(package).key: package for package in packages}

        def present(download: Download) -> bool:
            package = by_key[download.key]
            if download.key not in found and (cached := self._find(package, download)):
                found[download.key] = cached
            return download.key in found

        async def extract(download: Download, archive: Path) -> None:
            package = by_key[download.key]
            found[download.key] = await self._extract(package, download, archive)

        async def extract_pipe(download: Download, pipe: Path) -> bool:
            try:
                await extract(download, pipe)
            except (LinkError, downloads.WrongBytes):
                return False  # the file says more of what is wrong than a pipe that ended
            return True

        downloads.download_all(
            [Download.of(package) for package in packages],
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
        )
        return [found[Download.of(package).key] for package in packages]

    @contextlib.contextmanager
    def view(self, packages: Sequence[CachedPackage]) -> Iterator[Path]:
        """A folder that rattler takes for a package cache with just these packages in it.

        rattler names entries without a digest, and locks its whole cache during an install: with
        a view for each link, neither can two equal names meet, nor does a build wait for another.
        """
        self.views.mkdir(parents=True, exist_ok=True)
        view = self.views / secrets.token_hex(8)
        view.mkdir()
        try:
            for cached in packages:
                (view / _label(cached.package)).symlink_to(cached.folder)
            yield view
        finally:
            shutil.rmtree(view, ignore_errors=True)

    def extracted(self, package: CondaPackage) -> Path | None:
        """Where `package` lies, if it is here; whether all of it is there is not looked at."""
        folder = self.folder / Download.of(package).key / _label(package)
        return folder if folder.is_dir() else None

    def entries(self) -> Iterator[tuple[str, datetime]]:
        """(digest, last use) of every entry."""
        for path in self.folder.glob(f"*/{CONTENTS}"):
            with contextlib.suppress(FileNotFoundError):
                yield path.parent.name, datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def remove(self, digest: str, *, trash: Path) -> None:
        """Move an entry into `trash`. Prefixes that were linked from it keep their files."""
        trash.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / digest).rename(trash / f"package-{digest[:12]}-{secrets.token_hex(4)}")

    def remove_leftovers(self, *, older_than: timedelta) -> None:
        """Remove what killed workers left half done."""
        downloads.remove_leftovers(self.downloads, older_than=older_than)
        limit = time.time() - older_than.total_seconds()
        for path in [*self.views.glob("*"), *self.folder.glob(".extracting-*")]:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    shutil.rmtree(path, ignore_errors=True)

    def _find(self, package: CondaPackage, download: Download) -> CachedPackage | None:
        """The entry, if it is there and whole; a damaged one is thrown away."""
        entry = self.folder / download.key
        folder = entry / _label(package)
        try:
            contents = read_contents(entry / CONTENTS)
            damaged = not _is_whole(folder, contents)
            os.utime(entry / CONTENTS)
        except FileNotFoundError:
            damaged = entry.exists()
        except (ValueError, TypeError, KeyError):
            damaged = True
        else:
            if not damaged:
                return CachedPackage(package=package, folder=folder, contents=contents)
        if damaged:
            self._discard(entry)
        return None

    async def _extract(
        self, package: CondaPackage, download: Download, archive: Path
    ) -> CachedPackage:
        """Make the entry of an archive, once its bytes are known to be those of the lock."""
        work = self.folder / f".extracting-{secrets.token_hex(8)}"
        folder = work / _label(package)
        # rattler tells the format by the name.
        ending = ".conda" if package.file_name.endswith(".conda") else ".tar.bz2"
        named = archive.with_name(f"{work.name}{ending}")
        try:
            work.mkdir()
            os.link(archive, named)
            await _extract(download, named, folder)
            contents = await asyncio.to_thread(_complete, package, folder)
            try:
                work.rename(self.folder / download.key)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another process, that thought this one stopped, was faster; its entry is as good.
        finally:
            named.unlink(missing_ok=True)
            if work.exists():
                self._discard(work)
        entry = self.folder / download.key
        return CachedPackage(package=package, folder=entry / _label(package), contents=contents)

    def _discard(self, entry: Path) -> None:
        """Take `entry` out of sight at once, and then remove it."""
        doomed = self.folder / f".extracting-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            entry.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


async def _extract(download: Download, archive: Path, folder: Path) -> None:
    """Extract `archive`, whose digest is found on the way.

    Raises:
        WrongBytes: it is not the archive of the lock.
        LinkError: it is, and yet it cannot be read.
    """
    try:
        # rattler's synchronous `extract` holds the interpreter's lock until it is done; this one
        # does not, and reads a file: URL without a copy.
        sha256, md5 = await download_and_extract(_reader(), archive.absolute().as_uri(), folder)
    except Exception as error:  # rattler's errors have no common base
        if any(code in str(error) for code in _NO_SPACE):
            raise DiskSpaceError(
                f"The disk is full: {download.name} could not be extracted."
            ) from error
        if archive.is_fifo():  # what came through it is gone
            raise downloads.WrongBytes(f"what cannot be extracted: {error}") from error
        with archive.open("rb") as file:
            hashed = await asyncio.to_thread(hashlib.file_digest, file, download.hasher)
        download.compare(sha256=hashed.hexdigest(), md5=hashed.hexdigest())
        reason = "".join(letter for letter in str(error) if letter.isprintable())
        raise LinkError(
            f"The archive {download.name} cannot be extracted: {reason}.", where=download.url
        ) from error
    download.compare(sha256=sha256.hex(), md5=md5.hex())


@functools.cache
def _reader() -> Client:
    """What reads local files for rattler. (Each new one costs 50 ms: it loads certificates.)"""
    return Client()


def _label(package: CondaPackage) -> str:
    """The name of its folder, as rattler forms it too."""
    label = f"{package.name.lower()}-{package.version}-{package.build}"
    if "/" in label or "\0" in label:
        raise LinkError(f"{label!r} is no name of a package.", where=package.url)
    return label


def _is_whole(folder: Path, contents: PackageContents) -> bool:
    """Whether every file is there with its size. (2 us a file: contents are not read again.)"""
    root = f"{folder}/"
    lstat = os.lstat
    try:
        for path, kind, size, *_ in contents.files:
            status = lstat(root + path)
            if kind == "file" and (status.st_size != size or not stat.S_ISREG(status.st_mode)):
                return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (folder / "info" / "index.json").exists()


def _complete(package: CondaPackage, folder: Path) -> PackageContents:
    """Note what the extracted archive in `folder` holds, and write it beside it."""
    try:
        contents = _look(package, folder)
    except (KeyError, ValueError, TypeError, AttributeError, IoError) as error:
        raise LinkError(
            f"{package.file_name} does not say properly what it holds: {error!r}.",
            where=package.url,
        ) from error
    document = {
        "version": _CONTENTS_VERSION,
        "name": contents.name,
        "label": contents.label,
        "noarch_python": contents.noarch_python,
        "entry_points": contents.entry_points,
        "link_scripts": contents.link_scripts,
        "files": contents.files,
    }
    (folder.parent / CONTENTS).write_text(json.dumps(document, separators=(",", ":")))
    return contents


def read_contents(path: Path) -> PackageContents:
    document = json.loads(path.read_bytes())
    if document["version"] != _CONTENTS_VERSION:
        raise ValueError("written by another version of condastore")
    return PackageContents(
        name=document["name"],
        label=document["label"],
        noarch_python=document["noarch_python"],
        entry_points=tuple(document["entry_points"]),
        link_scripts=tuple(document["link_scripts"]),
        files=tuple(map(PackageFile._make, document["files"])),
    )


def _look(package: CondaPackage, folder: Path) -> PackageContents:
    """What is in an extracted archive, as it says itself, compared with what is really there."""
    paths = _paths_document(package, folder)
    link = _json(folder / "info" / "link.json").get("noarch", {})
    noarch = link.get("type") if isinstance(link, dict) else link
    files = tuple(_file(package, f"{folder}/", entry) for entry in paths["paths"])
    scripts = tuple(
        file.path
        for file in files
        if file.path.startswith(("bin/.", "Scripts/."))
        and file.path.endswith(tuple(f"-{when}{end}" for when in _LINK_MOMENTS for end in _ENDS))
    )
    if any(file.kind == "folder" for file in files):
        # rattler 0.28 fails on such an entry; whoever links makes these folders.
        paths["paths"] = [each for each in paths["paths"] if each.get("path_type") != "directory"]
        (folder / "info" / "paths.json").write_text(json.dumps(paths))
    return PackageContents(
        name=package.name,
        label=_label(package),
        noarch_python=noarch == "python" or package.noarch == "python",
        files=files,
        entry_points=tuple(link.get("entry_points") or ()) if isinstance(link, dict) else (),
        link_scripts=scripts,
    )


_LINK_MOMENTS = ("pre-link", "post-link", "pre-unlink")
_ENDS = (".sh", ".bat")


def _file(package: CondaPackage, root: str, entry: dict[str, Any]) -> PackageFile:
    """One entry of `info/paths.json`. (No Path objects: they would cost more than the disk.)"""
    path = str(entry["_path"])
    if path.startswith("/") or ".." in path.split("/"):
        raise LinkError(f"{package.file_name}: the path {path!r} leads out of the environment.")
    location = root + path
    try:
        status = os.lstat(location)
    except OSError as error:
        raise LinkError(f"{package.file_name} lists {path}, which its archive lacks.") from error
    mode = status.st_mode
    if stat.S_ISREG(mode) and entry.get("path_type") != "softlink":
        placeholder = str(entry.get("prefix_placeholder") or "")
        return PackageFile(
            path,
            "file",
            status.st_size,
            str(entry.get("sha256") or _sha256(location)),
            "",
            len(placeholder.encode()),
            binary=entry.get("file_mode") == "binary",
        )
    if stat.S_ISDIR(mode):
        return PackageFile(path, "folder", 0, "", "", 0, binary=False)
    if stat.S_ISLNK(mode):
        target = os.readlink(location)  # noqa: PTH115
        return PackageFile(path, "link", 0, "", target, 0, binary=False)
    if stat.S_ISREG(mode):
        raise LinkError(f"{package.file_name} lists {path} as a link, which it is not.")
    raise LinkError(f"{package.file_name}: {path} is neither a file nor a link nor a folder.")


def _paths_document(package: CondaPackage, folder: Path) -> dict[str, Any]:
    """`info/paths.json`, or what stood in its place before there was one."""
    path = folder / "info" / "paths.json"
    if path.exists():
        document = _json(path)
        if isinstance(document.get("paths"), list):
            return document
        raise LinkError(f"{package.file_name}: info/paths.json has no list of paths.")
    old = PathsJson.from_deprecated_package_directory(folder)
    entries: list[dict[str, Any]] = []
    for each in old.paths:
        entry: dict[str, Any] = {"_path": os.fspath(each.relative_path)}
        if each.prefix_placeholder is not None:
            binary = each.prefix_placeholder.file_mode.binary
            entry["prefix_placeholder"] = each.prefix_placeholder.placeholder
            entry["file_mode"] = "binary" if binary else "text"
        entries.append(entry)
    return {"paths": entries, "paths_version": 1}


def _json(path: Path) -> dict[str, Any]:
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    return document if isinstance(document, dict) else {}


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
