"""How does a package of a lock become a file whose bytes are those of the lock?"""

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

POLL = 0.1  # seconds between two looks at a cancel
CHUNK = 256 * 1024  # bytes
STREAMED = 512 * 1024  # bytes: smaller files are there before a pipe would be
PIPE_SIZE = 1 << 20  # bytes: what a pipe holds, so that neither end waits for the other so often


def origin_key(url: str) -> str:
    """A name of a file for where bytes came from; `url` without credentials."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file to fetch, and what its bytes must be. `sha256` or `md5` is there."""

    name: str  # for people: numpy-2.3.1-py311_0.conda
    url: str  # without credentials
    sha256: str
    md5: str = ""
    size: int = 0  # bytes; 0 where nobody said
    channel: str = ""  # the conda channel that lists it; "" for what no channel lists
    wheel: bool = False  # by the type of the package: a channel may give a file any name

    @classmethod
    def of(cls, package: Package) -> Download:
        md5 = package.md5 if isinstance(package, CondaPackage) else ""
        if not package.sha256 and not md5:
            raise LinkError(
                f"{package.file_name} has no digest, so its bytes cannot be checked.",
                where=package.url,
                hint="Ask the owner of the channel to index it again.",
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
        """Whether its channel lists it at a URL outside of the channel (`base_url`, CEP 15)."""
        return bool(self.channel) and folder_url(self.url) != self.channel

    @property
    def key(self) -> str:
        """What names the file: its digest."""
        return self.sha256 or f"md5-{self.md5}"

    @property
    def stem(self) -> str:
        """What names its parts on the disk: what one server began, another does not complete.

        Nor does another channel that lists a file of the same server.
        """
        origin = f"{self.channel} {self.url}" if self.is_foreign else self.url
        return f"{self.key}.{origin_key(origin)}"

    def hasher(self) -> hashlib._Hash:
        return hashlib.sha256() if self.sha256 else hashlib.md5(usedforsecurity=False)

    def compare(self, *, sha256: str, md5: str) -> None:
        """Raise WrongBytes unless these digests (of which one is looked at) are the lock's."""
        kind, got, expected = (
            ("sha256", sha256, self.sha256) if self.sha256 else ("md5", md5, self.md5)
        )
        if got != expected:  # the digest of what came stays unsaid: it may be of somebody's file
            raise WrongBytes(f"it has another {kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server may take, how often it may fail, and how much it may send."""

    connect: timedelta = timedelta(seconds=15)
    read: timedelta = timedelta(seconds=30)  # for the head of an answer, and between two pieces
    rate: int = 1024  # bytes a second that the server must send, on average over `read`; 0 for any
    total: timedelta | None = None  # for all files together
    attempts: int = 6  # for one file, each with more time before it
    longest_pause: timedelta = timedelta(seconds=20)
    #: A worker that holds a file's lock and adds nothing to it for so long is taken for stopped.
    stalled: timedelta = timedelta(seconds=20)
    largest: int = 20 * 1024**3  # bytes, of a file whose size nobody said
    reserve: int = 0  # bytes that stay free on the disk while files arrive and are unpacked


PATIENCE = Patience()


class _Interrupted(Exception):  # noqa: N818  # control flow, not an error of the program
    """The server or the way to it failed; it is tried again, after `pause` seconds at least."""

    def __init__(self, reason: str, *, pause: float = 0) -> None:
        super().__init__(reason)
        self.pause = pause


class WrongBytes(Exception):  # noqa: N818  # caught here, whoever noticed it
    """The server gave something else than the lock says."""


class Kept(Protocol):
    """What an archive had when it was asked, and what is added to it meanwhile; by many threads."""

    def has(self, sha256: str) -> bool: ...

    def take(self, sha256: str, to: Path) -> bool:
        """Write the file; False where it cannot be had, or is damaged."""
        ...

    def keep(self, sha256: str, path: Path) -> None:
        """Add a file whose bytes are verified. It may be moved away; what fails is not raised."""
        ...


class Archive(Protocol):
    """Packages as they came, by their sha256: to be had when their channel is gone."""

    def opened(self, digests: Collection[str]) -> AbstractContextManager[Kept]: ...

    def delivered(self, downloads: Collection[Download]) -> Collection[str]:
        """Keys of those that came from their own URL before, or need not be asked for there.

        A digest is no right to bytes: a channel may list one that it never had.
        """
        ...


Use = Callable[[Download, Path], Awaitable[None]]
#: Uses a file while it comes through a pipe; False where that was not the file, or not all of it.
#: The function gives the bytes that arrived so far.
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
    """Fetch what is not `present` into `folder`, check it and hand it to `use`.

    `use` gets each file as soon as its bytes are verified, as many at a time as there are
    processors; the file is gone when `use` returns. A file is fetched by one process at a time: the
    others wait, and then find it `present`. What a cut or a killed worker left is continued.

    Args:
        stream: to use large files while they arrive; `use` gets what it did not manage.
        verify: False where `use` finds the digest anyway: it then raises WrongBytes itself.
        archive: is asked before the server, and keeps what was fetched.
        unproven: keys of files that are fetched even if the archive has them, as their server never
            showed that it has them; the archive knows by default.
        within: what may be reached; the process's guard by default.

    Raises:
        AddressRefusedError, FileRefusedError: a file is where nothing is fetched from.
        DownloadError: a file cannot be had, or its bytes are not those of the lock.
        DiskSpaceError: the disk is full; nothing is left behind.
        LeaseLostError: `cancelled` said so.
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
    """The packages as they came, verified, as files of an empty folder; by their URLs.

    Raises:
        As `download_all`.
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
    """Remove what was received of `download`, unless another process is receiving it now."""
    lock = FileLock(folder / f"{download.stem}.lock")
    if lock.acquire():
        (folder / f"{download.stem}.part").unlink(missing_ok=True)
        lock.release()


def remove_leftovers(folder: Path, *, older_than: timedelta) -> None:
    """Remove what killed workers left and nobody continued."""
    limit = time.time() - older_than.total_seconds()
    for path in (*folder.glob("*.part"), *folder.glob("*.pipe"), *folder.glob(".extracting-*")):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                path.unlink()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: ours before others, of several the first."""
    leaves = [
        _first(error) if isinstance(error, BaseExceptionGroup) else error
        for error in group.exceptions
    ]
    return next((error for error in leaves if isinstance(error, StoreError)), leaves[0])


class FileLock:
    """Held by one process (and one object) at a time; the kernel frees it when its holder dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False where another has it."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            # The holder before us removed the file: then what we locked is no longer its name.
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
    """Counts for the progress; told at most ten times a second."""

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
    targets: Mapping[str, tuple[str, Mapping[str, str]]]  # URL: the URL and headers to ask with
    patience: Patience
    verify: bool
    unproven: Set[str]
    within: Guard
    tally: _Tally
    kept: Kept | None = None
    looked: float = 0.0  # when the free space was looked at
    streams: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CORES))

    async def run(
        self, downloads: Sequence[Download], *, parallel: int, cancelled: Cancelled
    ) -> None:
        """All of `downloads`, the largest first: so that the last one is a small one."""
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
                    f"The disk is full: {download.name} could not be stored."
                ) from error
            raise
        finally:
            lock.release()
        part.unlink(missing_ok=True)
        self.tally.finish(download)

    async def _locked(self, lock: FileLock, part: Path) -> bool:
        """Wait for `lock`; False where whoever holds it seems to be stopped."""
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
        """Use what the archive has; False where it is to be fetched after all."""
        if self.kept is None or download.key in self.unproven:
            return False
        if not self.kept.has(download.sha256):
            return False
        part.unlink(missing_ok=True)  # what came of it from the server
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
        """Wrong bytes are fetched once more, from nothing; cuts and faults are waited out."""
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
                        f"{download.name} is not what the lock says: {error}.",
                        where=download.url,
                        hint="The channel or something on the way changed the package. Tell the "
                        "owner of the channel, or solve again.",
                        details={"expected": download.sha256 or download.md5},
                    ) from error
            else:
                return

    async def _streamed(self, download: Download, part: Path, client: httpx.AsyncClient) -> bool:
        """Fetch and use at once, through a pipe; False where that is left to be done in turn.

        What has arrived stays in `part` as well: after a cut it is continued there.
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
        """Twice as long after each failure, a random part of it, at least what the server asked."""
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
        """Continue `part` where it ends, and verify the whole; `pipe` gets what arrives, too."""
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
                        if chunk is None:  # the server starts again
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
        """Look at the disk every now and then while files arrive.

        Raises:
            DiskSpaceError: less is free than has to stay so.
        """
        now = time.monotonic()
        if now - self.looked < POLL:
            return
        self.looked = now
        if shutil.disk_usage(self.folder).free < self.patience.reserve:
            raise DiskSpaceError(f"The disk is full: {download.name} could not be stored.")

    async def _read_http(
        self, download: Download, start: int, client: httpx.AsyncClient
    ) -> AsyncGenerator[bytes | None, None]:
        """The bytes from `start` on; None first where the server begins from 0 instead."""
        if download.url.startswith("git+"):
            raise DownloadError(
                f"{download.name} was built here from {download.url}, and is no longer kept.",
                where=download.url,
                hint="Solve the environment again (`--force-solve`): the commit is built anew.",
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
    """The writing end of a named pipe: takes bytes as fast as they are read at the other end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    async def open(self, reader: asyncio.Future[bool]) -> None:
        """Wait until somebody reads; what is written before that would be lost."""
        while self._descriptor is None and not reader.done():
            try:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
                with contextlib.suppress(OSError):  # the user's pipes hold much already
                    fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads yet
                    raise
                await asyncio.sleep(0.001)

    async def write(self, chunk: bytes) -> None:
        """All of `chunk`, as long as somebody reads."""
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
        """The reader finds the end; one that was about to open the pipe is not left waiting."""
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
            f"{download.name} is gone: the channel no longer has it.",
            where=download.url,
            hint="Solve again, or ask the owner of the channel for the package.",
            details={"gone": True},
        )
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise DownloadError(
            f"The channel refuses to give {download.name} (status {status}).",
            where=download.url,
            hint="Ask an administrator to store or renew the credentials of the channel.",
        )
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise WrongBytes("a longer file than the channel has")
    if status >= 500 or status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT):
        after = answer.headers.get("retry-after", "")
        raise _Interrupted(
            f"the server answered {status}", pause=float(after) if after.isdigit() else 0
        )
    raise DownloadError(
        f"{download.name} could not be fetched: the server answered {status}.", where=download.url
    )


def _judge_length(answer: httpx.Response, download: Download, *, held: int) -> None:
    """Refuse a body that is announced with another size before reading it."""
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
    """A `file:` URL. It is copied, so that nobody can change it between check and use.

    Raises:
        FileRefusedError: it is not in a folder that may be read.
        DownloadError: it is gone, or no file.
    """
    path = within.path(download.url)
    try:
        with path.open("rb") as file:
            file.seek(start)
            while chunk := await asyncio.to_thread(file.read, CHUNK * 4):
                yield chunk
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DownloadError(
            f"{download.name} is gone: the channel no longer has it.",
            where=download.url,
            details={"gone": True},
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise DownloadError(f"{download.name} cannot be read.", where=download.url) from error


def _read_all(file: IO[bytes], hasher: hashlib._Hash | None) -> int:
    """Feed what `file` holds to `hasher`; the number of bytes."""
    if hasher is None:
        return file.seek(0, os.SEEK_END)
    file.seek(0)
    while chunk := file.read(CHUNK * 4):
        hasher.update(chunk)
    return file.tell()


async def _watch(
    workers: Sequence[asyncio.Task[None]], cancelled: Cancelled, total: timedelta | None
) -> None:
    """Wait for `workers`; end them at a cancel, and when all files took too long."""
    deadline = None if total is None else time.monotonic() + total.total_seconds()
    # Only those that still run: a wait that one of the others has ended returns at once.
    running = set(workers)
    while running:
        obey(cancelled)
        if total is not None and deadline is not None and time.monotonic() > deadline:
            raise DownloadError(
                f"The packages were not fetched within {total.total_seconds():,.0f} s."
            )
        _, running = await asyncio.wait(running, timeout=POLL)
