"""Index and filter the repodata of a remote channel, from files to files.

An index run fetches the channel's repodata and merges it into the history of what it listed
(`join`). A view is the part of the history that the policy allows at one moment, as the files that
conda clients request (`render`). A large channel has 800,000 records, so only the records of one
name are in memory at a time, and large work runs in its own process: it uses neither the memory nor
the interpreter lock of a worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import httpx
import msgpack
import rattler
import zstandard
from rattler.repo_data.sparse import PackageFormatSelection

from condastore.errors import (
    ChannelNotAllowedError,
    ChannelNotFoundError,
    ChannelUnavailableError,
    StoreError,
    TimeLimitError,
    WorkerLostError,
    error_from_json,
    error_to_json,
)
from environments.domain import repodata
from environments.domain.json_text import parse_json
from environments.domain.mirrors import Entry, join, shown
from environments.domain.names import Credential
from environments.domain.policy import (
    Effect,
    Policy,
    Screen,
    Sighting,
    Subject,
    UnlistedPackages,
)
from environments.domain.policy.subjects import LockedPackage
from environments.domain.progress import Cancelled
from environments.domain.records import CondaPackage
from environments.domain.shard_pack import PackWriter
from environments.engine.channels.credentials import redact, request_headers, request_url
from environments.engine.channels.first_seen import FirstSeen
from environments.engine.network import bounded_reading, clients
from environments.engine.network.addresses import Guard, guard
from environments.engine.network.bounded_reading import ACCEPT_ENCODING, Meter, ReadLimits, Unpacker
from environments.engine.system.confinement import child_environment, confine
from environments.engine.system.processes import Confinement, read_output, require_output, run_tool

#: In the order in which they are requested; the first that exists is used.
FORMS = ("repodata.json.zst", "repodata.json")
CHUNK = 1 << 20  # bytes
#: Time limit of fetching one subdir's repodata.
FETCH_SECONDS = 1800.0
#: Sizes in bytes from which work runs in its own process: fetched repodata always, because it may
#: be hostile; a history, which was written here, if it is worth the start of a process.
APART_FETCHED, APART = 0, 16 << 20
#: Memory limit of such a process, in bytes. It holds all records of one name at once.
MEMORY_LIMIT = 2 << 30
#: zstd level of files that are written once and read often.
LEVEL = 6
_REFUSED = b"refused/"


# --- the channel ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Validators of a fetched file; sent again to find out if the file changed."""

    form: str = ""
    etag: str = ""
    modified: str = ""

    def headers(self) -> dict[str, str]:
        found = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in found.items() if value}


def fetch_index(
    channel: str,
    subdir: str,
    *,
    to: Path,
    known: State,
    credential: Credential | None,
    cancelled: Cancelled,
    limits: ReadLimits,
    within: Guard | None = None,
) -> State | None:
    """Fetch a subdir's repodata to `to`, as plain JSON; return None if it is still `known`.

    Raises:
        ChannelNotFoundError: the channel has no such subdir.
        ChannelNotAllowedError: the channel denies access.
        ChannelUnavailableError: the channel does not respond, or not with repodata.
        AddressRefusedError, FileRefusedError: the guard `within` does not allow the address; the
            default is the process's guard.
    """
    if channel.startswith("file:"):
        folder = (within or guard()).path(channel)
        return _copied(channel, folder / subdir, to=to, known=known)
    fetch = _Fetch(
        channel=channel, subdir=subdir, to=to, known=known, credential=credential, limits=limits
    )
    try:
        return bounded_reading.run(
            fetch.run(within), cancelled=cancelled, deadline=time.monotonic() + FETCH_SECONDS
        )
    except (
        *(httpx.HTTPError, httpx.InvalidURL, bounded_reading.TransferError),
        *(TimeLimitError, ValueError),
    ) as error:
        reason = redact(str(error) or type(error).__name__, [credential])
        raise ChannelUnavailableError(
            f"Fetching the package list of channel {channel} for {subdir} failed: {reason}"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetch:
    channel: str
    subdir: str
    to: Path
    known: State
    credential: Credential | None
    limits: ReadLimits

    async def run(self, within: Guard | None) -> State | None:
        async with clients.async_client(
            within=within,
            timeout=self.limits.timeout,
            headers={"User-Agent": "condastore"},
        ) as client:
            for form in sorted(FORMS, key=lambda form: form != self.known.form):
                url = f"{self.channel}/{self.subdir}/{form}"
                # Do not ask for a compressed transfer of a compressed file.
                encoding = "identity" if form.endswith(".zst") else ACCEPT_ENCODING
                headers = request_headers(self.credential) | {"Accept-Encoding": encoding}
                if form == self.known.form:
                    headers |= self.known.headers()
                async with bounded_reading.stream(
                    client,
                    "GET",
                    request_url(self.credential, url),
                    headers=headers,
                    limits=self.limits,
                ) as answer:
                    if answer.status_code in (404, 410):
                        continue
                    if answer.status_code == 304:
                        return None
                    _refuse(self.channel, answer.status_code)
                    await self._write(answer, form)
                    return State(
                        form=form,
                        etag=answer.headers.get("ETag", ""),
                        modified=answer.headers.get("Last-Modified", ""),
                    )
        raise ChannelNotFoundError(f"Channel {self.channel} has no subdir {self.subdir}.")

    async def _write(self, answer: httpx.Response, form: str) -> None:
        unpacker = Unpacker("zst" if form.endswith(".zst") else "identity")
        meter = Meter(self.limits)
        with self.to.open("wb") as out:
            async for part in bounded_reading.read(answer, self.limits):
                meter.add(len(part), waited=0)
                for piece in unpacker.feed(part):
                    meter.add_unpacked(len(piece))
                    out.write(piece)
        unpacker.end()


def _refuse(channel: str, status: int) -> None:
    if status in (401, 403):
        raise ChannelNotAllowedError(
            f"Channel {channel} denies access (status {status}).",
            hint="Ask an administrator to store credentials for this channel.",
        )
    if status != 200:
        raise ChannelUnavailableError(f"Channel {channel} responded with status {status}.")


def _copied(channel: str, folder: Path, *, to: Path, known: State) -> State | None:
    source = folder / "repodata.json"
    try:
        status = source.stat()
        state = State(form=source.name, etag=f"{status.st_mtime_ns} {status.st_size}")
        if state != known:
            shutil.copyfile(source, to)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ChannelNotFoundError(f"Channel {channel} has no subdir {folder.name}.") from error
    except OSError as error:
        raise ChannelUnavailableError(f"Channel {channel} cannot be read: {error}") from error
    return None if state == known else state


# --- work that may have a process of its own ------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Merge fetched repodata into the history; `minute` is when it was fetched."""

    channel: str
    subdir: str
    fetched: Path
    history: Path | None
    out: Path
    minute: int

    @property
    def size(self) -> int:
        return self.fetched.stat().st_size + _unpacked(self.history)

    @property
    def reads(self) -> list[Path]:
        return [self.fetched, *([self.history] if self.history else [])]

    @property
    def writes(self) -> list[Path]:
        return [self.out]

    def run(self) -> dict[str, Any]:
        return _join(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Render:
    """Write what the policy allows of the history just before minute `end`, or now (None)."""

    channel: str
    subdir: str
    history: Path
    folder: Path  # output folder
    policy: Policy
    now: float  # seconds since the epoch
    end: int | None
    first_seen: Path | None = None  # folder of the database that `first_seen` writes

    @property
    def size(self) -> int:
        return _unpacked(self.history)

    @property
    def reads(self) -> list[Path]:
        return [self.history, *([self.first_seen] if self.first_seen else [])]

    @property
    def writes(self) -> list[Path]:
        return [self.folder / name for name in (REPODATA, INDEX, SHARDS)]

    def run(self) -> dict[str, Any]:
        return _render(self)


def _unpacked(history: Path | None) -> int:
    """Estimate the size of a history, in bytes of JSON."""
    return history.stat().st_size * 6 if history else 0


def carry_out(
    work: Join | Render,
    *,
    folder: Path,
    cancelled: Cancelled,
    time_limit: timedelta,
    memory_limit: int = MEMORY_LIMIT,
) -> dict[str, Any]:
    """Run `work`; in a confined process if it reads fetched repodata or is large.

    Args:
        memory_limit: memory that the process may use, in bytes, without mapped files.
    Raises:
        ChannelUnavailableError: the fetched file is not repodata, or takes too much memory.
        WorkerLostError: the process exited without an answer.
    """
    if work.size < (APART_FETCHED if isinstance(work, Join) else APART):
        return work.run()
    return run_apart(
        work,
        folder=folder,
        cancelled=cancelled,
        time_limit=time_limit,
        memory_limit=memory_limit,
    )


def run_apart(
    work: Join | Render,
    *,
    folder: Path,
    cancelled: Cancelled,
    time_limit: timedelta,
    memory_limit: int = MEMORY_LIMIT,
) -> dict[str, Any]:
    task, answer = folder / "task", folder / "answer"
    task.write_bytes(pickle.dumps(work))
    answer.unlink(missing_ok=True)
    root = Path(__file__).resolve().parents[3]
    confinement = Confinement(readable=work.reads, writable=[folder], connect=[])
    result = run_tool(
        [
            *(sys.executable, "-c", _PROGRAM, os.fspath(task), os.fspath(answer)),
            json.dumps(confinement.arguments()),
        ],
        cwd=folder,
        env=child_environment({"PYTHONPATH": os.fspath(root), "TMPDIR": os.fspath(folder)}),
        time_limit=time_limit,
        cancelled=cancelled,
        on_line=lambda line: None,
        limits={"RLIMIT_DATA": memory_limit},
    )
    if result.status in _OUT_OF_MEMORY and not answer.exists():
        raise ChannelUnavailableError(
            f"Reading the package list of channel {work.channel} for {work.subdir} takes more "
            f"than {memory_limit >> 20:,} MiB of memory.",
            hint="Ask the channel's owner to check its repodata.",
        )
    try:
        # The process parsed foreign input: unpickling its answer could run code here.
        found = parse_json(read_output(answer, most=_MAX_ANSWER_BYTES))
        if "error" in found:
            raise error_from_json(found["error"])
        for path in work.writes:
            require_output(path)
        return dict(found["answer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkerLostError(
            f"The process that reads a channel exited unexpectedly (status {result.status})."
        ) from error


#: Exit statuses of a process without memory: 75 is ours, SIGABRT comes from Rust.
_OUT_OF_MEMORY = (75, 128 + signal.SIGABRT, -signal.SIGABRT)
_MAX_ANSWER_BYTES = 64 << 20
_PROGRAM = "from environments.engine.channels.mirrors import main; main()"


def main() -> None:
    """Run a pickled task; arguments: TASK ANSWER CONFINEMENT."""
    confine(**json.loads(sys.argv[3]))
    task, answer = map(Path, sys.argv[1:3])
    found: dict[str, Any]
    try:
        work = pickle.loads(task.read_bytes())  # noqa: S301 - written by the parent process
        found = {"answer": work.run()}
    except StoreError as error:
        found = {"error": error_to_json(error)}
    except MemoryError:
        os._exit(_OUT_OF_MEMORY[0])
    except Exception as error:
        found = {"error": error_to_json(WorkerLostError(f"Reading the channel failed: {error!r}"))}
    temporary = answer.with_suffix(".new")
    temporary.write_text(json.dumps(found))
    temporary.replace(answer)
    os._exit(0)  # rattler's threads may crash while Python finalizes


# --- the history ----------------------------------------------------------------------------------


def _join(work: Join) -> dict[str, Any]:
    """Merge two inputs sorted by name; return {"changed", "records", "baseline"}."""
    head, old = read_history(work.history)
    minute = max(work.minute, head.get("last", 0))
    baseline = head.get("baseline", minute)
    number, changed = 0, work.history is None
    with _Listed(work) as now, work.out.open("wb") as file, _packed(file) as out:
        _line(out, {"baseline": baseline, "last": minute})
        for name, before, found in _together(old, now):
            for entry in join(name, before, found, minute=minute):
                changed = changed or entry.seen == minute or entry.gone == minute
                number += entry.gone is None
                _line(out, entry.line())
    return {"changed": changed, "records": number, "baseline": baseline}


def _together(
    old: Iterator[Entry], now: _Listed
) -> Iterator[tuple[str, Sequence[Entry], Mapping[str, Any]]]:
    names = iter(now.names)
    name = next(names, None)
    for before, entries in groupby(old, key=lambda entry: entry.name):
        while name is not None and name < before:
            yield name, (), now.records(name)
            name = next(names, None)
        here = name == before
        yield before, list(entries), now.records(before) if here else {}
        if here:
            name = next(names, None)
    while name is not None:
        yield name, (), now.records(name)
        name = next(names, None)


class _Listed:
    """Fetched repodata in a memory-mapped file; a context manager."""

    def __init__(self, work: Join) -> None:
        self._work = work

    def __enter__(self) -> _Listed:
        work = self._work
        channel = rattler.Channel(work.channel)
        self._close = contextlib.ExitStack()
        try:
            _require_repodata(work.fetched)
            # rattler maps the file: it must exist until the end.
            self._data = rattler.SparseRepoData(channel, work.subdir, work.fetched)
            self._close.callback(self._data.close)
            self.names = sorted(set(self._data.package_names(PackageFormatSelection.BOTH)))
        except Exception as error:  # rattler's errors have no common base
            self._close.close()
            raise self._unreadable(error) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._close.close()

    def records(self, name: str) -> dict[str, Any]:
        """Return the records by file name, without fn, url and channel."""
        try:
            records = self._data.load_records(name, PackageFormatSelection.BOTH)
        except Exception as error:
            raise self._unreadable(error) from error
        found = {}
        for record in records:
            content = json.loads(record._record.to_json())
            for key in ("fn", "url", "channel"):
                content.pop(key, None)
            found[record.file_name] = content
        return found

    def _unreadable(self, error: Exception) -> StoreError:
        reason = " ".join(str(error).split())[:300]
        return ChannelUnavailableError(
            f"The package list of channel {self._work.channel} for {self._work.subdir} cannot be "
            f"read: {reason}"
        )


def _require_repodata(path: Path) -> None:
    """Refuse a file that is not JSON, such as an error page; it must not count as empty."""
    with path.open("rb") as file:
        if file.read(CHUNK).lstrip()[:1] != b"{":
            raise ValueError("it is not a JSON object")


def read_history(path: Path | None) -> tuple[dict[str, Any], Iterator[Entry]]:
    """Return the head line and the entries, sorted by name."""
    if path is None:
        return {}, iter(())
    lines = _lines(path)
    return next(lines), (Entry.of_line(line) for line in lines)


def _lines(path: Path) -> Iterator[Any]:
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        io.TextIOWrapper(plain, encoding="utf-8") as text,
    ):
        for line in text:
            yield json.loads(line)


@contextlib.contextmanager
def _packed(file: IO[bytes]) -> Iterator[IO[bytes]]:
    packer = zstandard.ZstdCompressor(level=LEVEL)
    with packer.stream_writer(file, closefd=False) as packed:
        buffered = io.BufferedWriter(packed, CHUNK)  # type: ignore[type-var]
        yield buffered
        buffered.flush()
        buffered.detach()


def _line(out: IO[bytes], content: object) -> None:
    out.write(_json(content) + b"\n")


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


# --- the view -------------------------------------------------------------------------------------

#: The files of a view, in its folder.
REPODATA, INDEX, SHARDS = "repodata.json.zst", "index.msgpack.zst", "shards"


def _render(work: Render) -> dict[str, Any]:
    """Write the files of a view; return the counts {"packages", "refused"}."""
    head, entries = read_history(work.history)
    judge = _Judge(work, head["baseline"])
    digests: dict[str, bytes] = {}
    number = hidden = 0
    shard_packer = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    with _Document(work) as document, (work.folder / SHARDS).open("wb") as file:
        pack = PackWriter(file)
        for name, group in groupby(entries, key=lambda entry: entry.name):
            here = list(group)
            listed = shown(here, end=work.end, baseline=head["baseline"])
            if not listed:
                continue
            refused = judge.refused(name, here, listed)
            allowed = {file: e.record for file, e in listed.items() if file not in refused}
            if refused:
                pack.put(refused_key(name), shard_packer.compress(msgpack.packb(refused)))
            if allowed:
                content = msgpack.packb(repodata.shard(allowed))
                digests[name] = pack.add(shard_packer.compress(content))
                document.add(allowed)
            number, hidden = number + len(allowed), hidden + len(refused)
        pack.finish()
    index = repodata.shard_index(digests, work.subdir)
    (work.folder / INDEX).write_bytes(repodata.compressed(index))
    return {"packages": number, "refused": hidden}


def refused_key(name: str) -> bytes:
    """Return the key of a pack's refusals of a name, which are {file: reason}."""
    return hashlib.sha256(_REFUSED + name.encode()).digest()


class _Judge:
    """Applies the policy to what an external client would choose from."""

    def __init__(self, work: Render, baseline: int) -> None:
        rules = [
            rule
            for rule in work.policy.rules
            # All records here are the channel's own, so none is unlisted.
            if rule.effect is not Effect.WARN and not isinstance(rule, UnlistedPackages)
        ]
        self._clock = _Clock(work, baseline)
        self._screen = Screen(work.policy, self._clock, rules=rules)
        self._work = work

    def refused(
        self, name: str, entries: Sequence[Entry], listed: Mapping[str, Entry]
    ) -> dict[str, str]:
        """Return the reason by refused file. Files that need approval are refused until then."""
        found = {
            file_name: f"{file_name} has no sha256 in its channel, so its bytes cannot be checked."
            for file_name, entry in listed.items()
            if not entry.record.get("sha256")
        }
        if not self._screen.checks("conda", name):
            return found
        self._clock.note(entries)
        for file_name, entry in listed.items():
            package = CondaPackage.from_record(
                entry.record,
                url=f"{self._work.channel}/{self._work.subdir}/{file_name}",
                channel=self._work.channel,
                file_name=file_name,
            )
            objections = self._screen.objections(LockedPackage(package))
            if objections:
                gravest = min(objections, key=lambda each: each.effect is not Effect.ENFORCE)
                asks = " and needs approval" if gravest.effect is Effect.ASK else ""
                found[file_name] = (
                    f"{package.name} {package.version} {gravest.text}{asks} "
                    f"(rule “{gravest.rule.name}”)."
                )
        return found


class _Clock:
    """First sightings of the packages of one name, by the mirror and by this installation."""

    def __init__(self, work: Render, baseline: int) -> None:
        self.now = work.now
        self._policy = work.policy
        self._looks = FirstSeen(work.first_seen) if work.first_seen else None
        self._baseline = baseline
        self._seen: dict[str, int] = {}

    def note(self, entries: Sequence[Entry]) -> None:
        self._seen = {}
        for entry in entries:
            sha256 = entry.record.get("sha256") or ""
            self._seen[sha256] = min(entry.seen, self._seen.get(sha256, entry.seen))

    def first_seen(self, subject: Subject) -> Sighting | None:
        minute = self._seen.get(subject.sha256)
        mine = (
            None
            if minute is None
            else Sighting(at=minute * 60.0, baseline=minute <= self._baseline)
        )
        if self._looks is None:
            return mine
        other = self._looks.sighting(subject.channel, subject.subdir, subject.sha256)
        if mine is None or other is None:
            return mine or other
        return min(mine, other, key=lambda each: each.at)

    def scripts(self, subject: Subject) -> tuple[str, ...] | None:
        return self._policy.scripts.get(subject.sha256)

    def own_license(self, subject: Subject) -> str:
        return self._policy.own_licenses.get(subject.sha256, "")


class _Document:
    """Streaming writer of repodata.json.zst; a temporary file holds the second half."""

    def __init__(self, work: Render) -> None:
        self._subdir = work.subdir
        self._path = work.folder / REPODATA
        self._rest = work.folder / "tar.bz2"
        self._first = {".conda": True, "": True}

    def __enter__(self) -> _Document:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self._path.open("wb"))
            self._out = stack.enter_context(_packed(file))
            self._beside = stack.enter_context(self._rest.open("w+b"))
            self._out.write(b'{"info":' + _json({"subdir": self._subdir}) + b',"packages.conda":{')
            self._stack = stack.pop_all()
        return self

    def add(self, records: Mapping[str, Any]) -> None:
        for file_name, record in records.items():
            conda = file_name.endswith(".conda")
            out, key = (self._out, ".conda") if conda else (self._beside, "")
            comma = b"" if self._first[key] else b","
            self._first[key] = False
            out.write(comma + _json(file_name) + b":" + _json(record))

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            self._out.write(b'},"packages":{')
            self._beside.seek(0)
            shutil.copyfileobj(self._beside, self._out, CHUNK)
            self._out.write(b'},"removed":[],"repodata_version":1}\n')
        self._rest.unlink()
