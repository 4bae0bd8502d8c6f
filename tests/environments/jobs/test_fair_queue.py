"""Order of the queue: no namespace delays another by more than one of its builds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from django.utils import timezone

from condastore import broker
from condastore.errors import RequestError
from environments import tasks
from environments.domain.lifecycle import BuildState
from environments.jobs import builds as building
from environments.jobs import fair_queue, slot_sharing
from environments.jobs.build_run import BuildRun
from environments.models import Build, Environment, Namespace, Worker
from environments.services import engine_context
from tests import factories
from tests.services import Service

S = BuildState
LIFE = timedelta(seconds=60)


def place(name: str) -> Environment:
    return factories.make_environment(factories.make_namespace(name))


def queue(environment: Environment, number: int = 1) -> list[Build]:
    return [factories.make_build(environment, S.QUEUED) for _ in range(number)]


def next_build(platform: str = factories.PLATFORM) -> int | None:
    return next(fair_queue.next_builds(platform), None)


def serve(platform: str = factories.PLATFORM) -> str:
    """Take the next build, as a worker does; the name of its namespace."""
    for key in fair_queue.next_builds(platform):
        build = Build.objects.select_related("environment__namespace").get(pk=key)
        if build.claim("worker", life=LIFE) is not None:
            return build.environment.namespace.name
    raise AssertionError("nothing is due")


@pytest.mark.django_db
def test_of_one_namespace_the_oldest_build_is_next():
    builds = queue(place("big"), 3)
    assert next_build() == builds[0].pk
    Build.objects.filter(pk=builds[0].pk).update(not_before=timezone.now() + LIFE)
    assert next_build() == builds[1].pk


@pytest.mark.django_db
def test_the_namespace_with_the_fewest_running_builds_is_next():
    big, small = place("big"), place("small")
    queue(big, 10)
    assert [serve() for _ in range(3)] == ["big"] * 3
    queue(small, 2)
    assert [serve() for _ in range(4)] == ["small", "small", "big", "big"]


@pytest.mark.django_db
def test_where_as_many_run_the_one_served_longest_ago_is_next():
    locations = [place(name) for name in ("one", "two", "three")]
    for one in locations:
        queue(one, 3)
    turns = [serve() for _ in range(9)]
    assert turns == ["one", "two", "three"] * 3


@pytest.mark.django_db
def test_builds_that_ended_do_not_count_against_anybody():
    big, small = place("big"), place("small")
    queue(big, 3)
    queue(small, 3)
    turns = []
    for _ in range(6):
        turns.append(serve())
        running = Build.objects.get(state=S.SOLVING)
        running.move(S.CANCELLING)
        running.move(S.CANCELLED)
    assert turns == ["big", "small"] * 3


@pytest.mark.django_db
def test_nothing_due_is_nothing_to_do():
    environment = place("one")
    for state in S:
        if state != S.QUEUED:
            factories.make_build(environment, state)
    assert next_build() is None
    assert Namespace.objects.get().served_at is None


@pytest.mark.django_db
def test_a_build_that_another_took_is_followed_by_the_next():
    queue(place("one"), 3)
    chosen = fair_queue.next_builds(factories.PLATFORM)
    first = next(chosen)
    Build.objects.get(pk=first).claim("another", life=LIFE)
    assert next(chosen) != first
    assert len(list(islice(chosen, 5))) == 5  # it is asked anew each time


@pytest.mark.django_db
def test_builds_go_to_a_worker_of_their_platform_where_there_is_one():
    [build] = queue(place("one"))
    Build.objects.update(platform="linux-aarch64")
    assert next_build("linux-64") == build.pk
    Worker.announce("far", platform="linux-aarch64", queues=["builds"], life=Worker.LIFE)
    assert next_build("linux-64") is None
    assert fair_queue.left_to_others("linux-64")
    assert next_build("linux-aarch64") == build.pk
    assert not fair_queue.left_to_others("linux-aarch64")
    Worker.announce("far", platform="linux-aarch64", queues=["solves"], life=Worker.LIFE)
    assert next_build("linux-64") == build.pk


def solving(environment: Environment, number: int) -> list[Build]:
    """Builds that run; the last began last."""
    found = [factories.make_build(environment, S.SOLVING) for _ in range(number)]
    for position, build in enumerate(found):
        Build.objects.filter(pk=build.pk).update(
            attempt_started_at=timezone.now() - timedelta(minutes=1) + position * LIFE / 60
        )
    return found


def waiting(environment: Environment) -> Build:
    """A build that is due for longer than it takes to find a free slot."""
    [build] = queue(environment)
    past = timezone.now() - LIFE
    Build.objects.filter(pk=build.pk).update(not_before=past, created_at=past)
    return build


def make_way(builds: list[Build]) -> list[bool]:
    return [slot_sharing.should_make_way(build, factories.PLATFORM) for build in builds]


@pytest.mark.django_db
def test_a_solve_makes_way_for_a_build_that_was_made_before_the_clock_was_set_back():
    builds = solving(place("big"), 2)
    late = waiting(place("small"))
    Build.objects.filter(pk=late.pk).update(created_at=timezone.now() + timedelta(hours=2))
    assert make_way(builds) == [False, True]


@pytest.mark.django_db
def test_the_newest_of_several_solves_makes_way_for_a_namespace_that_has_none():
    builds = solving(place("big"), 3)
    assert make_way(builds) == [False] * 3
    waiting(place("small"))
    assert make_way(builds) == [False, False, True]


@pytest.mark.django_db
def test_nobody_makes_way_for_whoever_has_a_running_build():
    builds, small = solving(place("big"), 3), place("small")
    solving(small, 1)
    waiting(small)
    assert make_way(builds) == [False] * 3


@pytest.mark.django_db
def test_the_only_build_of_a_namespace_goes_on():
    builds = solving(place("one"), 1)
    waiting(place("two"))
    assert make_way(builds) == [False]


@pytest.mark.django_db
def test_a_build_that_was_queued_just_now_is_waited_with():
    builds = solving(place("big"), 2)
    queue(place("small"))
    assert make_way(builds) == [False] * 2


# --- with a broker and workers ------------------------------------------------------------------


@pytest.fixture
def queue_of_builds(
    valkey_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The actor on a real broker, and the namespaces whose builds it ran, in their order."""
    real = broker.make_broker(valkey_service.url)
    made_of = dramatiq.actor(broker=real, queue_name="builds", max_retries=0)
    actor: Any = made_of(tasks.run_next_build.fn)
    served: list[str] = []
    guard = threading.Lock()

    def note(run: BuildRun) -> None:
        with guard:
            served.append(run.build.environment.namespace.name)
        raise RequestError("That is all this test needs.")

    monkeypatch.setattr(building, "STAGES", ((S.SOLVING, note),))
    created = engine_context.Engine(tmp_path)
    engine_context.set_engine(created)
    real.flush_all()
    yield actor, served
    engine_context.set_engine(None)
    created.close()
    real.flush_all()
    real.close()


def work_off(actor: Any, threads: int) -> None:
    worker = dramatiq.Worker(actor.broker, queues={"builds"}, worker_threads=threads)
    worker.start()
    actor.broker.join("builds", timeout=120_000)
    worker.join()
    worker.stop()


@pytest.mark.django_db(transaction=True)
def test_many_queued_builds_delay_another_namespace_by_one_at_most(queue_of_builds: Any):
    actor, served = queue_of_builds
    builds = queue(place("big"), 30) + queue(place("small"), 2)
    for build in builds:
        actor.send(build.pk)
    work_off(actor, 1)
    assert served[:4] == ["big", "small", "big", "small"]
    assert Build.objects.filter(state=S.FAILED, attempt=1).count() == len(builds) == len(served)


@pytest.mark.django_db(transaction=True)
def test_no_build_is_lost_or_run_twice_where_many_take_them(queue_of_builds: Any):
    actor, served = queue_of_builds
    builds = [build for name in ("one", "two", "three") for build in queue(place(name), 8)]
    for build in builds:
        actor.send(build.pk)
        actor.send(build.pk)  # a second delivery finds nothing to do
    work_off(actor, 4)
    assert Build.objects.filter(state=S.FAILED, attempt=1).count() == len(builds) == len(served)
