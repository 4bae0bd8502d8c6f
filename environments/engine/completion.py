"""What does a lock that a person brought leave unsaid? Its channels' own records say the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from rattler.package_streaming import PackageArchive

from environments.domain.errors import (
    ChannelNotFoundError,
    ChannelUnavailableError,
    FaultError,
    SpecificationError,
    StoreError,
)
from environments.domain.json_text import parse_json
from environments.domain.lock import Lock, PlatformLock, dependency_order
from environments.domain.lockfiles import is_complete
from environments.domain.progress import Cancelled
from environments.domain.records import CondaPackage
from environments.engine import forward_proxy
from environments.engine.addresses import guard
from environments.engine.channels import Channels
from environments.engine.credentials import request_url

Log = Callable[[str], None]


def complete_lock(
    lock: Lock,
    *,
    channels: Channels,
    cancelled: Cancelled,
    log: Log,
    time_limit: timedelta = timedelta(minutes=5),
) -> Lock:
    """`lock` with the full record of each conda package, dependencies first.

    A package that its channel no longer lists is asked itself (`info/index.json`), if it is still
    there. What the lock says of its bytes stays: the bytes that come are compared with that.

    Raises:
        SpecificationError: a digest differs from the channel's, a package is gone: every one.
        ChannelUnavailableError: a channel does not answer now.
    """
    deadline = time.monotonic() + time_limit.total_seconds()
    wanted: dict[tuple[str, str], dict[str, CondaPackage]] = {}
    for part in lock:
        for package in part.conda:
            if not is_complete(package):
                wanted.setdefault((package.channel, package.subdir), {})[package.url] = package
    listed: dict[str, CondaPackage] = {}
    for (channel, subdir), packages in wanted.items():
        try:
            found = channels.listed(
                channel,
                subdir,
                sorted({package.name for package in packages.values()}),
                cancelled=cancelled,
                deadline=deadline,
            )
        except ChannelNotFoundError:
            log(f"The channel {channel} is gone; its packages are looked at themselves.")
            continue
        listed |= {package.url: package for package in found if package.url in packages}
    faults: list[StoreError] = []
    done: dict[str, CondaPackage] = {}
    unlisted: list[CondaPackage] = []
    for package in (package for packages in wanted.values() for package in packages.values()):
        record = listed.get(package.url)
        if record is None:
            unlisted.append(package)
        elif fault := _difference(package, record):
            faults.append(fault)
        else:
            done[package.url] = _joined(package, record.record)
    if unlisted:
        log(f"{len(unlisted)} packages are no longer listed by their channel.")
        answers = channels.run(_look_at(channels, unlisted), cancelled=cancelled, deadline=deadline)
        for package, answer in zip(unlisted, answers, strict=True):
            if isinstance(answer, StoreError):
                faults.append(answer)
            else:
                done[package.url] = _joined(package, answer)
    transient = next((fault for fault in faults if fault.transient), None)
    if transient is not None:
        raise transient
    if faults:
        raise SpecificationError(faults)
    return replace(lock, platforms=tuple(_completed(part, done) for part in lock))


def _completed(part: PlatformLock, done: Mapping[str, CondaPackage]) -> PlatformLock:
    packages = [done.get(package.url, package) for package in part.conda]
    return replace(part, conda=dependency_order(packages))


def _difference(package: CondaPackage, record: CondaPackage) -> FaultError | None:
    for kind in ("sha256", "md5"):
        ours, theirs = getattr(package, kind), getattr(record, kind)
        if ours and theirs and ours != theirs:
            return FaultError(
                f"The {kind} of {package.file_name} is {ours} in the lock, and {theirs} in its "
                f"channel.",
                where=package.url,
                hint="Lock the environment again; if you did just now, tell the channel's owner.",
            )
    return None


def _joined(package: CondaPackage, record: Mapping[str, Any]) -> CondaPackage:
    content = dict(record)
    for kind in ("sha256", "md5"):
        if getattr(package, kind):
            content[kind] = getattr(package, kind)
    content.setdefault("subdir", package.subdir)
    content.setdefault("build_number", 0)
    return CondaPackage.from_record(
        content, url=package.url, channel=package.channel, file_name=package.file_name
    )


async def _look_at(
    channels: Channels, packages: list[CondaPackage]
) -> list[Mapping[str, Any] | StoreError]:
    few = asyncio.Semaphore(8)

    async def look(package: CondaPackage) -> Mapping[str, Any] | StoreError:
        async with few:
            return await _index_of(channels, package)

    return await asyncio.gather(*(look(package) for package in packages))


async def _index_of(channels: Channels, package: CondaPackage) -> Mapping[str, Any] | StoreError:
    """The package's own `info/index.json`, read in part where the server lets us."""
    if channels.hosted((package.channel,)):  # which says all that it has
        return FaultError(
            f"{package.channel} has no {package.subdir}/{package.file_name}.",
            where=package.url,
            hint="Lock the environment again.",
        )
    try:
        if package.url.startswith("file:"):
            archive = await PackageArchive.from_path(guard().path(package.url))
        else:
            credential = channels.credential(package.url)
            archive = await PackageArchive.from_url(
                channels.client, request_url(credential, package.url)
            )
        content = await archive.read_file("info/index.json")
    except StoreError as error:
        return error
    except Exception as error:  # rattler's errors have no common base
        message = channels.clean(str(error))
        if refused := await asyncio.to_thread(forward_proxy.refusal_in, message):
            return refused
        gone = isinstance(error, FileNotFoundError) or any(
            sign in message for sign in ("404", "410", "No such file")
        )
        if gone:
            return FaultError(
                f"{package.file_name} is no longer at {package.url}.",
                where=package.url,
                hint="Lock the environment again, or ask for a mirror that kept it.",
            )
        return ChannelUnavailableError(
            f"{package.file_name} could not be read: {message}", where=package.url
        )
    try:
        index: Mapping[str, Any] = parse_json(content or b"")
        named = (index["name"], str(index["version"]), index["build"])
    except (ValueError, KeyError, TypeError):
        return FaultError(
            f"{package.file_name} has no readable info/index.json.", where=package.url
        )
    if named != (package.name, package.version, package.build):
        return FaultError(
            f"{package.file_name} calls itself {'-'.join(named)}.",
            where=package.url,
            hint="Do not use it; tell the owner of the channel.",
        )
    return index
