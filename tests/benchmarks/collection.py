"""Cost of garbage collection among many artifacts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from tests.benchmarks.inside import inside, own_memory
from tests.benchmarks.measure import Measure, scratch

SMALL, LARGE = 2_000, 20_000
#: Artifacts of one lock; of so many, one is of a build that is gone.
OF_A_LOCK, GONE = 4, 20


def collection() -> Iterator[Measure]:
    with scratch() as one, scratch() as two:
        few = inside(one, "collection", SMALL)
        many = inside(two, "collection", LARGE)
    for found, number in ((few, SMALL), (many, LARGE)):
        if found["removed"] != number // GONE:
            raise AssertionError(f"{found['removed']} of {number} were removed")
    yield Measure(
        name=f"look for what nothing needs, a row: {LARGE:,} artifacts / {SMALL:,}",
        value=(many["mark"] / LARGE) / (few["mark"] / SMALL),
        unit="x",
        ceiling=1.5,
        note=f"{many['mark'] / LARGE * 1e6:.0f} us of a processor a row",
    )
    yield Measure(
        name=f"remove one of them: {LARGE:,} artifacts / {SMALL:,}",
        value=(many["remove"] / many["removed"]) / (few["remove"] / few["removed"]),
        unit="x",
        ceiling=1.5,
        note=f"{many['remove'] / many['removed'] * 1e3:.1f} ms of a processor each",
    )
    yield Measure(
        name=f"more memory for a collection among {LARGE:,} artifacts",
        value=many["memory"] / 1e6,
        unit="MB",
        ceiling=20,
        note=f"{few['memory'] / 1e6:.1f} MB among {SMALL:,}",
    )


def collect(count: str) -> Mapping[str, float]:
    """Fill a database with artifacts, and collect; runs in a process of its own."""
    from django.core.management import call_command
    from django.db import connection

    from environments.jobs import blob_gc as collection

    call_command("migrate", verbosity=0)
    _fill(int(count))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    collection.collect(dry_run=True, orphans=False)  # what is imported and prepared once
    with own_memory() as grown:
        started = time.process_time()
        marked = collection.collect(orphans=False)
        mark = time.process_time() - started
    started = time.process_time()
    removed = collection.collect(notice=timedelta(0), orphans=False)
    remove = max(time.process_time() - started - mark, 1e-6)
    assert removed.removed.number == marked.marked.number
    return {
        "mark": mark,
        "remove": remove,
        "removed": removed.removed.number,
        "memory": max(grown),
    }


def _fill(count: int) -> None:
    from django.utils import timezone

    from environments.models import Artifact, Blob, Build, Environment, LockRow
    from tests.factories import make_build, make_environment, make_namespace, make_specification

    now = timezone.now()
    old = now - timedelta(days=30)
    environment = make_environment(make_namespace("research"))
    make_build(environment)
    specification = make_specification()

    def made(model: Any, rows: Iterator[Any]) -> list[Any]:
        found: list[Any] = model.objects.bulk_create(rows, batch_size=500)
        return found

    locks = made(
        LockRow,
        (
            LockRow(
                digest=hashlib.sha256(f"lock {number}".encode()).hexdigest(),
                channels=[],
                platforms=["linux-64"],
                package_count=0,
                size=0,
            )
            for number in range(count // OF_A_LOCK)
        ),
    )
    made(
        Build,
        (
            Build(
                environment=environment,
                number=number + 10,
                state="ARCHIVED",
                specification=specification,
                source="",
                lock=lock,
                platform="linux-64",
                finished_at=now,
                deleted_at=old if number % GONE == 0 else None,
            )
            for number, lock in enumerate(locks)
        ),
    )
    Environment.objects.filter(pk=environment.pk).update(last_number=count)
    blobs = made(
        Blob,
        (
            Blob(
                sha256=hashlib.sha256(f"blob {number}".encode()).hexdigest(),
                size=1000,
                stored_at=old,
                used_at=old,
            )
            for number in range(count)
        ),
    )
    made(
        Artifact,
        (
            Artifact(
                lock=locks[number // OF_A_LOCK],
                kind=("TAR_GZ", "TAR_ZST", "SQUASHFS", "SIF")[number % OF_A_LOCK],
                platform="linux-64",
                recipe=1,
                state="READY",
                blob=blob,
                finished_at=now,
            )
            for number, blob in enumerate(blobs)
        ),
    )
