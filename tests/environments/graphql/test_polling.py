"""One poll of the database for all subscriptions of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from condastore import row_changes
from environments.operations.change_polls import Poll


class Rows:
    """States by key, and the keys of each read."""

    def __init__(self, states: Mapping[int, str]) -> None:
        self.states = dict(states)
        self.reads: list[set[int]] = []
        self.error: Exception | None = None

    def read(self, keys: Collection[int]) -> Mapping[int, object]:
        self.reads.append(set(keys))
        if self.error is not None:
            raise self.error
        return {key: self.states[key] for key in keys if key in self.states}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_changes, "POLL", 0.01)


def test_many_waiters_cost_one_read_and_only_those_of_a_changed_row_are_woken() -> None:
    rows = Rows(dict.fromkeys(range(100), "QUEUED"))
    poll = Poll[int](rows.read)

    async def follow() -> list[bool]:
        waiting = [
            asyncio.create_task(poll.changed(key, "QUEUED", timeout=60)) for key in range(100)
        ]
        while len(rows.reads) < 3:
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        rows.states[7] = "READY"
        done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert done == {waiting[7]}
        for task in left:
            task.cancel()
        await asyncio.wait(left)
        return [task.result() for task in done]

    assert asyncio.run(follow()) == [True]
    assert rows.reads[0] == set(range(100))


def test_a_waiter_without_a_change_returns_after_its_time() -> None:
    assert asyncio.run(Poll[int](Rows({1: "QUEUED"}).read).changed(1, "QUEUED", timeout=0.05)) is (
        False
    )


@pytest.mark.parametrize("error", [None, OSError("the database is away")])
def test_a_row_that_is_gone_or_cannot_be_read_wakes_its_waiter(error: Exception | None) -> None:
    rows = Rows({})
    rows.error = error
    assert asyncio.run(Poll[int](rows.read).changed(1, "QUEUED", timeout=60))


def test_nothing_is_read_once_nobody_waits() -> None:
    rows = Rows({1: "QUEUED"})
    poll = Poll[int](rows.read)

    async def follow() -> None:
        await poll.changed(1, "", timeout=60)
        assert not await poll.changed(1, "QUEUED", timeout=0.05)
        before = len(rows.reads)
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert len(rows.reads) <= before + 1
        assert await poll.changed(1, "other", timeout=60)  # it begins again

    asyncio.run(follow())
    assert asyncio.run(poll.changed(1, "other", timeout=60))  # and on another event loop
