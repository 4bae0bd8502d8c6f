"""Processor time of each test and of each lane, reported at the end of a run.

The wall clock says little on a shared machine. A test's processor time is that of its own process,
of the children that ended, and of the descendants that still run, such as a shared system.
With `--junitxml`, each test case has the property `processor_seconds`.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests import lanes

PROPERTY = "processor_seconds"
#: The slowest files that a run reports.
FILES = 15
_TICKS = os.sysconf("SC_CLK_TCK")
_before = pytest.StashKey[float]()


def processor_seconds() -> float:
    """Processor time of this process and of all its descendants so far, in seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + _running(os.getpid())


def _running(pid: int) -> float:
    """Processor time of the running descendants of `pid`, with what their ended children took."""
    total = 0.0
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in found:
            try:
                stat = Path(f"/proc/{child}/stat").read_text()
            except OSError:
                continue
            total += sum(int(part) for part in stat.rpartition(")")[2].split()[11:15]) / _TICKS
            total += _running(int(child))
    return total


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_before] = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report: Any = yield
    if call.when == "teardown":
        spent = round(processor_seconds() - item.stash[_before], 3)
        report.user_properties = [*report.user_properties, (PROPERTY, spent)]
    return report


class Costs:
    """Adds up what the reports say, in the process that prints them."""

    def __init__(self) -> None:
        self.lanes: dict[str, list[float]] = {}
        self.files: dict[str, list[float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        properties: dict[str, Any] = dict(report.user_properties)
        spent = float(properties.get(PROPERTY, 0))
        self.lanes.setdefault(properties.get(lanes.PROPERTY, ""), []).append(spent)
        self.files.setdefault(report.nodeid.partition("::")[0], []).append(spent)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.lanes:
            return
        terminalreporter.section("processor time")
        for name, spent in sorted(self.lanes.items()):
            budget = lanes.LANES[name].budget_minutes if name in lanes.LANES else 0
            terminalreporter.write_line(
                f"lane {name}: {len(spent)} tests, {sum(spent) / 60:.1f} min of {budget:g}"
            )
        terminalreporter.write_line(f"all processes: {processor_seconds() / 60:.1f} min")
        costly = sorted(self.files.items(), key=lambda item: -sum(item[1]))[:FILES]
        for file, spent in costly:
            terminalreporter.write_line(f"{sum(spent):8.1f} s {len(spent):5d} tests  {file}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist prints nothing
        config.pluginmanager.register(Costs(), "processor-time-costs")
