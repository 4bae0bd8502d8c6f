"""HTTP clients for URLs that can be influenced without an installation-wide role.

They connect only to addresses that the guard permits, also after a redirect. httpx drops the
Authorization header when a redirect leads to another server.

If the operator's environment names a proxy (HTTPS_PROXY and similar), requests go through the
forward proxy, which checks them and passes them on.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from environments.engine._private import connect_through
from environments.engine.network import forward_proxy
from environments.engine.network.addresses import Guard, ResolverError, guard, patience_for

_READ_SIZE = 256 << 10  # bytes
_Options = Iterable[httpcore.SOCKET_OPTION] | None


class Backend(httpcore.SyncBackend):
    """Connects to the checked addresses instead of resolving the name again."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _Options = None,
    ) -> httpcore.NetworkStream:
        try:
            found = self._guard.resolve(host, port, timeout)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"Resolving the name {host!r} timed out.") from error
        except ResolverError as error:
            raise httpcore.ConnectError(str(error)) from error
        for position, address in enumerate(found):
            patience = patience_for(position, len(found), timeout)
            try:
                return super().connect_tcp(address, port, patience, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(found) - 1:
                    raise
        raise AssertionError("resolve returns at least one address")


class _LargeReads(httpcore.AsyncNetworkStream):
    """Reads more at once than httpcore requests, to run fewer steps in Python."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max(max_bytes, _READ_SIZE), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        opened = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _LargeReads(opened)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class AsyncBackend(httpcore.AnyIOBackend):
    """Asyncio version of `Backend`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _Options = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await self._guard.resolve_async(host, port, timeout)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"Resolving the name {host!r} timed out.") from error
        except ResolverError as error:
            raise httpcore.ConnectError(str(error)) from error
        for position, address in enumerate(found):
            patience = patience_for(position, len(found), timeout)
            try:
                opened = await super().connect_tcp(
                    address, port, patience, local_address, socket_options
                )
                return _LargeReads(opened)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(found) - 1:
                    raise
        raise AssertionError("resolve returns at least one address")


class _Proxied(httpx.HTTPTransport):
    """Sends requests through the forward proxy, and converts its refusals to errors."""

    def __init__(self, guard: Guard, **options: Any) -> None:
        super().__init__(proxy=forward_proxy.access_for(guard).patient_url, **options)
        self._guard = guard

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = super().handle_request(request)
        except httpx.ProxyError as error:
            if forward_proxy.REFUSED_PHRASE in str(error):
                raise self._guard.refusal(request.url.host) from error
            raise
        if response.headers.get("proxy-status") == forward_proxy.REFUSED_STATUS:
            response.close()
            raise self._guard.refusal(request.url.host)
        return response


class _AsyncProxied(httpx.AsyncHTTPTransport):
    """Asyncio version of `_Proxied`."""

    def __init__(self, guard: Guard, **options: Any) -> None:
        super().__init__(proxy=forward_proxy.access_for(guard).patient_url, **options)
        self._guard = guard

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await super().handle_async_request(request)
        except httpx.ProxyError as error:
            if forward_proxy.REFUSED_PHRASE in str(error):
                raise self._guard.refusal(request.url.host) from error
            raise
        if response.headers.get("proxy-status") == forward_proxy.REFUSED_STATUS:
            await response.aclose()
            raise self._guard.refusal(request.url.host)
        return response


def client(*, within: Guard | None = None, **options: Any) -> httpx.Client:
    """Return a client that connects to what `within` permits; the default is the process's guard.

    Its requests raise AddressRefusedError for anything else.

    Args:
        options: options of `httpx.Client`.
    """
    return httpx.Client(
        transport=transport(within or guard(), limits=options.pop("limits", None)), **options
    )


def async_client(*, within: Guard | None = None, **options: Any) -> httpx.AsyncClient:
    """Return the asyncio version of `client`."""
    used, limits = within or guard(), options.pop("limits", None)
    chosen = _limits(limits)
    if forward_proxy.upstream_proxies():
        return httpx.AsyncClient(transport=_AsyncProxied(used, **chosen), **options)
    created = httpx.AsyncHTTPTransport(**chosen)
    connect_through(created, AsyncBackend(used))
    return httpx.AsyncClient(transport=created, **options)


def transport(within: Guard, *, limits: httpx.Limits | None = None) -> httpx.HTTPTransport:
    """Return the transport of `client`."""
    chosen = _limits(limits)
    if forward_proxy.upstream_proxies():
        return _Proxied(within, **chosen)
    created = httpx.HTTPTransport(**chosen)
    connect_through(created, Backend(within))
    return created


def _limits(limits: httpx.Limits | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {"verify": certificates()}
    if limits is not None:
        chosen["limits"] = limits
    return chosen


@functools.cache
def certificates() -> ssl.SSLContext:
    """Return the trusted certificates; loading them takes 70 ms."""
    return httpx.create_ssl_context()
