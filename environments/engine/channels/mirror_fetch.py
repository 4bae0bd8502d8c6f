"""Fetching of a remote channel's repodata for a mirror."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from condastore.errors import (
    ChannelNotAllowedError,
    ChannelNotFoundError,
    ChannelUnavailableError,
    TimeLimitError,
)
from environments.domain.names import Credential
from environments.domain.progress import Cancelled
from environments.engine.channels.credentials import redact, request_headers, request_url
from environments.engine.network import bounded_reading, clients
from environments.engine.network.addresses import Guard, guard
from environments.engine.network.bounded_reading import ACCEPT_ENCODING, Meter, ReadLimits, Unpacker

#: In the order in which they are requested; the first that exists is used.
FORMS = ("repodata.json.zst", "repodata.json")
#: Time limit of fetching one subdir's repodata.
FETCH_SECONDS = 1800.0


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
