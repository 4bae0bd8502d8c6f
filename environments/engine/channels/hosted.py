"""Hosted channels as a source of solves, read from files that were written for the solve.

No HTTP request is needed, so workers need no access to the web server, and there is no credential
that a lock, a log or a process could reveal. The code that writes the files checks access first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rattler

from environments.domain.records import CondaPackage
from environments.engine.channels.records import to_rattler


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedFiles:
    """Files with the contents of one hosted channel at one moment."""

    url: str
    states: Mapping[str, str] = field(hash=False)  # subdir -> digest of its contents
    files: Mapping[str, Path] = field(hash=False)  # subdir -> file written by `write`


#: Returns the files of a channel, or None if it is not hosted here. Called in the caller's thread.
HostedLookup = Callable[[str], HostedFiles | None]


def none_hosted(url: str) -> HostedFiles | None:
    """Return None: no channel is hosted here."""
    return None


def write(path: Path, packages: Iterable[tuple[CondaPackage, bool]]) -> None:
    """Write one line per package name, from `packages` sorted by name; the flag means yanked."""
    with path.open("w") as file:
        name, lines = "", list[Any]()
        for package, yanked in packages:
            if package.name != name:
                _write_line(file, name, lines)
                name, lines = package.name, []
            lines.append([package.file_name, yanked, package.record])
        _write_line(file, name, lines)


def _write_line(file: Any, name: str, lines: Sequence[Any]) -> None:
    if lines:
        file.write(f"{name}\t{json.dumps(lines, separators=(',', ':'))}\n")


class HostedSource:
    """One hosted channel; implements rattler's RepoDataSource."""

    def __init__(self, hosted: HostedFiles) -> None:
        self.hosted = hosted
        self._lines: dict[str, dict[str, str]] = {}  # subdir -> name -> unparsed line

    async def fetch_package_records(
        self, platform: rattler.Subdir, name: rattler.PackageName
    ) -> list[rattler.RepoDataRecord]:
        return [
            to_rattler(package)
            for package, yanked in self.packages(str(platform), name.normalized)
            if not yanked
        ]

    def package_names(self, platform: rattler.Subdir) -> list[str]:
        return [*self._of(str(platform))]

    def packages(self, subdir: str, name: str) -> Iterator[tuple[CondaPackage, bool]]:
        """Yield each package with its yanked flag; a lock may name yanked packages."""
        for file_name, yanked, record in json.loads(self._of(subdir).get(name, "[]")):
            url = f"{self.hosted.url}/{subdir}/{file_name}"
            yield (
                CondaPackage.from_record(
                    record, url=url, channel=self.hosted.url, file_name=file_name
                ),
                yanked,
            )

    def _of(self, subdir: str) -> dict[str, str]:
        if subdir not in self._lines:
            path = self.hosted.files.get(subdir)
            lines = path.read_text().splitlines() if path is not None else ()
            self._lines[subdir] = {
                name: content for name, _, content in (line.partition("\t") for line in lines)
            }
        return self._lines[subdir]
