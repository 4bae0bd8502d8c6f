"""Pushes by rule: an environment moves on, and what other registries hold follows it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from django.db import connection
from django.test import Client
from django.utils import timezone
from dramatiq.middleware import Shutdown
from dramatiq.middleware.threading import raise_thread_exception
from typer.testing import CliRunner

from accounts.access import Actor
from condastore.cli import client
from condastore.cli import images as commands
from condastore.cli.main import app
from condastore.databases.sqlite3.base import queue_of
from condastore.errors import (
    AccessDeniedError,
    AddressRefusedError,
    ConflictError,
    InvalidInputError,
    LeaseLostError,
)
from environments import tasks
from environments.domain.artifacts import ArtifactState
from environments.domain.images import MANIFEST
from environments.jobs import image_pushes
from environments.models import (
    Artifact,
    AuditEvent,
    BaseImage,
    Build,
    Environment,
    Namespace,
    Push,
    PushRule,
)
from environments.operations import pushes, queueing
from environments.operations.builds import set_current_build
from environments.operations.images import push_image
from environments.operations.recalls import recall
from environments.services import data_folder_marker
from environments.services.image_manifests import images_of
from environments.services.image_pushes import send_image
from tests import factories
from tests.environments.registry.conftest import LOGIN, build_it, registry_in

pytestmark = pytest.mark.django_db(transaction=True)
ACTIVATING = "dependencies: [activating]"


@pytest.fixture(autouse=True)
def sends(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """A worker without a queue; the registries of these tests are on this machine."""
    monkeypatch.setattr(tasks.push_image, "send", image_pushes.push)
    settings.PUSH_PRIVATE_NETWORKS = ["127.0.0.0/8"]
    settings.ALLOWED_NETWORKS = []


@pytest.fixture
def closed_registry(tmp_path: Path) -> Iterator[str]:
    with registry_in(tmp_path, closed=True) as address:
        yield address


def rule_to(actor: Actor, namespace: Namespace, target: str, pattern: str = "ml") -> PushRule:
    return pushes.create_push_rule(actor=actor, namespace=namespace, pattern=pattern, target=target)


def sweep() -> Push:
    Push.objects.update(not_before=timezone.now(), message_sent_at=None)
    queueing.send_due(Push)
    return Push.objects.get()


def there(registry: str, path: str) -> httpx.Response:
    return httpx.get(f"http://{registry}/v2/{path}", headers={"Accept": MANIFEST})


def test_each_new_current_build_is_pushed_and_only_what_is_missing_there(
    small: Build, submit: Callable[..., Build], research: Namespace, dora: Actor, registry: str,
    alice: Actor, environment: Environment,
) -> None:  # fmt: skip
    rule_to(dora, research, f"http://{registry}/team/{{environment}}:{{build}}")
    first = sweep()
    assert (first.state, first.problem) == ("pushed", "")
    assert there(registry, "team/ml/manifests/1").headers["Docker-Content-Digest"] == (
        f"sha256:{first.digest}"
    )
    build_it(submit(ACTIVATING))
    second = sweep()
    assert (second.state, second.build.number) == ("pushed", 2)
    assert second.sent_bytes < first.sent_bytes
    environment.refresh_from_db()
    set_current_build(actor=alice, build=small)
    assert Push.objects.get().state == "waiting"
    assert sweep().build == small
    assert set(there(registry, "team/ml/tags/list").json()["tags"]) == {"1", "2"}
    event = AuditEvent.objects.filter(action="image.push").order_by("pk").first()
    assert (event.username, event.target) == ("system", "research/ml build 1")
    assert event.changes["to"] == f"{registry}/team/ml:1"


def test_a_push_that_fails_is_tried_again_and_says_why(
    small: Build, research: Namespace, dora: Actor, settings: Any, registry: str
) -> None:
    settings.NOTIFICATION_ATTEMPTS = 2
    settings.NOTIFICATION_BACKOFF = timedelta(hours=1)
    rule = rule_to(dora, research, "http://127.0.0.1:9/team/ml:1")
    first = sweep()
    assert first.state == "waiting"
    assert "127.0.0.1:9 does not respond" in first.problem
    assert first.not_before > timezone.now() + timedelta(minutes=50)
    queueing.send_due(Push)
    assert Push.objects.get().attempt == 1  # it is not due
    assert sweep().state == "failed"
    assert AuditEvent.objects.filter(action="image.push-failed").count() == 1
    PushRule.objects.update(target=f"http://{registry}/team/ml:1")
    pushes.push_again(actor=dora, rule=rule)
    assert sweep().state == "pushed"


def test_a_registry_is_shown_the_login_of_the_namespace_and_no_other_one(
    small: Build, research: Namespace, dora: Actor, root: Actor, closed_registry: str
) -> None:
    keep = pushes.set_registry_login
    keep(actor=root, namespace=None, registry=closed_registry, login=LOGIN)
    rule = rule_to(dora, research, f"http://{closed_registry}/team/ml:{{build}}")
    refused = sweep()
    assert refused.state == "failed"  # at once: the next attempt would be refused as well
    assert "requires a sign-in" in refused.problem
    keep(actor=dora, namespace=research, registry=f"{closed_registry}/team", login=LOGIN)
    pushes.push_again(actor=dora, rule=rule)
    assert sweep().state == "pushed"
    assert "sesame" not in str(list(AuditEvent.objects.values_list("changes", flat=True)))


def test_nothing_is_pushed_into_the_private_network_unless_it_is_allowed(
    small: Build, research: Namespace, dora: Actor, registry: str, settings: Any
) -> None:
    settings.PUSH_PRIVATE_NETWORKS = []
    rule_to(dora, research, f"http://{registry}/team/ml:1")
    refused = sweep()
    assert refused.state == "failed"
    assert "has no address that this installation may connect to" in refused.problem
    with pytest.raises(AddressRefusedError):
        push_image(actor=dora, environment=small.environment, tag="1", to=f"http://{registry}/x:1")
    assert there(registry, "_catalog").json() == {"repositories": []}


def test_what_was_recalled_is_not_pushed(
    small: Build, research: Namespace, dora: Actor, root: Actor, registry: str
) -> None:
    rule_to(dora, research, f"http://{registry}/team/ml:1")
    recall(actor=root, spec="libbeta", reason="it leaks")
    refused = sweep()
    assert refused.state == "failed"
    assert "it leaks" in refused.problem


def test_who_is_overtaken_by_a_newer_build_moves_no_tag(
    small: Build, submit: Callable[..., Build], research: Namespace, dora: Actor, registry: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rule_to(dora, research, f"http://{registry}/team/ml:now")
    real = send_image

    def overtaken(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(image_pushes, "send_image", real)
        second = build_it(submit(ACTIVATING))
        assert Push.objects.get().build == second
        with pytest.raises(LeaseLostError):
            real(*arguments, **options)
        sweep()
        raise LeaseLostError("the test ended the lease")

    monkeypatch.setattr(image_pushes, "send_image", overtaken)
    sweep()
    done = Push.objects.get()
    assert (done.state, done.build.number) == ("pushed", 2)
    digest = there(registry, "team/ml/manifests/now").headers["Docker-Content-Digest"]
    assert digest == f"sha256:{done.digest}"


def test_two_workers_do_not_send_the_same(small: Build, research: Namespace, dora: Actor) -> None:
    rule_to(dora, research, "registry.example.org/team/ml")
    first, second = Push.objects.get(), Push.objects.get()
    lease = first.claim("one", life=timedelta(minutes=1))
    assert lease is not None
    assert second.claim("two", life=timedelta(minutes=1)) is None
    assert first.state == "pushing"


@pytest.mark.parametrize(
    ("pattern", "target", "why"),
    [
        ("ml", "ml:1", "is not the name of an image"),
        ("ml", "registry.example.org/team/{namespace}", "may use only"),
        ("*", "registry.example.org/team/all", "same reference"),
        ("../x", "registry.example.org/team/ml", "not an environment name"),
        ("ml", f"registry.example.org/team/ml@sha256:{'0' * 64}", "a digest"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(
    research: Namespace, dora: Actor, pattern: str, target: str, why: str
) -> None:
    with pytest.raises(InvalidInputError, match=why):
        rule_to(dora, research, target, pattern)


def test_rules_are_for_those_who_run_the_namespace(
    research: Namespace, dora: Actor, alice: Actor, bob: Actor, charlie: Actor, root: Actor
) -> None:
    target = "registry.example.org/{environment}"
    rule = rule_to(dora, research, target, "*")
    for actor in (alice, bob, charlie):
        with pytest.raises(AccessDeniedError):
            rule_to(actor, research, target, "m*")
        with pytest.raises(AccessDeniedError):
            pushes.push_again(actor=actor, rule=rule)
        with pytest.raises(AccessDeniedError):
            pushes.delete_push_rule(actor=actor, rule=rule)
        with pytest.raises(AccessDeniedError):
            pushes.set_registry_login(
                actor=actor, namespace=research, registry="registry.example.org", login=LOGIN
            )
        assert not PushRule.objects.visible_to(actor).exists()
    with pytest.raises(AccessDeniedError):
        pushes.set_registry_login(
            actor=dora, namespace=None, registry="registry.example.org", login=LOGIN
        )
    with pytest.raises(ConflictError):
        rule_to(dora, research, target, "*")
    assert list(PushRule.objects.visible_to(root)) == [rule]
    pushes.delete_push_rule(actor=dora, rule=rule)
    assert not PushRule.objects.exists()


def test_a_push_by_command_uses_the_login_of_the_namespace_for_those_who_run_it(
    small: Build, research: Namespace, environment: Environment, dora: Actor, bob: Actor,
    closed_registry: str,
) -> None:  # fmt: skip
    pushes.set_registry_login(actor=dora, namespace=research, registry=closed_registry, login=LOGIN)
    target = f"http://{closed_registry}/team/ml:1"
    with pytest.raises(AccessDeniedError, match="sign-in"):
        push_image(actor=bob, environment=environment, tag="1", to=target)
    assert push_image(actor=dora, environment=environment, tag="1", to=target).sent == 6


def test_rules_logins_and_bases_are_set_at_the_command_line(
    small: Build, research: Namespace, dora: Actor, closed_registry: str, server: str,
    monkeypatch: pytest.MonkeyPatch, settings: Any,
) -> None:  # fmt: skip
    settings.BASE_IMAGES_ALLOWED = ["machine"]
    monkeypatch.setenv("CONDASTORE_URL", server)
    monkeypatch.setenv("CONDASTORE_TOKEN", factories.make_token(dora.account))

    def run(*words: str, typed: str = "") -> str:
        api = client.connect()  # a command leaves it to the end of its process
        monkeypatch.setattr(commands, "connect", lambda: api)
        done = CliRunner().invoke(app, ["image", *words], input=typed)
        api._http.close()
        assert done.exception is None, done.exception
        return done.output

    assert "Images of research lie on machine." in run("base", "research", "machine")
    assert "what the installation has" in run("base", "research", "--default")
    words = ("login", closed_registry, "-n", "research", "--user", "robot", "--password-stdin")
    assert "as robot" in run(*words, typed="sesame\n")
    target = f"http://{closed_registry}/team/{{environment}}:{{build}}"
    assert "1 image is on the way" in run("push-rule", "add", "research", "m*", target)
    assert "waiting" in run("push-rule", "list")
    assert sweep().state == "pushed"
    [rule] = json.loads(run("push-rule", "list", "-n", "research", "--json"))
    [push] = rule["pushes"]
    assert (push["build"], push["state"]) == ("research/ml:1", "PUSHED")
    assert push["target"] == f"http://{closed_registry}/team/ml:1"
    assert "1 image is on the way" in run("push-rule", "again", rule["id"])
    assert "no longer sent" in run("push-rule", "remove", rule["id"])
    assert "You have no push rules yet." in run("push-rule", "list")


def test_administrators_see_rules_and_bases_in_the_console(
    small: Build, research: Namespace, root: Actor, dora: Actor
) -> None:
    browser = Client()
    browser.force_login(root.account)
    location = "/admin/environments"
    target = "registry.example.org/ml:{build}"
    requested = {"namespace": research.pk, "pattern": "ml", "target": target}
    added = browser.post(f"{location}/pushrule/new/", requested)
    assert added.status_code == 302, added.content
    rule = PushRule.objects.get()
    Push.objects.update(problem="it was in a bad mood")
    page = browser.get(f"{location}/pushrule/{rule.pk}/change/").content.decode()
    assert "registry.example.org/ml:1" in page
    assert "it was in a bad mood" in page
    chosen = browser.post(f"{location}/namespace/base/?ids={research.pk}", {"base": "machine"})
    assert chosen.status_code == 302, chosen.content
    research.refresh_from_db()
    assert research.base_image == "machine"
    base = BaseImage.objects.get()
    assert base.digest in browser.get(f"{location}/baseimage/{base.pk}/change/").content.decode()


# --- outages --------------------------------------------------------------------------------------


class Outage:
    """Holds SQLite's turn to write for longer than anybody waits: for writers it is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._queue = queue_of(str(connection.settings_dict["NAME"]))
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.2)
        connection.close()
        self._ended = threading.Event()
        self.began = threading.Event()

    def once(self, begins: Callable[[], bool], *, seconds: float = 1.5) -> threading.Thread:
        """Begin as soon as `begins` says so, and end after some seconds."""

        def run() -> None:
            try:
                while not begins():
                    time.sleep(0.002)
                self._queue.acquire(30)
                self.began.set()
                time.sleep(seconds)
                self._queue.release()
            finally:
                connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.mark.parametrize("made", [False, True], ids=["while it is made", "while it is sent"])
def test_an_outage_of_the_database_is_no_attempt_at_a_push(
    small: Build, research: Namespace, dora: Actor, registry: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, made: bool,
) -> None:  # fmt: skip
    rule_to(dora, research, f"http://{registry}/team/ml:1")
    if made:
        to = f"http://{registry}/before/ml:1"
        push_image(actor=dora, environment=small.environment, tag="1", to=to)
    uploads = tmp_path / "registry"

    def begins() -> bool:
        if made:  # the registry has the first bytes of it
            return (uploads / "docker/registry/v2/repositories/team").exists()
        return Artifact.objects.filter(state=ArtifactState.MAKING).exists()

    outage = Outage(monkeypatch)
    thread = outage.once(begins)
    first = sweep()
    thread.join()
    assert outage.began.is_set()
    last = first if first.state == "pushed" else sweep()
    assert (last.state, last.problem) == ("pushed", "")
    assert last.attempt == 1


def test_a_worker_that_is_stopped_gives_its_push_back(
    small: Build, research: Namespace, dora: Actor, registry: str
) -> None:
    rule_to(dora, research, f"http://{registry}/team/ml:1")
    [artifact] = images_of(small)
    Artifact.objects.filter(pk=artifact.pk).update(state="QUEUED", blob=None)
    artifact.refresh_from_db()
    assert artifact.claim("another worker", life=timedelta(minutes=1))
    Push.objects.update(not_before=timezone.now())
    stopped: list[BaseException] = []

    def work() -> None:
        try:
            image_pushes.push(Push.objects.get().pk)
        except Shutdown as error:
            stopped.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    until = time.monotonic() + 20
    while Push.objects.get().attempt == 0 and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(1)  # it waits for the image that another worker makes
    raise_thread_exception(thread.ident, Shutdown)
    thread.join(30)
    assert stopped
    row = Push.objects.get()
    assert (row.attempt, row.state, row.problem) == (0, "waiting", "")


def test_a_push_waits_for_a_blob_store_that_is_away(
    small: Build, research: Namespace, dora: Actor, registry: str, data_folder: Path
) -> None:
    rule_to(dora, research, f"http://{registry}/team/ml:1")
    images_of(small)
    data_folder_marker.fault()
    aside = data_folder.with_name(f"{data_folder.name}-unmounted")
    data_folder.rename(aside)
    data_folder.mkdir()
    away = sweep()
    assert (away.state, away.attempt) == ("waiting", 1)
    assert "not mounted" in away.problem
    shutil.rmtree(data_folder)
    aside.rename(data_folder)
    Artifact.objects.update(not_before=timezone.now())  # its image is composed again
    back = sweep()
    assert (back.state, back.problem) == ("pushed", "")


def test_a_push_that_the_queue_does_not_take_is_sent_by_a_later_sweep(
    small: Build, research: Namespace, dora: Actor, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule_to(dora, research, f"http://{registry}/team/ml:1")

    def away(*arguments: Any) -> None:
        raise redis.ConnectionError("the queue is away")

    with monkeypatch.context() as context:
        context.setattr(tasks.push_image, "send", away)
        waiting = sweep()
    assert (waiting.state, waiting.attempt, waiting.message_sent_at) == ("waiting", 0, None)
    assert sweep().state == "pushed"
