"""Repodata of channels: a cached rattler gateway, and a digest of each channel's current state."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import rattler
from rattler.exceptions import GatewayError
from rattler.networking import Client, MirrorMiddleware, RetryMiddleware
from rattler.networking.middleware import AddHeadersMiddleware
from rattler.repo_data.gateway import SourceConfig

from condastore.errors import (
    ChannelNotFoundError,
    ChannelUnavailableError,
    TimeLimitError,
)
from environments.domain.json_text import parse_json
from environments.domain.names import Credential, without_credentials
from environments.domain.progress import Cancelled, never
from environments.domain.records import CondaPackage
from environments.domain.urls import canonical_or_same
from environments.engine.channels.credentials import (
    CredentialSource,
    no_credentials,
    redact,
    refuse_ambiguous,
    request_headers,
    request_url,
)
from environments.engine.channels.event_loop import EventLoopThread
from environments.engine.channels.hosted import HostedFiles, HostedLookup, HostedSource, none_hosted
from environments.engine.channels.records import from_rattler
from environments.engine.channels.states import StateReader, refuse_missing
from environments.engine.network import bounded_reading, clients, forward_proxy
from environments.engine.network.addresses import guard
from environments.engine.network.bounded_reading import ACCEPT_ENCODING, ReadLimits, TransferError

Answer = TypeVar("Answer")

DEFAULT_READ_LIMITS = ReadLimits()
#: Part of rattler's message of EFBIG.
_FILE_TOO_LARGE = "os error 27"
#: Size limit of channeldata.json, in bytes; that of conda-forge has 15 MB.
_CHANNELDATA_BYTES = 128 << 20
#: Records that the gateway may cache while a whole channel is read; 2 KB each.
_MAX_CACHED_RECORDS = 100_000
#: Where rattler reads records from: a channel, or a view of one.
Source = rattler.Channel | rattler.RepoDataSource


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelEntry:
    """One package name of a channel."""

    name: str
    latest_version: str
    versions: int
    subdirs: tuple[str, ...]
    summary: str  # "" if the channel has no channeldata.json
    license: str


class Channels:
    """The channels of one process, with one gateway, one cache and one network thread.

    Methods may be called from several threads at once; each blocks only its caller. Channels are
    canonical base URLs without credentials; `credentials` is called in the caller's thread.
    """

    def __init__(
        self,
        *,
        cache: Path,
        credentials: CredentialSource = no_credentials,
        hosted: HostedLookup = none_hosted,
        memo: timedelta = timedelta(seconds=5),
        limits: ReadLimits = DEFAULT_READ_LIMITS,
        confined: bool = False,
    ) -> None:
        """
        Args:
            credentials: returns the credential of a URL.
            hosted: returns the files of a hosted channel.
            memo: how long an observed state is reused.
            limits: limits of each request, and of what is read of a channel.
            confined: True in a confined process, which finds the forward proxy's address in its
                environment.
        """
        self._confined = confined
        self.cache = cache
        self._credential_source = credentials
        self._hosted_lookup = hosted
        self._memo = memo
        self.limits = limits
        self._lock = threading.RLock()
        self._credentials: dict[str, Credential | None] = {}
        self._hosted: dict[str, HostedSource] = {}
        self._observed: dict[tuple[str, str], tuple[float, str]] = {}
        self._loaded: dict[tuple[str, str], str] = {}
        self._unsharded: set[str] = set()
        self._gateway: rattler.Gateway | None = None
        self._client: Client | None = None
        self._mirrors: dict[str, list[str]] = {}
        self._thread = EventLoopThread()
        self._states = StateReader(
            limits=limits, credential=lambda url: self._credentials.get(url), clean=self.clean
        )

    # Network thread

    def run(
        self,
        work: Coroutine[Any, Any, Answer],
        *,
        cancelled: Cancelled = never,
        deadline: float | None = None,
    ) -> Answer:
        """Run `work` in the network thread; see `EventLoopThread.run`."""
        return self._thread.run(work, cancelled=cancelled, deadline=deadline)

    def close(self) -> None:
        """Stop the network thread. The cache on disk stays."""
        with self._lock:
            self._gateway = self._client = None
        self._thread.close()

    # States

    def state(
        self,
        channels: Sequence[str],
        platforms: Sequence[str],
        *,
        cancelled: Cancelled = never,
        deadline: float | None = None,
    ) -> str:
        """Return a digest of what `channels` hold for `platforms`; it changes with the contents.

        Args:
            deadline: a value of `time.monotonic()`.
        Raises:
            ChannelNotFoundError, ChannelNotAllowedError: a channel does not exist, or refuses
                access.
            ChannelUnavailableError: a channel does not respond now.
            TimeLimitError: `deadline` passed.
            LeaseLostError: `cancelled` returned True.
        """
        states = self.observe(channels, platforms, cancelled=cancelled, deadline=deadline)
        content = [[*key, states[key]] for key in _subdirs(channels, platforms)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def observe(
        self,
        channels: Sequence[str],
        platforms: Sequence[str],
        *,
        cancelled: Cancelled = never,
        deadline: float | None = None,
    ) -> dict[tuple[str, str], str]:
        """Return the state of each (channel, subdir); "" if a channel has no such subdir.

        All are requested concurrently. Raises the same errors as `state`.
        """
        here = [self._hosted_lookup(url) for url in channels]
        self.learn_hosted(hosted for hosted in here if hosted is not None)
        other = [url for url in channels if url not in self._hosted]
        self.learn_credentials(other)
        requested = _subdirs(channels, platforms)
        now = time.monotonic()
        with self._lock:
            fresh = {
                (url, subdir): self._hosted_state(url, subdir)
                for url, subdir in requested
                if url in self._hosted
            } | {
                key: state
                for key in requested
                if (held := self._observed.get(key)) is not None
                and now - held[0] < self._memo.total_seconds()
                for state in [held[1]]
            }
        request = [key for key in requested if key not in fresh]
        if request:
            try:
                found = self.run(self._states.read(request), cancelled=cancelled, deadline=deadline)
            except TimeLimitError as error:
                slow = ", ".join(dict.fromkeys(channel for channel, _ in request))
                raise TimeLimitError(
                    f"These channels did not respond within the time limit: {slow}."
                ) from error
            refuse_missing(channels, fresh | found)
            seen = time.monotonic()
            with self._lock:
                self._observed.update({key: (seen, state) for key, state in found.items()})
            fresh |= found
        return {key: fresh[key] for key in requested}

    def learn_hosted(self, found: Iterable[HostedFiles]) -> None:
        """Read these hosted channels from their files from now on."""
        with self._lock:
            for hosted in found:
                known = self._hosted.get(hosted.url)
                if known is None or known.hosted != hosted:
                    self._hosted[hosted.url] = HostedSource(hosted)

    def hosted(self, channels: Sequence[str]) -> tuple[HostedFiles, ...]:
        """Return those of `channels` that are hosted here."""
        return tuple(self._hosted[url].hosted for url in channels if url in self._hosted)

    def _hosted_state(self, url: str, subdir: str) -> str:
        # Every channel must have `noarch`, if only an empty one.
        return self._hosted[url].hosted.states.get(subdir, "0" if subdir == "noarch" else "")

    def refresh(self, states: Mapping[tuple[str, str], str]) -> None:
        """Drop cached repodata that is older than `states`, in memory and on disk."""
        changed = [
            (key, state)
            for key, state in states.items()
            if self._loaded.get(key) != state and state and key[0] not in self._hosted
        ]
        gateway = self.gateway
        for (channel, subdir), state in changed:
            if (channel, subdir) in self._loaded:
                gateway.clear_repodata_cache(channel, [rattler.Subdir(subdir)])
            # rattler reuses its files for as long as the server's `max-age`. The state of each
            # file is written beside it, for all processes that share the cache.
            note = self.cache / f"state-{_short(channel, subdir)}"
            if not channel.startswith("file:") and _read(note) != state:
                gateway.clear_repodata_cache(channel, [rattler.Subdir(subdir)], clear_disk=True)
                _write(note, state)
            self._loaded[channel, subdir] = state

    def persistently(self, channels: Sequence[str], read: Callable[[], Answer]) -> Answer:
        """Call `read`; retry if a server's response is one that rattler cannot handle.

        A server without ETags may answer 304 without a Last-Modified date, as Python's http.server
        does. That is valid, but rattler fails on it while it has a cached file. So the cached files
        of the channels are removed; if that does not help, they are read without shards.
        """
        try:
            return read()
        except ChannelUnavailableError as error:
            if not _is_unexpected_304(error):
                raise
        remote = [url for url in channels if url not in self._hosted]
        for url in remote:
            self.gateway.clear_repodata_cache(url, clear_disk=True)
        try:
            return read()
        except ChannelUnavailableError as error:
            if not _is_unexpected_304(error):
                raise
        with self._lock:
            self._unsharded |= set(remote)
            self._gateway = None
        return read()

    def forget(self) -> None:
        """Free the memory of the repodata; the files stay, and are read again when needed."""
        with self._lock:
            if self._gateway is not None:
                for channel in {channel for channel, _ in self._loaded}:
                    self._gateway.clear_repodata_cache(channel)

    # rattler

    @property
    def gateway(self) -> rattler.Gateway:
        with self._lock:
            if self._gateway is None:
                self.cache.mkdir(parents=True, exist_ok=True)
                plain = SourceConfig(sharded_enabled=False)
                self._gateway = rattler.Gateway(
                    cache_dir=self.cache,
                    default_config=SourceConfig(),
                    per_channel_config=dict.fromkeys(self._unsharded, plain),
                    client=self.client,
                )
            return self._gateway

    @property
    def client(self) -> Client:
        """rattler's HTTP client, which sends each channel its credential.

        It connects through the forward proxy, whose address is in the environment.
        """
        with self._lock:
            if self._client is None:
                if not self._confined:
                    forward_proxy.access_for(guard()).use_in_this_process()
                self._client = Client(
                    [
                        MirrorMiddleware(self._mirrors),
                        RetryMiddleware(2),
                        AddHeadersMiddleware(self._headers_for),
                    ],
                    user_agent="condastore",
                )
            return self._client

    def sources(self, channels: Sequence[str]) -> list[Source]:
        return [self._hosted.get(channel) or rattler.Channel(channel) for channel in channels]

    def headers(self, url: str) -> dict[str, str]:
        """Return the request headers for `url`, with the credential of its channel."""
        return request_headers(self.credential(url))

    def credential(self, url: str) -> Credential | None:
        with self._lock:
            known = [
                channel
                for channel in self._credentials
                if url == channel or url.startswith(f"{channel}/")
            ]
            if known:
                return self._credentials[max(known, key=len)]
        return self._credential_source(url)

    def clean(self, text: str) -> str:
        """Return `text` without the channels' secrets."""
        with self._lock:
            return redact(text, self._credentials.values())

    def learn_credentials(self, channels: Iterable[str]) -> None:
        found = {channel: self._credential_source(channel) for channel in channels}
        with self._lock:
            known = self._credentials | found
            refuse_ambiguous(known)
            mirrors = {
                f"{channel}/": [f"{request_url(credential, channel)}/"]
                for channel, credential in known.items()
                if credential is not None and credential.kind == "token"
            }
            if mirrors != self._mirrors:
                self._mirrors, self._gateway, self._client = mirrors, None, None
                self._loaded.clear()
            self._credentials = known

    def _headers_for(self, host: str, path: str) -> dict[str, str] | None:
        """Return a request's headers. rattler calls this in its own thread; it must not block."""
        best = -1
        headers: dict[str, str] = {}
        for channel, credential in self._credentials.items():
            parts = urlsplit(channel)
            inside = path == parts.path or path.startswith(f"{parts.path}/")
            if parts.hostname == host and inside and len(parts.path) > best:
                best, headers = len(parts.path), request_headers(credential)
        return headers or None

    # Contents

    def names(self, channels: Sequence[str], platforms: Sequence[str]) -> list[str]:
        """Return the names of all packages, sorted."""
        self.refresh(self.observe(channels, platforms))
        return self._read_names(channels, platforms)

    def _read_names(
        self,
        channels: Sequence[str],
        platforms: Sequence[str],
        *,
        deadline: float | None = None,
    ) -> list[str]:
        found = self.run(
            self.guarded(
                self.gateway.names(
                    self.sources(channels), with_noarch(platforms), channel_relations="disabled"
                )
            ),
            deadline=deadline,
        )
        return sorted(name.normalized for name in found)

    def records(self, channel: str, platform: str, name: str) -> list[CondaPackage]:
        """Return every build of `name` for `platform` and noarch, newest version first."""
        self.refresh(self.observe([channel], [platform]))
        found = self.run(self._records(channel, with_noarch([platform]), name))
        return [self.package(record) for record in newest_first(found)]

    def hosted_packages(
        self, channel: str, subdir: str, names: Sequence[str]
    ) -> list[CondaPackage] | None:
        """Return every build of `names`, including yanked ones; None if not hosted here."""
        if (hosted := self._hosted.get(channel)) is None:
            return None
        return [package for name in names for package, _ in hosted.packages(subdir, name)]

    def read_listed(
        self,
        channel: str,
        subdir: str,
        names: Sequence[str],
        *,
        cancelled: Cancelled = never,
        deadline: float | None = None,
    ) -> list[CondaPackage]:
        """Read every build of each of `names` in one subdir, in no order.

        The caller has observed the channel's states and passed them to `refresh`.
        """
        found = self.run(
            self._records(channel, [subdir], *names), cancelled=cancelled, deadline=deadline
        )
        return [self.package(record) for record in found]

    def read_entries(
        self,
        channel: str,
        platforms: Sequence[str] = ("linux-64",),
        *,
        deadline: float | None = None,
        most: int = 500_000,
    ) -> Iterator[tuple[ChannelEntry, list[rattler.RepoDataRecord]]]:
        """Yield each package name of a channel with its records, sorted by name.

        The caller has observed the channel's states and passed them to `refresh`.

        Args:
            most: maximum number of names in a channel.
        Raises:
            ChannelUnavailableError: the channel has more names, or cannot be read.
        """
        data = self._channeldata(channel, deadline=deadline)
        names = self._read_names([channel], platforms, deadline=deadline)
        if len(names) > most:
            raise ChannelUnavailableError(
                f"Channel {channel} lists more than {most:,} package names.",
                hint="Use a smaller channel, or ask its owner to check its repodata.",
            )
        held = 0
        for name in names:
            found = self.run(
                self._records(channel, with_noarch(platforms), name), deadline=deadline
            )
            held += len(found)
            if held > _MAX_CACHED_RECORDS:  # the gateway caches every query
                self.gateway.clear_repodata_cache(channel)
                held = 0
            if not found:
                continue
            about = data.get(name)
            about = about if isinstance(about, dict) else {}
            newest = newest_first(found)[0]
            yield (
                ChannelEntry(
                    name=name,
                    latest_version=str(newest.version),
                    versions=len({str(record.version) for record in found}),
                    subdirs=tuple(sorted({record.subdir for record in found})),
                    summary=str(about.get("summary") or ""),
                    license=newest.license or str(about.get("license") or ""),
                ),
                found,
            )

    def package(self, record: rattler.RepoDataRecord) -> CondaPackage:
        """Convert a rattler record; its URLs become canonical and lose their credentials."""
        record.url = canonical_or_same(without_credentials(record.url))
        record.channel = canonical_or_same(without_credentials(record.channel or ""))
        return from_rattler(record)

    async def guarded(self, work: Awaitable[Answer]) -> Answer:
        """Await `work` of the gateway and convert its failures to `StoreError`.

        The states were observed just before, so a failure is transient, unless a subdir is missing.
        """
        try:
            return await work
        except GatewayError as error:
            message = self.clean(str(error))
            refused = None
            if not self._confined:
                refused = await asyncio.to_thread(forward_proxy.refusal_in, message)
            if refused is not None:
                raise refused from error
            if "could not find subdir" in message:
                raise ChannelNotFoundError(message.partition("\n")[0]) from error
            if _FILE_TOO_LARGE in message:  # RLIMIT_FSIZE of a confined process
                raise ChannelUnavailableError(
                    f"The package list of a channel is larger than {self.limits.size:,} bytes "
                    "(CONDASTORE_MAX_REPODATA_BYTES): " + " ".join(message.split())
                ) from error
            raise ChannelUnavailableError(
                "The package list of a channel could not be read: " + " ".join(message.split())
            ) from error

    async def _records(
        self, channel: str, subdirs: Sequence[Any], *names: str
    ) -> list[rattler.RepoDataRecord]:
        found = await self.guarded(
            self.gateway.query(
                self.sources([channel]),
                subdirs,
                [rattler.MatchSpec(name) for name in names],
                recursive=False,
                channel_relations="disabled",
            )
        )
        return [record for records in found for record in records]

    def _channeldata(self, channel: str, *, deadline: float | None) -> dict[str, Any]:
        """Return the packages of channeldata.json; {} if the channel has none."""
        if channel in self._hosted:
            return {}
        with suppress(OSError, ValueError, AttributeError, httpx.HTTPError, TransferError):
            if channel.startswith("file:"):
                # A confined process opens only paths that its parent checked with the guard.
                folder = Path(url2pathname(urlsplit(channel).path))
                folder = folder if self._confined else guard().path(channel)
                with (folder / "channeldata.json").open("rb") as file:
                    content = file.read(_CHANNELDATA_BYTES)
            else:
                content = self.run(self._fetch_channeldata(channel), deadline=deadline)
            packages = parse_json(content).get("packages", {})
            return packages if isinstance(packages, dict) else {}
        return {}

    async def _fetch_channeldata(self, channel: str) -> bytes:
        credential = self._credentials.get(channel)
        headers = request_headers(credential) | {"Accept-Encoding": ACCEPT_ENCODING}
        limits = replace(self.limits, size=min(self.limits.size, _CHANNELDATA_BYTES))
        url = request_url(credential, f"{channel}/channeldata.json")
        options: dict[str, Any] = {"timeout": limits.timeout}
        # A confined process can connect only to the forward proxy, which checks addresses.
        make = httpx.AsyncClient if self._confined else clients.async_client
        async with (
            make(**options) as client,
            bounded_reading.stream(client, "GET", url, headers=headers, limits=limits) as answer,
        ):
            if not answer.is_success:
                return b"{}"
            return b"".join([part async for part in bounded_reading.read(answer, limits)])


def newest_first(records: Iterable[rattler.RepoDataRecord]) -> list[rattler.RepoDataRecord]:
    return sorted(records, key=lambda record: (record.version, record.build_number), reverse=True)


def _is_unexpected_304(error: ChannelUnavailableError) -> bool:
    return isinstance(error.__cause__, GatewayError) and "304 Not Modified" in error.message


def with_noarch(platforms: Sequence[str]) -> list[Any]:  # rattler expects its literal type
    return [*dict.fromkeys([*platforms, "noarch"])]


def _subdirs(channels: Sequence[str], platforms: Sequence[str]) -> list[tuple[str, str]]:
    return [(channel, subdir) for channel in channels for subdir in with_noarch(platforms)]


def _short(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text)
    temporary.replace(path)
