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
