"""GraphQL over HTTP: forged requests, GraphiQL, and what is streamed."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from django.conf import settings as django_settings
from django.contrib.staticfiles import finders
from django.db import OperationalError, connection
from django.test import Client
from gql import gql
from gql.client import Client as GraphQLClient
from gql.transport.exceptions import TransportQueryError
from gql.transport.websockets import WebsocketsTransport

from accounts.access import Actor
from accounts.models import ApiToken, User
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.graphql.nodes import global_id
from environments.models import Build, BuildEvent, LockRow, Preview
from environments.operations.tokens import create_token
from tests import factories
from tests.environments.graphql.asking import post

MUTATION = 'mutation { createToken(name: "forged") { __typename } }'
FOLLOW = """subscription($id: ID!, $from: Int! = 0) {
  buildProgress(buildId: $id, fromLine: $from) { build { ref state source } newLines nextLine } }"""


# --- answers ------------------------------------------------------------------------------------


def test_texts_and_numbers_of_any_size_are_answered_as_they_are(alice: Actor) -> None:
    """Numbers of more than 64 bits are written by another encoder than the others."""
    namespace = factories.make_namespace("numbers", alice=Role.VIEWER)
    details = {"grüße": "\u2028</script>", "few": 2**64 - 1}
    for said in (details, details | {"many": 2**70}):
        build = factories.make_build(
            factories.make_environment(namespace, f"e{len(said)}"), BuildState.FAILED
        )
        Build.objects.filter(pk=build.pk).update(failure={"code": "x", "details": said})
        client = Client()
        client.force_login(alice.account)
        answer = post(client, f"{{ build(id: {build.pk}) {{ failure {{ details }} }} }}")
        assert answer.json()["data"]["build"]["failure"]["details"] == said, answer.content


# --- outages ------------------------------------------------------------------------------------


def _busy(table: str) -> Any:
    """A database that is busy whenever a statement names this table."""

    def refuse(run: Any, sql: str, *given: Any) -> Any:
        if table in sql:
            raise OperationalError("database is locked")
        return run(sql, *given)

    return connection.execute_wrapper(refuse)


def test_a_query_that_an_outage_refuses_is_answered_with_503(alice: Actor) -> None:
    client = Client()
    client.force_login(alice.account)
    with _busy("environments_recall"):
        answer = post(client, "{ recalls { totalCount } }")
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0
    (error,) = answer.json()["errors"]
    assert error["extensions"]["code"] == "unavailable"


def test_a_mutation_that_an_outage_refuses_is_answered_with_503(alice: Actor) -> None:
    client = Client()
    client.force_login(alice.account)
    create = 'createToken(name: "%s") { ... on OperationError { code } __typename }'
    with _busy("accounts_apitoken"):
        answer = post(client, "mutation { first: " + create % "first" + " }")
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0
    refused = {"code": "unavailable", "__typename": "OperationError"}
    assert answer.json()["data"]["first"] == refused


def test_an_answer_of_which_a_part_was_done_is_answered_with_200(alice: Actor) -> None:
    """A client that sent all of it again would do that part twice."""
    client = Client()
    client.force_login(alice.account)
    document = """mutation {
      revokeToken(id: "999") { __typename }
      createToken(name: "second") { ... on OperationError { code } } }"""
    with _busy('INSERT INTO "accounts_apitoken"'):
        answer = post(client, document)
    assert answer.status_code == 200
    assert "Retry-After" not in answer
    assert answer.json()["data"]["createToken"] == {"code": "unavailable"}


# --- forged requests ----------------------------------------------------------------------------


def test_a_session_without_its_csrf_token_changes_nothing(alice: Actor) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice.account)
    answer = post(client, MUTATION)
    assert answer.status_code == 403
    assert answer.json()["code"] == "access-denied"
    assert "X-CSRFToken" in answer.json()["hint"]
    assert not ApiToken.objects.exists()


def test_a_session_with_its_csrf_token_may(alice: Actor) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice.account)
    page = client.get("/graphql", headers={"Accept": "text/html"})
    token = re.search(r'data-csrf="(\w+)"', page.content.decode())
    assert token is not None
    headers: dict[str, Any] = {"X-CSRFToken": token[1]}
    answer = post(client, MUTATION, **headers)
    assert answer.json() == {"data": {"createToken": {"__typename": "CreatedToken"}}}


def test_a_token_needs_no_csrf_token_and_neither_does_who_is_signed_out(alice: Actor) -> None:
    secret = create_token(actor=alice, name="one").secret
    client = Client(enforce_csrf_checks=True)
    assert post(client, MUTATION, Authorization=f"Bearer {secret}").status_code == 200
    assert post(client, "{ me { username } }").json() == {"data": {"me": None}}


def test_a_mutation_that_is_spelled_with_escapes_is_run_as_one(alice: Actor) -> None:
    client = Client()
    client.force_login(alice.account)
    body = json.dumps({"query": MUTATION}).replace("mutation", "\\u006d\\u0075tation")
    answer = client.post("/graphql", body, content_type="application/json")
    assert answer.json() == {"data": {"createToken": {"__typename": "CreatedToken"}}}
    assert ApiToken.objects.count() == 1


def test_nothing_is_asked_or_changed_by_get(alice: Actor) -> None:
    client = Client()
    client.force_login(alice.account)
    for document in ("{ me { username } }", MUTATION):
        answer = client.get("/graphql", {"query": document})
        assert (answer.status_code, answer["Allow"]) == (405, "POST")
        assert answer["Content-Type"] == "application/problem+json"
    assert not ApiToken.objects.exists()


def test_other_methods_and_content_types_are_named_with_what_is_read(client: Client) -> None:
    put = client.put("/graphql", "{}", content_type="application/json")
    assert (put.status_code, put["Allow"]) == (405, "GET, POST")
    text = client.post("/graphql", "{ me { username } }", content_type="application/graphql")
    assert (text.status_code, text.json()["where"]) == (415, "Content-Type")
    assert "application/json" in text.json()["hint"]


@pytest.mark.parametrize(
    "document",
    [
        "query A { me { username } } query B { __typename }",
        f"query A {{ __typename }} mutation B {MUTATION.removeprefix('mutation')}",
        f"mutation B {MUTATION.removeprefix('mutation')} query A {{ __typename }}",
    ],
)
def test_of_several_operations_none_runs_unless_it_is_named(alice: Actor, document: str) -> None:
    client = Client()
    client.force_login(alice.account)
    answer = post(client, document).json()
    assert answer["data"] is None
    assert "operationName" in answer["errors"][0]["message"]
    assert answer["errors"][0]["extensions"]["code"] == "bad-query"
    named = client.post(
        "/graphql",
        {"query": document, "operationName": "A"},
        content_type="application/json",
    )
    assert "errors" not in named.json()
    assert not ApiToken.objects.exists()


def test_a_subscription_that_wants_one_answer_is_told_how_to_follow(alice: Actor) -> None:
    client = Client()
    client.force_login(alice.account)
    answer = post(client, FOLLOW.replace("$id: ID!, ", "").replace("$id", '"1"'))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")
    assert "text/event-stream" in answer.json()["hint"]


def test_a_wrong_token_is_refused_and_never_taken_for_nobody(client: Client, db: None) -> None:
    answer = post(client, "{ me { username } }", Authorization="Bearer cs_wrong")
    assert (answer.status_code, answer.json()["code"]) == (401, "token-invalid")
    assert answer["WWW-Authenticate"].startswith("Bearer")


# --- GraphiQL -----------------------------------------------------------------------------------


def test_graphiql_needs_nothing_from_elsewhere(client: Client, db: None) -> None:
    page = client.get("/graphql", headers={"Accept": "text/html"}).content.decode()
    assert "GraphiQL" in page
    assert not re.findall(r"""(?:https?:)?//[^"'\s]+""", page)
    linked = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(linked) >= 7
    for address in linked:
        path = finders.find(address.removeprefix(django_settings.STATIC_URL))
        assert path, address
        answer = client.get(address)
        assert answer.status_code == 200
        answer.close()
        if address.endswith(".css"):
            text = Path(str(path)).read_text()
            assert not re.search(r"@import|url\(\s*['\"]?(?!data:)", text), address


# --- subscriptions ------------------------------------------------------------------------------


@pytest.fixture
def running(server: str) -> Build:
    """A build of `research/ml` that a worker runs."""
    research = factories.make_namespace("research", alice=Role.DEVELOPER)
    build = factories.make_build(factories.make_environment(research), BuildState.LINKING)
    build.append_log(["one", "two"])
    return build


def secret_of(name: str) -> str:
    owner = factories.actor(User.objects.get(username=name))
    return create_token(actor=owner, name="follow").secret


def finish(build: Build) -> None:
    build.append_log(["three"])
    Build.objects.filter(pk=build.pk).update(state=BuildState.CHECKING)
    time.sleep(0.6)
    build.append_log(["four"])
    build.refresh_from_db()
    build.move(BuildState.FAILED, failure={"code": "x"})
    build.archive_log()


def in_background(what: Any, *args: Any) -> threading.Thread:
    def run() -> None:
        from django.db import connection

        time.sleep(0.6)
        try:
            what(*args)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def transport(server: str, secret: str = "", **options: Any) -> Callable[[], WebsocketsTransport]:
    """To be called where the event loop runs: else it makes one of its own."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return lambda: WebsocketsTransport(
        url=server.replace("http", "ws") + "/graphql",
        subprotocols=[WebsocketsTransport.GRAPHQLWS_SUBPROTOCOL],  # type: ignore[list-item]
        headers=headers,
        **options,
    )


async def followed(
    line: Callable[[], WebsocketsTransport], document: str, **values: Any
) -> list[Any]:
    async with GraphQLClient(transport=line()) as session:
        request = gql(document)
        request.variable_values = values
        return [update async for update in session.subscribe(request)]


@pytest.mark.parametrize("way", ["header", "first message"])
def test_a_build_is_followed_to_its_end_over_a_websocket(
    server: str, running: Build, way: str
) -> None:
    secret = secret_of("alice")
    line = (
        transport(server, secret)
        if way == "header"
        else transport(server, init_payload={"Authorization": f"Bearer {secret}"})
    )
    background = in_background(finish, running)
    updates = asyncio.run(followed(line, FOLLOW, id=str(running.pk)))
    background.join()
    shown = [update["buildProgress"] for update in updates]
    assert list(chain.from_iterable(update["newLines"] for update in shown)) == [
        "one",
        "two",
        "three",
        "four",
    ]
    # An update tells a state, new lines or both: CHECKING may stand in two of them.
    states = [state for state, _ in groupby(update["build"]["state"] for update in shown)]
    assert states in (["LINKING", "CHECKING", "FAILED"], ["LINKING", "FAILED"])
    assert shown[-1]["nextLine"] == 4
    assert shown[0]["build"]["source"] == running.source


def test_a_build_is_followed_by_server_sent_events_from_a_line_on(
    server: str, running: Build
) -> None:
    background = in_background(finish, running)
    headers = {"Authorization": f"Bearer {secret_of('alice')}", "Accept": "text/event-stream"}
    body = {"query": FOLLOW, "variables": {"id": str(running.pk), "from": 1}}
    events: list[tuple[str, Any]] = []
    with httpx.stream("POST", f"{server}/graphql", json=body, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        kind = ""
        for line in response.iter_lines():
            if line.startswith("event:"):
                kind = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                text = line.removeprefix("data:").strip()
                events.append((kind, json.loads(text) if text else None))
    background.join()
    lines = [
        line
        for kind, event in events
        if kind == "next"
        for line in event["data"]["buildProgress"]["newLines"]
    ]
    assert lines == ["two", "three", "four"]
    assert events[-1][0] == "complete"


@pytest.mark.parametrize("identify", [str, partial(global_id, "Build")], ids=["key", "global id"])
def test_a_finished_build_is_told_once_with_its_whole_log(
    server: str, running: Build, identify: Callable[[int], str]
) -> None:
    finish(running)
    line = transport(server, secret_of("alice"))
    (update,) = asyncio.run(followed(line, FOLLOW, id=identify(running.pk)))
    assert update["buildProgress"]["newLines"] == ["one", "two", "three", "four"]


@pytest.mark.parametrize("what", ["token", "role"])
def test_who_may_not_look_any_more_is_cut_off(server: str, running: Build, what: str) -> None:
    secret = secret_of("alice")

    def take_away() -> None:
        if what == "token":
            ApiToken.objects.update(revoked_at="2020-01-01T00:00Z")
        else:
            running.environment.namespace.revoke(User.objects.get(username="alice"))

    background = in_background(take_away)
    with pytest.raises(TransportQueryError) as refused:
        asyncio.run(followed(transport(server, secret), FOLLOW, id=str(running.pk)))
    background.join()
    expected = "token-invalid" if what == "token" else "not-found"
    assert expected in str(refused.value.errors)


def test_what_one_may_not_see_is_not_followed(server: str, running: Build) -> None:
    factories.make_user("charlie")
    for secret in ("", secret_of("charlie")):
        with pytest.raises(TransportQueryError, match="no such build"):
            asyncio.run(followed(transport(server, secret), FOLLOW, id=str(running.pk)))


def test_a_wrong_token_opens_no_websocket(server: str) -> None:
    async def closed() -> int | None:
        async with websockets.connect(
            server.replace("http", "ws") + "/graphql",
            additional_headers={"Authorization": "Bearer cs_wrong"},
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        ) as socket:
            await socket.send('{"type": "connection_init"}')
            await socket.wait_closed()
            return socket.close_code

    assert asyncio.run(closed()) == 4403


def test_a_page_of_another_site_opens_no_websocket(server: str, running: Build) -> None:
    client = Client()
    client.force_login(User.objects.get(username="alice"))
    name = django_settings.SESSION_COOKIE_NAME
    cookie = f"{name}={client.cookies[name].value}"

    async def open_from(origin: str) -> str:
        async with websockets.connect(
            server.replace("http", "ws") + "/graphql",
            origin=origin,  # type: ignore[arg-type]
            additional_headers={"Cookie": cookie},
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        ) as socket:
            await socket.send('{"type": "connection_init"}')
            await socket.recv()
            requested = {"query": "{ me { username } }"}
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": requested}))
            return str(await socket.recv())

    assert "alice" in asyncio.run(open_from(server))
    with pytest.raises(websockets.InvalidStatus):
        asyncio.run(open_from("https://elsewhere.example.org"))


def test_the_moves_of_a_namespace_are_told_from_now_on(server: str, running: Build) -> None:
    other = factories.make_namespace("other")
    hidden = factories.make_build(factories.make_environment(other), BuildState.QUEUED)
    document = """subscription { environmentEvents(namespace: "research") {
      state message build { ref } environment { name } } }"""

    reported = threading.Event()

    def happen() -> None:
        """Again and again: how long the server takes to listen is not known."""
        while not reported.wait(0.2):
            BuildEvent.objects.create(build=hidden, state=BuildState.READY, message="not yours")
            BuildEvent.objects.create(build=running, state=BuildState.CHECKING, message="checks")

    async def first() -> Any:
        async with GraphQLClient(transport=line()) as session:
            return await anext(aiter(session.subscribe(gql(document))))

    line = transport(server, secret_of("alice"))
    BuildEvent.objects.create(build=running, state=BuildState.LINKING, message="before")
    background = in_background(happen)
    try:
        event = asyncio.run(first())
    finally:
        reported.set()
        background.join()
    assert event["environmentEvents"] == {
        "state": "CHECKING",
        "message": "checks",
        "build": {"ref": "research/ml:1"},
        "environment": {"name": "ml"},
    }


def test_a_preview_is_waited_for(server: str) -> None:
    factories.make_namespace("research", alice=Role.DEVELOPER)

    def solve() -> None:
        lock = factories.make_lock()
        while (preview := Preview.objects.first()) is None:
            time.sleep(0.05)
        lease = preview.claim("worker", life=timedelta(minutes=1))
        assert lease is not None
        preview.finish(lease, state="READY", lock=LockRow.store(lock))

    headers = {"Authorization": f"Bearer {secret_of('alice')}"}
    document = """mutation { previewSolve(namespace: "research", wait: 20,
      specification: "dependencies: [python]") {
      ... on Preview { state lock { packageCount } diff { added { name } } } } }"""
    background = in_background(solve)
    answer = httpx.post(
        f"{server}/graphql", json={"query": document}, headers=headers, timeout=30
    ).json()
    background.join()
    assert answer["data"]["previewSolve"] == {
        "state": "READY",
        "lock": {"packageCount": 1},
        "diff": {"added": [{"name": "python"}]},
    }
