"""Benchmark of the first use: from a cold request to the first output of a program of the user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.bare_rattler import BareRattler
from tests.benchmarks.builds import SMALL, await_bytecode
from tests.benchmarks.channels import served
from tests.benchmarks.measure import Clock, Measure, median, scratch
from tests.benchmarks.running import STACK, Running, environment_file

ROUNDS = 3
IMPORTS = ("pandas", "sklearn")


def first_use() -> Iterator[Measure]:
    """Build with smoke tests from empty caches; run the user's first command at once."""
    floors: list[float] = []
    ours: list[float] = []
    plain: list[float] = []
    first: list[float] = []
    compiled: list[float] = []
    with served("demo", "small") as url:
        text = environment_file(STACK, channel=f"{url}demo")
        tested = f"{text}condastore:\n  tests:\n    imports: [{', '.join(IMPORTS)}]\n"
        for number in range(ROUNDS):
            with scratch(in_memory=True) as folder, BareRattler() as bare:
                bare.run(f"{url}small", SMALL[2], cache=folder / "other")
                prefix = folder / "prefix"
                floor = bare.run(f"{url}demo", STACK, cache=folder / "bare", prefix=prefix)
                floors.append(floor.total + _run(prefix))
            for smoke in (True, False):
                with scratch(in_memory=True) as folder, Running(folder, channel=url) as system:
                    system.timed_build("other", environment_file(SMALL[2], channel=f"{url}small"))
                    name = f"stack-{number}"
                    ready = system.timed_build(name, tested if smoke else text)
                    used = _run(system.current_prefix(name))
                    (ours if smoke else plain).append(ready + used)
                    if smoke:
                        first.append(used)
                        await_bytecode(system.current_prefix(name))
                        compiled.append(_run(system.current_prefix(name)))
    yield Measure(
        name="cold request with smoke tests to the first output / rattler and python, uncompiled",
        value=median(ours) / median(floors),
        unit="x",
        ceiling=1.1,
        note=f"{median(ours):.2f} s / {median(floors):.2f} s, medians of {ROUNDS}; "
        f"python -c 'import {', '.join(IMPORTS)}' right after READY, tmpfs",
    )
    yield Measure(
        name="the same without smoke tests",
        value=median(plain) / median(floors),
        unit="x",
        note=f"{median(plain):.2f} s",
    )
    yield Measure(
        name="first command after READY / the same when all is compiled",
        value=median(first) / median(compiled),
        unit="x",
        ceiling=1.2,
        note=f"{median(first):.2f} s / {median(compiled):.2f} s",
    )


def _run(prefix: Path) -> float:
    """Return the seconds that the imports take in a new process, which writes nothing."""
    environ = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    clock = Clock()
    command = [str(prefix / "bin/python"), "-c", f"import {', '.join(IMPORTS)}"]
    subprocess.run(command, check=True, env=environ)
    return clock.seconds
