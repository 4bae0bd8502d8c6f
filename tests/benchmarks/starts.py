"""Benchmark of starts: the command line, and `condastore up` in an empty and an existing folder."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.benchmarks.channels import PROJECT
from tests.benchmarks.measure import Measure, cpu_seconds, median, scratch

ROUNDS = 5
CONDASTORE = Path(sys.executable).with_name("condastore")
TYPER = """
import typer
app = typer.Typer(rich_markup_mode=None)
app.command()(lambda: None)
app()
"""


def starts() -> Iterator[Measure]:
    """Processor time, which other work on the machine changes little."""
    ours, floors = [], []
    for _ in range(2 * ROUNDS):
        floors.append(_used([sys.executable, "-c", TYPER, "--help"]))
        ours.append(_used([str(CONDASTORE), "--help"]))
    yield Measure(
        name="condastore --help, processor time",
        value=median(ours),
        unit="s",
        ceiling=0.10,
        note=f"Python with typer alone: {median(floors):.3f} s",
    )
    fresh, again = [], []
    for _ in range(ROUNDS):
        with scratch(in_memory=True) as folder:
            fresh.append(_up(folder))
            again.append(_up(folder))
    for name, values, ceiling in (("an empty", fresh, 3.5), ("an existing", again, 1.5)):
        yield Measure(
            name=f"condastore up, {name} folder, processor time of all processes",
            value=median(values),
            unit="s",
            ceiling=ceiling,
            note="until it says that it is ready",
        )


def _used(command: Sequence[str]) -> float:
    """Return the seconds of processor time that a program takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _up(folder: Path) -> float:
    retained = {
        key: value for key, value in os.environ.items() if not key.startswith("CONDASTORE_")
    }
    process = subprocess.Popen(
        [CONDASTORE, "up", "--json", "--port", "0"],
        env=retained | {"CONDASTORE_DATA": str(folder / "data")},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "it says where it is when it is ready"
        return cpu_seconds(psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
