"""Longest wait of a build in a burst beyond its place in the queue, as after a lost message."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tests.benchmarks.builds import SMALL
from tests.benchmarks.channels import served
from tests.benchmarks.measure import Measure, scratch
from tests.benchmarks.running import NAMESPACE, Running, environment_file

#: How many bursts of each number of workers; a hundred find what happens once in twenty times.
BURSTS = int(os.environ.get("CONDASTORE_BENCH_BURSTS", "5"))
BUILDS = 40


def waits() -> Iterator[Measure]:
    """Bursts of 40 different small builds, warm, on 2 and 4 workers."""
    with served("small") as url:
        for workers in (2, 4):
            yield _longest_pause(f"{url}small", workers)


def _longest_pause(channel: str, workers: int) -> Measure:
    """The longest time in which builds waited and none was begun."""
    pauses = []
    with scratch() as folder, Running(folder, channel=channel, workers=workers) as system:
        for number, specs in enumerate(SMALL):
            system.timed_build(f"first-{number}", environment_file(specs, channel=channel))
        for burst in range(BURSTS):
            builds = []
            for number in range(BUILDS):
                text = environment_file(
                    SMALL[number % len(SMALL)],
                    channel=channel,
                    variables={"NUMBER": burst * BUILDS + number},
                )
                builds.append(system.submit(f"{NAMESPACE}/e{number}", text))
            for build in builds:
                system.finish(build)
            pauses.append(_pause(system, builds))
    return Measure(
        name=f"{BURSTS} bursts of {BUILDS} builds, {workers} workers: wait beyond the queue",
        value=max(pauses).total_seconds(),
        unit="s",
        ceiling=2,
        note="between two begins of builds, while one waits; more bursts: CONDASTORE_BENCH_BURSTS",
    )


def _pause(system: Running, builds: Sequence[str]) -> timedelta:
    query = "SELECT at FROM environments_buildevent WHERE build_id = ? AND state = ?"
    found: dict[str, list[datetime]] = {"QUEUED": [], "SOLVING": []}
    with system.rows() as rows:
        for build in builds:
            for state, times in found.items():
                [(at,), *_] = rows.execute(query, (build, state)).fetchall()
                times.append(datetime.fromisoformat(at))
    created, begun = sorted(found["QUEUED"]), sorted(found["SOLVING"])
    # Nothing waits before it is there: from its request on, or from the begin before it.
    since = [created[0], *begun[:-1]]
    return max(
        end - max(begin, request) for begin, end, request in zip(since, begun, created, strict=True)
    )
