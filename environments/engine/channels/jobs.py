"""Jobs that read channels outside a solve, in a confined process.

A job runs in a process of `solve.process`, because repodata is untrusted input: it may use up all
memory or exploit a fault of the parser. The process sends the results item by item, as JSON; the
parent parses them with `read_item`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rattler

from environments.domain.records import CondaPackage
from environments.engine.channels.hosted import HostedFiles
from environments.engine.channels.repodata import ChannelEntry, Channels

#: Maximum number of package names of one channel; conda-forge has 35,000.
MAX_NAMES = 500_000
#: Leading bytes of a sha256 that first sightings are stored with.
_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Read some files of one subdir by URL; sends an item for each file that is listed."""

    channel: str
    subdir: str
    names: tuple[str, ...]  # of their packages
    urls: frozenset[str]  # canonical
    states: Mapping[tuple[str, str], str]
    deadline: float  # of time.monotonic(), which is shared by all processes of a machine
    hosted: tuple[HostedFiles, ...] = field(default=(), init=False)

    @property
    def channels(self) -> tuple[str, ...]:
        return (self.channel,)

    def run(self, channels: Channels, send: Callable[[Any], None]) -> None:
        for package in channels.read_listed(
            self.channel, self.subdir, self.names, deadline=self.deadline
        ):
            if package.url in self.urls:
                send([dict(package.record), package.url, package.channel, package.file_name])

    @staticmethod
    def read_item(content: Any) -> CondaPackage:
        record, url, channel, file_name = content
        return CondaPackage.from_record(record, url=url, channel=channel, file_name=file_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A package name of a channel, and the first bytes of its files' digests, by subdir."""

    entry: ChannelEntry
    digests: Mapping[str, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Read everything that a channel lists; sends an item for each package name, in order."""

    channel: str
    platforms: tuple[str, ...]
    states: Mapping[tuple[str, str], str]
    deadline: float  # of time.monotonic(), which is shared by all processes of a machine
    hosted: tuple[HostedFiles, ...] = field(default=(), init=False)

    @property
    def channels(self) -> tuple[str, ...]:
        return (self.channel,)

    def run(self, channels: Channels, send: Callable[[Any], None]) -> None:
        for entry, records in channels.read_entries(
            self.channel, self.platforms, deadline=self.deadline, most=MAX_NAMES
        ):
            send(
                [
                    *(entry.name, entry.latest_version, entry.versions, list(entry.subdirs)),
                    *(entry.summary, entry.license, _digests(records)),
                ]
            )

    @staticmethod
    def read_item(content: Any) -> Described:
        name, latest, versions, subdirs, summary, license_, digests = content
        texts = (name, latest, summary, license_, *subdirs)
        if not all(isinstance(text, str) for text in texts) or not isinstance(versions, int):
            raise TypeError("an entry has the wrong types")
        return Described(
            entry=ChannelEntry(
                name=name,
                latest_version=latest,
                versions=versions,
                subdirs=tuple(subdirs),
                summary=summary,
                license=license_,
            ),
            digests={
                str(subdir): tuple(bytes.fromhex(text) for text in found)
                for subdir, found in digests.items()
            },
        )


def _digests(records: Sequence[rattler.RepoDataRecord]) -> dict[str, list[str]]:
    """Return hex digests by subdir; "" stands for a record without a digest."""
    found: dict[str, list[str]] = {}
    for record in records:
        digest = record.sha256
        found.setdefault(record.subdir, []).append(digest[:_DIGEST_BYTES].hex() if digest else "")
    return found


ChannelJob = Listing | Description
