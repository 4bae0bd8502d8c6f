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
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rattler.exceptions import IoError
from rattler.package import PathsJson

from condastore.errors import DiskSpaceError, LinkError
from environments.domain.json_text import parse_json
from environments.domain.linking import PackageContents, PackageFile
from environments.domain.names import printable
from environments.domain.progress import Cancelled, Report, ignore, never
from environments.domain.records import CondaPackage, record_differences, require_sha256
from environments.domain.unpacking import DEFAULT_LIMITS, Limits
from environments.engine.channels.credentials import CredentialSource, no_credentials
from environments.engine.packages import downloads
from environments.engine.packages.downloads import PATIENCE, Archive, Download, Patience
from environments.engine.packages.extracted_tree import TreeEntry, folder_of_links, read_tree
from environments.engine.packages.extraction import ExtractionError, ExtractorEndedError, Extractors
from environments.engine.system.disk import remove_tree

CONTENTS = "contents.json"
ORIGINS = "origins"
_CONTENTS_VERSION = 3
#: First bytes of the contents file of a validated entry.
_VALIDATED = b'{"version":%d,' % _CONTENTS_VERSION
#: Version written by releases that did not validate the tree.
_UNVALIDATED_VERSION = 1
#: Maximum size in bytes of a document in `info/`, other than the list of paths.
_LARGEST_DOCUMENT = 1 << 20
#: Maximum size in bytes of the list of paths: a base plus an amount per path of the archive.
_PATHS_BASE, _PATHS_PER_ENTRY, _PATHS_LARGEST = 64 << 10, 4096, 64 << 20
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
        wanted = [Download.of(package) for package in packages]
        unproven = self._unproven(wanted)
        by_key = {download.key: package for download, package in zip(wanted, packages, strict=True)}

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
            except (LinkError, downloads.WrongBytes):
                return False  # extracting from the file gives a better error than a cut pipe
            return True

        downloads.download_all(
            wanted,
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
        return [found[download.key] for download in wanted]

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
                (view / _label(cached.package)).symlink_to(cached.folder)
            yield view
        finally:
            shutil.rmtree(view, ignore_errors=True)

    def extracted(self, package: CondaPackage) -> Path | None:
        """Return the folder of `package` if it came from its URL; its files are not checked."""
        download = Download.of(package)
        if self.archive is not None and not self._delivered(download):
            # For a foreign file the archive knows more than the origin files of this cache.
            unproven = not download.is_foreign or bool(self._unproven([download]))
            if unproven:
                return None
        folder = self.folder / download.key / _label(package)
        try:
            with (folder.parent / CONTENTS).open("rb") as file:
                if file.read(len(_VALIDATED)) == _VALIDATED:
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
        return self.folder / download.key / ORIGINS / downloads.origin_key(download.url)

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
        folder = entry / _label(package)
        try:
            document = json.loads((entry / CONTENTS).read_bytes())
            if document["version"] == _UNVALIDATED_VERSION:
                document = self._validated_again(package, folder, document)
            contents = _contents_of(document)
        except FileNotFoundError:
            if entry.exists():
                self._discard(entry)
            return None
        except (ValueError, TypeError, KeyError, LinkError):
            self._discard(entry)
            return None
        _refuse_differences(package, contents)
        if not _is_whole(folder, contents):
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
        document = _describe(
            package,
            folder,
            packed=package.size or self.limits.unpacked,
            limits=self.limits,
            folders=folders,
            linked_elsewhere=True,
        )
        new = folder.parent / f".{CONTENTS}.{secrets.token_hex(8)}"
        _write(document, new)
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
        folder = work / _label(package)
        # rattler recognizes the format by the file name.
        ending = ".conda" if package.file_name.endswith(".conda") else ".tar.bz2"
        named = archive.with_name(f".extracting-{work.name}{ending}")
        try:
            work.mkdir(parents=True)
            os.link(archive, named)
            await self._unpack(download, named, folder, packed, reserve)
            contents = await asyncio.to_thread(
                _complete, package, folder, packed=packed(), limits=self.limits
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
        return CachedPackage(package=package, folder=entry / _label(package), contents=contents)

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
            told = str(error)
            if any(code in told for code in _NO_SPACE):
                raise DiskSpaceError(
                    f"The disk is full: {download.name} could not be extracted.",
                    hint="Ask an administrator to free disk space, then try again.",
                ) from error
            if archive.is_fifo():  # the bytes that went through a pipe cannot be hashed again
                raise downloads.WrongBytes(f"it cannot be extracted: {told}") from error
            with archive.open("rb") as file:
                hashed = await asyncio.to_thread(hashlib.file_digest, file, download.hasher)
            download.compare(sha256=hashed.hexdigest(), md5=hashed.hexdigest())
            if isinstance(error, ExtractorEndedError):
                told = "the program that reads it crashes"
            elif _TOO_LARGE in told:
                told = self.limits.size_fault(packed()).rstrip(".")
            reason = "".join(letter for letter in told if letter.isprintable())
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


def _label(package: CondaPackage) -> str:
    """Return the name of the package's folder, in rattler's form."""
    label = f"{package.name.lower()}-{package.version}-{package.build}"
    if "/" in label or "\0" in label:
        raise LinkError(f"{label!r} is not a valid package name.", where=package.url)
    return label


def _is_whole(folder: Path, contents: PackageContents) -> bool:
    """Return True if every file exists with its size. (2 us per file: contents are not read.)"""
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


def _complete(
    package: CondaPackage, folder: Path, *, packed: int, limits: Limits
) -> PackageContents:
    """Validate the extracted archive in `folder`, and write its contents file beside it.

    Raises:
        LinkError: it holds what no package may, or its metadata differs from the record.
    """
    document = _describe(package, folder, packed=packed, limits=limits)
    _write(document, folder.parent / CONTENTS)
    contents = _contents_of(document)
    _refuse_differences(package, contents)
    return contents


def _write(document: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, separators=(",", ":")))


def _describe(
    package: CondaPackage,
    folder: Path,
    *,
    packed: int,
    limits: Limits,
    folders: tuple[PackageFile, ...] = (),
    linked_elsewhere: bool = False,
) -> dict[str, Any]:
    """Validate the tree in `folder`, and return the document for `contents.json`."""
    try:
        tree = read_tree(
            folder,
            name=package.file_name,
            packed=packed,
            limits=limits,
            linked_elsewhere=linked_elsewhere,
        )
        contents = _look(package, folder, tree, folders)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, IoError) as error:
        raise LinkError(
            f"The metadata of {package.file_name} is malformed: {error!r}.",
            where=package.url,
            hint="Use another build or version, and report it to the channel's owner.",
        ) from error
    except LinkError as error:
        error.where = error.where or package.url
        raise
    return {
        "version": _CONTENTS_VERSION,
        "name": contents.name,
        "label": contents.label,
        "noarch_python": contents.noarch_python,
        "entry_points": contents.entry_points,
        "link_scripts": contents.link_scripts,
        "files": contents.files,
        "index": contents.index,
    }


def read_contents(path: Path) -> PackageContents:
    """Read `contents.json` of a validated entry; ValueError if another release wrote it."""
    return _contents_of(json.loads(path.read_bytes()))


def _contents_of(document: Mapping[str, Any]) -> PackageContents:
    if document["version"] != _CONTENTS_VERSION:
        raise ValueError("written by another version of condastore")
    return PackageContents(
        name=document["name"],
        label=document["label"],
        noarch_python=document["noarch_python"],
        entry_points=tuple(document["entry_points"]),
        link_scripts=tuple(document["link_scripts"]),
        files=tuple(map(PackageFile._make, document["files"])),
        index=document["index"],
    )


def _refuse_differences(package: CondaPackage, contents: PackageContents) -> None:
    """Raise LinkError if the package's own metadata differs from its record."""
    differences = record_differences(package, contents.index)
    if differences:
        raise LinkError(
            f"{package.file_name} is not the package that its record describes: "
            f"{'; '.join(differences)}.",
            where=package.url,
            hint="Do not use this package, and report it to the channel's owner.",
        )


def _look(
    package: CondaPackage,
    folder: Path,
    tree: Mapping[str, TreeEntry],
    folders: tuple[PackageFile, ...],
) -> PackageContents:
    """Return the contents that an archive's metadata lists, checked against its tree."""
    paths = _paths_document(package, folder, tree)
    link = _json(package, folder, "info/link.json", tree).get("noarch", {})
    index = _json(package, folder, "info/index.json", tree)
    noarch = index.get("noarch")
    if noarch != "python" and (link.get("type") if isinstance(link, dict) else link) == "python":
        raise LinkError(
            f"{package.file_name} is a noarch Python package in its info/link.json, but not in "
            "its info/index.json."
        )
    root = f"{folder}/"
    files = tuple(_file(package, root, entry, tree) for entry in paths["paths"])
    scripts = tuple(
        file.path
        for file in files
        if file.path.startswith(("bin/.", "Scripts/."))
        and file.path.endswith(tuple(f"-{when}{end}" for when in _LINK_MOMENTS for end in _ENDS))
    )
    if any(file.kind == "folder" for file in files):
        # rattler 0.28 fails on such an entry; linking creates these folders itself.
        paths["paths"] = [each for each in paths["paths"] if each.get("path_type") != "directory"]
        (folder / "info" / "paths.json").write_text(json.dumps(paths))
    listed = {file.path for file in files}
    files += tuple(
        file
        for file in folders
        if file.path not in listed and tree.get(file.path, _NOTHING).kind == "folder"
    )
    return PackageContents(
        name=package.name,
        label=_label(package),
        noarch_python=noarch == "python",  # rattler decides by the same field
        files=files,
        entry_points=_entry_points(package, link),
        link_scripts=scripts,
        index={key: index[key] for key in _OF_INDEX if key in index},
    )


def _entry_points(package: CondaPackage, link: object) -> tuple[str, ...]:
    listed = link.get("entry_points") if isinstance(link, dict) else None
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise LinkError(f"{package.file_name}: entry_points in info/link.json must be texts.")
    return tuple(listed)


#: Keys of `info/index.json` that are compared with the record, or evaluated beside it.
_OF_INDEX = (
    *("name", "version", "build", "build_number", "subdir", "noarch"),
    *("license", "depends", "constrains"),
)
_NOTHING = TreeEntry("file", 0, "")
_LINK_MOMENTS = ("pre-link", "post-link", "pre-unlink")
_ENDS = (".sh", ".bat")


def _file(
    package: CondaPackage, root: str, entry: dict[str, Any], tree: Mapping[str, TreeEntry]
) -> PackageFile:
    """Return one entry of `info/paths.json`. (Path objects would cost more than the disk.)"""
    path = str(entry["_path"])
    found = tree.get(path)
    if found is None:
        shown = printable(path)
        if path.startswith("/") or ".." in path.split("/"):
            raise LinkError(f"{package.file_name}: path {shown} leads out of the environment.")
        if link := folder_of_links(path, tree):
            raise LinkError(
                f"{package.file_name} lists {shown}, but {printable(link)} in its archive is not "
                "a folder."
            )
        raise LinkError(f"{package.file_name} lists {shown}, which is not in its archive.")
    if found.kind == "file" and entry.get("path_type") != "softlink":
        placeholder = str(entry.get("prefix_placeholder") or "")
        return PackageFile(
            path,
            "file",
            found.size,
            str(entry.get("sha256") or _sha256(root + path)),
            "",
            len(placeholder.encode()),
            binary=entry.get("file_mode") == "binary",
        )
    if found.kind == "file":
        raise LinkError(
            f"{package.file_name} lists {printable(path)} as a link, but it is a regular file."
        )
    return PackageFile(path, found.kind, 0, "", found.target, 0, binary=False)


def _paths_document(
    package: CondaPackage, folder: Path, tree: Mapping[str, TreeEntry]
) -> dict[str, Any]:
    """Return `info/paths.json`, or an equivalent of the older files that preceded it."""
    largest = min(_PATHS_BASE + _PATHS_PER_ENTRY * len(tree), _PATHS_LARGEST)
    if "info/paths.json" in tree:
        document = _json(package, folder, "info/paths.json", tree, largest=largest)
        if isinstance(document.get("paths"), list):
            return document
        raise LinkError(f"{package.file_name}: info/paths.json has no list of paths.")
    for name in ("files", "has_prefix", "no_link", "no_softlink"):
        _size_of(package, f"info/{name}", tree, largest=largest)
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


def _json(
    package: CondaPackage,
    folder: Path,
    path: str,
    tree: Mapping[str, TreeEntry],
    *,
    largest: int = _LARGEST_DOCUMENT,
) -> dict[str, Any]:
    """Return the JSON object in a file of the package; {} if there is no such file.

    Raises:
        LinkError: it is not a regular file, or longer than `largest` bytes.
    """
    if _size_of(package, path, tree, largest=largest) is None:
        return {}
    document = parse_json((folder / path).read_bytes())
    return document if isinstance(document, dict) else {}


def _size_of(
    package: CondaPackage, path: str, tree: Mapping[str, TreeEntry], *, largest: int
) -> int | None:
    entry = tree.get(path)
    if entry is None:
        return None
    if entry.kind != "file":
        raise LinkError(f"{package.file_name}: {path} is a {entry.kind}, but must be a file.")
    if entry.size > largest:
        raise LinkError(f"{package.file_name}: {path} is larger than {largest:,} bytes.")
    return entry.size


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
