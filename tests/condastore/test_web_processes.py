"""Several web processes on one address: restarts that nobody notices, counts that add up."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.condastore.running_system import System, make_system
from tests.services.processes import wait_for

WEBS = ("web-1", "web-2")
ASKED = 100


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("webs")
    system = make_system(
        folder, {"CONDASTORE_WEB_PROCESSES": "2", "CONDASTORE_METRICS_PUBLIC": "1"}
    )
    system.start()
    try:
        yield system
    finally:
        system.stop()


def statuses(system: System, number: int) -> set[int]:
    """Of requests with connections of their own, some at once."""

    address = urlsplit(system.url)

    def ask(_: int) -> int:
        connection = HTTPConnection(str(address.hostname), address.port, timeout=60)
        with closing(connection):
            connection.request("GET", "/api/sign-in")
            return connection.getresponse().status

    with ThreadPoolExecutor(8) as threads:
        return set(threads.map(ask, range(number)))


def counted(system: System) -> float:
    text = httpx.get(f"{system.url}/metrics", timeout=60).text
    found = re.findall(
        r'condastore_http_request_seconds_count\{[^}]*route="sign-in-ways"[^}]*\} (\S+)', text
    )
    return sum(map(float, found))


def test_both_answer_and_their_counts_are_one(system: System) -> None:
    assert set(WEBS) < set(system.state["children"])
    before = [sum(psutil.Process(system.state["children"][name]).cpu_times()[:2]) for name in WEBS]
    known = counted(system)
    assert statuses(system, ASKED) == {200}
    assert {counted(system) for _ in range(4)} == {known + ASKED}
    after = [sum(psutil.Process(system.state["children"][name]).cpu_times()[:2]) for name in WEBS]
    assert all(late > early for early, late in zip(before, after, strict=True))
    assert "condastore_builds" in httpx.get(f"{system.url}/metrics", timeout=60).text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_connection_is_refused_while_one_starts_again(
    system: System, number: signal.Signals
) -> None:
    pid = system.state["children"]["web-1"]
    psutil.Process(pid).send_signal(number)
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(statuses, system, 200)
        wait_for(lambda: system.state["children"].get("web-1") not in (pid, None), seconds=60)
        # A request that the killed process was answering is cut; none is by a stop.
        try:
            assert asking.result() == {200}
        except (HTTPException, ConnectionResetError):
            assert number == signal.SIGKILL
    assert statuses(system, ASKED) == {200}


def test_the_address_is_refused_to_another_system(system: System, tmp_path: Path) -> None:
    port = system.url.rpartition(":")[2]
    person = make_system(tmp_path, {"CONDASTORE_WEB_PROCESSES": "2"}).person
    ended = person.does("up", "--port", port)
    assert ended.status == 6, ended.err
    assert port in ended.err
