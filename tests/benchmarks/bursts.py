"""Time of many submissions at once while workers build, and latency of readers meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.benchmarks.builds import SMALL
from tests.benchmarks.channels import served
from tests.benchmarks.lists import LIST
from tests.benchmarks.measure import Clock, Measure, scratch
from tests.benchmarks.running import NAMESPACE, Running, environment_file
from tests.migrated import migrated_postgres
from tests.system import SUBMIT

BURST, ENVIRONMENTS, SUBSCRIPTIONS, READERS = 200, 20, 100, 4
FOLLOW = "subscription($id: ID!) { buildProgress(buildId: $id) { build { state } } }"


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Seconds of each submission and of each list that was read meanwhile."""

    whole: float
    refused: int
    submitted: Sequence[float]
    read: Sequence[float]


def bursts() -> Iterator[Measure]:
    with served("small") as url, ExitStack() as stack:
        database = stack.enter_context(migrated_postgres())
        on_sqlite = _burst(url, {})
        on_postgres = _burst(url, {"CONDASTORE_DATABASE_URL": database.url})
    for name, burst in (("SQLite", on_sqlite), ("PostgreSQL", on_postgres)):
        waits = f"median {_at(burst.submitted, 0.5):.2f} s, slowest {max(burst.submitted):.2f} s"
        yield Measure(
            name=f"{BURST} submissions at once while 2 workers build, {name}",
            value=burst.whole,
            unit="s",
            ceiling=5 if burst is on_sqlite else None,
            note=f"{waits}; {SUBSCRIPTIONS} subscriptions open; {burst.refused} were refused",
        )
        yield Measure(
            name=f"99 of 100 lists that are read meanwhile, {name}",
            value=_at(burst.read, 0.99),
            unit="s",
            ceiling=1,
            note=f"{len(burst.read)} lists, median {_at(burst.read, 0.5):.2f} s",
        )
    yield Measure(
        name="the burst on SQLite / on PostgreSQL",
        value=on_sqlite.whole / on_postgres.whole,
        unit="x",
        note=f"{on_sqlite.whole:.1f} s / {on_postgres.whole:.1f} s",
    )


def _at(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def _burst(channel: str, environ: Mapping[str, str]) -> Burst:
    with scratch() as folder:
        system = Running(folder, channel=f"{channel}small", workers=2)
        system.environ.update(environ)
        with system:
            return _submit_all(system, f"{channel}small")


def _submit_all(system: Running, channel: str) -> Burst:
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {system.token}"}
    client = httpx.Client(base_url=system.url, headers=headers, timeout=120, limits=limits)

    def ask(query: str, **variables: object) -> dict[str, Any]:
        answer = client.post("/graphql", json={"query": query, "variables": variables})
        data: dict[str, Any] = answer.json()["data"]
        return data

    def submit(number: int) -> tuple[float, str]:
        text = environment_file(
            SMALL[number % len(SMALL)], channel=channel, variables={"NUMBER": number}
        )
        clock = Clock()
        answer = ask(
            SUBMIT,
            namespace=NAMESPACE,
            environment=f"burst-{number % ENVIRONMENTS}",
            text=text,
            force=False,
        )["submitBuild"]
        return clock.seconds, answer["build"]["id"] if "build" in answer else ""

    ended, read = threading.Event(), list[float]()

    def look() -> None:
        while not ended.is_set():
            clock = Clock()
            ask(LIST)
            read.append(clock.seconds)

    first = [submit(number)[1] for number in range(BURST, BURST + ENVIRONMENTS)]
    with (
        ThreadPoolExecutor(BURST) as senders,
        ThreadPoolExecutor(READERS) as readers,
        _subscribed(system, (first * SUBSCRIPTIONS)[:SUBSCRIPTIONS]),
    ):
        looking = [readers.submit(look) for _ in range(READERS)]
        clock = Clock()
        answers = list(senders.map(submit, range(BURST)))
        whole = clock.seconds
        ended.set()
        for one in looking:
            one.result()
    return Burst(
        whole=whole,
        refused=sum(not build for _, build in answers),
        submitted=[seconds for seconds, _ in answers],
        read=read,
    )


@contextmanager
def _subscribed(system: Running, builds: Sequence[str]) -> Iterator[None]:
    headers = {"Authorization": f"Bearer {system.token}", "Accept": "text/event-stream"}

    def follow(build: str) -> None:
        body = {"query": FOLLOW, "variables": {"id": build}}
        url = f"{system.url}/graphql"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as response:
            for _ in response.iter_bytes():
                pass

    with ThreadPoolExecutor(len(builds)) as followers:
        following = [followers.submit(follow, build) for build in builds]
        yield
        for one in following:
            one.result()
