"""Health, metrics and the checks at start: each names what is wrong."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.checks import run_checks
from django.test import Client
from django.utils import timezone

from accounts.access import Actor
from accounts.models import ApiToken
from accounts.roles import Role
from condastore import checks
from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment, Leader, Worker
from environments.models.namespaces import READ_METRICS
from environments.operations.tokens import create_token
from tests import factories


def test_the_process_is_alive_whatever_else_is_down(client: Client) -> None:
    """The test has no database: asking for one would fail it."""
    answer = client.get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"ok\n")


def test_each_thing_that_is_missing_is_named(
    client: Client, db: None, settings: Any, tmp_path: Path
) -> None:
    settings.DISK_RESERVE = 10**18
    answer = client.get("/readyz")
    assert answer.status_code == 503
    found = answer.json()
    assert found["ready"] is False
    wrong = {name: check["wrong"] for name, check in found["checks"].items()}
    assert wrong["database"] == wrong["migrations"] == ""
    assert wrong["workers"] == "No worker is alive."
    assert wrong["scheduler"] == "No scheduler is alive."
    assert "bytes free" in wrong["data_folder"]
    (tmp_path / "file").touch()
    settings.DATA = tmp_path / "file"  # no folder: nobody can write in it, root neither
    assert "cannot be written" in client.get("/readyz").json()["checks"]["data_folder"]["wrong"]


def test_workers_and_scheduler_count_while_they_say_that_they_live(
    client: Client, db: None
) -> None:
    life = timedelta(seconds=20)
    Worker.announce("one", platform="linux-64", queues=["builds"], life=life)
    Leader.lead(Worker.SCHEDULER, "two", life=life)
    found = client.get("/readyz").json()["checks"]
    assert found["workers"] == found["scheduler"] == {"ok": True, "wrong": ""}
    Worker.objects.update(expires_at=timezone.now())
    assert client.get("/readyz").json()["checks"]["workers"]["ok"] is False


def test_what_workers_cannot_isolate_is_advice_and_no_outage(client: Client, db: None) -> None:
    life = timedelta(seconds=20)
    Worker.announce("one", platform="linux-64", queues=["builds"], life=life)
    Leader.lead(Worker.SCHEDULER, "two", life=life)
    before = client.get("/readyz")
    problems = {"sandbox": "bubblewrap is not installed."}
    Worker.announce("three", platform="", queues=[], life=life, unprotected=problems)
    after = client.get("/readyz")
    assert before.json()["checks"]["sandbox"] == {"ok": True, "wrong": ""}
    assert after.json()["checks"]["sandbox"] == {
        "ok": False,
        "wrong": "1 of 2 workers: bubblewrap is not installed.",
    }
    assert after.json()["ready"] == before.json()["ready"]
    assert after.status_code == before.status_code
    Worker.objects.filter(name="three").update(expires_at=timezone.now())
    assert client.get("/readyz").json()["checks"]["sandbox"]["ok"]


def metrics(client: Client, **headers: str) -> str:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.content
    return answer.content.decode()


def test_metrics_tell_of_requests_queue_and_workers(
    root: Actor, environment: Environment, settings: Any
) -> None:
    settings.METRICS_PUBLIC = True
    ready = factories.make_build(environment)
    Build.objects.filter(pk=ready.pk).update(timings={"SOLVING": 1.5, "LINKING": 0.5})
    factories.make_build(environment, BuildState.QUEUED)
    factories.make_build(environment, BuildState.LINKING)
    Worker.announce("one", platform="", queues=[], life=timedelta(seconds=20))
    client = Client()
    client.get("/environments/no/where/")
    body = '{"query": "{ me { username } }"}'
    client.post("/graphql", body, content_type="application/json")
    text = metrics(client)
    assert 'condastore_builds{state="QUEUED"} 1.0' in text
    assert 'condastore_builds{state="LINKING"} 1.0' in text
    assert 'condastore_queue_depth{queue="builds"} 1.0' in text
    assert 'condastore_processes_alive{kind="worker"} 1.0' in text
    assert 'condastore_processes_alive{kind="scheduler"} 0.0' in text
    assert "condastore_unneeded_bytes 0.0" in text
    assert 'condastore_stage_seconds_sum{stage="SOLVING"} 1.5' in text
    assert 'route="environment",status="404"' in text
    assert "/environments/no/where/" not in text
    assert 'field="me",outcome="ok",type="query"' in text


def test_metrics_cost_as_many_queries_however_much_there_is(
    environment: Environment, settings: Any, django_assert_max_num_queries: Any
) -> None:
    settings.METRICS_PUBLIC = True
    for _ in range(20):
        factories.make_build(environment)
    metrics(Client())
    with django_assert_max_num_queries(8):
        metrics(Client())


def test_metrics_are_for_who_holds_the_right(alice: Actor, root: Actor, settings: Any) -> None:
    client, scraper = Client(), Client()
    assert client.get("/metrics").status_code == 401
    client.force_login(alice.account)
    secret = create_token(actor=alice, name="scrape", role=Role.VIEWER).secret
    headers = {"Authorization": f"Bearer {secret}"}
    for refused in (client.get("/metrics"), scraper.get("/metrics", headers=headers)):
        assert (refused.status_code, refused.json()["code"]) == (403, "access-denied")
    alice.account.user_permissions.add(Permission.objects.get(codename=READ_METRICS))
    assert metrics(client)
    assert metrics(scraper, **headers)
    ApiToken.objects.update(namespaces=["research"])
    assert scraper.get("/metrics", headers=headers).status_code == 403
    client.force_login(root.account)
    assert metrics(client)
    settings.METRICS_PUBLIC = True
    assert metrics(Client())


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({"BROKER_URL": "http://queue.example.org"}, "condastore.E004"),
        ({"ANONYMOUS_USER_NAME": "AnonymousUser"}, "condastore.E006"),
        ({"DATA": Path("/dev/null/nowhere")}, "condastore.E001"),
        ({"DATA": Path("/tmp") / ("d" * 240)}, "condastore.E003"),
        ({"DEBUG": True, "PUBLIC_URL": "https://store.example.org"}, "condastore.W001"),
        ({"SANDBOX": "off"}, "condastore.W010"),
        ({"DATA": Path("/usr/local/condastore")}, "condastore.E010"),
        ({"ALLOWED_NETWORKS": ["10.0.0.0/8", "127.0.0.1"]}, "condastore.W040"),
        ({"ALLOWED_NETWORKS": ["0.0.0.0/0"]}, "condastore.W040"),
        ({"FILE_CHANNELS": ["/"]}, "condastore.W041"),
        ({"PUSH_PRIVATE_NETWORKS": ["10.0.0.0/99"]}, "condastore.E040"),
    ],
)
def test_what_would_break_later_is_said_at_start(
    settings: Any, change: dict[str, Any], number: str
) -> None:
    settings.SANDBOX = "required"
    settings.ALLOWED_NETWORKS, settings.FILE_CHANNELS = ["10.0.0.0/8", "127.0.0.1:80"], []
    assert not [one for one in run_checks() if (one.id or "").startswith("condastore.")]
    for name, value in change.items():
        setattr(settings, name, value)
    found = checks.check(None)
    assert number in {one.id for one in found}
    assert all(one.hint for one in found)


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev,
    reason="there is no second file system",
)
def test_a_cache_that_cannot_be_linked_into_prefixes_is_said_at_start(
    settings: Any, tmp_path: Path
) -> None:
    settings.DATA = tmp_path
    (tmp_path / "prefixes").mkdir()
    (tmp_path / "cache").mkdir()
    assert "condastore.E002" not in {one.id for one in checks.check(None)}
    (tmp_path / "cache").rmdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "cache").symlink_to(other)
        assert "condastore.E002" in {one.id for one in checks.check(None)}
    assert not list((tmp_path / "prefixes").iterdir())
