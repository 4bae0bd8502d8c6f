"""Views of a mirror: the part of its history that the policy allows, as files for conda clients."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import msgpack
import zstandard

from environments.domain import repodata
from environments.domain.mirrors import Entry, shown
from environments.domain.policy import (
    Effect,
    Policy,
    Screen,
    Sighting,
    Subject,
    UnlistedPackages,
)
from environments.domain.policy.subjects import LockedPackage
from environments.domain.records import CondaPackage
from environments.domain.shard_pack import PackWriter
from environments.engine.channels.first_seen import FirstSeen
from environments.engine.channels.mirror_history import (
    CHUNK,
    ZSTD_LEVEL,
    compressed_file,
    json_bytes,
    read_history,
    unpacked_size,
)

_REFUSED = b"refused/"


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
        return unpacked_size(self.history)

    @property
    def reads(self) -> list[Path]:
        return [self.history, *([self.first_seen] if self.first_seen else [])]

    @property
    def writes(self) -> list[Path]:
        return [self.folder / name for name in (REPODATA, INDEX, SHARDS)]

    def run(self) -> dict[str, Any]:
        return _render(self)


#: The files of a view, in its folder.
REPODATA, INDEX, SHARDS = "repodata.json.zst", "index.msgpack.zst", "shards"


def _render(work: Render) -> dict[str, Any]:
    """Write the files of a view; return the counts {"packages", "refused"}."""
    head, entries = read_history(work.history)
    judge = _PolicyFilter(work, head["baseline"])
    digests: dict[str, bytes] = {}
    number = hidden = 0
    shard_packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
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


class _PolicyFilter:
    """Applies the policy to what an external client would choose from."""

    def __init__(self, work: Render, baseline: int) -> None:
        rules = [
            rule
            for rule in work.policy.rules
            # All records here are the channel's own, so none is unlisted.
            if rule.effect is not Effect.WARN and not isinstance(rule, UnlistedPackages)
        ]
        self._clock = _Sightings(work, baseline)
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


class _Sightings:
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
            self._out = stack.enter_context(compressed_file(file))
            self._beside = stack.enter_context(self._rest.open("w+b"))
            self._out.write(
                b'{"info":' + json_bytes({"subdir": self._subdir}) + b',"packages.conda":{'
            )
            self._stack = stack.pop_all()
        return self

    def add(self, records: Mapping[str, Any]) -> None:
        for file_name, record in records.items():
            conda = file_name.endswith(".conda")
            out, key = (self._out, ".conda") if conda else (self._beside, "")
            comma = b"" if self._first[key] else b","
            self._first[key] = False
            out.write(comma + json_bytes(file_name) + b":" + json_bytes(record))

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            self._out.write(b'},"packages":{')
            self._beside.seek(0)
            shutil.copyfileobj(self._beside, self._out, CHUNK)
            self._out.write(b'},"removed":[],"repodata_version":1}\n')
        self._rest.unlink()
