"""Cost of a log line of a build, relative to the length of the log."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.inside import inside
from tests.benchmarks.measure import Measure, scratch

LINES, FIRST = 100_000, 1_000
#: Lines that a worker writes at once; it writes some twice a second.
BATCH = 50


def log() -> Iterator[Measure]:
    with scratch() as folder:
        cost = inside(folder, "log", BATCH, LINES, FIRST, 20)
    note = (
        f"{cost['whole'] * 1e6:.0f} us a line in batches of {BATCH}; the first {FIRST:,}: "
        f"{cost['first'] * 1e6:.0f} us (20 logs), after them all: {cost['last'] * 1e6:.0f} us"
    )
    yield Measure(
        name=f"log of {LINES:,} lines / its first {FIRST:,}, a line",
        value=cost["whole"] / cost["first"],
        unit="x",
        ceiling=1.2,
        note=note,
    )
    yield Measure(name=f"fold {LINES:,} lines when the build ends", value=cost["archive"], unit="s")
