"""Concurrent, resumable and verified downloads of the packages of a lock."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Mapping,
    Sequence,
    Set,
)
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import tenacity

from condastore.errors import (
    AddressRefusedError,
    DiskSpaceError,
    DownloadError,
    StoreError,
)
from environments.domain.progress import Cancelled, Progress, Report, ignore, never, obey
from environments.domain.records import Package
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
from environments.engine.packages.download_types import (
    PATIENCE,
    Archive,
    Download,
    OpenArchive,
    Patience,
    Stream,
    Use,
    WrongBytes,
)
from environments.engine.packages.file_lock import FileLock
from environments.engine.packages.transfers import (
    PipeWriter,
    TransferInterrupted,
    check_length,
    check_status,
    continues_at,
    hash_file,
    read_file,
)

POLL = 0.1  # seconds between two checks of cancellation, locks and disk space
MIN_STREAMED_BYTES = 512 * 1024  # bytes; smaller files arrive before a pipe would be set up


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
    requested = {download.key: download for download in downloads if not present(download)}
    if not requested:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if unproven is None:
        unproven = _unproven(list(requested.values()), archive)
    known = {download.url: credentials(download.url) for download in requested.values()}
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
        tally=_Tally(stage=stage, downloads=list(requested.values()), report=progress),
    )
    digests = [download.sha256 for download in requested.values() if download.sha256]
    try:
        with (
            archive.opened(digests) if archive else contextlib.nullcontext() as fetcher.open_archive
        ):
            asyncio.run(
                fetcher.run(list(requested.values()), parallel=parallel, cancelled=cancelled)
            )
    except BaseExceptionGroup as group:
        error = _first(group)
        if isinstance(error, DiskSpaceError):
            for download in requested.values():
                discard(folder, download)
        raise error from group


def _unproven(downloads: Sequence[Download], archive: Archive | None) -> set[str]:
    keys = {download.key for download in downloads}
    return keys.difference(archive.delivered(downloads)) if archive is not None else set()


def fetch_originals(
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
    requested = {package.url: Download.from_package(package) for package in packages}
    files = {url: folder / download.key for url, download in requested.items()}

    async def use(download: Download, part: Path) -> None:
        os.link(part, folder / download.key)

    download_all(
        list(requested.values()),
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


@dataclass(slots=True)
class _Tally:
    """Counts of a download run, reported at most ten times a second."""

    stage: str
    downloads: Sequence[Download]
    report: Report
    done: int = 0
    received: dict[str, int] = field(default_factory=dict)  # key: bytes
    reported: float = 0.0

    def add(self, download: Download, size: int) -> None:
        self.received[download.key] = self.received.get(download.key, 0) + size
        self.report_progress(download)

    def reset(self, download: Download, size: int = 0) -> None:
        self.received[download.key] = size

    def finish(self, download: Download) -> None:
        self.done += 1
        if download.size:
            self.received[download.key] = download.size
        self.report_progress(download, always=True)

    def report_progress(self, download: Download, *, always: bool = False) -> None:
        now = time.monotonic()
        if not always and now - self.reported < POLL:
            return
        self.reported = now
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
    open_archive: OpenArchive | None = None
    disk_checked: float = 0.0  # when the free disk space was last checked
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
                    await self._fetch_one(queue.pop(), client, using)

            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(work()) for _ in range(min(parallel, len(downloads)))]
                group.create_task(_watch(workers, cancelled, self.patience.total))

    async def _fetch_one(
        self, download: Download, client: httpx.AsyncClient, using: asyncio.Semaphore
    ) -> None:
        lock = FileLock(self.folder / f"{download.stem}.lock")
        part = self.folder / f"{download.stem}.part"
        if not await self._wait_for_lock(lock, part):
            part = self.folder / f"{download.stem}.{secrets.token_hex(4)}.part"
        try:
            if not self.present(download) and not await self._use_archived(download, part, using):
                await self._fetch_and_use(download, part, client, using)
                if self.open_archive is not None and download.sha256:
                    await asyncio.to_thread(self.open_archive.add, download.sha256, part)
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

    async def _wait_for_lock(self, lock: FileLock, part: Path) -> bool:
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

    async def _use_archived(self, download: Download, part: Path, using: asyncio.Semaphore) -> bool:
        """Use the file from the archive; return False if it must be fetched."""
        if self.open_archive is None or download.key in self.unproven:
            return False
        if not self.open_archive.has(download.sha256):
            return False
        part.unlink(missing_ok=True)  # a partial download
        if not await asyncio.to_thread(self.open_archive.copy_to_file, download.sha256, part):
            return False
        try:
            async with using:
                await self.use(download, part)
        except WrongBytes:
            part.unlink(missing_ok=True)
            return False
        return True

    async def _fetch_and_use(
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
                if not wrong and await self._fetch_streaming(download, part, client):
                    return
                async for attempt in tenacity.AsyncRetrying(
                    stop=tenacity.stop_after_attempt(self.patience.attempts),
                    wait=self._pause,
                    retry=tenacity.retry_if_exception_type(TransferInterrupted),
                    reraise=True,
                ):
                    with attempt:
                        await self._attempt(download, part, client)
                async with using:
                    await self.use(download, part)
            except TransferInterrupted as error:
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

    async def _fetch_streaming(
        self, download: Download, part: Path, client: httpx.AsyncClient
    ) -> bool:
        """Fetch and use a file at once, through a pipe; return False if both must be done in turn.

        The bytes are also written to `part`, where an interrupted download is resumed.
        """
        begun = part.exists() and part.stat().st_size > 0
        if (
            self.stream is None
            or begun
            or download.size < MIN_STREAMED_BYTES
            or self.streams.locked()
        ):
            return False
        async with self.streams:
            path = part.with_suffix(f".{secrets.token_hex(4)}.pipe")
            os.mkfifo(path)
            received = self.tally.received
            reader = asyncio.ensure_future(
                self.stream(download, path, lambda: received.get(download.key, 0))
            )
            try:
                async with contextlib.aclosing(PipeWriter(path)) as pipe:
                    await pipe.open(reader)
                    await self._attempt(download, part, client, pipe)
                return await reader
            except TransferInterrupted:
                return False
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
                path.unlink()

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Return the exponential backoff with jitter, at least the server's Retry-After."""
        error = state.outcome.exception() if state.outcome else None
        requested = error.pause if isinstance(error, TransferInterrupted) else 0.0
        longest = self.patience.longest_pause.total_seconds()
        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=longest)
        return min(max(requested, backoff(state)), max(longest, 1.0))

    async def _attempt(
        self,
        download: Download,
        part: Path,
        client: httpx.AsyncClient,
        pipe: PipeWriter | None = None,
    ) -> None:
        """Resume `part` at its end and verify the file; `pipe` also gets the new bytes."""
        hasher = download.hasher() if self.verify else None
        with part.open("a+b") as file:
            held = await asyncio.to_thread(hash_file, file, hasher)
            if download.size and held > download.size:
                raise WrongBytes(f"{held} bytes instead of {download.size}")
            self.tally.reset(download, held)
            if not download.size or held < download.size:
                source = (
                    read_file(download, self.within, held)
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
                        self._require_disk_space(download)
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

    def _require_disk_space(self, download: Download) -> None:
        """Check the free disk space from time to time while files arrive.

        Raises:
            DiskSpaceError: less than the reserve is free.
        """
        now = time.monotonic()
        if now - self.disk_checked < POLL:
            return
        self.disk_checked = now
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
        requested = {**headers, "Accept-Encoding": "identity"}
        if start:
            requested["Range"] = f"bytes={start}-"
        try:
            limits = ReadLimits(
                silence=self.patience.read,
                rate=self.patience.rate,
                size=max(download.size, self.patience.largest),
                size_setting="CONDASTORE_MAX_DOWNLOAD_BYTES",
            )
            async with bounded_reading.stream(
                client, "GET", url, headers=requested, limits=limits
            ) as answer:
                check_status(answer, download)
                resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
                if resumed and not continues_at(answer, start):
                    raise WrongBytes(f"the range {answer.headers.get('content-range')!r}")
                check_length(answer, download, held=start if resumed else 0)
                if start and not resumed:
                    yield None
                async for chunk in bounded_reading.read(answer, limits):
                    yield chunk
        except bounded_reading.SlowTransferError as error:
            raise TransferInterrupted(f"the server {error}") from error
        except bounded_reading.TooLargeError as error:
            raise WrongBytes(f"it {error}") from error
        except AddressRefusedError as error:
            raise AddressRefusedError(error.message, where=download.url) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = str(error) or type(error).__name__
            raise TransferInterrupted(f"the connection failed ({reason})") from error
        except httpx.HTTPError as error:  # too many redirects
            raise DownloadError(
                f"{download.name} could not be fetched: {redact(str(error))}.",
                where=download.url,
            ) from error


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
