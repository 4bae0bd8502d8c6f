"""The same life of an environment on each database and broker, with two workers and two webs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx
import pytest

from tests.channels.server import ChannelServer
from tests.faults.watching import Watch, end_all, settle
from tests.migrated import migrated_postgres
from tests.services import Service, postgres, rabbitmq, redis
from tests.system import System, until

pytestmark = pytest.mark.matrix

Open = Callable[[], AbstractContextManager[Service]]
#: Name: the database (SQLite if None) and the broker (the embedded Valkey if None). Debian's
#: PostgreSQL is migrated from nothing.
INSTALLATIONS: dict[str, tuple[Open | None, Open | None]] = {
    "sqlite-valkey": (None, None),
    "debian-postgres-redis": (lambda: postgres("debian"), redis),
    "postgres-rabbitmq": (migrated_postgres, rabbitmq),
}
REFERENCE = "matrix/everything"
FIRST = "dependencies: [python, hello-noarch 1.*]"
SECOND = "dependencies: [python, hello-noarch 2.*]"
SLOW = "dependencies: [python]\ncondastore: {tests: {commands: ['sleep 3']}}\n"


@pytest.fixture(params=INSTALLATIONS)
def system(
    request: pytest.FixtureRequest,
    channel_server: ChannelServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[System]:
    database, broker = INSTALLATIONS[request.param]
    data: Path = tmp_path_factory.mktemp("m") / "data"
    with ExitStack() as services:
        environ = {"CONDASTORE_LEASE": "2", "CONDASTORE_SWEEP_INTERVAL": "1"}
        environ |= {"CONDASTORE_BACKOFF": "0.1", "CONDASTORE_TRASH_INTERVAL": "1"}
        if database is not None:
            environ["CONDASTORE_DATABASE_URL"] = services.enter_context(database()).url
        if broker is not None:
            environ["CONDASTORE_BROKER_URL"] = services.enter_context(broker()).url
        system = System(data, channel=channel_server.url, workers=2, environ=environ)
        try:
            yield system.start()
        finally:
            left = end_all(system)
        assert not left, left


def test_an_environment_lives_its_whole_life(system: System) -> None:
    second_web = system.add_web()
    environment = system.create(REFERENCE)
    link = system.folder(REFERENCE)
    with Watch(system.data):
        first = system.build(REFERENCE, FIRST)
        second = system.build(REFERENCE, SECOND)
        assert link.resolve() == Path(second["prefixPath"])
        assert _version(system) == "2.0"

        # One web process sees at once what was done through the other.
        assert _current(system, second_web) == second["id"]
        system.change("rollback", environmentId=environment)
        assert _current(system, second_web) == first["id"]
        assert link.resolve() == Path(first["prefixPath"])
        assert _version(system).startswith("1.")

        _publish_two_at_once(system, environment)

        cancelled = system.submit(REFERENCE, SLOW)
        system.wait(cancelled, ["CHECKING"])
        system.change("cancelBuild", id=cancelled)
        assert system.wait(cancelled, seconds=10)["state"] == "CANCELLED"

        system.change("archiveBuild", id=second["id"])
        until(lambda: not Path(second["prefixPath"]).exists())
        system.change("restoreBuild", id=second["id"])
        restored = system.wait(second["id"], ["READY", "FAILED"])
        assert restored["lock"] == second["lock"]
        assert Path(restored["prefixPath"]).is_dir()
        assert link.resolve() == Path(first["prefixPath"])

        outlives = system.submit(REFERENCE, SLOW)
        system.wait(outlives, ["CHECKING"])
        for worker in system.processes("worker"):
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
        done = system.wait(outlives)
        assert (done["state"], done["attempt"]) == ("READY", 2)
    settle(system, [REFERENCE])
    assert "Traceback" not in system.log()


#: The newer build moves the pointer, and the older one tries to before that is committed.
RACE = """
import threading, time
from django.db import connection, transaction
from environments.models import Environment
environment = Environment.objects.get(pk={environment})
older, newer = environment.builds.order_by("number")[:2]
before = environment.current, environment.pinned
Environment.objects.filter(pk=environment.pk).update(current=None, pinned=False)
moved = threading.Event()
def publish():
    with transaction.atomic():
        assert environment.advance(newer)
        moved.set()
        time.sleep(0.5)
    connection.close()
first = threading.Thread(target=publish)
first.start()
moved.wait()
with transaction.atomic():
    print(environment.advance(older))
first.join()
environment.refresh_from_db()
print(environment.current_id == newer.pk)
Environment.objects.filter(pk=environment.pk).update(current=before[0], pinned=before[1])
"""


def _publish_two_at_once(system: System, environment: str) -> None:
    said = system.manage(RACE.format(environment=environment)).split()
    assert said == ["False", "True"], "an older build replaced a newer one"


def _version(system: System) -> str:
    code = "import hello_noarch; print(hello_noarch.__version__)"
    return system.run("run", REFERENCE, "--", "python", "-c", code).stdout.strip()


def _current(system: System, url: str) -> str:
    query = """query($namespace: String!, $name: String!) {
      environment(namespace: $namespace, name: $name) { current { id: databaseId } } }"""
    names = dict(zip(("namespace", "name"), REFERENCE.split("/"), strict=True))
    headers = {"Authorization": f"Bearer {system.token}"}
    answer = httpx.post(
        f"{url}/graphql", json={"query": query, "variables": names}, headers=headers
    )
    return str(answer.json()["data"]["environment"]["current"]["id"])
