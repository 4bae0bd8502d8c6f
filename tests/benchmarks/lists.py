"""Cost of a list of environments among 100 and among 100,000."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
import psutil

from tests.benchmarks.channels import PROJECT
from tests.benchmarks.inside import ADMINISTRATOR, MEMBER, PASSWORD, inside
from tests.benchmarks.measure import (
    MEGABYTE,
    Clock,
    Measure,
    cpu_seconds,
    median,
    memory_of,
    scratch,
)

COUNTS = (10, 100, 1_000, 100_000)
OWN = 100  # what the others are held against
#: Budget: one process answers 60 requests a second.
REQUEST_MS = 1000 / 60
CLIENTS, SECONDS, ROUNDS = 4, 4.0, 25
#: Connections at once, and seconds of each of the rounds.
CROWDS, CROWD_SECONDS, CROWD_ROUNDS = (1, 4, 16), 2.0, 4
CROWD = CROWDS[-1]
#: How many times as many requests the least list may answer.
CROWD_CEILINGS = {ADMINISTRATOR: 1 / 0.5, MEMBER: 1 / 0.45}

#: What a page with a list of environments shows.
LIST = """{
  environments(first: 100) {
    edges { node {
      id name updatedAt
      namespace { name }
      current { id number state finishedAt }
    } }
    pageInfo { hasNextPage endCursor }
  }
}"""
WITH_TOTAL = LIST.replace("pageInfo", "totalCount pageInfo")


class Client:
    """One connection; sends the same question again and again."""

    def __init__(self, system: Web, token: str, query: str = LIST) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=60)
        self._body = json.dumps({"query": query})
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self) -> float:
        """Seconds until the whole answer is there."""
        clock = Clock()
        self._connection.request("POST", "/graphql", self._body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        seconds = clock.seconds
        assert answer.status == 200, content[:1000]
        assert b'"errors"' not in content[:200], content[:1000]
        return seconds


def lists() -> Iterator[Measure]:
    with scratch() as folder, ExitStack() as stack:
        systems = {count: stack.enter_context(Web(folder / str(count), count)) for count in COUNTS}
        tokens = {
            (who, count): system.sign_in(who)
            for count, system in systems.items()
            for who in (ADMINISTRATOR, MEMBER)
        }
        yield from _queries(systems, tokens)
        for who, query, name in (
            (ADMINISTRATOR, LIST, "an administrator's list"),
            (MEMBER, LIST, "a member's list"),
            (MEMBER, WITH_TOTAL, "a member's list and totalCount"),
        ):
            clients = {
                count: Client(system, tokens[who, count], query)
                for count, system in systems.items()
            }
            seconds = _in_turn(clients)
            for count in COUNTS[2:]:
                note = f"{1000 * seconds[count]:.1f} ms / {1000 * seconds[OWN]:.1f} ms"
                if count == COUNTS[2]:
                    note += f"; among {COUNTS[0]}: {1000 * seconds[COUNTS[0]]:.1f} ms"
                yield Measure(
                    name=f"{name} of 100 among {count:,} / among {OWN}",
                    value=seconds[count] / seconds[OWN],
                    unit="x",
                    ceiling=1.3 if query == LIST else None,
                    note=note,
                )
        yield _throughput(systems[1_000], tokens[ADMINISTRATOR, 1_000])
        yield from _crowds(systems[1_000], tokens)
        memory = memory_of(systems[COUNTS[-1]].process)
        yield Measure(
            name=f"memory of the web process among {COUNTS[-1]:,}",
            value=memory.pss / MEGABYTE,
            unit="MB",
            ceiling=250,
            note=f"PSS, after the lists above; RSS {memory.rss / MEGABYTE:.0f} MB",
        )


class Web:
    """A web process alone on a data folder whose database is full of rows."""

    def __init__(
        self,
        data: Path,
        count: int = 0,
        *,
        module: str = "condastore.web",
        beside: Web | None = None,
    ) -> None:
        """`beside`: another process, whose address this one shares."""
        self.data = data
        if count:
            data.mkdir()
            inside(data, "rows", count)
        environ = os.environ | {"CONDASTORE_DATA": str(data), "CONDASTORE_LOG_LEVEL": "WARNING"}
        address = ("127.0.0.1", beside.port if beside else 0)
        with socket.create_server(address, reuse_port=True, backlog=2048) as listener:
            self.port: int = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(listener.fileno())],
                env=environ,
                cwd=PROJECT,
                pass_fds=[listener.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._process.pid)

    def sign_in(self, username: str) -> str:
        body = {"username": username, "password": PASSWORD, "name": "benchmark"}
        url = f"http://127.0.0.1:{self.port}/api/token"
        return str(httpx.post(url, json=body, timeout=60).raise_for_status().json()["token"])


def _queries(systems: dict[int, Web], tokens: dict[tuple[str, int], str]) -> Iterator[Measure]:
    for who in (ADMINISTRATOR, MEMBER):
        sent = {
            count: inside(system.data, "queries", tokens[who, count], LIST)["queries"]
            for count, system in systems.items()
        }
        yield Measure(
            name=f"queries of the {who}'s list, more than among {COUNTS[0]}",
            value=max(sent.values()) - sent[COUNTS[0]],
            unit="queries",
            ceiling=0,
            note=", ".join(f"among {count:,}: {number}" for count, number in sent.items()),
        )


def _in_turn(clients: dict[int, Client]) -> dict[int, float]:
    """Median seconds of each; they take turns, so that they meet the same neighbours."""
    taken: dict[int, list[float]] = {count: [] for count in clients}
    for number in range(ROUNDS + 3):
        for count, client in clients.items():
            seconds = client.ask()
            if number >= 3:
                taken[count].append(seconds)
    return {count: median(seconds) for count, seconds in taken.items()}


def _crowds(system: Web, tokens: Mapping[tuple[str, int], str]) -> Iterator[Measure]:
    """Many connections at once: beside the least that the same server can do, and to two of it."""
    with Web(system.data, module="tests.benchmarks.bare_list") as bare:
        for size in CROWDS:
            yield from _crowd_of(size, bare, system, tokens)
    token = tokens[ADMINISTRATOR, 1_000]
    one = len(_crowd(system, token, CROWD))
    with Web(system.data, beside=system) as second:
        # Connections are distributed by their port: so many that each gets its share.
        Client(second, token).ask()
        _crowd(system, token, CROWD)
        two = len(_crowd(system, token, CROWD))
    yield Measure(
        name="the same with one web process / with two",
        value=one / two,
        unit="x",
        ceiling=1 / 1.7 if len(os.sched_getaffinity(0)) > 2 else None,
        note=f"{one / CROWD_SECONDS:.0f} / {two / CROWD_SECONDS:.0f} requests/s; with two "
        "processors the clients take their part of them",
    )


def _crowd_of(
    size: int, bare: Web, system: Web, tokens: Mapping[tuple[str, int], str]
) -> Iterator[Measure]:
    used: dict[str, float] = {}
    for who, ceiling in CROWD_CEILINGS.items():
        token = tokens[who, 1_000]
        for server in (bare, system):
            _crowd(server, token, size)  # imports and compiles what it needs
        floor, ours, before = list[float](), list[float](), cpu_seconds(system.process)
        for _ in range(CROWD_ROUNDS):  # in turns, so that both meet the same neighbours
            floor += _crowd(bare, token, size)
            ours += _crowd(system, token, size)
        used[who] = (cpu_seconds(system.process) - before) / len(ours)
        seconds = CROWD_ROUNDS * CROWD_SECONDS
        yield Measure(
            name=f"ORM values and orjson / list of 100 among 1,000, {who}, "
            f"connections: {size}, requests",
            value=len(floor) / len(ours),
            unit="x",
            ceiling=ceiling,
            note=f"{len(floor) / seconds:.0f} / {len(ours) / seconds:.0f} requests/s",
        )
        ours.sort()
        slow, usual = ours[int(0.99 * len(ours))], median(ours)
        yield Measure(
            name=f"99 of 100 of these lists / the median, {who}, connections: {size}",
            value=slow / usual,
            unit="x",
            ceiling=3,
            note=f"{1000 * slow:.0f} ms / {1000 * usual:.0f} ms",
        )
    yield Measure(
        name=f"a member's list / an administrator's, connections: {size}, processor time",
        value=used[MEMBER] / used[ADMINISTRATOR],
        unit="x",
        ceiling=1.2,
        note=f"{1000 * used[MEMBER]:.1f} ms / {1000 * used[ADMINISTRATOR]:.1f} ms",
    )


def _crowd(system: Web, token: str, size: int) -> list[float]:
    """Seconds of each request of `size` connections in CROWD_SECONDS."""
    taken: list[float] = []
    clock = Clock()

    def work() -> None:
        client = Client(system, token)
        while clock.seconds < CROWD_SECONDS:
            taken.append(client.ask())

    threads = [threading.Thread(target=work) for _ in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def _throughput(system: Web, token: str) -> Measure:
    """Several clients at once, one process that answers."""
    done = [0] * CLIENTS
    used, clock = cpu_seconds(system.process), Clock()

    def work(number: int) -> None:
        client = Client(system, token)
        while clock.seconds < SECONDS:
            client.ask()
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    each = clock.seconds / sum(done)
    busy = (cpu_seconds(system.process) - used) / sum(done)
    return Measure(
        name="list of 100 among 1,000, one process, each request",
        value=1000 * each,
        unit="ms",
        ceiling=round(REQUEST_MS, 1),
        note=f"{1 / each:.0f} requests/s with {CLIENTS} clients (budget: 60); "
        f"{1000 * busy:.1f} ms of its processor",
    )
