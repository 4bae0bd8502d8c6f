"""Channels that are slow, endless or send bombs: bounded time and memory."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.channels.hostile_server import (
    Asked,
    HostileServer,
    Script,
    dribble,
    endless,
    gzip_spaces,
    head,
    hostile,
    missing,
    whole,
)
from tests.faults.conftest import Start
from tests.faults.watching import settle
from tests.system import System, until

#: Seconds in which something happens on a busy machine; unbounded work would take far longer.
GENEROUS = 60
#: Bytes that a worker and its children may hold beyond what they held before.
LIMIT = 64 << 20  # bytes of repodata; what is sent has no end, or is three times as large
GROWTH = 400 << 20
EMPTY = json.dumps({"info": {"subdir": "noarch"}, "packages": {}, "packages.conda": {}}).encode()
DRIBBLED = head("200 OK", Content_Length=1_000_000)


def only_json(answer: Callable[[Asked], Iterator[bytes | float]]) -> Script:
    """Answer requests for `repodata.json`; all else is missing."""

    def script(asked: Asked) -> Iterator[bytes | float]:
        return answer(asked) if asked.path.endswith("/repodata.json") else missing()

    return script


def with_etag(body: Callable[[], Iterator[bytes | float]]) -> Script:
    """A state that is asked for with HEAD is there at once; the body is hostile."""

    def answer(asked: Asked) -> Iterator[bytes | float]:
        if asked.method == "HEAD":
            return iter([head("200 OK", Content_Length=len(EMPTY), ETag='"1"')])
        return body()

    return only_json(answer)


def without_etag(body: Callable[[], Iterator[bytes | float]]) -> Script:
    def answer(asked: Asked) -> Iterator[bytes | float]:
        return iter([head("200 OK", Content_Length=9)]) if asked.method == "HEAD" else body()

    return only_json(answer)


def text_of(server: HostileServer) -> str:
    return f"channels: [{server.url}/c]\ndependencies: [anything]"


class Peak:
    """Peak memory of a system's processes, sampled continuously."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._end = threading.Event()
        self.start = self._held()
        self.most = self.start
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _held(self) -> int:
        """Return the memory of all processes of `up`, without mapped files."""
        total = 0
        with contextlib.suppress(psutil.Error):
            for process in self._system.supervisor.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
        return total

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self.most = max(self.most, self._held())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def system(start: Start) -> Iterator[System]:
    with start(
        DOWNLOAD_TIMEOUT="2",
        SOLVE_TIME_LIMIT="60",
        BUILD_ATTEMPTS="1",
        WORKER_THREADS="4",
        MAX_REPODATA_BYTES=str(LIMIT),
    ) as running:
        for name in ("honest/one", "hostile/one", "hostile/two", "hostile/three", "hostile/four"):
            running.create(name)
        running.build("honest/one", "dependencies: [libalpha]")
        yield running


@pytest.fixture(scope="module")
def patient(start: Start) -> Iterator[System]:
    """A system whose limits alone would let a slow build run for an hour."""
    with start(DOWNLOAD_TIMEOUT="3600", SOLVE_TIME_LIMIT="3600") as running:
        running.create("hostile/one")
        yield running


SLOW = {
    "a state that dribbles": without_etag(lambda: dribble(b"", first=DRIBBLED, pause=0.5)),
    "a head that dribbles": only_json(lambda asked: dribble(DRIBBLED, pause=0.5)),
    "repodata that dribbles": with_etag(lambda: dribble(b"", first=DRIBBLED, pause=0.5)),
    "repodata that never comes": with_etag(lambda: iter([DRIBBLED, 3600.0])),
}


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW.keys())
def test_a_slow_channel_is_disconnected_and_named(system: System, script: Script) -> None:
    with hostile(script) as server:
        done = system.wait(system.submit("hostile/one", text_of(server)), seconds=GENEROUS)
        assert done["state"] == "FAILED"
        assert done["failure"]["code"] == "channel-unavailable", done["failure"]
        assert server.url in done["failure"]["message"]


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW.keys())
def test_a_build_on_such_a_channel_can_be_cancelled(patient: System, script: Script) -> None:
    system = patient
    with hostile(script) as server:
        build = system.submit("hostile/one", text_of(server))
        until(
            lambda: any(requested.path.endswith("repodata.json") for requested in server.requests)
        )
        time.sleep(1)
        system.change("cancelBuild", id=build)
        assert system.wait(build, seconds=GENEROUS)["state"] == "CANCELLED"


def test_builds_on_a_slow_channel_do_not_keep_another_namespace_out(start: Start) -> None:
    # The limits alone would let these go on for an hour, on all four threads of the worker, of
    # which reading the channel for search may take one.
    with (
        start(DOWNLOAD_TIMEOUT="3600", SOLVE_TIME_LIMIT="3600", WORKER_THREADS="4") as system,
        hostile(SLOW["repodata that dribbles"]) as server,
    ):
        slow = [f"hostile/{number}" for number in ("one", "two", "three", "four", "five")]
        for name in (*slow, "honest/one"):
            system.create(name)
        builds = [system.submit(name, text_of(server)) for name in slow]
        until(lambda: [system.show(build)["state"] for build in builds].count("SOLVING") >= 3)
        time.sleep(2)  # the fourth thread finds work, too
        system.build("honest/one", "dependencies: [libalpha]")
        shown = [system.show(build) for build in builds]
        assert {build["state"] for build in shown} <= {"SOLVING", "QUEUED"}
        assert [build["attempt"] for build in shown if build["state"] == "SOLVING"] == [1] * sum(
            build["state"] == "SOLVING" for build in shown
        )
        messages = [event["message"] for build in shown for event in build["events"]]
        assert "made way for a build of another namespace" in messages


PREVIEW = """
mutation($namespace: String!, $text: String!) {
  previewSolve(namespace: $namespace, specification: $text, forceSolve: true, wait: 0) {
    __typename
    ... on Preview { id state }
  }
}
"""
PREVIEWED = "query($id: ID!) { preview(id: $id) { state } }"


def test_previews_on_a_slow_channel_keep_nobody_out(start: Start) -> None:
    # The limits alone would let these go on for an hour, on all four threads of the worker.
    with (
        start(DOWNLOAD_TIMEOUT="3600", SOLVE_TIME_LIMIT="3600", WORKER_THREADS="4") as system,
        hostile(SLOW["repodata that dribbles"]) as server,
    ):
        system.create("hostile/one")
        system.create("honest/one")

        def preview(namespace: str, text: str) -> str:
            requested = system.graphql(PREVIEW, namespace=namespace, text=text)["previewSolve"]
            return str(requested["id"])

        def state(key: str) -> str:
            return str(system.graphql(PREVIEWED, id=key)["preview"]["state"])

        slow = [preview("hostile", text_of(server)) for _ in range(5)]
        until(lambda: list(map(state, slow)).count("SOLVING") == 2, GENEROUS)
        system.build("honest/one", "dependencies: [libalpha]")
        honest = preview("honest", "dependencies: [libalpha]")
        until(lambda: state(honest) == "READY", GENEROUS)
        assert set(map(state, slow)) <= {"QUEUED", "SOLVING"}


LARGE = {
    "an endless state": without_etag(lambda: endless(head("200 OK"))),
    "endless repodata": with_etag(lambda: endless(head("200 OK"))),
    "a gzip bomb": with_etag(lambda: whole(gzip_spaces(3 * LIMIT), Content_Encoding="gzip")),
}


@pytest.mark.parametrize("script", LARGE.values(), ids=LARGE.keys())
def test_an_endless_response_takes_no_memory_and_names_the_limit(
    system: System, script: Script
) -> None:
    gzip_spaces(3 * LIMIT)  # takes longer to pack than a server may be silent
    with hostile(script) as server, Peak(system) as peak:
        done = system.wait(system.submit("hostile/one", text_of(server)), seconds=GENEROUS)
    assert done["failure"]["code"] == "channel-unavailable", done["failure"]
    assert "CONDASTORE_MAX_REPODATA_BYTES" in done["failure"]["message"]
    assert peak.most - peak.start < GROWTH


def test_no_leftovers_remain(system: System) -> None:
    settle(system, ["honest/one"])
    until(lambda: not list((system.data / "cache" / "repodata").rglob(".tmp*")), GENEROUS)
