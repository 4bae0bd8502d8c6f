"""The private names in `environments/engine/_private.py` still do what the engine needs.

When one of these tests fails after an update: look for a public replacement in the release notes
first. Otherwise follow the change in `environments/engine/_private.py`, or keep the former release
by the bounds in pyproject.toml.
"""

from __future__ import annotations

import ast
import json
from typing import Any

import httpcore
import httpx
import pytest
from rattler import MatchSpec

from environments.domain.records import CondaPackage
from environments.engine import _private
from environments.engine.channels.records import to_rattler

RECORD = {
    "name": "tool",
    "version": "1.0",
    "build": "0",
    "build_number": 0,
    "subdir": "noarch",
    "depends": [],
    "timestamp": 1_700_000_000_000,
}
CHANNEL = "https://example.org/conda"


class _Refusing(httpcore.NetworkBackend):
    """Network without any connection; keeps the addresses that were requested."""

    def __init__(self) -> None:
        self.requested: list[tuple[str, int]] = []

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        self.requested.append((host, port))
        raise httpcore.ConnectError("refused")


def test_a_transport_connects_through_the_given_backend() -> None:
    backend, transport = _Refusing(), httpx.HTTPTransport()
    _private.connect_through(transport, backend)
    with httpx.Client(transport=transport) as client, pytest.raises(httpx.ConnectError):
        client.get("http://192.0.2.1:81/")
    assert backend.requested == [("192.0.2.1", 81)]


def test_a_native_record_has_json_and_times_in_milliseconds() -> None:
    package = CondaPackage.from_record(
        RECORD,
        url=f"{CHANNEL}/noarch/tool-1.0-0.conda",
        channel=CHANNEL,
        file_name="tool-1.0-0.conda",
    )
    native = _private.native_record(to_rattler(package))
    native.indexed_timestamp = 1_700_000_000_001
    assert native.timestamp == RECORD["timestamp"]
    assert native.indexed_timestamp == 1_700_000_000_001
    assert json.loads(native.to_json()).items() >= {"name": "tool", "version": "1.0"}.items()


def test_a_native_specification_prints_like_the_public_one() -> None:
    assert type(_private.native_spec(MatchSpec("tool >=1"))).__name__ == "PyMatchSpec"


def test_the_unpack_program_of_conda_pack_is_python_with_the_given_prefixes() -> None:
    text = _private.conda_unpack_template().format(
        shebang="#!/usr/bin/env python",
        prefixes_py="# prefixes",
        prefix_records="('bin/tool', '/old', 'text')",
        version="1",
    )
    ast.parse(text)
    assert "('bin/tool', '/old', 'text')" in text


def test_the_progress_module_of_conda_pack_is_python() -> None:
    assert ast.parse(_private.conda_unpack_progress()).body
