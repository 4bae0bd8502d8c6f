"""Cost of a preview with a channel of the size of conda-forge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil

from tests.benchmarks.bare_rattler import BareRattler
from tests.benchmarks.channels import served
from tests.benchmarks.measure import (
    MEGABYTE,
    Clock,
    Measure,
    median,
    memory_of,
    peak_memory,
    scratch,
)
from tests.benchmarks.policies import RULES, written_rules
from tests.benchmarks.running import CREATE, NAMESPACE, STACK, Running, environment_file

ROUNDS, HOT = 3, 3
TURNS, RULED = 8, "ruled"
OTHER = ("libalpha",)
PREVIEW = """
mutation($namespace: String!, $text: String!, $force: Boolean!) {
  previewSolve(namespace: $namespace, specification: $text, forceSolve: $force, wait: 20) {
    __typename
    ... on Preview { id state lock { packageCount } failure { message } }
    ... on OperationError { code message where hint }
  }
}
"""
ADD_RULE = """
mutation($namespace: String!, $kind: String!, $effect: String!, $name: String!, $settings: JSON!) {
  addPolicyRule(namespace: $namespace, kind: $kind, effect: $effect, name: $name,
                settings: $settings) { __typename ... on OperationError { code message } }
}
"""
POLL = "query($id: ID!) { preview(id: $id) { id state failure { message } } }"


def preview() -> Iterator[Measure]:
    ours: dict[str, list[float]] = {"cold": [], "hot": [], "stored": []}
    bare: dict[str, list[float]] = {"cold": [], "hot": []}
    peaks: dict[str, list[float]] = {"ours": [], "bare": [], "worker": []}
    with served("synthetic", "small") as url:
        channel = f"{url}synthetic"
        text = environment_file(STACK, channel=channel)
        for _ in range(ROUNDS):
            with scratch() as folder, BareRattler() as floor:
                floor.run(f"{url}small", OTHER, cache=folder / "other")
                first = floor.run(channel, STACK, cache=folder / "bare")
                bare["cold"].append(first.solve)
                for _ in range(HOT):
                    last = floor.run(channel, STACK, cache=folder / "bare")
                    bare["hot"].append(last.solve)
                peaks["bare"].append(last.peak)
            with scratch() as folder, Running(folder, channel=channel) as system:
                _preview(system, environment_file(OTHER, channel=f"{url}small"))
                ours["cold"].append(_preview(system, text))
                ours["hot"] += [_preview(system, text, force=True) for _ in range(HOT)]
                ours["stored"].append(_preview(system, text))
                worker = system.processes("worker")[0]
                peaks["ours"].append(_solver_peak(worker))
                peaks["worker"].append(memory_of(worker).pss)
    for kind, ceiling in (("cold", 1.0), ("hot", 0.5)):
        mine, floors = median(ours[kind]), median(bare[kind])
        yield Measure(
            name=f"preview among 790,000 records, {kind}, more than bare rattler",
            value=mine - floors,
            unit="s",
            ceiling=ceiling,
            note=f"{mine:.2f} s / {floors:.2f} s, medians of {len(ours[kind])}; "
            f"{first.packages} packages, sharded over HTTP",
        )
    yield Measure(
        name="the same preview again, answered with the stored lock",
        value=median(ours["stored"]),
        unit="s",
    )
    yield Measure(
        name="most memory of the solver / bare rattler's",
        value=median(peaks["ours"]) / median(peaks["bare"]),
        unit="x",
        ceiling=1.3,
        note=f"{median(peaks['ours']) / MEGABYTE:.0f} MB / {median(peaks['bare']) / MEGABYTE:.0f} "
        f"MB, highest RSS after {1 + HOT} solves",
    )
    yield Measure(
        name="memory of a worker after these solves",
        value=median(peaks["worker"]) / MEGABYTE,
        unit="MB",
        ceiling=400,
        note="PSS of the process and its solver",
    )


def ruled() -> Iterator[Measure]:
    """Measure previews of a namespace with rules and of one without, in turns."""
    spent: dict[str, list[float]] = {NAMESPACE: [], RULED: []}
    waited: dict[str, list[float]] = {NAMESPACE: [], RULED: []}
    with served("synthetic") as url, scratch() as folder:
        channel = f"{url}synthetic"
        text = environment_file(STACK, channel=channel)
        with Running(folder, channel=channel) as system:
            system.graphql(CREATE, name=RULED)
            for number, (kind, effect, settings) in enumerate(written_rules()):
                answer = system.graphql(
                    ADD_RULE,
                    namespace=RULED,
                    kind=kind,
                    effect=effect,
                    name=f"rule {number}",
                    settings=settings,
                )["addPolicyRule"]
                assert answer["__typename"] != "OperationError", answer
            worker = system.processes("worker")[0]
            for turn in range(TURNS + 1):
                for namespace in spent:
                    before = _solver_seconds(worker)
                    seconds = _preview(system, text, force=True, namespace=namespace)
                    if turn:  # the first one of each reads the channel
                        spent[namespace].append(_solver_seconds(worker) - before)
                        waited[namespace].append(seconds)
    mine, plain = median(spent[RULED]), median(spent[NAMESPACE])
    yield Measure(
        name=f"preview under {RULES} rules among 790,000 records, hot / without rules",
        value=mine / plain,
        unit="x",
        ceiling=1.25,
        note=f"{mine:.2f} s / {plain:.2f} s of the solver's processor time, medians of {TURNS} in "
        f"turns; from request to answer {median(waited[RULED]):.2f} s / "
        f"{median(waited[NAMESPACE]):.2f} s",
    )


def _solver_seconds(worker: psutil.Process) -> float:
    """Return the processor time of what the worker started, in seconds."""
    times = [child.cpu_times() for child in worker.children(recursive=True)]
    return sum(each.user + each.system for each in times)


def _preview(
    system: Running, text: str, *, force: bool = False, namespace: str = NAMESPACE
) -> float:
    """Seconds from the request to its answer."""
    clock = Clock()
    answer: dict[str, Any] = system.graphql(PREVIEW, namespace=namespace, text=text, force=force)[
        "previewSolve"
    ]
    assert answer["__typename"] == "Preview", answer
    while answer["state"] in {"QUEUED", "SOLVING"}:
        time.sleep(0.02)
        answer = system.graphql(POLL, id=answer["id"])["preview"]
    assert answer["state"] == "READY", answer
    return clock.seconds


def _solver_peak(worker: psutil.Process) -> int:
    """Of the worker's solver process; it is the largest of what the worker started."""
    peaks = [peak_memory(child.pid) for child in worker.children(recursive=True)]
    return max(peaks, default=0)
