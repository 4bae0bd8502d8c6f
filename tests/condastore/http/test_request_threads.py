"""Threads and connections that a web process keeps: on PostgreSQL, and while that is away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from condastore.http.request_threads import KEPT, POOL
from tests.migrated import migrated_postgres
from tests.services import Service
from tests.services.processes import free_ports

SERVE = """
import sys
import django
django.setup()
from django.utils import timezone
from accounts.models import ApiToken
from tests import factories
from environments.services import blobs
from environments.models import Artifact
from environments.domain.artifacts import ArtifactKind, ArtifactState
from pathlib import Path
build = factories.make_build(factories.make_environment(factories.make_namespace(public=True)))
artifact = Artifact.wanted(build, ArtifactKind.TAR_ZST, factories.PLATFORM)
made = Path(sys.argv[2])
with made.open("wb") as file:
    file.truncate(int(sys.argv[3]))
ready = {"state": ArtifactState.READY, "blob": blobs.add(made)}
Artifact.objects.filter(pk=artifact.pk).update(**ready)
print(build.environment, flush=True)
print(factories.make_token(factories.make_user("erin")), flush=True)
# Its last use need not be written.
ApiToken.objects.update(last_used_at=timezone.now(), last_used_address="127.0.0.1")
ApiToken.objects.update(last_used_at=timezone.now().replace(year=2100))
import uvicorn
from condastore.asgi import application
from condastore.http.protocol import HttpProtocol
uvicorn.run(application, port=int(sys.argv[1]), log_level="warning", http=HttpProtocol)
"""
PROJECT = Path(__file__).resolve().parents[3]
PATIENCE = 120.0  # seconds; for a machine that is busy
LARGE = 24_000_000  # bytes; more than the kernel keeps for a client that does not read


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    client: httpx.Client
    database: Service
    file: str  # the address of LARGE bytes

    def get(self, path: str = "/api/whoami", **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def many(self, number: int) -> set[int]:
        """The statuses of so many requests, twenty at once."""
        with ThreadPoolExecutor(20) as threads:
            return {
                answer.status_code for answer in threads.map(lambda _: self.get(), range(number))
            }

    def connections(self) -> int:
        with psycopg.connect(self.database.url) as own:
            row = own.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    (port,) = free_ports()
    url = f"http://127.0.0.1:{port}"
    data = tmp_path_factory.mktemp("web")
    with migrated_postgres() as database, (data / "log").open("w") as log:
        variables = os.environ | {
            "CONDASTORE_DATA": str(data),
            "CONDASTORE_DATABASE_URL": database.url,
            "DJANGO_SETTINGS_MODULE": "condastore.settings",
        }
        command = [sys.executable, "-c", SERVE, str(port), str(data / "made"), str(LARGE)]
        process = subprocess.Popen(
            command, env=variables, cwd=PROJECT, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            location, token = (process.stdout.readline().strip() for _ in range(2))
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                assert process.poll() is None, (data / "log").read_text()
                with suppress(httpx.TransportError):
                    httpx.get(f"{url}/healthz")
                    break
                time.sleep(0.1)
            header = {"Authorization": f"Bearer {token}"}
            with httpx.Client(
                base_url=url,
                headers=header,
                timeout=PATIENCE,
                limits=httpx.Limits(max_connections=None),
            ) as client:
                file = f"/api/envs/{location}/1/env.tar.zst"
                yield Web(client=client, database=database, file=file)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def test_connections_do_not_grow_with_requests(web: Web) -> None:
    assert web.many(40) == {200}
    held = web.connections()
    assert held <= POOL["max_size"]
    assert web.many(60) == {200}
    for _ in range(2 * KEPT):
        assert web.get().json()["username"] == "erin"
    # Those that the pool has given up are closed beside the requests.
    end = time.monotonic() + PATIENCE
    while (left := web.connections()) > max(held, 20) and time.monotonic() < end:
        time.sleep(0.5)
    assert left <= max(held, 20)


def test_slow_downloads_hold_no_connection_of_the_database(web: Web) -> None:
    with ExitStack() as stack:
        for _ in range(POOL["max_size"] + KEPT):
            answer = stack.enter_context(web.client.stream("GET", web.file))
            assert answer.status_code == 200
            assert answer.headers["Content-Length"] == str(LARGE)
        assert web.many(20) == {200}
        assert web.connections() < POOL["max_size"]


def test_short_answers_that_nobody_reads_hold_no_connection_either(web: Web) -> None:
    """Each is shorter than what the kernel keeps for a client; all that were asked for are not."""
    address = urlsplit(str(web.client.base_url))
    request = (
        f"GET {web.file} HTTP/1.1\r\nHost: {address.netloc}\r\nRange: bytes=0-1048575\r\n"
        f"Authorization: {web.client.headers['Authorization']}\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(POOL["max_size"] + KEPT):
            opened = socket.create_connection((address.hostname, address.port), timeout=PATIENCE)
            stack.enter_context(closing(opened)).sendall(24 * request.encode())
        assert web.many(20) == {200}
        assert web.connections() < POOL["max_size"]


def test_while_the_database_is_away_it_is_told_within_seconds_and_is_back_at_once(
    web: Web,
) -> None:
    assert web.get().status_code == 200
    web.database.kill()
    try:
        started = time.monotonic()
        answer = web.get()
        took = time.monotonic() - started
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "database" in answer.json()["detail"]
        assert answer.headers["Retry-After"]
        assert POOL["timeout"] - 1 < took < 60
        # Probes bring no token.
        assert web.get("/healthz", Authorization="").status_code == 200
        checks = web.get("/readyz", Authorization="").json()["checks"]
        assert checks["database"]["ok"] is False
    finally:
        web.database.start()
    assert web.get().json()["username"] == "erin"
    assert web.many(40) == {200}


def test_after_a_restart_between_two_requests_the_next_one_works(web: Web) -> None:
    assert web.many(20) == {200}  # connections are held that the restart ends
    web.database.restart()
    assert [web.get().status_code for _ in range(5)] == [200] * 5
    assert web.many(40) == {200}
