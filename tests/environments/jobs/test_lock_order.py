"""Transactions lock rows in the order of docs/architecture.md, so that none wait for each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import QuerySet

from accounts.access import Actor
from environments.jobs import builds
from environments.models import Build, Environment, Push, PushRule
from environments.operations.builds import cancel_build, delete_build, set_current_build, tag_build

pytestmark = pytest.mark.django_db(transaction=True)
#: Tables by their place in the order; tables that are not listed are locked by no two writers.
ORDER = (
    ("policy",),
    ("namespace",),
    ("environment",),
    ("build", "prefix", "artifact", "push", "notification", "preview", "folderrestore"),
    ("blob",),
    ("audithead",),
)
PLACES = {f"environments_{name}": place for place, names in enumerate(ORDER) for name in names}
_WRITE = re.compile(r'^(?:UPDATE|DELETE FROM) "?(\w+)')


class Locks:
    """Tables whose rows each transaction locks, in order."""

    def __init__(self) -> None:
        self.transactions: list[list[str]] = [[]]

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if connection.in_atomic_block and (found := _WRITE.match(sql)):
            self.note(found[1])
        return execute(sql, params, many, context)

    def note(self, table: str) -> None:
        if table in PLACES and table not in self.transactions[-1]:
            self.transactions[-1].append(table)

    def out_of_order(self) -> list[list[str]]:
        return [
            tables
            for tables in self.transactions
            if [PLACES[table] for table in tables] != sorted(PLACES[table] for table in tables)
        ]


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Locks]:
    found = Locks()
    lock_rows = QuerySet.select_for_update

    def noted(rows: Any, *arguments: Any, **options: Any) -> Any:
        # SQLite has no FOR UPDATE; in a transaction, the rows are read at once.
        if connection.in_atomic_block:
            found.note(rows.model._meta.db_table)
        return lock_rows(rows, *arguments, **options)

    enter = transaction.Atomic.__enter__

    def entered(block: Any) -> None:
        if not connection.in_atomic_block:
            found.transactions.append([])
        enter(block)

    monkeypatch.setattr(transaction.Atomic, "__enter__", entered)
    monkeypatch.setattr(QuerySet, "select_for_update", noted)
    with connection.execute_wrapper(found):
        yield found


def test_a_build_is_published_in_the_lock_order(
    submit: Callable[..., Build], environment: Environment, locks: Locks
) -> None:
    PushRule.objects.create(
        namespace=environment.namespace, pattern="*", target="registry.example.org/x:{build}"
    )
    build = submit("dependencies: [hello-noarch]")
    builds.run(build.pk)
    build.refresh_from_db()
    assert build.state == "READY", build.failure
    assert Push.objects.get().build == build
    assert locks.out_of_order() == []


def test_people_change_builds_in_the_lock_order(
    submit: Callable[..., Build], alice: Actor, dora: Actor, locks: Locks
) -> None:
    first, second = submit("dependencies: [hello-noarch]"), submit("dependencies: [apptool]")
    for build in (first, second):
        builds.run(build.pk)
        build.refresh_from_db()
    set_current_build(actor=alice, build=first, pin=True)
    tag_build(actor=alice, build=first, tag="stable")
    delete_build(actor=dora, build=second)
    cancel_build(actor=alice, build=submit("dependencies: [python]"))
    assert locks.out_of_order() == []
