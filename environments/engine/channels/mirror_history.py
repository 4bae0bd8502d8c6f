"""History of what a mirrored channel listed: merging fetched repodata, and reading it.

One zstd-compressed file per subdir, one JSON line per record, sorted by name.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import rattler
import zstandard
from rattler.repo_data.sparse import PackageFormatSelection

from condastore.errors import (
    ChannelUnavailableError,
    StoreError,
)
from environments.domain.mirrors import Entry, join
from environments.engine._private import native_record

CHUNK = 1 << 20  # bytes
#: zstd level of files that are written once and read often.
ZSTD_LEVEL = 6


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
        return self.fetched.stat().st_size + unpacked_size(self.history)

    @property
    def reads(self) -> list[Path]:
        return [self.fetched, *([self.history] if self.history else [])]

    @property
    def writes(self) -> list[Path]:
        return [self.out]

    def run(self) -> dict[str, Any]:
        return _join(self)


def unpacked_size(history: Path | None) -> int:
    """Estimate the size of a history, in bytes of JSON."""
    return history.stat().st_size * 6 if history else 0


def _join(work: Join) -> dict[str, Any]:
    """Merge two inputs sorted by name; return {"changed", "records", "baseline"}."""
    head, old = read_history(work.history)
    minute = max(work.minute, head.get("last", 0))
    baseline = head.get("baseline", minute)
    number, changed = 0, work.history is None
    with _Listed(work) as now, work.out.open("wb") as file, compressed_file(file) as out:
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
            content = json.loads(native_record(record).to_json())
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
def compressed_file(file: IO[bytes]) -> Iterator[IO[bytes]]:
    packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    with packer.stream_writer(file, closefd=False) as packed:
        buffered = io.BufferedWriter(packed, CHUNK)  # type: ignore[type-var]
        yield buffered
        buffered.flush()
        buffered.detach()


def _line(out: IO[bytes], content: object) -> None:
    out.write(json_bytes(content) + b"\n")


def json_bytes(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
