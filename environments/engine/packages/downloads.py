"""Concurrent, resumable and verified downloads of the packages of a lock."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
    Set,
)
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

import httpx
import tenacity

from condastore.errors import (
    AddressRefusedError,
    DiskSpaceError,
    DownloadError,
    LinkError,
    StoreError,
)
from environments.domain.progress import Cancelled, Progress, Report, ignore, never, obey
from environments.domain.records import CondaPackage, Package, PypiPackage, folder_url
from environments.engine.channels.credentials import (
    CredentialSource,
    no_credentials,
    redact,
    request_headers,
    request_url,
)
from environments.engine.network import bounded_reading, clients
from environments.engine.network.addresses import Guard, guard
from environments.engine.network.bounded_reading import ReadLimits

POLL = 0.1  # seconds between two checks of cancellation, locks and disk space
CHUNK = 256 * 1024  # bytes
STREAMED = 512 * 1024  # bytes; smaller files arrive before a pipe would be set up
PIPE_SIZE = 1 << 20  # bytes; a large pipe buffer, so that reader and writer rarely wait


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
    def of(cls, package: Package) -> Download:
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


class _Interrupted(Exception):  # noqa: N818  # control flow, not an error of the program
    """A transient failure of the server or the network; retried after at least `pause` seconds."""

    def __init__(self, reason: str, *, pause: float = 0) -> None:
        super().__init__(reason)
        self.pause = pause


class WrongBytes(Exception):  # noqa: N818  # always caught in this package
    """The server sent different bytes than the lock names."""


class Kept(Protocol):
    """An opened archive: what it had when it was opened, and additions to it. Thread-safe."""

    def has(self, sha256: str) -> bool: ...

    def take(self, sha256: str, to: Path) -> bool:
        """Write the file to `to`; return False if it is missing or damaged."""
        ...

    def keep(self, sha256: str, path: Path) -> None:
        """Add a verified file, which may be moved away. Failures are not raised."""
        ...


class Archive(Protocol):
    """Archive of original packages by sha256, for packages that their channel no longer has."""

    def opened(self, digests: Collection[str]) -> AbstractContextManager[Kept]: ...

    def delivered(self, downloads: Collection[Download]) -> Collection[str]:
        """Return the keys of files that came from their own URL before, or need not.

        Knowing a digest gives no right to the bytes: a channel may list files it never had.
        """
        ...


Use = Callable[[Download, Path], Awaitable[None]]
#: Uses a file while it arrives through a pipe; returns False if it was incomplete or a wrong file.
#: The function argument returns the number of bytes that arrived so far.
Stream = Callable[[Download, Path, Callable[[], int]], Awaitable[bool]]


def download_all(
    downloads: Sequence[Download],
    *,
    folder: Path,
    present: Callable[[Download], bool],
    use: Use,
    stream: Stream | None = None,
    credentials: CredentialSource = no_credentials,
    cancelled: Cancelled = never,
    progress: Report = ignore,
    parallel: int = 8,
    patience: Patience = PATIENCE,
    stage: str = "fetching",
    verify: bool = True,
    archive: Archive | None = None,
    unproven: Collection[str] | None = None,
    within: Guard | None = None,
) -> None:
    """Fetch the files that are not `present` into `folder`, verify them and pass them to `use`.

    `use` gets each file as soon as its bytes are verified, up to one file per processor at a time;
    the file is removed when `use` returns. Only one process fetches a file: the others wait and
    then find it `present`. Interrupted downloads are resumed.

    Args:
        stream: uses large files while they arrive; `use` gets the files for which it failed.
        verify: False if `use` computes the digest itself and raises WrongBytes.
        archive: tried before the server, and stores what was fetched.
        unproven: keys of files that are fetched even if the archive has them, because their server
            never proved to have them; by default `archive.delivered` decides.
        within: guard of addresses and files; the default is the process's guard.

    Raises:
        AddressRefusedError, FileRefusedError: the guard refuses a file's location.
        DownloadError: a file cannot be fetched, or its bytes are not those of the lock.
        DiskSpaceError: the disk is full; partial files are removed.
        LeaseLostError: `cancelled` returned True.
    """
    obey(cancelled)
    wanted = {download.key: download for download in downloads if not present(download)}
    if not wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if unproven is None:
        unproven = _unproven(list(wanted.values()), archive)
    known = {download.url: credentials(download.url) for download in wanted.values()}
    fetcher = _Fetcher(
        folder=folder,
        present=present,
        use=use,
        stream=stream,
        targets={
            url: (request_url(credential, url), request_headers(credential))
            for url, credential in known.items()
        },
        patience=patience,
        verify=verify,
        unproven=frozenset(unproven),
        within=within or guard(),
        tally=_Tally(stage=stage, downloads=list(wanted.values()), report=progress),
    )
    digests = [download.sha256 for download in wanted.values() if download.sha256]
    try:
        with archive.opened(digests) if archive else contextlib.nullcontext() as fetcher.kept:
            asyncio.run(fetcher.run(list(wanted.values()), parallel=parallel, cancelled=cancelled))
    except BaseExceptionGroup as group:
        error = _first(group)
        if isinstance(error, DiskSpaceError):
            for download in wanted.values():
                discard(folder, download)
        raise error from group


def _unproven(downloads: Sequence[Download], archive: Archive | None) -> set[str]:
    keys = {download.key for download in downloads}
    return keys.difference(archive.delivered(downloads)) if archive is not None else set()


def bring(
    packages: Sequence[Package],
    folder: Path,
    *,
    archive: Archive | None = None,
    credentials: CredentialSource = no_credentials,
    cancelled: Cancelled = never,
    progress: Report = ignore,
    parallel: int = 8,
    patience: Patience = PATIENCE,
) -> dict[str, Path]:
    """Fetch and verify packages as files of an empty folder; return the paths by URL.

    Raises:
        StoreError: the same errors as `download_all`.
    """
    wanted = {package.url: Download.of(package) for package in packages}
    files = {url: folder / download.key for url, download in wanted.items()}

    async def use(download: Download, part: Path) -> None:
        os.link(part, folder / download.key)

    download_all(
        list(wanted.values()),
        folder=folder / "downloads",
        present=lambda download: (folder / download.key).exists(),
        use=use,
        archive=archive,
        credentials=credentials,
        cancelled=cancelled,
        progress=progress,
        parallel=parallel,
        patience=patience,
    )
    return files


def discard(folder: Path, download: Download) -> None:
    """Remove the partial file of `download`, unless another process is receiving it now."""
    lock = FileLock(folder / f"{download.stem}.lock")
    if lock.acquire():
        (folder / f"{download.stem}.part").unlink(missing_ok=True)
        lock.release()


def remove_leftovers(folder: Path, *, older_than: timedelta) -> None:
    """Remove old partial files of killed workers."""
    limit = time.time() - older_than.total_seconds()
    for path in (*folder.glob("*.part"), *folder.glob("*.pipe"), *folder.glob(".extracting-*")):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                path.unlink()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error to report: the first StoreError, or the first error."""
    leaves = [
        _first(error) if isinstance(error, BaseExceptionGroup) else error
        for error in group.exceptions
    ]
    return next((error for error in leaves if isinstance(error, StoreError)), leaves[0])


class FileLock:
    """An exclusive lock between processes and objects; the kernel frees it if its holder dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Acquire the lock without waiting; return False if another holder has it."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            # If the previous holder unlinked the file, our lock is on an inode without a name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    self._descriptor = descriptor
                    return True
            os.close(descriptor)

    def release(self) -> None:
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(slots=True)
class _Tally:
    """Counts of a download run, reported at most ten times a second."""

    stage: str
    downloads: Sequence[Download]
    report: Report
    done: int = 0
    received: dict[str, int] = field(default_factory=dict)  # key: bytes
    told: float = 0.0

    def add(self, download: Download, size: int) -> None:
        self.received[download.key] = self.received.get(download.key, 0) + size
        self.tell(download)

    def reset(self, download: Download, size: int = 0) -> None:
        self.received[download.key] = size

    def finish(self, download: Download) -> None:
        self.done += 1
        if download.size:
            self.received[download.key] = download.size
        self.tell(download, always=True)

    def tell(self, download: Download, *, always: bool = False) -> None:
        now = time.monotonic()
        if not always and now - self.told < POLL:
            return
        self.told = now
        self.report(
            Progress(
                stage=self.stage,
                done=self.done,
                total=len(self.downloads),
                bytes_done=sum(self.received.values()),
                bytes_total=sum(each.size for each in self.downloads),
                current=download.name,
            )
        )


_CORES = os.cpu_count() or 1


@dataclass(slots=True, kw_only=True)
class _Fetcher:
    folder: Path
    present: Callable[[Download], bool]
    use: Use
    stream: Stream | None
    targets: Mapping[str, tuple[str, Mapping[str, str]]]  # URL -> URL and headers of the request
    patience: Patience
    verify: bool
    unproven: Set[str]
    within: Guard
    tally: _Tally
    kept: Kept | None = None
    looked: float = 0.0  # when the free disk space was last checked
    streams: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CORES))

    async def run(
        self, downloads: Sequence[Download], *, parallel: int, cancelled: Cancelled
    ) -> None:
        """Fetch all of `downloads`, the largest first, so that no large one is last."""
        queue = sorted(downloads, key=lambda download: download.size)
        limits = httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel)
        timeout = httpx.Timeout(
            self.patience.read.total_seconds(), connect=self.patience.connect.total_seconds()
        )
        async with clients.async_client(
            within=self.within, limits=limits, timeout=timeout
        ) as client:
            using = asyncio.Semaphore(_CORES)

            async def work() -> None:
                while queue:
                    await self._one(queue.pop(), client, using)

            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(work()) for _ in range(min(parallel, len(downloads)))]
                group.create_task(_watch(workers, cancelled, self.patience.total))

    async def _one(
        self, download: Download, client: httpx.AsyncClient, using: asyncio.Semaphore
    ) -> None:
        lock = FileLock(self.folder / f"{download.stem}.lock")
        part = self.folder / f"{download.stem}.part"
        if not await self._locked(lock, part):
            part = self.folder / f"{download.stem}.{secrets.token_hex(4)}.part"
        try:
            if not self.present(download) and not await self._taken(download, part, using):
                await self._fetched_and_used(download, part, client, using)
                if self.kept is not None and download.sha256:
                    await asyncio.to_thread(self.kept.keep, download.sha256, part)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskSpaceError(
                    f"The disk is full: {download.name} could not be stored.",
                    hint="Ask an administrator to free disk space, then try again.",
                ) from error
            raise
        finally:
            lock.release()
        part.unlink(missing_ok=True)
        self.tally.finish(download)

    async def _locked(self, lock: FileLock, part: Path) -> bool:
        """Wait for `lock`; return False if its holder seems to be stopped."""
        last, since = -1, time.monotonic()
        while not lock.acquire():
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_size != last:
                    last, since = part.stat().st_size, time.monotonic()
            if time.monotonic() - since > self.patience.stalled.total_seconds():
                return False
            await asyncio.sleep(POLL)
        return True

    async def _taken(self, download: Download, part: Path, using: asyncio.Semaphore) -> bool:
        """Use the file from the archive; return False if it must be fetched."""
        if self.kept is None or download.key in self.unproven:
            return False
        if not self.kept.has(download.sha256):
            return False
        part.unlink(missing_ok=True)  # a partial download
        if not await asyncio.to_thread(self.kept.take, download.sha256, part):
            return False
        try:
            async with using:
                await self.use(download, part)
        except WrongBytes:
            part.unlink(missing_ok=True)
            return False
        return True

    async def _fetched_and_used(
        self,
        download: Download,
        part: Path,
        client: httpx.AsyncClient,
        using: asyncio.Semaphore,
    ) -> None:
        """Fetch and use a file; retry transient failures, and wrong bytes once from the start."""
        wrong: list[str] = []
        while True:
            try:
                if not wrong and await self._streamed(download, part, client):
                    return
                async for attempt in tenacity.AsyncRetrying(
                    stop=tenacity.stop_after_attempt(self.patience.attempts),
                    wait=self._pause,
                    retry=tenacity.retry_if_exception_type(_Interrupted),
                    reraise=True,
                ):
                    with attempt:
                        await self._attempt(download, part, client)
                async with using:
                    await self.use(download, part)
            except _Interrupted as error:
                raise DownloadError(
                    f"{download.name} could not be fetched in {self.patience.attempts} attempts: "
                    f"{redact(str(error))}.",
                    where=download.url,
                ) from error
            except WrongBytes as error:
                part.unlink(missing_ok=True)
                self.tally.reset(download)
                wrong.append(str(error))
                if len(wrong) == 2:
                    raise DownloadError(
                        f"{download.name} differs from the lock: {error}.",
                        where=download.url,
                        hint="The channel, or a proxy on the way, changed the package. Solve "
                        "again, or report it to the channel's owner.",
                        details={"expected": download.sha256 or download.md5},
                    ) from error
            else:
                return

    async def _streamed(self, download: Download, part: Path, client: httpx.AsyncClient) -> bool:
        """Fetch and use a file at once, through a pipe; return False if both must be done in turn.

        The bytes are also written to `part`, where an interrupted download is resumed.
        """
        begun = part.exists() and part.stat().st_size > 0
        if self.stream is None or begun or download.size < STREAMED or self.streams.locked():
            return False
        async with self.streams:
            path = part.with_suffix(f".{secrets.token_hex(4)}.pipe")
            os.mkfifo(path)
            received = self.tally.received
            reader = asyncio.ensure_future(
                self.stream(download, path, lambda: received.get(download.key, 0))
            )
            try:
                async with contextlib.aclosing(_Pipe(path)) as pipe:
                    await pipe.open(reader)
                    await self._attempt(download, part, client, pipe)
                return await reader
            except _Interrupted:
                return False
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
                path.unlink()

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Return the exponential backoff with jitter, at least the server's Retry-After."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.pause if isinstance(error, _Interrupted) else 0.0
        longest = self.patience.longest_pause.total_seconds()
        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=longest)
        return min(max(asked, backoff(state)), max(longest, 1.0))

    async def _attempt(
        self,
        download: Download,
        part: Path,
        client: httpx.AsyncClient,
        pipe: _Pipe | None = None,
    ) -> None:
        """Resume `part` at its end and verify the file; `pipe` also gets the new bytes."""
        hasher = download.hasher() if self.verify else None
        with part.open("a+b") as file:
            held = await asyncio.to_thread(_read_all, file, hasher)
            if download.size and held > download.size:
                raise WrongBytes(f"{held} bytes instead of {download.size}")
            self.tally.reset(download, held)
            if not download.size or held < download.size:
                source = (
                    _read_file(download, self.within, held)
                    if urlsplit(download.url).scheme == "file"
                    else self._read_http(download, held, client)
                )
                async with contextlib.aclosing(source) as chunks:
                    async for chunk in chunks:
                        if chunk is None:  # the server restarts from byte 0
                            file.truncate(0)
                            hasher, held = download.hasher() if self.verify else None, 0
                            self.tally.reset(download)
                            continue
                        held += len(chunk)
                        if held > (download.size or self.patience.largest):
                            raise WrongBytes(
                                f"more than the {download.size or self.patience.largest} bytes"
                            )
                        self._require_room(download)
                        file.write(chunk)
                        if pipe is not None:
                            await pipe.write(chunk)
                        if hasher is not None:
                            hasher.update(chunk)
                        self.tally.add(download, len(chunk))
                file.flush()
        if download.size and held != download.size:
            raise WrongBytes(f"{held} bytes instead of {download.size}")
        if hasher is not None:
            download.compare(sha256=hasher.hexdigest(), md5=hasher.hexdigest())

    def _require_room(self, download: Download) -> None:
        """Check the free disk space from time to time while files arrive.

        Raises:
            DiskSpaceError: less than the reserve is free.
        """
        now = time.monotonic()
        if now - self.looked < POLL:
            return
        self.looked = now
        if shutil.disk_usage(self.folder).free < self.patience.reserve:
            raise DiskSpaceError(
                f"The disk is full: {download.name} could not be stored.",
                hint="Ask an administrator to free disk space, then try again.",
            )

    async def _read_http(
        self, download: Download, start: int, client: httpx.AsyncClient
    ) -> AsyncGenerator[bytes | None, None]:
        """Yield the bytes from `start`; yield None first if the server restarts from byte 0."""
        if download.url.startswith("git+"):
            raise DownloadError(
                f"{download.name} was built here from {download.url}, and is no longer stored.",
                where=download.url,
                hint="Solve again (`--force-solve`) to build the commit again.",
            )
        url, headers = self.targets[download.url]
        asked = {**headers, "Accept-Encoding": "identity"}
        if start:
            asked["Range"] = f"bytes={start}-"
        try:
            limits = ReadLimits(
                silence=self.patience.read,
                rate=self.patience.rate,
                size=max(download.size, self.patience.largest),
                size_setting="CONDASTORE_MAX_DOWNLOAD_BYTES",
            )
            async with bounded_reading.stream(
                client, "GET", url, headers=asked, limits=limits
            ) as answer:
                _judge(answer, download)
                resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
                if resumed and not _continues(answer, start):
                    raise WrongBytes(f"the range {answer.headers.get('content-range')!r}")
                _judge_length(answer, download, held=start if resumed else 0)
                if start and not resumed:
                    yield None
                async for chunk in bounded_reading.read(answer, limits):
                    yield chunk
        except bounded_reading.SlowTransferError as error:
            raise _Interrupted(f"the server {error}") from error
        except bounded_reading.TooLargeError as error:
            raise WrongBytes(f"it {error}") from error
        except AddressRefusedError as error:
            raise AddressRefusedError(error.message, where=download.url) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = str(error) or type(error).__name__
            raise _Interrupted(f"the connection failed ({reason})") from error
        except httpx.HTTPError as error:  # too many redirects
            raise DownloadError(
                f"{download.name} could not be fetched: {redact(str(error))}.",
                where=download.url,
            ) from error


class _Pipe:
    """Writing end of a named pipe, with back pressure from its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    async def open(self, reader: asyncio.Future[bool]) -> None:
        """Wait for a reader; bytes written before it opens the pipe would be lost."""
        while self._descriptor is None and not reader.done():
            try:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
                with contextlib.suppress(OSError):  # the user's limit of pipe buffers is reached
                    fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no reader yet
                    raise
                await asyncio.sleep(0.001)

    async def write(self, chunk: bytes) -> None:
        """Write all of `chunk`, as long as there is a reader."""
        rest = memoryview(chunk)
        while rest and self._descriptor is not None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                await self._writable(self._descriptor)
            except BrokenPipeError:
                await self.aclose()

    async def _writable(self, descriptor: int) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(descriptor)

    async def aclose(self) -> None:
        """Close the pipe; a reader that was about to open it does not wait forever."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        os.close(self._descriptor)
        self._descriptor = None


def _judge(answer: httpx.Response, download: Download) -> None:
    status = answer.status_code
    if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        return
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise DownloadError(
            f"{download.name} no longer exists in its channel.",
            where=download.url,
            hint="Solve again, or ask the channel's owner for the package.",
            details={"gone": True},
        )
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise DownloadError(
            f"The server denies access to {download.name} (status {status}).",
            where=download.url,
            hint="Ask an administrator to store or renew the credentials of the channel.",
        )
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise WrongBytes("the partial file is longer than the channel's file")
    if status >= 500 or status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT):
        after = answer.headers.get("retry-after", "")
        raise _Interrupted(
            f"the server responded with status {status}",
            pause=float(after) if after.isdigit() else 0,
        )
    raise DownloadError(
        f"{download.name} could not be fetched: the server responded with status {status}.",
        where=download.url,
    )


def _judge_length(answer: httpx.Response, download: Download, *, held: int) -> None:
    """Refuse a body that is announced with a wrong size before reading it."""
    announced = answer.headers.get("content-length", "")
    if not announced.isdigit() or answer.headers.get("content-encoding", "identity") != "identity":
        return
    total = held + int(announced)
    if download.size and total != download.size:
        raise WrongBytes(f"{total} bytes instead of {download.size}")


def _continues(answer: httpx.Response, start: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
    return found is not None and int(found[1]) == start


async def _read_file(
    download: Download, within: Guard, start: int
) -> AsyncGenerator[bytes | None, None]:
    """Read a `file:` URL in pieces. It is copied, so that it cannot change after the check.

    Raises:
        FileRefusedError: it is not in a folder that may be read.
        DownloadError: it does not exist, or is not a file.
    """
    path = within.path(download.url)
    try:
        with path.open("rb") as file:
            file.seek(start)
            while chunk := await asyncio.to_thread(file.read, CHUNK * 4):
                yield chunk
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DownloadError(
            f"{download.name} no longer exists in its channel.",
            where=download.url,
            details={"gone": True},
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise DownloadError(
            f"{download.name} cannot be read.",
            where=download.url,
            hint="Check that it is a file that the user of condastore may read.",
        ) from error


def _read_all(file: IO[bytes], hasher: hashlib._Hash | None) -> int:
    """Feed the contents of `file` to `hasher`; return the number of bytes."""
    if hasher is None:
        return file.seek(0, os.SEEK_END)
    file.seek(0)
    while chunk := file.read(CHUNK * 4):
        hasher.update(chunk)
    return file.tell()


async def _watch(
    workers: Sequence[asyncio.Task[None]], cancelled: Cancelled, total: timedelta | None
) -> None:
    """Wait for `workers`; stop when cancelled or when the total time is over."""
    deadline = None if total is None else time.monotonic() + total.total_seconds()
    # Wait only for running tasks: asyncio.wait returns at once for finished ones.
    running = set(workers)
    while running:
        obey(cancelled)
        if total is not None and deadline is not None and time.monotonic() > deadline:
            raise DownloadError(
                f"The packages were not fetched within {total.total_seconds():,.0f} s."
            )
        _, running = await asyncio.wait(running, timeout=POLL)
