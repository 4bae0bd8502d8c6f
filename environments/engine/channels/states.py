"""Current state of channels' repodata, from response headers, without reading the contents."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import httpx

from condastore.errors import (
    ChannelNotAllowedError,
    ChannelNotFoundError,
    ChannelUnavailableError,
    StoreError,
)
from environments.domain.names import Credential
from environments.engine.channels.credentials import (
    request_headers,
    request_url,
)
from environments.engine.network import bounded_reading, clients
from environments.engine.network.addresses import guard
from environments.engine.network.bounded_reading import ReadLimits, TransferError

#: In the order in which rattler requests them; it reads the first that exists.
REPODATA = ("repodata_shards.msgpack.zst", "repodata.json.zst", "repodata.json")


class StateReader:
    """Reads what identifies the current contents of each (channel, subdir)."""

    def __init__(
        self,
        *,
        limits: ReadLimits,
        credential: Callable[[str], Credential | None],
        clean: Callable[[str], str],
    ) -> None:
        """
        Args:
            limits: limits of each request.
            credential: returns the credential of a channel.
            clean: removes secrets from a message.
        """
        self._limits = limits
        self._credential = credential
        self._clean = clean
        self._forms: dict[tuple[str, str], str] = {}

    async def read(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return the state of each (channel, subdir); raise the first permanent fault."""
        async with clients.async_client(
            timeout=self._limits.timeout,
            limits=httpx.Limits(max_connections=20),
            headers={"User-Agent": "condastore"},
        ) as client:
            states = await asyncio.gather(
                *(self._read_one(client, channel, subdir) for channel, subdir in keys),
                return_exceptions=True,
            )
        # Reporting all faults would mostly repeat one kind; permanent faults come first.
        faults = [state for state in states if isinstance(state, BaseException)]
        for fault in sorted(faults, key=lambda fault: getattr(fault, "transient", False)):
            raise fault
        return {
            key: state for key, state in zip(keys, states, strict=True) if isinstance(state, str)
        }

    async def _read_one(self, client: httpx.AsyncClient, channel: str, subdir: str) -> str:
        if channel.startswith("file:"):
            return _file_state(channel, subdir)
        held = self._forms.get((channel, subdir))
        for form in sorted(REPODATA, key=lambda form: form != held):
            state = await self._state_of_file(client, channel, f"{channel}/{subdir}/{form}")
            if state:
                self._forms[channel, subdir] = form
                return f"{form} {state}"
        return ""

    async def _state_of_file(self, client: httpx.AsyncClient, channel: str, url: str) -> str:
        """Return what identifies the current content of a file; "" if there is no such file.

        Only response headers are read, and bodies are hashed in pieces: nothing that a channel
        sent is decompressed or parsed in this process.
        """
        credential = self._credential(channel)
        headers, requested = request_headers(credential), request_url(credential, url)
        open_ = functools.partial(bounded_reading.stream, client, limits=self._limits)
        try:
            async with open_("HEAD", requested, headers=headers) as answer:
                pass
            if answer.status_code in (400, 403, 405, 501):  # some object stores sign GET only
                async with open_(
                    "GET", requested, headers=headers | {"Range": "bytes=0-0"}
                ) as answer:
                    pass
            if answer.status_code in (404, 410):
                return ""
            if answer.status_code in (401, 403):
                raise ChannelNotAllowedError(
                    f"Channel {channel} denies access (status {answer.status_code}).",
                    hint="Ask an administrator to store credentials for this channel.",
                )
            if answer.is_error:
                raise ChannelUnavailableError(
                    f"Channel {channel} responded with status {answer.status_code}."
                )
            marks = [answer.headers.get(key, "") for key in ("ETag", "Last-Modified")]
            if not any(marks):  # without validators only the bytes show a change
                digest = hashlib.sha256()
                plain = headers | {"Accept-Encoding": "identity"}
                async with open_("GET", requested, headers=plain) as answer:
                    async for part in bounded_reading.read_raw(answer, self._limits):
                        digest.update(part)
                marks = [digest.hexdigest()]
            return " ".join(marks)
        except TransferError as error:
            name = url.removeprefix(f"{channel}/")
            raise ChannelUnavailableError(
                f"Channel {channel} cannot be read: {name} {error}."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ChannelUnavailableError(
                f"Channel {channel} cannot be reached: {self._clean(reason)}"
            ) from error


def _file_state(channel: str, subdir: str) -> str:
    folder = guard().path(channel)
    try:
        status = (folder / subdir / "repodata.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ChannelUnavailableError(f"Channel {channel} cannot be read: {error}") from error
    return f"{status.st_mtime_ns} {status.st_size}"


def refuse_missing(channels: Sequence[str], states: Mapping[tuple[str, str], str]) -> None:
    """Refuse channels without `noarch`, which conda requires; other subdirs may be missing."""
    faults: list[StoreError] = []
    for channel in dict.fromkeys(channels):
        mine = {subdir: state for (name, subdir), state in states.items() if name == channel}
        if mine.get("noarch"):
            continue
        if any(mine.values()):
            faults.append(
                ChannelNotFoundError(
                    f"Channel {channel} has no noarch/repodata.json, which every conda channel "
                    "needs.",
                    hint="Ask the channel's owner to index it again.",
                )
            )
        else:
            faults.append(ChannelNotFoundError(f"There is no channel at {channel}."))
    if faults:
        raise ChannelNotFoundError(" ".join(fault.message for fault in faults), hint=faults[0].hint)
