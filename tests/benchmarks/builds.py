"""Overhead of builds over bare rattler, for one build and for many at once."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.bare_rattler import BareRattler
from tests.benchmarks.channels import served
from tests.benchmarks.measure import (
    MEGABYTE,
    Clock,
    Measure,
    cpu_seconds,
    disk_use,
    median,
    memory_of,
    scratch,
)
from tests.benchmarks.running import NAMESPACE, STACK, Running, environment_file
from tests.system import until

ROUNDS, COLD_ROUNDS = 5, 3
#: Five packages more than the stack's.
MORE = ("requests",)
#: Different answers, so that no build has its solve or its prefix from another one.
SMALL = (
    *(("python", "hello-noarch"), ("python", "hello-plugin"), ("libalpha",), ("libbeta",)),
    *(("apptool",), ("demo-stack",), ("python", "license-mit"), ("large-data", "apptool")),
)


def ready() -> Iterator[Measure]:
    """One worker: the stack again and again, one more like it, then many small ones."""
    with served("demo", "small") as url, scratch() as folder:
        channel = f"{url}demo"
        stack = environment_file(STACK, channel=channel)
        with Running(folder, channel=channel) as system, BareRattler() as bare:
            system.timed_build("stack", stack)
            await_bytecode(system.current_prefix("stack"))
            bare.run(channel, STACK, cache=folder / "bare", prefix=folder / "bare-0")
            ours, floors = [], []
            for number in range(1, ROUNDS + 1):
                prefix = folder / f"bare-{number}"
                floor = bare.run(channel, STACK, cache=folder / "bare", prefix=prefix)
                floors.append(floor.total)
                ours.append(system.timed_build("stack", stack, force=True))
            yield Measure(
                name="request to READY, warm, more than bare rattler",
                value=median(ours) - median(floors),
                unit="s",
                ceiling=0.8,
                note=f"{median(ours):.2f} s / {median(floors):.2f} s, medians of {ROUNDS}; "
                f"{floor.packages} packages, solved anew each time",
            )
            again = [system.timed_build("stack", stack) for _ in range(3)]
            yield Measure(name="the same with the stored lock", value=median(again), unit="s")
            yield _usable_bytecode(system.current_prefix("stack"))
            yield _sharing(system, channel)
            yield from _memory(system, f"{url}small", done=1 + ROUNDS + len(again) + 1)


def await_bytecode(prefix: Path) -> None:
    """Wait until the Python files that the first build of a stack left are compiled."""

    def compiled() -> bool:
        return any(prefix.glob("lib/python3*/site-packages/sklearn/__pycache__/*.pyc")) and any(
            prefix.glob("lib/python3*/site-packages/IPython/__pycache__/*.pyc")
        )

    until(compiled, 90, lambda: f"no compiled Python files in {prefix}")
    _until_still(prefix)


def _until_still(*folders: Path) -> int:
    """Wait until nothing is written any more; bytes on the disk then."""
    before = -1
    while (now := disk_use(*folders)) != before:
        before = now
        time.sleep(1)
    return now


def _usable_bytecode(prefix: Path) -> Measure:
    command = [str(prefix / "bin/python"), "-v", "-c", "import pandas, sklearn, ipykernel"]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stderr
    loaded = [line for line in said.splitlines() if line.startswith("# code object from")]
    compiled = sum(line.rstrip("'\"").endswith(".py") for line in loaded)
    return Measure(
        name="modules that the first import has to compile",
        value=compiled,
        unit="files",
        ceiling=0,
        note=f"of {len(loaded)}; import pandas, sklearn, ipykernel",
    )


def _sharing(system: Running, channel: str) -> Measure:
    folders = (system.data / "prefixes", system.data / "cache")
    before = _until_still(*folders)
    text = environment_file((*STACK, *MORE), channel=channel)
    build = system.submit(f"{NAMESPACE}/more", text)
    system.finish(build)
    added = _until_still(*folders) - before
    shown = system.show(build)
    old, new = system.current_prefix("stack"), system.current_prefix("more")
    packages = [{path.name for path in prefix.glob("conda-meta/*.json")} for prefix in (old, new)]
    shared = len(packages[0] & packages[1]) / len(packages[1])
    apparent = int(shown["apparentSize"])
    return Measure(
        name="bytes of one more environment / its apparent size",
        value=100 * added / apparent,
        unit="%",
        ceiling=15,
        note=f"{added / MEGABYTE:.1f} of {apparent / MEGABYTE:.0f} MB on the disk, in prefixes "
        f"and caches; {shared:.0%} of {len(packages[1])} packages shared",
    )


def _memory(system: Running, channel: str, *, done: int) -> Iterator[Measure]:
    for number in range(done, 50):
        specs = SMALL[number % len(SMALL)]
        text = environment_file(specs, channel=channel, variables={"NUMBER": number})
        system.timed_build(f"small-{number % len(SMALL)}", text)
    for word, ceiling, name in (
        ("worker", 400, "memory of a worker after 50 builds"),
        ("web", 250, "memory of the web process after them"),
    ):
        memory = memory_of(system.processes(word)[0])
        yield Measure(
            name=name,
            value=memory.pss / MEGABYTE,
            unit="MB",
            ceiling=ceiling,
            note="PSS of the process and its children (its solver); "
            f"RSS {memory.rss / MEGABYTE:.0f} MB",
        )


def cold() -> Iterator[Measure]:
    """Empty caches each time; both have solved something else before, so that they are awake."""
    ours, floors = [], []
    with served("demo", "small") as url:
        for number in range(COLD_ROUNDS):
            with scratch(in_memory=True) as folder, BareRattler() as bare:
                bare.run(f"{url}small", SMALL[2], cache=folder / "other")
                prefix = folder / "prefix"
                floor = bare.run(f"{url}demo", STACK, cache=folder / "bare", prefix=prefix)
                floors.append(floor.total)
            with scratch(in_memory=True) as folder, Running(folder, channel=url) as system:
                system.timed_build("other", environment_file(SMALL[2], channel=f"{url}small"))
                text = environment_file(STACK, channel=f"{url}demo")
                ours.append(system.timed_build(f"stack-{number}", text))
    yield Measure(
        name="request to READY, cold, in memory / bare rattler",
        value=median(ours) / median(floors),
        unit="x",
        ceiling=1.3,
        note=f"{median(ours):.2f} s / {median(floors):.2f} s, medians of {COLD_ROUNDS}; empty "
        "caches, tmpfs; Python files are compiled after READY",
    )


def eight() -> Iterator[Measure]:
    """Empty caches, so that the builds meet over the same packages."""
    with served("small") as url:
        channel = f"{url}small"
        with scratch() as folder, Running(folder, channel=channel, workers=2) as system:
            one = system.timed_build("one", environment_file(SMALL[0], channel=channel))
        with scratch() as folder, Running(folder, channel=channel, workers=2) as system:
            clock = Clock()
            builds = [
                system.submit(f"{NAMESPACE}/e{number}", environment_file(specs, channel=channel))
                for number, specs in enumerate(SMALL)
            ]
            done = [system.wait(build) for build in builds]
            together = clock.seconds
    failed = [build for build in done if build["state"] != "READY"]
    yield Measure(
        name="eight small environments at once, 2 workers: not READY",
        value=len(failed),
        unit="builds",
        ceiling=0,
        note="; ".join(str(build["failure"]) for build in failed) or "empty caches",
    )
    yield Measure(
        name="eight at once / one",
        value=together / one,
        unit="x",
        ceiling=8,
        note=f"{together:.2f} s / {one:.2f} s",
    )


def workers() -> Iterator[Measure]:
    """40 different requests at once, warm; more workers must not stand in each other's way."""
    seconds: dict[int, float] = {}
    with served("small") as url:
        for count in (1, 2, 4):
            seconds[count], cores = _forty(f"{url}small", count)
            yield Measure(
                name=f"40 builds, {count} worker{'s' * (count > 1)}",
                value=40 / seconds[count],
                unit="builds/s",
                note=f"{seconds[count]:.1f} s; kept {cores:.1f} of {os.cpu_count()} cores busy",
            )
    yield Measure(
        name="40 builds, 4 workers / 1 worker",
        value=seconds[4] / seconds[1],
        unit="x",
        ceiling=1.1,
        note="seconds; waiting for locks would grow with the workers",
    )


def _forty(channel: str, count: int) -> tuple[float, float]:
    with scratch() as folder, Running(folder, channel=channel, workers=count) as system:
        for number, specs in enumerate(SMALL):
            system.timed_build(f"first-{number}", environment_file(specs, channel=channel))
        used, clock = cpu_seconds(system.supervisor), Clock()
        builds = []
        for number in range(40):
            specs = SMALL[number % len(SMALL)]
            text = environment_file(specs, channel=channel, variables={"NUMBER": number})
            builds.append(system.submit(f"{NAMESPACE}/e{number}", text))
        for build in builds:
            system.finish(build)
        seconds = clock.seconds
        return seconds, (cpu_seconds(system.supervisor) - used) / seconds
