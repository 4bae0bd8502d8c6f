"""Rows as a clock that was set back by two hours leaves them: the sweep lets each go on."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone

from accounts.sessions import SessionStore
from environments import tasks
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.lifecycle import BuildState
from environments.models import (
    Artifact,
    Build,
    Leader,
    LockRow,
    Mirror,
    MirrorIndex,
    Notification,
    Preview,
    Worker,
)
from environments.operations import due_times, upkeep
from tests.factories import make_lock

pytestmark = pytest.mark.django_db
HOURS = timedelta(hours=2)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """What the sweep sends messages for."""
    found: dict[str, list[object]] = {}
    for task in (tasks.run_next_build, tasks.make_artifact, tasks.run_next_preview):
        name = task.actor_name
        found[name] = []
        monkeypatch.setattr(task, "send", found[name].append)
    return found


def test_a_build_that_waits_is_sent_again(submit, sent):
    build = submit("dependencies: [python]")
    later = timezone.now() + HOURS
    Build.objects.filter(pk=build.pk).update(not_before=later, message_sent_at=later)
    assert due_times.correct(timezone.now()) == 1
    upkeep.sweep_leased_work()
    assert sent["run_next_build"] == [build.pk]


def test_the_back_off_of_an_attempt_is_kept(submit, settings):
    settings.BACKOFF = timedelta(seconds=60)
    build = submit("dependencies: [python]")
    now = timezone.now()
    Build.objects.filter(pk=build.pk).update(attempt=2, not_before=now + timedelta(seconds=110))
    assert due_times.correct(now) == 0
    Build.objects.filter(pk=build.pk).update(not_before=now + timedelta(seconds=200))
    assert due_times.correct(now) == 1


def test_a_build_whose_message_was_sent_in_the_future_is_sent_again(submit, sent):
    build = submit("dependencies: [python]")
    Build.objects.filter(pk=build.pk).update(message_sent_at=timezone.now() + HOURS)
    upkeep.sweep_leased_work()
    assert sent["run_next_build"] == [build.pk]


def test_a_build_whose_lease_ends_in_two_hours_is_lost(submit):
    build = submit("dependencies: [python]")
    assert build.claim("host:1:x", life=HOURS) is not None
    assert build in Build.objects.lost(timezone.now())
    upkeep.give_up_lost(Build)
    build.refresh_from_db()
    assert build.state == BuildState.QUEUED


def test_an_artifact_goes_on(submit, sent):
    build = submit("dependencies: [python]")
    Build.objects.filter(pk=build.pk).update(lock=LockRow.store(make_lock()))
    build.refresh_from_db()
    artifact = Artifact.wanted(build, ArtifactKind.TAR_GZ, "linux-64")
    later = timezone.now() + HOURS
    Artifact.objects.filter(pk=artifact.pk).update(not_before=later, message_sent_at=later)
    assert due_times.correct(timezone.now()) == 1
    upkeep.sweep_leased_work()
    assert sent["make_artifact"] == [artifact.pk]
    artifact.refresh_from_db()
    assert artifact.claim("host:1:x", life=HOURS) is not None
    upkeep.give_up_lost(Artifact)
    artifact.refresh_from_db()
    assert artifact.state == ArtifactState.QUEUED


def test_a_preview_goes_on(submit, sent):
    build = submit("dependencies: [python]")
    preview = Preview.objects.create(
        namespace=build.environment.namespace,
        specification=build.specification,
        created_at=timezone.now() + HOURS,
    )
    upkeep.sweep_leased_work()
    Preview.objects.update(created_at=timezone.now() - HOURS)
    assert preview.claim("host:1:x", life=HOURS) is not None
    upkeep.sweep_leased_work()
    Preview.objects.update(not_before=timezone.now())
    upkeep.sweep_leased_work()
    assert sent["run_next_preview"] == [str(preview.pk)] * 2


def test_a_notification_is_due(environment):
    later = timezone.now() + HOURS
    content = {"text": "", "data": {}}
    new = Notification.objects.create(email="a@example.org", content=content, not_before=later)
    tried = Notification.objects.create(
        email="b@example.org", content=content, not_before=later, attempt=3
    )
    assert due_times.correct(timezone.now()) == 2
    assert set(Notification.objects.due(timezone.now() + timedelta(seconds=1))) == {new, tried}


def test_a_mirror_is_read_again():
    mirror = Mirror.objects.create(name="m", upstream="https://example.org/m", subdirs=["noarch"])
    later = timezone.now() + HOURS
    index = MirrorIndex.objects.create(
        mirror=mirror, subdir="noarch", looked_at=later, tried_at=later, not_before=later
    )
    assert due_times.correct(timezone.now()) == 1
    assert index in MirrorIndex.objects.due(timezone.now())
    assert index.claim("host:1:x", life=HOURS) is not None
    upkeep.give_up_lost(MirrorIndex)
    assert index in MirrorIndex.objects.due(timezone.now())


def test_a_scheduler_and_a_worker_that_died_do_not_seem_alive():
    Leader.lead("scheduler", "dead", life=HOURS)
    assert Leader.lead("scheduler", "new", life=timedelta(seconds=15))
    Worker.announce("dead", platform="linux-64", queues=["builds"], life=HOURS)
    assert not Worker.objects.alive().exists()


def test_sessions_that_have_expired_are_deleted(monkeypatch, sent):
    for age in (timedelta(days=1), -timedelta(days=1)):
        session = SessionStore()
        session["x"] = 1
        session.save()
        assert session.session_key
        newest = Session.objects.order_by("-expire_date").first()
        assert newest is not None
        Session.objects.filter(pk=newest.pk).update(expire_date=timezone.now() + age)
    monkeypatch.setattr(upkeep, "_last", {})
    monkeypatch.setattr(tasks.tidy, "send", lambda: None)
    upkeep.sweep()
    assert Session.objects.count() == 1
