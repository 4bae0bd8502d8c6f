"""Private names of httpx, py-rattler and conda-pack that have no public counterpart.

The only module of the engine that uses such names, each with the reason.
`tests/environments/engine/test_private.py` fails when a release changes one of them, and says what
to do.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import httpcore
import httpx
from rattler import MatchSpec, PackageRecord


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


def native_record(record: PackageRecord) -> Any:
    """Return the native object of a record of rattler.

    Only the native object of a RepoDataRecord has `to_json`, and its times are milliseconds,
    which are read much faster than the datetimes of the public properties.
    """
    return record._record


def native_spec(spec: MatchSpec) -> Any:
    """Return the native object of a specification.

    py-rattler 0.28 declares `requested_specs` of `install` as MatchSpec, but accepts only these.
    """
    return spec._match_spec


def conda_unpack_template() -> str:
    """Return the text of `bin/conda-unpack` before `str.format`, from conda-pack."""
    from conda_pack import core

    text: str = core._conda_unpack_template
    return text


def conda_unpack_progress() -> str:
    """Return the module that `bin/conda-unpack` of conda-pack imports."""
    return (resources.files("conda_pack") / "_progress.py").read_text()
