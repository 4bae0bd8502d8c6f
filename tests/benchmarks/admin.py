"""Cost of the console's lists among 100 and among 100,000 rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.benchmarks.inside import ADMINISTRATOR, inside
from tests.benchmarks.measure import Measure, median, scratch

SMALL, LARGE = 100, 100_000
ROUNDS = 15
#: What is looked at: a room, and how it is searched and filtered.
LISTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "environments": ("environment", {}),
    "environments of a namespace": ("environment", {"namespace": "team-00000"}),
    "builds": ("build", {}),
    "builds that are held": ("build", {"state__exact": "HELD"}),
    "requests": ("approvalrequest", {}),
    "requests of a namespace": ("approvalrequest", {"namespace": "team-00000"}),
    "requests, searched": ("approvalrequest", {"q": "package-000007"}),
    "decisions": ("decision", {"holds": "now"}),
    "packages": ("condarecord", {}),
    "packages, searched": ("condarecord", {"q": "package-000007"}),
    "a package of all builds": ("condarecord", {"q": "python"}),
    "packages by license": ("condarecord", {"license": "GPL"}),
    "audit log": ("auditevent", {}),
    "audit log of a person": ("auditevent", {"actor": "person-1"}),
    "audit log of an action": ("auditevent", {"action": "build."}),
}


def admin() -> Iterator[Measure]:
    found: dict[int, Any] = {}
    for count in (SMALL, LARGE):
        with scratch() as folder:
            folder.mkdir(exist_ok=True)
            inside(folder, "rows", count)
            found[count] = inside(folder, "console", count)
    for name in LISTS:
        few, many = found[SMALL][name], found[LARGE][name]
        # What all builds hold is counted to a bound, and a hundred are below it.
        yield Measure(
            name=f"console: {name} among {LARGE:,} / among {SMALL}",
            value=many["seconds"] / few["seconds"],
            unit="x",
            ceiling=None if name == "a package of all builds" else 2.0,
            note=f"{1000 * many['seconds']:.0f} ms / {1000 * few['seconds']:.0f} ms",
        )
    more = {name: found[LARGE][name]["queries"] - found[SMALL][name]["queries"] for name in LISTS}
    yield Measure(
        name=f"console: queries of a list, more than among {SMALL}",
        value=max(more.values()),
        unit="queries",
        ceiling=0,
        note=f"at most {max(one['queries'] for one in found[LARGE].values())} in a list",
    )
    start = "the first page"
    yield Measure(
        name=f"console: {start} among {LARGE:,}",
        value=1000 * found[LARGE][start]["seconds"],
        unit="ms",
        ceiling=None,
        note=f"among {SMALL}: {1000 * found[SMALL][start]['seconds']:.0f} ms",
    )


def console(count: str) -> Mapping[str, Any]:
    """In a process of its own: fill the rest of the tables, then look at each list."""
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext
    from django.urls import reverse

    from accounts.models import User

    _fill(int(count))
    client = Client(HTTP_HOST="localhost")
    client.force_login(User.objects.get(username=ADMINISTRATOR))
    pages = {
        name: (reverse(f"admin:environments_{model}_changelist"), query)
        for name, (model, query) in LISTS.items()
    }
    pages["the first page"] = (reverse("admin:index"), {})
    found: dict[str, Any] = {}
    for name, (url, query) in pages.items():
        taken = []
        for _ in range(ROUNDS):
            # Of the processor: SQLite works in this process, and others work on this machine.
            started = time.process_time()
            answer = client.get(url, query)
            taken.append(time.process_time() - started)
            assert answer.status_code == 200, (url, answer.status_code)
        with CaptureQueriesContext(connection) as captured:
            client.get(url, query)
        found[name] = {"seconds": median(taken), "queries": len(captured)}
    return found


def _fill(count: int) -> None:
    """One request, decision, package and event for each environment; every build shares a lock."""
    from django.db import connection, models

    from environments.models import (
        ApprovalRequest,
        AuditEvent,
        Build,
        CondaRecord,
        Decision,
        WaitingBuild,
    )

    namespaces = list(Build.objects.values_list("environment__namespace", flat=True).distinct())
    names = [f"package-{number:06d}" for number in range(count)]
    common = {"build": "h0_0", "build_number": 0, "subdir": "linux-64", "size": 1000}
    records = CondaRecord.objects.bulk_create(
        [
            CondaRecord(
                url=f"https://channel.example.org/{number}",
                sha256=f"{number:064x}",
                name=name,
                version=f"1.{number}",
                channel="https://channel.example.org",
                file_name=f"{number}.conda",
                license="GPL-3.0-only" if number % 2 == 0 else "MIT",
                record="{}",
                **common,
            )
            for number, name in enumerate(names)
        ],
        batch_size=500,
    )
    locations = [namespaces[number % len(namespaces)] for number in range(count)]
    requests = ApprovalRequest.objects.bulk_create(
        [
            ApprovalRequest(
                namespace_id=location,
                subject=f"conda:{record.sha256}",
                conda=record,
                name=record.name,
                version=record.version,
                rule="ask",
                reason="is not on the list of allowed packages",
                state="OPEN" if number % 2 else "APPROVED",
            )
            for number, (location, record) in enumerate(zip(locations, records, strict=True))
        ],
        batch_size=500,
    )
    builds = list(Build.objects.order_by("pk").values_list("pk", flat=True)[:count])
    WaitingBuild.objects.bulk_create(
        [
            WaitingBuild(request=request, build_id=build)
            for request, build in zip(requests, builds, strict=False)
        ],
        batch_size=500,
    )
    Decision.objects.bulk_create(
        [
            Decision(
                approved=True,
                scope="spec",
                name=name,
                spec=name,
                namespace_id=location,
                reason="looked at",
            )
            for name, location in zip(names, locations, strict=True)
        ],
        batch_size=500,
    )
    rows: Any = models.QuerySet(AuditEvent)
    rows.bulk_create(
        [
            AuditEvent(
                username=f"person-{number % 2}",
                action="build.submit" if number % 3 else "account.sign-in",
                target=f"target {number}",
                position=number + 1,
                digest="0" * 64,
            )
            for number in range(count)
        ],
        batch_size=500,
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
