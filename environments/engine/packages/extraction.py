"""Extraction of packages in confined child processes, with limits of size and disk space.

rattler has no limit on what an archive unpacks to, and cannot be stopped. So each extraction runs
in its own process, which is killed if it writes too much, if the disk fills up, or if nobody waits
for the result any more. Processes are reused: starting one takes 30 ms, extracting a small package
2 ms. They may read the folder of downloads, write below one folder of the cache, and have no
network (see `confinement.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condastore.errors import DiskSpaceError, LinkError
from environments.domain.unpacking import Limits
from environments.engine.packages import extraction_worker
from environments.engine.packages.extracted_tree import measure
from environments.engine.system import confinement
from environments.engine.system.disk import remove_tree

#: Seconds until a running extraction is measured, and the minimum between two measurements.
INTERVAL = 0.2
#: Maximum share of the time that measurements may take.
_SHARE = 0.05
#: Number of idle processes, and seconds after which an idle process is replaced.
_IDLE_PROCESSES, _IDLE_SECONDS = min(os.cpu_count() or 1, 4), 600.0
_MAX_ANSWER_BYTES = 1 << 16
#: rattler's native module; importing its Python package takes longer than an extraction.
_NATIVE = str(importlib.import_module("rattler.rattler").__file__)


class ExtractionError(Exception):
    """The archive cannot be extracted; the message is rattler's."""


class ExtractorEndedError(Exception):
    """The process exited during an extraction."""


@dataclass(slots=True)
class _Process:
    process: subprocess.Popen[bytes]
    link: socket.socket
    alive: int  # the process exits when this descriptor is closed, for whatever reason
    folders: tuple[tuple[int, int], ...]  # (device, inode): Landlock rules apply to inodes
    idle_since: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.link.close()
        os.close(self.alive)


class Extractors:
    """Pool of processes that extract archives of `readable` into folders below `writable`.

    Any number of threads may use it at once.
    """

    def __init__(self, *, readable: Path, writable: Path, limits: Limits) -> None:
        self._readable, self._writable, self._limits = readable, writable, limits
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._owner = os.getpid()
        weakref.finalize(self, _end_all, self._idle, self._owner)

    def warm_up(self) -> None:
        """Start the idle processes."""
        started = [self._acquire() for _ in range(_IDLE_PROCESSES)]
        for process in started:
            self._release(process)

    async def extract(
        self, archive: Path, folder: Path, *, name: str, packed: Callable[[], int], reserve: int
    ) -> tuple[str, str]:
        """Extract `archive`, a file or a named pipe, into the new `folder`.

        Args:
            name: name of the archive, for messages.
            packed: returns the bytes of the archive that arrived so far.
            reserve: bytes that must stay free on the disk.

        Returns:
            sha256 and md5 of the archive, in hex.

        Raises:
            ExtractionError: the archive cannot be extracted.
            ExtractorEndedError: the process exited; for a regular file, twice.
            LinkError: the archive unpacks to more than the limits allow.
            DiskSpaceError: less than `reserve` is free.
        """
        attempts = 1 if archive.is_fifo() else 2
        for attempt in range(1, attempts + 1):
            process = self._acquire()  # not in a thread: a cancelled await would leak the process
            try:
                answer = await self._ask(process, archive, folder, name, packed, reserve)
            except ExtractorEndedError:
                process.end()
                if attempt == attempts:
                    raise
                await asyncio.to_thread(remove_tree, folder)
                continue
            except BaseException:
                process.end()
                raise
            self._release(process)
            if error := answer.get("error"):
                raise ExtractionError(error)
            return answer["sha256"], answer["md5"]
        raise AssertionError("unreachable")

    async def _ask(
        self,
        process: _Process,
        archive: Path,
        folder: Path,
        name: str,
        packed: Callable[[], int],
        reserve: int,
    ) -> dict[str, str]:
        limits = self._limits
        known = 0 if archive.is_fifo() else packed()
        request = {
            "archive": os.fspath(archive),
            "folder": os.fspath(folder),
            "largest": limits.bytes_for(known) if known else limits.unpacked,
        }
        answer = asyncio.ensure_future(_exchange(process.link, request))
        pause = INTERVAL
        try:
            while not (await asyncio.wait({answer}, timeout=pause))[0]:
                started = time.monotonic()
                size, entries = await asyncio.to_thread(measure, folder)
                if size > limits.bytes_for(packed()):
                    raise LinkError(f"{name} is refused. {limits.size_fault(packed())}")
                if entries > limits.entries:
                    raise LinkError(f"{name} is refused. {limits.entries_fault()}")
                if shutil.disk_usage(self._writable).free < reserve:
                    raise DiskSpaceError(
                        f"The disk is full: {name} could not be extracted.",
                        hint="Ask an administrator to free disk space, then try again.",
                    )
                pause = max(INTERVAL, (time.monotonic() - started) / _SHARE)
        finally:
            answer.cancel()
            # The event loop must not watch the socket any more when it is closed.
            await asyncio.gather(answer, return_exceptions=True)
        return answer.result()

    # --- processes -------------------------------------------------------------------------

    def _acquire(self) -> _Process:
        with self._lock:
            if self._owner != os.getpid():  # after a fork the processes belong to the parent
                self._idle, self._owner = [], os.getpid()
                weakref.finalize(self, _end_all, self._idle, self._owner)
            found = self._idle.pop() if self._idle else None
        if found is not None:
            rested = time.monotonic() - found.idle_since
            if (
                found.process.poll() is None
                and rested < _IDLE_SECONDS
                and found.folders == self._folders()
            ):
                return found
            found.end()
        return self._start()

    def _release(self, process: _Process) -> None:
        process.idle_since = time.monotonic()
        with self._lock:
            if self._owner == os.getpid() and len(self._idle) < _IDLE_PROCESSES:
                self._idle.append(process)
                return
        process.end()

    def _folders(self) -> tuple[tuple[int, int], ...]:
        """Return (device, inode) of both folders; create missing ones."""
        found = []
        for folder in (self._readable, self._writable):
            folder.mkdir(parents=True, exist_ok=True)
            status = folder.stat()
            found.append((status.st_dev, status.st_ino))
        return tuple(found)

    def _start(self) -> _Process:
        folders = self._folders()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        ends, alive = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", extraction_worker.__file__),
                    *(str(theirs.fileno()), str(ends)),
                    *(_NATIVE, str(confinement.__file__)),
                    *(os.fspath(self._readable), os.fspath(self._writable)),
                    str(self._limits.unpacked),
                ],
                cwd="/",
                env=confinement.child_environment({"TMPDIR": os.fspath(self._writable)}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[theirs.fileno(), ends],
            )
        except BaseException:
            ours.close()
            os.close(alive)
            raise
        finally:
            theirs.close()
            os.close(ends)
        return _Process(process, ours, alive, folders)


async def _exchange(link: socket.socket, request: dict[str, Any]) -> dict[str, str]:
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(link, json.dumps(request).encode() + b"\n")
        received = b""
        while not received.endswith(b"\n"):
            part = await loop.sock_recv(link, 65_536)
            if not part or len(received) > _MAX_ANSWER_BYTES:
                raise ExtractorEndedError
            received += part
        return {str(key): str(value) for key, value in json.loads(received).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ExtractorEndedError from error


def _end_all(idle: list[_Process], owner: int) -> None:
    if owner == os.getpid():
        while idle:
            idle.pop().end()
