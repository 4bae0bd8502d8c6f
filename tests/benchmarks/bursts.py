"""Time of many submissions at once while workers build, and latency of readers meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass

from tests.benchmarks.builds import SMALL
from tests.benchmarks.channels import served
from tests.benchmarks.connections import Connection
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
    def body(number: int) -> bytes:
        text = environment_file(
            SMALL[number % len(SMALL)], channel=channel, variables={"NUMBER": number}
        )
        name = f"burst-{number % ENVIRONMENTS}"
        variables = {"namespace": NAMESPACE, "environment": name, "text": text, "force": False}
        return json.dumps({"query": SUBMIT, "variables": variables}).encode()

    before = range(BURST, BURST + ENVIRONMENTS)
    return asyncio.run(_submit(system, [body(n) for n in range(BURST)], [body(n) for n in before]))


async def _submit(system: Running, burst: Sequence[bytes], before: Sequence[bytes]) -> Burst:
    """Send `burst` at once, while the builds of `before` are followed and lists are read."""
    ended, read = asyncio.Event(), list[float]()

    async def submit(body: bytes) -> tuple[float, str]:
        clock = Clock()
        async with Connection(system.url, system.token) as connection:
            answer = (await connection.post(body))["data"]["submitBuild"]
        return clock.seconds, answer["build"]["id"] if "build" in answer else ""

    async def look() -> None:
        async with Connection(system.url, system.token) as connection:
            while not ended.is_set():
                clock = Clock()
                assert "data" in await connection.post(json.dumps({"query": LIST}).encode())
                read.append(clock.seconds)

    first = [(await submit(body))[1] for body in before]
    async with asyncio.TaskGroup() as group, AsyncExitStack() as followed:
        for build in (first * SUBSCRIPTIONS)[:SUBSCRIPTIONS]:
            connection = await followed.enter_async_context(Connection(system.url, system.token))
            await connection.follow(FOLLOW, id=build)
        readers = [group.create_task(look()) for _ in range(READERS)]
        await asyncio.sleep(1)  # whatever the start of the readers takes
        read.clear()
        clock = Clock()
        answers = await asyncio.gather(*map(submit, burst))
        whole = clock.seconds
        ended.set()
        await asyncio.wait(readers)
    return Burst(
        whole=whole,
        refused=sum(not build for _, build in answers),
        submitted=[seconds for seconds, _ in answers],
        read=read,
    )
