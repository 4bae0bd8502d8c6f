"""What Prometheus may read: latencies of this process, and queue and workers from the database."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from django.db.models import Count, Sum
from django.utils import timezone
from graphql import OperationDefinitionNode
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import (
    REGISTRY,
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from strawberry.extensions import SchemaExtension

from condastore.shared_metrics import SHARED_METRICS

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REQUESTS = Histogram(
    "condastore_http_request_seconds",
    "Time to answer, by route.",
    ["method", "route", "status"],
    buckets=BUCKETS,
)
OPERATIONS = Histogram(
    "condastore_graphql_operation_seconds",
    "Time of GraphQL queries and mutations, by their first field.",
    ["type", "field", "outcome"],
    buckets=BUCKETS,
)
#: Builds whose stage times are summed up at a scrape: the last ones that ended.
RECENT = 200


class OperationTimes(SchemaExtension):
    """Times every operation. Labels are names of the schema, never what a client made up."""

    def on_operation(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        context = self.execution_context
        kind, field = "unknown", "refused"
        document = context.graphql_document
        failed = bool(context.pre_execution_errors)
        if document is not None and not failed:
            for node in document.definitions:
                if isinstance(node, OperationDefinitionNode):
                    kind = node.operation.value
                    name = getattr(node.selection_set.selections[0], "name", None)
                    field = name.value if name else "fragment"
                    break
        if kind != "subscription":
            outcome = "error" if failed else "ok"
            OPERATIONS.labels(kind, field, outcome).observe(time.perf_counter() - started)


class StoreCollector(Collector):
    """Read from the database at each scrape: by index, a few rows, whatever its size."""

    def describe(self) -> list[Metric]:
        return []  # registering must not touch the database

    def collect(self) -> Iterator[Metric]:
        from environments.domain.lifecycle import FINISHED
        from environments.models import Blob, Build, Leader, Preview, Worker
        from environments.models.previews import PreviewState

        unfinished = Build.objects.exclude(state__in=FINISHED).order_by()
        builds = GaugeMetricFamily("condastore_builds", "Unfinished builds.", labels=["state"])
        for row in unfinished.values("state").annotate(number=Count("pk")):
            builds.add_metric([row["state"]], row["number"])
        yield builds

        now = timezone.now()
        depth = GaugeMetricFamily("condastore_queue_depth", "What waits.", labels=["queue"])
        depth.add_metric(["builds"], Build.objects.due(now).order_by().count())
        waiting = Preview.objects.filter(state=PreviewState.QUEUED).order_by()
        depth.add_metric(["solves"], waiting.count())
        yield depth

        alive = GaugeMetricFamily("condastore_processes_alive", "Live processes.", labels=["kind"])
        alive.add_metric(["worker"], Worker.objects.alive().order_by().count())
        leading = Leader.objects.filter(duty=Worker.SCHEDULER, expires_at__gt=now)
        alive.add_metric(["scheduler"], leading.count())
        yield alive

        unneeded = Blob.objects.filter(removing_at__isnull=False).order_by()
        bytes_ = GaugeMetricFamily(
            "condastore_unneeded_bytes", "Kept bytes that nothing needs, and that go soon."
        )
        bytes_.add_metric([], unneeded.aggregate(size=Sum("size"))["size"] or 0)
        yield bytes_

        yield from _folder_metrics()

        yield _stage_times(
            Build.objects.filter(state__in=FINISHED)
            .order_by("-pk")
            .values_list("timings", flat=True)[:RECENT]
        )


def _folder_metrics() -> Iterator[Metric]:
    from environments.models import FolderRestore
    from environments.models.folder_restores import MISSING

    rows = FolderRestore.objects.order_by().values_list("state")
    found = list(rows.annotate(number=Count("pk"), times=Sum("restored")))
    counts = {state: number for state, number, _ in found}
    missing = GaugeMetricFamily(
        "condastore_folders_missing",
        "READY builds' folders that are missing, by the state of linking them again.",
        labels=["state"],
    )
    for state in MISSING:
        missing.add_metric([state.value], counts.get(state.value, 0))
    yield missing
    restored = CounterMetricFamily(
        "condastore_folders_restored", "Missing folders that were linked again."
    )
    restored.add_metric([], sum(times for *_, times in found))
    yield restored


def _stage_times(recent: Any) -> Metric:
    summary = SummaryMetricFamily(
        "condastore_stage_seconds",
        f"Time of the stages of the last {RECENT} builds.",
        labels=["stage"],
    )
    sums: dict[str, list[float]] = {}
    for timings in recent:
        for stage, seconds in timings.items():
            sums.setdefault(stage, []).append(float(seconds))
    for stage, times in sorted(sums.items()):
        summary.add_metric([stage], count_value=len(times), sum_value=sum(times))
    return summary


def exposition() -> bytes:
    """The text that Prometheus reads: of all web processes together where there are several."""
    folder = os.environ.get(SHARED_METRICS)
    registry = REGISTRY
    if folder:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        registry.register(StoreCollector())
    else:
        register()
    return generate_latest(registry)


@cache
def register() -> None:
    """Register the collector of the store, once in a process."""
    REGISTRY.register(StoreCollector())
