"""Reading of channels outside a solve, as jobs for a confined process.

A job runs in a process of `solver_process`, because what a channel lists is untrusted: it may take
all memory, or exploit a fault of the parser. It sends its findings piece by piece, as JSON, which
the starting process reads with `read_item`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rattler

from environments.domain.records import CondaPackage
from environments.engine.channels.hosted import HostedFiles
from environments.engine.channels.repodata import ChannelEntry, Channels

#: Names of packages that are read of one channel; conda-forge has 35,000.
MOST_NAMES = 500_000
#: Bytes of a digest that first sightings are kept by.
_DIGEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Some files of one subdir of a channel, by their URLs; an item for each that is listed."""

    channel: str
    subdir: str
    names: tuple[str, ...]  # of their packages
    urls: frozenset[str]  # canonical
    states: Mapping[tuple[str, str], str]
    deadline: float  # of time.monotonic(), which all processes of a machine share
    hosted: tuple[HostedFiles, ...] = field(default=(), init=False)

    @property
    def channels(self) -> tuple[str, ...]:
        return (self.channel,)

    def carry_out(self, channels: Channels, send: Callable[[Any], None]) -> None:
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
    """A package name of a channel, and the digests of its files by subdir (their first bytes)."""

    entry: ChannelEntry
    digests: Mapping[str, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Everything that a channel lists; an item for each package name, in their order."""

    channel: str
    platforms: tuple[str, ...]
    states: Mapping[tuple[str, str], str]
    deadline: float  # of time.monotonic(), which all processes of a machine share
    hosted: tuple[HostedFiles, ...] = field(default=(), init=False)

    @property
    def channels(self) -> tuple[str, ...]:
        return (self.channel,)

    def carry_out(self, channels: Channels, send: Callable[[Any], None]) -> None:
        for entry, records in channels.read_entries(
            self.channel, self.platforms, deadline=self.deadline, most=MOST_NAMES
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
            raise TypeError("an entry of another form")
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
    """Hex, by subdir; "" stands for a record without a digest."""
    found: dict[str, list[str]] = {}
    for record in records:
        digest = record.sha256
        found.setdefault(record.subdir, []).append(digest[:_DIGEST].hex() if digest else "")
    return found


ChannelJob = Listing | Description
