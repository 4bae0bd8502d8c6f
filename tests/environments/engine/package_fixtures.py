"""Packages of a folder's channel, in the form that a lock has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from environments.domain.lock import PlatformLock
from environments.domain.records import CondaPackage
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageSpec, write_package


def packages_of(
    channel: Path, *, url: str = "", platform: str = "linux-64"
) -> Mapping[str, CondaPackage]:
    """The packages of a channel's folder for `platform`, by name and by name-version.

    Of several versions the name means the last. `url` is where the channel is served, if not from
    its folder.
    """
    base = (url or channel.as_uri()).rstrip("/")
    found: dict[str, CondaPackage] = {}
    for subdir in (platform, "noarch"):
        repodata = json.loads((channel / subdir / "repodata.json").read_text())
        for section in ("packages", "packages.conda"):
            for file_name, record in repodata[section].items():
                package = CondaPackage.from_record(
                    record,
                    url=f"{base}/{subdir}/{file_name}",
                    channel=base,
                    file_name=file_name,
                )
                found[package.name] = found[f"{package.name}-{package.version}"] = package
    return found


def channel_of(folder: Path, *specs: PackageSpec) -> Mapping[str, CondaPackage]:
    """Write `specs` as a channel into `folder`; its packages."""
    (folder / "linux-64").mkdir(parents=True, exist_ok=True)
    for spec in specs:
        write_package(spec, folder)
    index_channel(folder, shards=False)
    return packages_of(folder)


def lock_of(*packages: CondaPackage) -> PlatformLock:
    return PlatformLock(platform="linux-64", conda=packages)
