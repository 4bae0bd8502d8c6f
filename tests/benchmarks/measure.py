"""Measurements: values, table and clocks."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

MEGABYTE = 1_000_000
#: Where there is one, a file system in memory: writes to a disk vary threefold.
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of a run, and the most that it may be (None: for information)."""

    name: str
    value: float
    unit: str
    ceiling: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.ceiling is None or self.value <= self.ceiling

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "ceiling": self.ceiling,
            "holds": self.holds,
        }


Benchmark = Callable[[], Iterator[Measure]]


def show(measures: Sequence[Measure]) -> None:
    """Print the table."""
    table = Table("what", "measured", "ceiling", "", "cause", title="condastore bench")
    for measure in measures:
        held = "" if measure.ceiling is None else "holds" if measure.holds else "[bold red]FAILS"
        table.add_row(
            measure.name,
            f"{_number(measure.value)} {measure.unit}",
            "" if measure.ceiling is None else f"{_number(measure.ceiling)} {measure.unit}",
            held,
            measure.note,
        )
    console = Console()
    Console(width=max(console.width, 150)).print(table)


def write(measures: Iterable[Measure], path: Path) -> None:
    path.write_text(json.dumps([measure.to_json() for measure in measures], indent=1) + "\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


@contextmanager
def scratch(*, in_memory: bool = False) -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    beside = MEMORY if in_memory and MEMORY.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="condastore-bench-", dir=beside))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def disk_use(*folders: Path) -> int:
    """Bytes of all files below `folders`, which are on one file system; each inode once."""
    seen: dict[int, int] = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    status = os.lstat(f"{parent}/{name}")
                except FileNotFoundError:
                    continue
                seen[status.st_ino] = status.st_size
    return sum(seen.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a process and all below it; `pss` counts what several share once."""

    pss: int
    rss: int


def memory_of(process: psutil.Process) -> Memory:
    pss = rss = 0
    for each in (process, *process.children(recursive=True)):
        try:
            info = each.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        pss += info.pss
        rss += info.rss
    return Memory(pss=pss, rss=rss)


def peak_memory(pid: int | str = "self") -> int:
    """The most bytes that a process ever held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"process {pid} tells no VmHWM")


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all below it, those that have ended too."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
