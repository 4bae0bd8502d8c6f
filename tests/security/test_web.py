"""The web server's boundary: bodies of requests, sign-in, sessions, cookies, and what is answered.

Each attack stands beside its control, the honest request that works.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from django.conf import settings as configured
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts.access import Actor
from accounts.authentication import client_address
from accounts.models import ApiToken, User
from accounts.roles import Role
from condastore import checks
from environments.domain.lifecycle import BuildState
from environments.models import Build, Namespace
from tests import factories

pytestmark = pytest.mark.django_db
PROJECT = Path(__file__).parents[2]
SCIM_TOKEN = "only-for-tests-" + "s" * 40

# --- bodies of requests ---------------------------------------------------------------------------

DEEP = b"[" * 100_000
QUERY = b'{"query": "{ __typename }", "variables": %s}'
BODIES = {
    "deep list": DEEP,
    "deep object": b'{"query":' * 100_000,
    "deep variables": QUERY % (b"[" * 500 + b"]" * 500),
    "deep text": json.dumps({"query": "{" * 100_000}).encode(),
    "digits": QUERY % (b'{"n": ' + b"9" * 100_000 + b"}"),
    "infinite": QUERY % b'{"n": 1e999}',
    "not a number": QUERY % b'{"n": NaN}',
    "name twice": b'{"query": "{ __typename }", "query": "{ me { username } }"}',
    "half a character": QUERY % b'{"s": "\\ud83d"}',
    "not UTF-8": b'{"query": "\xff"}',
    "UTF-16": '{"query": "{ __typename }"}'.encode("utf-16"),
    "list": b'[{"query": "{ __typename }"}]',
    "null": b"null",
    "number": b"7",
    "text": b'"{ __typename }"',
    "empty": b"",
    "query is a number": b'{"query": 7}',
    "query is a list": b'{"query": ["{ __typename }"]}',
    "variables are a list": QUERY % b"[]",
}
DOCUMENTS = {
    "lists": "{ build(id: " + "[" * 3000 + "]" * 900 + ") { ref } }",
    "types": "query($a: " + "[" * 1900 + "Int" + "]" * 1900 + ") { __typename }",
    "selections": "{ me " * 2500,
    "digits": "{ environments(first: " + "9" * 90_000 + ") { edges { node { name } } } }",
    "objects": "{ build(id: " + "{a: " * 1300 + ") { ref } }",
}


def graphql(body: bytes, **headers: str) -> Any:
    return Client().post("/graphql", body, content_type="application/json", headers=headers)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_not_the_json_of_a_request_is_the_clients_fault(body: bytes) -> None:
    answer = graphql(body)
    if answer.status_code == 200:  # the document is at fault, and not the body
        (error,) = answer.json()["errors"]
        assert error["extensions"]["code"] in {"bad-query", "query-too-deep", "query-too-long"}
        return
    assert answer.status_code == 400, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "invalid-input"
    assert "Traceback" not in answer.content.decode()


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_without_an_end_in_sight_is_refused_and_runs_nothing(document: str) -> None:
    answer = graphql(json.dumps({"query": document}).encode())
    assert answer.status_code == 200
    errors = answer.json()["errors"]
    refused = {"bad-query", "query-too-deep", "query-too-long", "query-too-wide"}
    assert {error["extensions"]["code"] for error in errors} <= refused, errors


def test_a_request_of_the_allowed_depth_is_answered(alice: Actor) -> None:
    variables = {"n": 3, "s": "😀 \u2028", "deep": json.loads("[" * 20 + "1" + "]" * 20)}
    body = {"query": "query($n: Int) { environments(first: $n) { edges { node { id } } } }"}
    answer = graphql(json.dumps(body | {"variables": variables}).encode())
    assert answer.status_code == 200
    assert "errors" not in answer.json()


@pytest.mark.parametrize("path", ["/api/token", "/api/device", "/api/device/token"])
def test_no_body_breaks_the_sign_in_of_programs(path: str) -> None:
    for body in (DEEP, b'{"a":' * 100_000, b"\xff", b'{"name": 9e999}', b"9" * 9999, b"[]", b""):
        answer = Client().post(path, body, content_type="application/json")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")
    strange = {"username": "\ud800", "password": "x", "name": "\ud800", "device_code": "\ud800"}
    answer = Client().post(path, json.dumps(strange), content_type="application/json")
    assert answer.status_code == 400


@pytest.mark.parametrize("method", ["post", "put", "patch"])
def test_no_body_breaks_provisioning(method: str) -> None:
    headers = {"Authorization": f"Bearer {SCIM_TOKEN}"}
    path = "/scim/v2/Users" if method == "post" else "/scim/v2/Users/7"
    for body in (DEEP, b'{"a":' * 100_000, b"\xff", b"9" * 9999, b'{"userName": "\\ud800"}', b""):
        send = getattr(Client(headers=headers), method)
        answer = send(path, body, content_type="application/scim+json")
        assert answer.status_code in {400, 404}, (body[:20], answer.content)


def test_a_deep_answer_of_a_security_key_is_the_browsers_fault(alice: Actor) -> None:
    alice.account.set_password("a long enough one")
    alice.account.save()
    client = Client(headers={"Accept": "text/html"})
    client.post("/login/", {"username": "alice", "password": "a long enough one"})
    client.post("/accounts/reauthenticate/", {"password": "a long enough one"})
    path = "/accounts/2fa/webauthn/add/"
    assert client.get(path).status_code == 200
    assert client.post(path, {"credential": DEEP.decode(), "name": "key"}).status_code == 400
    assert client.post(path, {"credential": "{}", "name": "key"}).status_code == 200


@pytest.mark.parametrize("first", [True, False])
def test_no_message_of_a_websocket_breaks_the_server(server: str, first: bool) -> None:
    address = server.replace("http", "ws") + "/graphql"

    async def closed_by(message: str) -> int | None:
        async with websockets.connect(
            address,
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        ) as socket:
            if not first:
                await socket.send('{"type": "connection_init"}')
                await socket.recv()
            await socket.send(message)
            await socket.wait_closed()
            return socket.close_code

    async def answered() -> Any:
        async with websockets.connect(
            address,
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        ) as socket:
            await socket.send('{"type": "connection_init", "payload": {"a": [1]}}')
            await socket.recv()
            requested = {"query": "{ __typename }"}
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": requested}))
            return json.loads(await socket.recv())

    deep = '{"type": "connection_init", "payload": ' + "[" * 500 + "]" * 500 + "}"
    for message in (DEEP.decode(), deep, "[]", "null", "7", "9" * 9999, '{"type": NaN}', "{}"):
        assert asyncio.run(closed_by(message)) == 4400, message[:50]
    assert asyncio.run(answered())["payload"]["data"] == {"__typename": "Query"}


# --- connections that stay open -------------------------------------------------------------------

FOLLOW = "subscription($id: ID!) { buildProgress(buildId: $id) { nextLine } }"
PASSWORD = "a long enough one"
BETTER = "another long enough one"
#: Seconds within which a connection follows the end of its sign-in, on a loaded machine.
SOON = 20


def signed_in(name: str) -> Client:
    client = Client(headers={"Accept": "text/html"})
    assert client.post("/login/", {"username": name, "password": PASSWORD}).status_code == 302
    return client


def cookie_of(client: Client) -> dict[str, str]:
    name = configured.SESSION_COOKIE_NAME
    return {"Cookie": f"{name}={client.cookies[name].value}"}


def sign_out(client: Client) -> None:
    assert client.post("/logout/").status_code == 302


def expire(client: Client) -> None:
    session = client.session
    session.set_expiry(-1)
    session.save()


def delete_session(client: Client) -> None:
    client.session.delete()


def change_password(name: str) -> None:
    form = {"oldpassword": PASSWORD, "password1": BETTER, "password2": BETTER}
    assert signed_in(name).post("/accounts/password/", form).status_code == 302


def end_of(name: str, client: Client) -> Callable[[], object]:
    """What ends the sign-in of the person who is called after it."""
    tokens = ApiToken.objects.filter(user__username=name)
    account = User.objects.filter(username=name)
    ends: dict[str, Callable[[], object]] = {
        "signs-out": lambda: sign_out(client),
        "expires": lambda: expire(client),
        "deleted": lambda: delete_session(client),
        "new-password": lambda: change_password(name),
        "closed": lambda: account.update(is_active=False),
        "stays": lambda: None,
        "revoked": lambda: tokens.update(revoked_at=timezone.now()),
        "token-expires": lambda: tokens.update(expires_at=timezone.now()),
        "limited": lambda: tokens.update(namespaces=["elsewhere"]),
        "token-closed": lambda: account.update(is_active=False),
        "token-stays": lambda: None,
    }
    return ends[name]


SESSIONS = ("signs-out", "expires", "deleted", "new-password", "closed", "stays")
TOKENS = ("revoked", "token-expires", "limited", "token-closed", "token-stays")


@pytest.fixture
def connections(server: str) -> dict[str, tuple[dict[str, str], Callable[[], object]]]:
    """By person: with which headers they connect, and what ends their sign-in."""
    research = factories.make_namespace("research")
    factories.make_build(factories.make_environment(research), BuildState.LINKING)
    found = {}
    for name in (*SESSIONS, *TOKENS):
        user = factories.make_user(name, password=PASSWORD)
        research.grant(Role.VIEWER, user)
        client = signed_in(name) if name in SESSIONS else Client()
        bearer = (
            {} if name in SESSIONS else {"Authorization": f"Bearer {factories.make_token(user)}"}
        )
        found[name] = (bearer or cookie_of(client), end_of(name, client))
    return found


@dataclass(frozen=True, slots=True)
class Stages:
    """How far a test with many connections has come."""

    answered: asyncio.Semaphore  # released by each connection after its first answer
    ended: asyncio.Event  # all sign-ins that end have ended


async def over_websocket(
    server: str, headers: dict[str, str], build: str, stages: Stages
) -> list[Any]:
    """What comes after the end of the sign-in: the errors' codes, and the connection's status."""
    async with websockets.connect(
        server.replace("http", "ws") + "/graphql",
        additional_headers=headers,
        subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
    ) as socket:
        await socket.send('{"type": "connection_init"}')
        await socket.recv()
        requested = {"query": FOLLOW, "variables": {"id": build}}
        await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": requested}))
        first = json.loads(await socket.recv())
        assert "errors" not in first["payload"], first
        stages.answered.release()
        await stages.ended.wait()
        got: list[Any] = []
        try:
            while message := json.loads(await asyncio.wait_for(socket.recv(), SOON)):
                payload = message.get("payload") or {}
                got += [error["extensions"]["code"] for error in payload.get("errors", ())]
                if message["type"] == "complete" and got == ["not-found"]:
                    return got
        except websockets.ConnectionClosed as closed:
            got.append(closed.rcvd.code if closed.rcvd else None)
        except TimeoutError:
            got.append("open")
        return got


async def over_events(
    server: str, headers: dict[str, str], build: str, stages: Stages
) -> list[Any]:
    """Likewise, of server-sent events; `complete` for their end."""
    body = {"query": FOLLOW, "variables": {"id": build}}
    headers = headers | {"Accept": "text/event-stream"}
    if "Cookie" in headers:
        headers |= {"Cookie": f"{headers['Cookie']}; {configured.CSRF_COOKIE_NAME}={'a' * 32}"}
        headers |= {"X-CSRFToken": "a" * 32, "Origin": server}
    got: list[Any] = []
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{server}/graphql", json=body, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        lines = answer.aiter_lines()
        while not (line := await anext(lines)).startswith("data:"):
            pass
        assert "errors" not in line, line
        stages.answered.release()
        await stages.ended.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SOON):
                async for line in lines:
                    if line.startswith("data:") and "errors" in line:
                        document = json.loads(line.removeprefix("data:"))
                        got += [error["extensions"]["code"] for error in document["errors"]]
                    if line == "event: complete":
                        return [*got, "complete"]
    return [*got, "open"]


@pytest.mark.parametrize("way", [over_websocket, over_events])
def test_a_subscription_ends_soon_after_its_sign_in_and_no_other_does(
    server: str,
    connections: dict[str, tuple[dict[str, str], Callable[[], object]]],
    way: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.security.test_web.SOON", 10)
    build = str(Build.objects.get().pk)

    async def everybody() -> dict[str, list[Any]]:
        stages = Stages(asyncio.Semaphore(0), asyncio.Event())
        async with asyncio.TaskGroup() as group:
            running = {
                name: group.create_task(way(server, headers, build, stages))
                for name, (headers, _) in connections.items()
            }
            for _ in running:
                await stages.answered.acquire()
            for _, end in connections.values():
                await asyncio.to_thread(_apart, end)
            stages.ended.set()
        return {name: one.result() for name, one in running.items()}

    found = asyncio.run(everybody())
    last: Any = 4401 if way is over_websocket else "complete"
    expected: dict[str, list[Any]] = {name: ["not-signed-in", last] for name in SESSIONS}
    expected |= {name: ["token-invalid", last] for name in TOKENS}
    expected["limited"] = ["not-found"] if way is over_websocket else ["not-found", last]
    expected["stays"] = expected["token-stays"] = ["open"]
    assert found == expected


def _apart(end: Callable[[], object]) -> None:
    """Call `end` in a thread, whose connection to the database is closed afterwards."""
    try:
        end()
    finally:
        connection.close()


def test_a_websocket_on_which_nothing_runs_is_closed_with_its_sign_in(server: str) -> None:
    """It would else let somebody who has signed out query and change what they may no longer."""
    factories.make_user("alice", password=PASSWORD)
    client = signed_in("alice")

    async def connected() -> list[Any]:
        got: list[Any] = []
        async with websockets.connect(
            server.replace("http", "ws") + "/graphql",
            additional_headers=cookie_of(client),
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        ) as socket:
            await socket.send('{"type": "connection_init"}')
            await socket.recv()
            requested = {
                "id": "1",
                "type": "subscribe",
                "payload": {"query": "{ me { username } }"},
            }
            await socket.send(json.dumps(requested))
            got.append(json.loads(await socket.recv())["payload"]["data"]["me"]["username"])
            await socket.recv()
            await asyncio.to_thread(_apart, lambda: sign_out(client))
            await asyncio.wait_for(socket.wait_closed(), SOON)
            got.append(socket.close_code)
        return got

    assert asyncio.run(connected()) == ["alice", 4401]


# --- the address of a client ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        ([], "", "10.0.0.9"),
        ([], "203.0.113.7", "203.0.113.7"),
        ([], "198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first is what the client says
        ([], "10.0.0.9, 203.0.113.7", "203.0.113.7"),
        (["10.0.0.0/8"], "198.51.100.1, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
        (["10.0.0.0/8"], "10.6.6.6, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
        (["10.1.1.1"], "10.6.6.6, 10.1.1.1", "10.6.6.6"),
        (["10.0.0.0/8"], "10.6.6.6, 10.1.1.1", "10.6.6.6"),
        (["10.0.0.0/8"], "198.51.100.1, junk, 10.1.1.1", "10.1.1.1"),
        ([], "203.0.113.7:51234", "203.0.113.7"),
        ([], "[2001:db8::7]:51234", "2001:db8::7"),
        ([], "::ffff:203.0.113.7", "203.0.113.7"),
        ([], "203.0.113.7\x1b[2J", "10.0.0.9"),
        ([], "unknown", "10.0.0.9"),
    ],
)
def test_only_what_the_proxies_wrote_is_the_clients_address(
    settings: Any, proxies: list[str], forwarded: str, address: str
) -> None:
    meta = {"REMOTE_ADDR": "10.0.0.9", "HTTP_X_FORWARDED_FOR": forwarded}
    assert client_address(meta) == "10.0.0.9"  # nobody is believed without a proxy
    settings.BEHIND_PROXY, settings.TRUSTED_PROXIES = True, proxies
    assert client_address(meta) == address


# --- transport ------------------------------------------------------------------------------------

READ = """
import json, condastore.settings as s
names = ("SECURE_COOKIES", "SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME", "SESSION_COOKIE_SECURE",
  "CSRF_COOKIE_SECURE", "SECURE_HSTS_SECONDS", "CSRF_TRUSTED_ORIGINS")
print(json.dumps({name: getattr(s, name) for name in names}))
"""


@pytest.mark.parametrize(
    ("variables", "secure"),
    [
        ({}, False),
        ({"CONDASTORE_PUBLIC_URL": "http://store.example.org"}, False),
        ({"CONDASTORE_PUBLIC_URL": "HTTPS://store.example.org/"}, True),
        ({"CONDASTORE_SECURE_COOKIES": "true"}, True),
        (
            {
                "CONDASTORE_PUBLIC_URL": "https://store.example.org",
                "CONDASTORE_SECURE_COOKIES": "0",
            },
            False,
        ),
    ],
)
def test_cookies_are_secure_where_the_public_url_is_https(
    variables: dict[str, str], secure: bool, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "CONDASTORE_DATA": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    assert found["SECURE_COOKIES"] is found["SESSION_COOKIE_SECURE"] is secure
    assert found["CSRF_COOKIE_SECURE"] is secure
    assert bool(found["SECURE_HSTS_SECONDS"]) is secure
    for name in ("SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME"):
        assert found[name].startswith("__Host-") is secure


def checked(settings: Any, **changes: Any) -> set[str]:
    for name, value in changes.items():
        setattr(settings, name, value)
    return {str(message.id).removeprefix("condastore.") for message in checks.check(None)}


def test_a_public_address_without_protection_is_said_at_start(settings: Any) -> None:
    https, http = "https://store.example.org", "http://store.example.org"
    assert "W002" in checked(settings, PUBLIC_URL=https, SECURE_COOKIES=False)
    assert not {"W002", "W003"} & checked(settings, PUBLIC_URL=https, SECURE_COOKIES=True)
    assert "W003" in checked(settings, PUBLIC_URL=http)
    assert "W003" not in checked(settings, PUBLIC_URL="http://127.0.0.1:8470")
    assert "E028" in checked(settings, TRUSTED_PROXIES=["10.0.0.0/8", "nginx"])


@pytest.mark.parametrize(
    ("url", "change", "number"),
    [
        ("ldap://ldap.example.org", {}, "E027"),
        ("LDAP://10.1.2.3:389", {}, "E027"),
        ("ldaps://ldap.example.org ldap://other.example.org", {}, "E027"),
        ("ldap://127.0.0.1.example.org", {}, "E027"),
        ("ldap://ldap.example.org", {"insecure": True}, "W020"),
        ("ldap://ldap.example.org", {"start_tls": True}, ""),
        ("ldaps://ldap.example.org", {}, ""),
        ("ldap://127.0.0.1:389", {}, ""),
        ("ldap://[::1]", {}, ""),
        ("ldap://localhost", {}, ""),
        ("ldapi://%2Frun%2Fldapi", {}, ""),
    ],
)
def test_ldap_without_tls_is_an_error_unless_it_stays_on_the_machine_or_is_forced(
    settings: Any, url: str, change: dict[str, bool], number: str
) -> None:
    found = checked(settings, LDAP=settings.LDAP | {"url": url, "user_base": "dc=x"} | change)
    assert {"E027", "W020"} & found == ({number} if number else set())


# --- what browsers do with answers ----------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/api/whoami",
        "/api/sign-in",
        "/api/envs/research/ml/1/log",
        "/api/envs/research/ml/1/explicit.txt",
        "/api/envs/research/ml/1/conda-lock.yml",
        "/healthz",
        "/v2/",
        "/nowhere",
        "/api/nowhere",
        "/",
    ],
)
def test_no_answer_is_cached_by_others_or_acts_as_a_page(alice: Actor, path: str) -> None:
    build = factories.make_build(factories.make_environment(Namespace.objects.get(name="research")))
    build.append_log(["<script>alert(1)</script>"])
    client = Client()
    client.force_login(alice.account)
    answer = client.get(path)
    assert {"private", "no-store"} & set(answer["Cache-Control"].split(", "))
    assert answer["X-Content-Type-Options"] == "nosniff"
    kind = answer["Content-Type"].partition(";")[0]
    policy = answer["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    if path.startswith(("/api", "/v2", "/healthz")):
        assert "sandbox" in policy
        assert "default-src 'none'" in policy
        assert kind != "text/html"
    else:
        assert "sandbox" not in policy
        assert kind == "text/html"


def test_files_of_our_own_are_cached(client: Client) -> None:
    answer = client.get("/static/console/console.css")
    assert answer.status_code == 200
    assert "no-store" not in answer["Cache-Control"]
    answer.close()


@pytest.mark.parametrize(
    ("target", "followed"),
    [
        ("/device/", True),
        ("//evil.example.org", False),
        ("https://evil.example.org/", False),
        ("/\\evil.example.org", False),
        ("\\\\evil.example.org", False),
        ("https:evil.example.org", False),
        ("javascript:alert(1)", False),
        ("/\t/evil.example.org", False),
    ],
)
def test_a_sign_in_leads_nowhere_else(db: None, target: str, followed: bool) -> None:
    factories.make_user("alice", password=PASSWORD)
    client = Client(headers={"Accept": "text/html"})
    form = {"username": "alice", "password": PASSWORD, "next": target}
    reached = client.post("/login/", form)["Location"]
    assert reached == (target if followed else "/")
    left = client.post("/logout/", {"next": target})["Location"]
    assert left == (target if followed else "/")


def test_a_session_from_before_the_sign_in_is_worth_nothing(db: None) -> None:
    """An attacker who plants a session in a browser is not signed in with its user."""
    factories.make_user("alice", password=PASSWORD)
    planted = Client().session
    planted["x"] = 1
    planted.save()
    client = Client(headers={"Accept": "text/html"})
    client.cookies[configured.SESSION_COOKIE_NAME] = planted.session_key
    client.post("/login/", {"username": "alice", "password": PASSWORD})
    assert client.get("/api/whoami").json()["username"] == "alice"
    attacker = Client()
    attacker.cookies[configured.SESSION_COOKIE_NAME] = planted.session_key
    assert attacker.get("/api/whoami").json()["username"] is None


def test_no_other_site_may_read_or_name_the_server(alice: Actor) -> None:
    client = Client(headers={"Origin": "https://evil.example.org"})
    client.force_login(alice.account)
    for answer in (client.get("/api/whoami"), client.options("/graphql")):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert client.get("/api/whoami", headers={"Host": "evil.example.org"}).status_code == 400
