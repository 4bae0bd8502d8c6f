"""Files of a build, sign-in of the command line, and the current user."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import Client

from accounts.access import Actor
from accounts.models import ApiToken
from environments.domain.lifecycle import BuildState
from environments.models import Build, BuildTag, Environment, Namespace
from environments.operations.tokens import create_token
from tests import factories

ADDRESS = "/api/envs/research/ml/current/{}"


@pytest.fixture
def build(environment: Environment) -> Build:
    created = factories.make_build(environment)
    Build.objects.filter(pk=created.pk).update(number=12)
    Environment.objects.filter(pk=environment.pk).update(last_number=12)
    created.refresh_from_db()
    return created


@pytest.fixture
def as_bob(bob: Actor) -> Client:
    client = Client()
    client.force_login(bob.account)
    return client


@pytest.mark.parametrize(
    ("name", "kind", "file_name", "says"),
    [
        ("conda-lock.yml", "application/yaml", "research-ml-12-conda-lock.yml", "version: 1"),
        (
            "environment.yml",
            "application/yaml",
            "research-ml-12-linux-64-environment.yml",
            "python=1.0",
        ),
        ("explicit.txt", "text/plain", "research-ml-12-linux-64-explicit.txt", "@EXPLICIT"),
        ("pixi.lock", "application/yaml", "research-ml-12-pixi.lock", "version: 6"),
        (
            "sbom.cdx.json",
            "application/vnd.cyclonedx+json",
            "research-ml-12-linux-64-sbom.cdx.json",
            '"specVersion": "1.6"',
        ),
    ],
)
def test_a_lock_is_given_in_every_form(
    as_bob: Client, build: Build, name: str, kind: str, file_name: str, says: str
) -> None:
    answer = as_bob.get(ADDRESS.format(name))
    assert answer.status_code == 200
    assert answer["Content-Type"] == f"{kind}; charset=utf-8"
    assert answer["Content-Disposition"] == f'attachment; filename="{file_name}"'
    assert says in answer.content.decode()
    head = as_bob.head(ADDRESS.format(name))
    assert head["ETag"] == answer["ETag"]
    assert head.content == b""
    again = as_bob.get(ADDRESS.format(name), headers={"If-None-Match": answer["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    weak = as_bob.get(ADDRESS.format(name), headers={"If-None-Match": f'"x", W/{answer["ETag"]}'})
    assert weak.status_code == 304
    other = as_bob.get(ADDRESS.format(name), headers={"If-None-Match": '"other"'})
    assert other.content == answer.content


def test_micromamba_knows_the_lock_by_its_name(as_bob: Client, build: Build) -> None:
    """It takes any other file for an environment.yml, and makes an empty environment."""
    answer = as_bob.get(ADDRESS.format("conda-lock.yml"))
    assert answer["Content-Disposition"].endswith('-lock.yml"')


@pytest.mark.parametrize("reference", ["12", "current", "latest", "prod"])
def test_a_build_is_named_by_number_tag_or_current(
    as_bob: Client, build: Build, reference: str
) -> None:
    BuildTag.objects.create(environment=build.environment, build=build, name="prod")
    answer = as_bob.get(f"/api/envs/research/ml/{reference}/explicit.txt")
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("research/ml/13/explicit.txt", "no build '13'"),
        ("research/none/current/explicit.txt", "no environment"),
        ("nowhere/ml/current/explicit.txt", "no environment"),
        ("research/ml/current/other.txt", "no file 'other.txt'"),
        ("research/ml/current/explicit.txt?platform=win-64", "no lock for win-64"),
    ],
)
def test_what_is_not_there_is_told_as_problem_json(
    as_bob: Client, build: Build, path: str, says: str
) -> None:
    answer = as_bob.get(f"/api/envs/{path}", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert answer["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert (body["code"], body["status"]) == ("not-found", 404)
    assert says in body["detail"]


def test_a_build_without_a_lock_says_so(as_bob: Client, environment: Environment) -> None:
    factories.make_build(environment, BuildState.QUEUED)
    answer = as_bob.get("/api/envs/research/ml/1/explicit.txt")
    assert (answer.status_code, answer.json()["hint"]) == (404, "Wait until it is solved.")


def test_what_one_may_not_see_is_not_there(build: Build, charlie: Actor) -> None:
    for client in (Client(), Client()):
        answer = client.get(ADDRESS.format("explicit.txt"))
        missing = client.get("/api/envs/research/none/current/explicit.txt")
        assert answer.status_code == missing.status_code == 404
        assert answer.json()["detail"].replace("/ml", "/none") == missing.json()["detail"]
        client.force_login(charlie.account)


def test_a_public_namespace_is_for_everybody(build: Build) -> None:
    Namespace.objects.update(public=True)
    assert Client().get(ADDRESS.format("explicit.txt")).status_code == 200


def test_the_log_is_streamed(as_bob: Client, build: Build) -> None:
    lines = [f"line {number}" for number in range(45_000)]
    for start in range(0, len(lines), 15_000):
        build.append_log(lines[start : start + 15_000])

    async def read(answer: Any) -> bytes:
        return b"".join([part async for part in answer])

    answer = as_bob.get(ADDRESS.format("log"))
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert async_to_sync(read)(answer).decode().splitlines() == lines
    build.archive_log()
    answer = as_bob.get(ADDRESS.format("log"))
    assert async_to_sync(read)(answer).decode().splitlines() == lines
    assert as_bob.head(ADDRESS.format("log")).content == b""


# --- sign-in ------------------------------------------------------------------------------------


def sign_in(client: Client, **body: Any) -> Any:
    return client.post("/api/token", json.dumps(body), content_type="application/json")


def test_a_password_gives_a_token(db: None) -> None:
    factories.make_user("alice", password="a long enough one")
    client = Client(enforce_csrf_checks=True)
    answer = sign_in(client, username="alice", password="a long enough one", name="laptop")
    assert answer.status_code == 201
    body = answer.json()
    assert {"token", "name", "expires_at"} <= set(body)
    me = client.get("/api/whoami", headers={"Authorization": f"Bearer {body['token']}"}).json()
    assert me["username"] == "alice"
    assert me["token"]["name"] == "laptop"
    assert sign_in(client, username="alice", password="a long enough one").status_code == 201
    again = sign_in(client, username="alice", password="a long enough one", name="laptop")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"username": "alice", "password": "wrong"}, 401),
        ({"username": "nobody", "password": "wrong"}, 401),
        ({"username": "robot", "password": ""}, 400),
        ({"username": "closed", "password": "a long enough one"}, 401),
        ({"username": "alice"}, 400),
        ({"username": ["alice"], "password": "x"}, 400),
        ({"username": "al\0ice", "password": "x"}, 400),
    ],
)
def test_a_wrong_password_gives_none(db: None, body: dict[str, Any], status: int) -> None:
    factories.make_user("alice", password="a long enough one")
    factories.make_user("robot")
    closed = factories.make_user("closed", password="a long enough one")
    closed.is_active = False
    closed.save()
    answer = sign_in(Client(), **body)
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    assert not ApiToken.objects.exists()


def test_who_am_i(alice: Actor, client: Client) -> None:
    assert client.get("/api/whoami").json()["signed_in"] is False
    created = create_token(actor=alice, name="one", namespaces=["research"])
    headers = {"Authorization": f"Bearer {created.secret}"}
    assert client.get("/api/whoami", headers=headers).json() == {
        "signed_in": True,
        "username": "alice",
        "is_superuser": False,
        "token": {
            "name": "one",
            "role": None,
            "namespaces": ["research"],
            "expires_at": created.token.expires_at.isoformat(),
        },
    }
