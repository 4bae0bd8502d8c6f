"""The web server's boundary: bodies of requests, sign-in, sessions, cookies, and what is answered.

Each attack stands beside its control, the honest request that works.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import websockets
from django.test import Client

from accounts.access import Actor

pytestmark = pytest.mark.django_db
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
    variables = {"n": 3, "s": "😀 \u2028", "deep": json.loads("[" * 60 + "1" + "]" * 60)}
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
            asked = {"query": "{ __typename }"}
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": asked}))
            return json.loads(await socket.recv())

    deep = '{"type": "connection_init", "payload": ' + "[" * 500 + "]" * 500 + "}"
    for message in (DEEP.decode(), deep, "[]", "null", "7", "9" * 9999, '{"type": NaN}', "{}"):
        assert asyncio.run(closed_by(message)) == 4400, message[:50]
    assert asyncio.run(answered())["payload"]["data"] == {"__typename": "Query"}
