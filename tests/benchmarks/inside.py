"""What is done beside a system's doors, in a Django process of its own on the system's data folder.

Filling its database with rows by the thousand, counting queries, appending to logs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.channels import PROJECT
from tests.benchmarks.measure import Clock

#: Environments in one namespace, and builds that have one lock.
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
    """`count` environments, each with a READY build that is current; there are no files."""
    from django.core.management import call_command

    from accounts.roles import Role
    from tests.factories import make_user

    clock = Clock()
    call_command("migrate", verbosity=0)
    make_user(ADMINISTRATOR, superuser=True, password=PASSWORD)
    member = make_user(MEMBER, password=PASSWORD)
    namespaces = _make_namespaces(-(-int(count) // SHARE))
    for namespace in namespaces[::2]:
        namespace.grant(Role.VIEWER, member)
    made = 0
    for namespace in namespaces:
        size = min(SHARE, int(count) - made)
        _fill(namespace, size)
        made += size
    return {"environments": made, "seconds": clock.seconds}


def _make_namespaces(count: int) -> list[Any]:
    from environments.models import Namespace

    return Namespace.objects.bulk_create(
        [Namespace(name=f"team-{number:05d}") for number in range(count)]
    )


def _fill(namespace: Any, size: int) -> None:
    import hashlib

    from django.db import transaction
    from django.utils import timezone

    from environments.models import Build, Environment, LockRow, Prefix
    from tests.factories import PLATFORM, make_specification

    now, specification = timezone.now(), make_specification()
    with transaction.atomic():
        lock = LockRow.objects.create(
            digest=hashlib.sha256(namespace.name.encode()).hexdigest(),
            channels=[],
            platforms=[PLATFORM],
            package_count=50,
            size=100_000_000,
        )
        environments = Environment.objects.bulk_create(
            [
                Environment(
                    namespace=namespace,
                    name=f"environment-{number:04d}",
                    description="Rows for a benchmark",
                    last_number=1,
                )
                for number in range(size)
            ]
        )
        prefixes = Prefix.objects.bulk_create(
            [
                Prefix(
                    path=f"prefixes/{namespace.name}/1-{environment.name}",
                    lock=lock,
                    platform=PLATFORM,
                    apparent_size=400_000_000,
                    unique_size=2_000_000,
                )
                for environment in environments
            ]
        )
        builds = Build.objects.bulk_create(
            [
                Build(
                    environment=environment,
                    number=1,
                    state="READY",
                    specification=specification,
                    source="dependencies: [python]",
                    lock=lock,
                    prefix=prefix,
                    platform=PLATFORM,
                    attempt=1,
                    finished_at=now,
                )
                for environment, prefix in zip(environments, prefixes, strict=True)
            ]
        )
        for environment, build in zip(environments, builds, strict=True):
            environment.current = build
        Environment.objects.bulk_update(environments, ["current"])


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
    from environments.models.builds import Lease
    from tests.factories import make_build, make_environment, make_namespace

    call_command("migrate", verbosity=0)
    environment = make_environment(make_namespace("research"))
    lines = [f"{number:06d} linked some-package-1.2.3-h0123abc_0 from the cache" for number in
             range(int(batch))]  # fmt: skip

    def append(build: Build, count: int) -> float:
        lease = Lease(build_id=build.pk, owner="", token=build.lease_token)
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


JOBS: Mapping[str, Callable[..., Any]] = {"rows": rows, "queries": queries, "log": log}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    import django

    django.setup()
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))


if __name__ == "__main__":
    main()
