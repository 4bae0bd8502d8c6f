"""Private interfaces of libraries that this package uses, each with the reason."""

from __future__ import annotations

import httpcore
import httpx


def connect_through(
    transport: httpx.HTTPTransport | httpx.AsyncHTTPTransport,
    backend: httpcore.NetworkBackend | httpcore.AsyncNetworkBackend,
) -> None:
    """Make a transport of httpx open its connections through `backend`.

    httpx has no argument for the network backend that httpcore's pools accept.
    """
    pool = transport._pool
    if not hasattr(pool, "_network_backend"):
        raise RuntimeError("httpcore's pools store their network backend under another name.")
    pool._network_backend = backend
