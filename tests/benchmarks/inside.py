"""What is done beside a system's doors, in a Django process of its own on the system's data folder.

Filling its database with rows by the thousand, counting queries, appending to logs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.channels import PROJECT
from tests.benchmarks.measure import Clock

#: Environments in one namespace.
SHARE = 100
#: A member sees every second namespace.
ADMINISTRATOR, MEMBER, PASSWORD = "administrator", "member", "a password for a benchmark"


def inside(data: Path, job: str, *arguments: object, **environ: str) -> Any:
    """Do a job of this module on `data`; its answer."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.inside", job, *map(str, arguments)],
        cwd=PROJECT,
        env={**os.environ, **environ, "CONDASTORE_DATA": str(data)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def rows(count: str) -> Mapping[str, float]:
    """`count` environments, each with a READY build that is current; there are no files.

    The first namespace is made by the models, the others by the database as copies of it.
    """
    from django.core.management import call_command
    from django.db import transaction

    from accounts.roles import Role
    from environments.models import Build, Environment, Namespace, Prefix
    from tests.factories import make_user

    clock = Clock()
    call_command("migrate", verbosity=0)
    make_user(ADMINISTRATOR, superuser=True, password=PASSWORD)
    member = make_user(MEMBER, password=PASSWORD)
    names = [f"team-{number:05d}" for number in range(-(-int(count) // SHARE))]
    namespaces = Namespace.objects.bulk_create([Namespace(name=name) for name in names])
    with transaction.atomic():
        for namespace in namespaces[::2]:
            namespace.grant(Role.VIEWER, member)
        _fill(namespaces[0], min(SHARE, int(count)))
        # All keys of the first namespace count from 1, and so do those of its copies.
        mine = {"id": f"t.id + (n.id - 1) * {SHARE}"}
        _copy(Prefix, **mine, path="'prefixes/' || n.name || '/' || t.id")
        _copy(Environment, **mine, namespace_id="n.id", current_id=mine["id"])
        _copy(Build, **mine, environment_id=mine["id"], prefix_id=mine["id"])
    return {"environments": Environment.objects.count(), "seconds": clock.seconds}


def _fill(namespace: Any, size: int) -> None:
    from environments.models import Environment
    from tests.factories import make_build

    for number in range(size):
        name = f"environment-{number:04d}"
        environment = Environment.objects.create(namespace=namespace, name=name)
        assert make_build(environment).pk == environment.pk == number + 1


def _copy(model: Any, **changed: str) -> None:
    """The first namespace's rows of `model` for each other namespace; `changed`: SQL by column."""
    from django.db import connection

    quote = connection.ops.quote_name
    columns = [field.column for field in model._meta.concrete_fields]
    into = ", ".join(map(quote, columns))
    values = ", ".join(changed.get(column, f"t.{quote(column)}") for column in columns)
    table = quote(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({into}) SELECT {values} "  # noqa: S608  nothing from outside
            f"FROM {table} t, environments_namespace n WHERE n.id > 1 AND t.id <= {SHARE}"
        )


def queries(token: str, query: str) -> Mapping[str, int]:
    """How many statements the database is sent for one GraphQL query."""
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client(HTTP_HOST="localhost", headers={"Authorization": f"Bearer {token}"})

    def ask() -> int:
        answer = client.post("/graphql", {"query": query}, content_type="application/json")
        assert "errors" not in answer.json(), answer.json()
        return len(answer.content)

    ask()
    with CaptureQueriesContext(connection) as captured:
        size = ask()
    return {"queries": len(captured), "bytes": size}


def log(batch: str, many: str, few: str, builds: str) -> Mapping[str, float]:
    """Seconds a line: of `few` lines in each of `builds` new logs, of `many` in one, of more."""
    from django.core.management import call_command

    from environments.domain.lifecycle import BuildState
    from environments.models import Build
    from environments.models.leased_work import Lease
    from tests.factories import make_build, make_environment, make_namespace

    call_command("migrate", verbosity=0)
    environment = make_environment(make_namespace("research"))
    lines = [f"{number:06d} linked some-package-1.2.3-h0123abc_0 from the cache" for number in
             range(int(batch))]  # fmt: skip

    def append(build: Build, count: int) -> float:
        lease = Lease(owner="", token=build.lease_token)
        clock = Clock()
        for _ in range(count // len(lines)):
            build.append_log(lines, lease=lease)
        return clock.seconds / count

    def fresh() -> Build:
        return make_build(environment, BuildState.LINKING)

    append(fresh(), int(few))
    half = int(builds) // 2
    first = [append(fresh(), int(few)) for _ in range(half)]
    long = fresh()
    whole = append(long, int(many))
    first += [append(fresh(), int(few)) for _ in range(half)]
    last = append(long, int(few) * half) if half else 0.0
    Build.objects.filter(pk=long.pk).update(
        state="FAILED", finished_at=long.created_at, lease_expires_at=None
    )
    clock = Clock()
    long.archive_log()
    return {
        "first": sum(first) / len(first),
        "whole": whole,
        "last": last,
        "archive": clock.seconds,
    }


def _fill_audit(events: int, target: str, changes: Mapping[str, str]) -> None:
    """As AuditEvent.record does it, by SQL: a million of them would take minutes."""
    from django.db import connection, transaction
    from django.utils import timezone

    from environments.domain.audit_chain import COVERED, seal, written
    from environments.models import AuditHead
    from environments.models.audit import key

    secret, digest, at, text = key(), "", timezone.now(), json.dumps(changes)
    columns = [*COVERED[1:], "position", "digest"]
    insert = (
        f"INSERT INTO environments_auditevent ({', '.join(columns)}) "  # noqa: S608
        f"VALUES ({', '.join(['%s'] * len(columns))})"
    )
    rows: list[tuple[Any, ...]] = []
    with transaction.atomic(), connection.cursor() as cursor:
        for position in range(1, events + 1):
            before = (None, "system", None, "", None, "build.submit", target)
            digest = seal(secret, digest, (position, written(at), *before, changes, False))
            rows.append((at, *before, text, False, position, digest))
            if len(rows) == 10_000 or position == events:
                cursor.executemany(insert, rows)
                rows.clear()
        head, _ = AuditHead.objects.get_or_create(pk=1)
        head.position, head.digest = events, digest
        head.save_sealed()


def chain(events: str) -> None:
    """Fill the audit log of a migrated data folder."""
    _fill_audit(int(events), "research/ml", {"specification": "f" * 64})


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """By how many bytes this process grows meanwhile; the database's file that it maps is apart."""
    process, ended, grown = psutil.Process(), threading.Event(), [0]

    def own() -> int:
        info = process.memory_info()
        return int(info.rss - info.shared)

    def look() -> None:
        while not ended.wait(0.2):
            grown.append(own() - before)

    before = own()
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield grown
    finally:
        ended.set()
        watcher.join()


def audit(events: str, appends: str, edited: str) -> Mapping[str, float]:
    """Fill the audit log, edit one event behind its back, verify; seconds and bytes."""
    from django.core.management import call_command
    from django.db import connection, transaction

    from environments.models import AuditEvent, BuildEvent
    from environments.models.audit import unguarded, verify_chain
    from tests.factories import make_build, make_environment, make_namespace

    call_command("migrate", verbosity=0)
    build = make_build(make_environment(make_namespace("research")))
    changes = {"specification": "f" * 64}
    _fill_audit(int(events), str(build), changes)
    times = int(appends)
    clock = Clock()
    for _ in range(times):
        AuditEvent.record(None, "build.submit", build, changes)
    append = clock.seconds / times
    clock = Clock()
    for _ in range(times):
        with transaction.atomic():
            BuildEvent.objects.create(build=build, state="READY")
    plain = clock.seconds / times
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE environments_auditevent SET username = 'eve' WHERE position = %s", [edited]
        )
    # Once with a fault; once without, to its end.
    fault = verify_chain().fault
    unguarded().filter(position=edited).update(username="system")
    with own_memory() as grown:
        started = time.process_time()
        intact = verify_chain()
        verify = time.process_time() - started
    assert intact.fault is None, intact
    assert intact.checked == int(events) + times
    return {
        "append": append,
        "plain": plain,
        "verify": verify,
        "found": fault.position if fault else 0,
        "memory": max(grown),
    }


#: Of each package, so many versions; a lock holds one of each package.
VERSIONS = 20
CONTAINS = """{ lockedPackages(name: "openssl", version: "<3.0.13", first: 50) {
  totalCount edges { node { package { version } build { number } environment { name } } }
} }"""


def tried(locks: str, packages: str) -> Mapping[str, float]:
    """Fill the database with locks, try rules on all of them, ask where a package is."""
    import resource

    from django.core.management import call_command

    from accounts.access import Actor
    from environments.models import Namespace
    from environments.operations import policy_simulation
    from tests.factories import make_user

    call_command("migrate", verbosity=0)
    root = Actor(make_user(ADMINISTRATOR, superuser=True))
    _fill_locks(int(locks), int(packages))

    def simulate(place: Namespace | None, kind: str, settings: Any) -> tuple[float, int]:
        draft = policy_simulation.Draft(
            kind=kind, effect="enforce", name="tried", settings=settings
        )
        clock = Clock()
        found = policy_simulation.simulate(actor=root, namespace=place, drafts=[draft])
        return clock.seconds, found.blocked

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    most = ("packages-allowed", {"packages": ["openssl"]})
    simulate(Namespace.objects.get(name="first"), *most)  # a tenth of all
    before = peak()
    few, few_hits = simulate(None, "packages-denied", {"packages": ["openssl <3.0.13"]})
    many, many_hits = simulate(None, *most)
    after = peak()
    return {
        "few": few,
        "few_hits": few_hits,
        "many": many,
        "many_hits": many_hits,
        "grown": after - before,
        "peak": after,
        **_contained(root),
    }


def contained(locks: str, packages: str) -> Mapping[str, float]:
    """Fill the database with locks, ask where a package is."""
    from django.core.management import call_command

    from accounts.access import Actor
    from tests.factories import make_user

    call_command("migrate", verbosity=0)
    root = Actor(make_user(ADMINISTRATOR, superuser=True))
    _fill_locks(int(locks), int(packages))
    return _contained(root)


def _contained(actor: Any) -> Mapping[str, float]:
    from django.test import Client

    from environments.operations.tokens import create_token

    client = Client(
        HTTP_HOST="localhost",
        headers={"Authorization": f"Bearer {create_token(actor=actor, name='b').secret}"},
    )
    seconds = []
    for _ in range(6):
        clock = Clock()
        answer = client.post("/graphql", {"query": CONTAINS}, content_type="application/json")
        seconds.append(clock.seconds)
    found = answer.json()["data"]["lockedPackages"]
    assert len(found["edges"]) == 50, found
    return {"contains": sorted(seconds[1:])[2], "contained": found["totalCount"]}


def _fill_locks(locks: int, packages: int) -> None:
    from django.db import connection
    from django.utils import timezone

    from environments.models import (
        Build,
        CondaRecord,
        Environment,
        LockRow,
        Namespace,
        Prefix,
    )
    from tests.factories import make_package, make_specification

    names = ["openssl", *(f"package-{number:03d}" for number in range(1, packages))]
    records = CondaRecord.objects.bulk_create(
        [
            CondaRecord.from_value(make_package(name, f"3.0.{version}"))
            for name in names
            for version in range(VERSIONS)
        ],
        batch_size=500,
    )
    locations = [Namespace.objects.create(name=name) for name in ("first", "second")]
    rows = LockRow.objects.bulk_create(
        [
            LockRow(
                digest=f"{number:064x}",
                channels=[],
                platforms=["linux-64"],
                package_count=packages,
                size=0,
            )
            for number in range(locks)
        ],
        batch_size=500,
    )
    of_server = connection.vendor == "postgresql"
    with connection.cursor() as cursor:
        if of_server:  # foreign keys are right by the way they are made: looking takes minutes
            cursor.execute("SET session_replication_role = replica")
        cursor.execute(
            "INSERT INTO environments_lockedconda (lock_id, package_id, platform, position) "
            "WITH RECURSIVE places(p) AS "
            "(SELECT 0 UNION ALL SELECT p + 1 FROM places WHERE p < %s) "
            "SELECT l.id, %s + p * %s + l.id * 7 %% %s, 'linux-64', p "
            "FROM environments_lockrow l, places",
            [packages - 1, records[0].pk, VERSIONS, VERSIONS],
        )
        if of_server:
            cursor.execute("SET session_replication_role = DEFAULT")
    specification, now = make_specification("dependencies: [openssl]"), timezone.now()
    environments = Environment.objects.bulk_create(
        [
            Environment(
                namespace=locations[number >= locks // 10], name=f"environment-{number:05d}"
            )
            for number in range(locks)
        ],
        batch_size=500,
    )
    prefixes = Prefix.objects.bulk_create(
        [
            Prefix(path=f"prefixes/{row.pk}", lock=row, platform="linux-64", unique_size=1,
                   apparent_size=1)
            for row in rows
        ],
        batch_size=500,
    )  # fmt: skip
    builds = Build.objects.bulk_create(
        [
            Build(environment=environment, number=1, state="READY", specification=specification,
                  source="", lock=row, prefix=prefix, platform="linux-64", finished_at=now)
            for environment, row, prefix in zip(environments, rows, prefixes, strict=True)
        ],
        batch_size=500,
    )  # fmt: skip
    for environment, build in zip(environments, builds, strict=True):
        environment.current = build
    Environment.objects.bulk_update(environments, ["current"], batch_size=500)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def console(count: str) -> Mapping[str, Any]:
    from tests.benchmarks import admin

    return admin.console(count)


def collection(count: str) -> Mapping[str, float]:
    from tests.benchmarks.collection import collect

    return collect(count)


JOBS: Mapping[str, Callable[..., Any]] = {
    "rows": rows,
    "console": console,
    "collection": collection,
    "queries": queries,
    "log": log,
    "audit": audit,
    "chain": chain,
    "tried": tried,
    "contained": contained,
}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    import django

    django.setup()
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))


if __name__ == "__main__":
    main()
