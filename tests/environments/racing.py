"""People who decide at the same moment, on the database of the environment: a program of its own.

Each race is run several times; what came of it is printed as JSON.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import django

ROUNDS = 6


def together(*works: Callable[[], Any]) -> list[str]:
    """What each gave, or the kind of its error; all start at once."""
    from django.db import connection

    start = threading.Barrier(len(works))
    found = [""] * len(works)

    def do(index: int, work: Callable[[], Any]) -> None:
        start.wait()
        try:
            work()
            found[index] = "done"
        except Exception as error:
            found[index] = type(error).__name__
        finally:
            connection.close()

    threads = [threading.Thread(target=do, args=(index, work)) for index, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> None:
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from accounts.models import User
    from accounts.roles import Role
    from environments import tasks
    from environments.domain.lifecycle import BuildState as S
    from environments.domain.policy import Effect, PackageKey, Verdict
    from environments.models import ApprovalRequest, Build, Decision
    from environments.operations import approvals, builds
    from environments.services import approval_requests as keeping
    from tests import factories

    tasks.run_next_build.send = tasks.run_next_build.fn = lambda key: None  # type: ignore
    research = factories.make_namespace(
        "research", alice=Role.DEVELOPER, anna=Role.APPROVER, ada=Role.APPROVER
    )
    alice, anna, ada = (
        factories.actor(User.objects.get(username=name)) for name in ("alice", "anna", "ada")
    )
    environment = factories.make_environment(research)

    def waiting(number: int, *, hold: bool = True) -> tuple[Build, Callable[[], bool]]:
        """A build of Alice's that has to wait for the package `p<number>`, and how to hold it."""
        package = factories.make_package(f"p{number}")
        lock = factories.make_lock(package)
        build = factories.make_build(environment, S.ARCHIVED, lock=lock)
        build.move(S.QUEUED)
        Build.objects.filter(pk=build.pk).update(requested_by=alice.account)
        build.refresh_from_db()
        lease = build.claim("worker", life=timedelta(minutes=5))
        assert lease is not None
        key = PackageKey(
            manager="conda",
            name=package.name,
            version=package.version,
            build=package.build,
            channel=package.channel,
            sha256=package.sha256,
        )
        verdict = Verdict(
            rule="look", effect=Effect.ASK, subject="p", reason="Look at it.", package=key
        )

        def do() -> bool:
            return keeping.hold(build, [verdict], lease=lease)

        if hold:
            assert do()
        return build, do

    def decide(actor: Any, build: Build, *, approve: bool = True) -> None:
        request = ApprovalRequest.objects.select_related("namespace").get(builds=build)
        approvals.decide(actor=actor, requests=[request], approve=approve, reason="seen")

    outcomes: dict[str, Counter[str]] = {
        name: Counter() for name in ("two approvers", "approve and cancel", "hold and approve")
    }
    for number in range(ROUNDS):
        build, _ = waiting(number)
        ends = together(
            lambda build=build: decide(anna, build),  # type: ignore[misc]
            lambda build=build: decide(ada, build, approve=False),  # type: ignore[misc]
        )
        build.refresh_from_db()
        created = Decision.objects.filter(name=f"p{number}").count()
        outcomes["two approvers"][f"{sorted(ends)} {created}"] += 1
        assert build.state in (S.QUEUED, S.FAILED), build.state

        build, _ = waiting(1000 + number)
        ends = together(
            lambda build=build: decide(anna, build),  # type: ignore[misc]
            lambda build=build: builds.cancel_build(  # type: ignore[misc]
                actor=alice, build=Build.objects.get(pk=build.pk)
            ),
        )
        build.refresh_from_db()
        outcomes["approve and cancel"][f"{ends[1]} {build.state}"] += 1
        assert ends[0] in ("done", "TransitionError"), ends

        first, _ = waiting(2000 + number)
        second, hold = waiting(2000 + number, hold=False)
        ends = together(lambda first=first: decide(anna, first), hold)  # type: ignore[misc]
        second.refresh_from_db()
        outcomes["hold and approve"][f"{ends} {second.state}"] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
