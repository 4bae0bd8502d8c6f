"""Processor time of a list by each way of execution, in alternation: `python -m` this module.

The ways are the library's own execution context, `fast_execution` without prepared statements, and
`fast_execution` with them (`prepared`). One process, without HTTP and sign-in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.inside import ADMINISTRATOR, MEMBER, inside
from tests.benchmarks.lists import LIST, WITH_TOTAL
from tests.benchmarks.measure import median, scratch

ROWS, ROUNDS, WARM_UP = 1_000, 100, 5


def main() -> None:
    with scratch() as folder:
        inside(folder, "rows", ROWS)
        os.environ |= {"CONDASTORE_DATA": str(folder), "CONDASTORE_LOG_LEVEL": "WARNING"}
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
        import django

        django.setup()
        taken: dict[str, list[float]] = {}
        ways = _ways()
        for number in range(ROUNDS + WARM_UP):
            for name, run in ways.items():
                before = time.process_time()
                run()
                if number >= WARM_UP:
                    taken.setdefault(name, []).append(time.process_time() - before)
        for name, seconds in taken.items():
            print(f"{name:60} {1000 * median(seconds):6.2f} ms")


def _ways() -> dict[str, Callable[[], Any]]:
    from unittest.mock import patch

    from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

    from accounts.access import Actor
    from accounts.models import User
    from condastore.schema import schema
    from environments.graphql import fast_execution
    from tests.environments.graphql.asking import ask

    def library(actor: Actor, query: str) -> Any:
        context = StrawberryGraphQLCoreExecutionContext
        with patch.object(schema, "execution_context_class", context):
            return ask(actor, query)

    def unprepared(actor: Actor, query: str) -> Any:
        with patch.object(fast_execution, "_is_prepared", lambda field: False):
            return ask(actor, query)

    ways: dict[str, Callable[[], Any]] = {}
    for who in (ADMINISTRATOR, MEMBER):
        actor = Actor(User.objects.get(username=who))
        answers = [run(actor, LIST) for run in (library, unprepared, ask, ask, ask)]
        assert all(one == answers[0] for one in answers)
        for name, run in (("library", library), ("fast", unprepared), ("prepared", ask)):
            ways[f"{name}, {who}"] = lambda run=run, actor=actor: run(actor, LIST)  # type: ignore[misc]
        ways[f"with totalCount, {who}"] = lambda actor=actor: ask(actor, WITH_TOTAL)  # type: ignore[misc]
    return ways


if __name__ == "__main__":
    main()
