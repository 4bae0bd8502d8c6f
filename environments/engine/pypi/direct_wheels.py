"""Wheels of direct references in a pip part: fetched or built once, and stored by digest.

    <folder>/<scope>/access/<key>        this scope has fetched this URL with this digest
    <folder>/<scope>/built/<key>.json    the wheel that a commit gave, built with equal packages

The bytes are stored in the package archive, from which builds read them like any other package, so
a lock can be built again without the original server. `<scope>` is the credential with which the
source was opened, or none: a namespace without access to a source gets nothing that another one
fetched from it, even if it knows the digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.utils import parse_wheel_filename

from condastore.errors import LinkError, PypiError
from environments.domain.lock import PlatformLock
from environments.domain.pip_requirements import DirectReference
from environments.domain.progress import Cancelled, obey
from environments.domain.records import PypiPackage
from environments.engine.channels.credentials import CredentialSource
from environments.engine.packages import downloads
from environments.engine.packages.download_types import PATIENCE, Archive, Download, Patience
from environments.engine.packages.file_lock import FileLock
from environments.engine.pypi.git_sources import Repository
from environments.engine.pypi.install import CachedWheel, WheelCache
from environments.engine.pypi.wheel_builds import (
    Resolve,
    WheelBuilder,
    python_closure,
    read_build_system,
    refuse_other_name,
)

Log = Callable[[str], None]
#: Part of every key; a change makes all sources be built again.
_FORMAT = "2"
_SHARED = "shared"
_POLL = 0.1  # seconds
_LARGEST_METADATA = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectWheel:
    """A wheel that was fetched or built, with its METADATA."""

    package: PypiPackage
    metadata: bytes


class DirectWheels:
    """Provider of the wheels of direct references, with the credentials of one namespace."""

    def __init__(
        self,
        *,
        folder: Path,
        wheels: WheelCache,
        archive: Archive,
        builder: WheelBuilder | None = None,
        credentials: CredentialSource,
        patience: Patience = PATIENCE,
    ) -> None:
        """
        Args:
            archive: stores the wheels, whatever else the installation archives.
            builder: None if nothing is built from source.
        """
        self._folder = folder
        self._wheels = wheels
        self._archive = archive
        self._builder = builder
        self._credentials = credentials
        self._patience = patience

    def provide(
        self,
        name: str,
        reference: DirectReference,
        *,
        host: PlatformLock | None,
        resolve: Resolve,
        inputs: Sequence[str],
        cancelled: Cancelled,
        log: Log,
    ) -> DirectWheel:
        """Fetch or build the wheel of a reference.

        Args:
            name: normalized name of the project.
            host: lock for the platform of this machine, whose Python builds; None: there is none.
            resolve: resolves build requirements.
            inputs: what `resolve` depends on. A built wheel is reused for equal inputs only.
        Raises:
            PypiError, LinkError: it is not a wheel of that name, or cannot be built.
            SandboxUnavailableError: it is a source, and there is no sandbox.
            DownloadError, ChannelUnavailableError: it cannot be fetched now.
            AddressRefusedError, ChannelNotAllowedError, TimeLimitError, LeaseLostError.
        """
        if reference.kind == "wheel":
            package = self._fetched(name, reference, cancelled=cancelled, log=log)
        else:
            package = self._built(
                name,
                reference,
                host=host,
                resolve=resolve,
                inputs=inputs,
                cancelled=cancelled,
                log=log,
            )
        [cached] = self._wheels.ensure(
            [package],
            credentials=self._credentials,
            cancelled=cancelled,
            patience=self._patience,
        )
        metadata = _metadata_of(cached)
        headers = HeaderParser().parsestr(metadata.decode(errors="replace"))
        return DirectWheel(
            package=replace(
                package,
                license=cached.license,
                requires_python=str(headers.get("Requires-Python") or "")[:200],
            ),
            metadata=metadata,
        )

    # --- wheels by URL

    def _fetched(
        self, name: str, reference: DirectReference, *, cancelled: Cancelled, log: Log
    ) -> PypiPackage:
        file_name = unquote(reference.url.rpartition("/")[2])
        package = _package(reference.url, file_name, sha256=reference.sha256, size=0)
        refuse_other_name(name, package.name, reference.url)
        note = self._place(reference.url, "access", reference.url, reference.sha256)
        if not note.exists():
            # Fetch from the server, not from the archive: the caller must have access to the URL.
            log(f"{file_name}: fetching from {reference.url}")
            with self._temporary() as folder:
                found = downloads.fetch_originals(
                    [package],
                    folder,
                    credentials=self._credentials,
                    cancelled=cancelled,
                    patience=self._patience,
                )
                size = found[package.url].stat().st_size
                self._archive_wheel(reference.sha256, found[package.url])
            _write(note, {"size": size})
        return replace(package, size=int(json.loads(note.read_bytes())["size"]))

    # --- wheels from Git

    def _built(
        self,
        name: str,
        reference: DirectReference,
        *,
        host: PlatformLock | None,
        resolve: Resolve,
        inputs: Sequence[str],
        cancelled: Cancelled,
        log: Log,
    ) -> PypiPackage:
        builder = self._builder
        if builder is None:
            raise PypiError(
                f"{reference.location} cannot be built: this installation builds no wheels.",
                where="dependencies.pip",
                hint="Name a wheel by its URL with #sha256=..., or use the conda package.",
            )
        python = next((p for p in host.conda if p.name == "python"), None) if host else None
        if host is None or python is None:
            raise PypiError(
                f"{reference.location} is built on {builder.platform}, but the environment has no "
                f"Python for that platform.",
                where="platforms",
                hint=f"Add {builder.platform} to the platforms, or name a wheel by its URL.",
            )
        # The result depends on the interpreter and its dependencies, from whatever channel.
        closure = sorted(
            Download.from_package(package).key for package in python_closure(host).conda
        )
        note = self._place(
            reference.url,
            "built",
            *(reference.url, reference.commit, reference.subdirectory),
            *(builder.platform, *closure, *inputs),
        ).with_suffix(".json")
        with self._locked(note, cancelled):
            package = self._known(note, reference)
            if package is None:
                builder.require()  # fail before anything is fetched
                package = self._build(
                    reference,
                    builder,
                    host=host,
                    resolve=resolve,
                    cancelled=cancelled,
                    log=log,
                )
                known = {
                    "file_name": package.file_name,
                    "sha256": package.sha256,
                    "size": package.size,
                }
                _write(note, known)
            else:
                log(f"{reference.location}: already built as {package.file_name}")
        refuse_other_name(name, package.name, reference.location)
        return package

    def _build(
        self,
        reference: DirectReference,
        builder: WheelBuilder,
        *,
        host: PlatformLock,
        resolve: Resolve,
        cancelled: Cancelled,
        log: Log,
    ) -> PypiPackage:
        with builder.folder() as folder:
            below = folder / "git"
            below.mkdir()
            log(f"{reference.location}: fetching the commit")
            repository = Repository(
                reference, below, credentials=self._credentials, cancelled=cancelled, log=log
            )
            checkout = repository.checkout()
            if checkout.submodules:
                log(f"{reference.location}: its submodules are not fetched.")
            path = f"{reference.subdirectory}/pyproject.toml".lstrip("/")
            system = read_build_system(repository.read(path), where=reference.location)
            if system.counts_tags:
                repository.fetch_history()
            wheel = builder.build(
                checkout.folder,
                system,
                label=reference.location,
                subdirectory=reference.subdirectory,
                moment=checkout.committed,
                part=host,
                folder=folder,
                resolve=resolve,
                cancelled=cancelled,
                log=log,
                fetching={"credentials": self._credentials},
                patience=self._patience,
            )
            self._archive_wheel(wheel.sha256, wheel.path)
        log(f"{reference.location}: built {wheel.file_name}, sha256 {wheel.sha256}")
        return _package(reference.location, wheel.file_name, sha256=wheel.sha256, size=wheel.size)

    def _known(self, note: Path, reference: DirectReference) -> PypiPackage | None:
        """Return the wheel of an earlier build if the archive still has its bytes."""
        try:
            known = json.loads(note.read_bytes())
        except FileNotFoundError:
            return None
        with self._archive.opened([known["sha256"]]) as opened:
            if not opened.has(known["sha256"]):
                return None
        return _package(
            reference.location, known["file_name"], sha256=known["sha256"], size=known["size"]
        )

    # --- storage

    def _archive_wheel(self, sha256: str, path: Path) -> None:
        with self._archive.opened([sha256]) as opened:
            if not opened.has(sha256):
                opened.add(sha256, path)

    def _place(self, url: str, kind: str, *key: str) -> Path:
        credential = self._credentials(url)
        scope = _SHARED
        if credential is not None:
            text = f"{credential.url_prefix} {credential.secret}"
            scope = f"private-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        digest = hashlib.sha256("\n".join((_FORMAT, *key)).encode()).hexdigest()
        return self._folder / scope / kind / digest

    @contextmanager
    def _locked(self, note: Path, cancelled: Cancelled) -> Iterator[None]:
        """Lock a key: one process builds a wheel, the others wait for it."""
        note.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(note.with_suffix(".lock"))
        while not lock.acquire():
            obey(cancelled)
            time.sleep(_POLL)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        folder = self._folder / f".fetching-{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftover_downloads(folder: Path, *, older_than: timedelta) -> None:
    """Remove old partial downloads of killed workers."""
    limit = time.time() - older_than.total_seconds()
    for path in folder.glob(".fetching-*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                shutil.rmtree(path, ignore_errors=True)


def _package(url: str, file_name: str, *, sha256: str, size: int) -> PypiPackage:
    name, version, _, _ = parse_wheel_filename(file_name)
    return PypiPackage(
        name=name,
        version=str(version),
        file_name=file_name,
        url=url,
        sha256=sha256,
        size=size,
        requires=(),
        requires_python="",
        license="",
        listed=False,
        direct=True,
    )


def _metadata_of(wheel: CachedWheel) -> bytes:
    path = next(
        entry.path
        for entry in wheel.entries
        if entry.path.endswith(".dist-info/METADATA") and entry.path.count("/") == 1
    )
    with (wheel.folder / path).open("rb") as file:
        content = file.read(_LARGEST_METADATA + 1)
    if len(content) > _LARGEST_METADATA:
        raise LinkError(f"METADATA of {wheel.label} is larger than {_LARGEST_METADATA:,} bytes.")
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
