"""Cost of an audit event, and of finding one edited event among a million."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.inside import inside
from tests.benchmarks.measure import Measure, scratch

EVENTS, APPENDS, EDITED = 1_000_000, 2_000, 617_283


def audit() -> Iterator[Measure]:
    with scratch() as folder:
        cost = inside(folder, "audit", EVENTS, APPENDS, EDITED)
    if cost["found"] != EDITED:
        raise AssertionError(f"event {EDITED} was edited; {cost['found']} was found")
    yield Measure(
        name="append to the audit log / a plain row in a transaction",
        value=cost["append"] / cost["plain"],
        unit="x",
        note=f"{cost['append'] * 1e6:.0f} us, a transaction each, after {EVENTS:,} events",
    )
    yield Measure(
        name=f"verify {EVENTS:,} events",
        value=cost["verify"],
        unit="s of a processor",
        ceiling=60,
        note=f"the edited event {EDITED:,} was found; {cost['memory'] / 1e6:.0f} MB more memory",
    )
    yield Measure(
        name=f"memory to verify {EVENTS:,} events",
        value=cost["memory"] / 1e6,
        unit="MB",
        ceiling=50,
    )
