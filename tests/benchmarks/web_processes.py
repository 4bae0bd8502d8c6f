"""How much more do two web processes on one address answer than one?

The clients take hardly any processor themselves, so two processors show it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from tests.benchmarks.connections import Connection
from tests.benchmarks.inside import ADMINISTRATOR
from tests.benchmarks.lists import LIST, Web
from tests.benchmarks.measure import Clock, Measure, cpu_seconds, median, scratch

ENVIRONMENTS, CLIENTS, SECONDS, ROUNDS = 1_000, 16, 4.0, 5
_BODY = json.dumps({"query": LIST}).encode()


def web_processes() -> Iterator[Measure]:
    """Lists of 100 environments from one process and from two, in turns."""
    with scratch() as folder, ExitStack() as stack:
        alone = stack.enter_context(Web(folder / "data", ENVIRONMENTS))
        first = stack.enter_context(Web(alone.data))
        second = stack.enter_context(Web(alone.data, beside=first))
        token = alone.sign_in(ADMINISTRATOR)
        one, two = [alone], [first, second]
        for webs in (one, two):
            _load(webs, token)  # imports and compiles what it needs
        ones, twos, ratios = list[_Load](), list[_Load](), list[float]()
        for _ in range(ROUNDS):  # in turns, so that both meet the same neighbours
            ones.append(_load(one, token))
            twos.append(_load(two, token))
            ratios.append(ones[-1].rate / twos[-1].rate)
    yield Measure(
        name=f"requests a second of one web process / of two, {CLIENTS} connections",
        value=median(ratios),
        unit="x",
        ceiling=1 / 1.7,
        note=f"{_rates(ones)} / {_rates(twos)} lists of 100 among {ENVIRONMENTS:,} a second; "
        f"{_costs(ones)} / {_costs(twos)} ms of processor each; the clients take "
        f"{100 * median([load.clients for load in twos]):.0f} % of a processor",
    )


class _Load:
    """What the processes did in a while: `clients` is the part of a processor of those who ask."""

    def __init__(self, webs: Sequence[Web]) -> None:
        self._webs, self._clock = webs, Clock()
        self._before, self._mine = self._used(), time.process_time()
        self.done = 0

    def end(self) -> None:
        seconds = self._clock.seconds
        self.rate = self.done / seconds
        self.cost_ms = 1000 * (self._used() - self._before) / self.done
        self.clients = (time.process_time() - self._mine) / seconds

    def _used(self) -> float:
        return sum(cpu_seconds(web.process) for web in self._webs)


def _rates(loads: Sequence[_Load]) -> str:
    return f"{median([load.rate for load in loads]):.0f}"


def _costs(loads: Sequence[_Load]) -> str:
    return f"{median([load.cost_ms for load in loads]):.1f}"


def _load(webs: Sequence[Web], token: str) -> _Load:
    url = f"http://127.0.0.1:{webs[0].port}"
    load = _Load(webs)

    async def ask(until: float) -> None:
        while time.monotonic() < until:
            # A new one each time: the kernel distributes connections, and a few not evenly.
            async with Connection(url, token) as connection:
                answer = await connection.post(_BODY)
            assert "errors" not in answer, answer
            load.done += 1

    async def work() -> None:
        until = time.monotonic() + SECONDS
        await asyncio.gather(*(ask(until) for _ in range(CLIENTS)))

    asyncio.run(work())
    load.end()
    return load
