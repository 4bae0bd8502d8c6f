"""Fuzz of every interface: no 5xx, no traceback, and nothing of one tenant for another.

Deterministic: the seed and the number of rounds are fixed, unless CONDASTORE_FUZZ_SEED and
CONDASTORE_FUZZ_ROUNDS say otherwise (`make fuzz`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from urllib.parse import unquote

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.db.models import Model
from django.test import Client
from graphql import GraphQLObjectType, get_named_type, is_leaf_type

from accounts.authentication import actor_with_token
from condastore.asgi import application
from condastore.schema import schema
from environments.models import Build, Environment
from environments.rest import mirrors
from tests.environments.graphql.asking import context_of
from tests.security import hostile_values
from tests.security.graphql_documents import Document, Documents
from tests.security.route_requests import METHODS, Request, Requests, routes
from tests.security.two_tenants import (
    MARK,
    OWNED,
    Asker,
    Tenants,
    make_tenants,
    marks_in,
)

SEED = int(os.environ.get("CONDASTORE_FUZZ_SEED", "9"))
ROUNDS = int(os.environ.get("CONDASTORE_FUZZ_ROUNDS", "1"))
_TRACEBACK = re.compile(r'Traceback \(most recent call last\)|File "/[^"]+", line \d+')
_CHANGE = re.compile(r'(?:INSERT INTO|UPDATE|DELETE FROM) "(\w+)"')
#: What is another thing at each request.
_VARYING = re.compile(
    r'name="csrfmiddlewaretoken" value="\w+"|\b[0-9a-f]{32}\b|\berror [0-9a-f]+|"error":"\w+"'
    r'|\bcs-[\w-]+|"9\d{4}"|\bwhsec_[\w+/=-]+|\d{4}-\d\d-\d\dT[\d:.]+'
)


#: graphql-core drops what it has not awaited yet when a field beside it fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# --- the checks ---------------------------------------------------------------------------------


class Errors(logging.Handler):
    """Collects what is logged as an error: the exception, and its place in our code."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("django.security"):
            return  # what Django refuses with 400
        said: Any = record.msg
        error = said.get("exc_info") if isinstance(said, dict) else record.exc_info
        if isinstance(error, tuple):
            error = error[1]
        if isinstance(error, BaseException):
            frames = traceback.extract_tb(error.__traceback__)
            ours = [one for one in frames if "site-packages" not in one.filename] or frames
            locations = ", ".join(
                f"{one.filename}:{one.lineno}" for one in (*ours[-1:], *frames[-1:])
            )
            self.found.append(f"{type(error).__name__}: {str(error)[:200]} at {locations}")


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    shown: str


@dataclass(kw_only=True)
class Checker:
    """Sends requests as one asker, undoes what they change, and collects what is wrong."""

    asker: Asker
    tenants: Tenants
    errors: Errors
    faults: list[Fault] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    sent: int = 0
    client: Client = field(init=False)
    _changed: set[str] = field(default_factory=set)
    _before: dict[type[Model], list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = self.asker.client()

    def graphql(self, document: Document, *, twin: bool = False) -> None:
        """Ask; and as a twin, for rows that are not there, which must be answered alike."""
        body = document.body()
        answer = self._send("POST", "/graphql", body, "application/json", {}, known=body)
        absent = self._absent(document.variables) if twin and self.asker.outsider else None
        if absent:
            pairs = list(zip(_strings(document.variables), _strings(absent), strict=True))
            body = Document(text=document.text, variables=absent).body()
            other = self._send("POST", "/graphql", body, "application/json", {}, known=body)
            if _same(answer, pairs, 0) != _same(other, pairs, 1):
                text = f"{body[:900]} -> {answer[:500]} but {other[:500]}"
                self.faults.append(Fault("what is hidden differs from what is absent", text))

    def request(self, request: Request) -> None:
        self._send(
            request.method,
            request.path,
            request.body,
            request.content_type,
            {"QUERY_STRING": request.query, **request.headers},
            known=request.text(),
        )

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | str,
        content_type: str,
        options: dict[str, Any],
        *,
        known: str,
    ) -> str:
        self._changed.clear()
        with undone(), connection.execute_wrapper(self._note):
            response = self.client.generic(method, path, body, content_type, **options)
            answer = self.check(known, response)
            if self.asker.outsider:
                for table in self._changed & set(OWNED):
                    self._check_rows(OWNED[table], known)
        return answer

    def _note(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self._changed.update(_CHANGE.findall(sql[:80]))
        return execute(sql, params, many, context)

    def _check_rows(self, model: type[Model], known: str) -> None:
        now = self.tenants.rows_of(model)
        if now != self.before(model):
            self.faults.append(Fault(f"{model.__name__} of another tenant changed", known[:900]))

    def before(self, model: type[Model]) -> list[Any]:
        return self._before[model]

    def remember_rows(self) -> None:
        self._before = {model: self.tenants.rows_of(model) for model in OWNED.values()}

    def _absent(self, variables: Mapping[str, Any]) -> dict[str, Any] | None:
        """The variables with absent rows for those of the marked tenant; None: there are none."""
        text = json.dumps(variables)
        for value, other in self.tenants.absent.items():
            text = text.replace(json.dumps(value), json.dumps(other))
        found: dict[str, Any] = json.loads(text)
        return found if found != variables else None

    def check(self, request: str, response: Any) -> str:
        """Judge an answer.

        Args:
            request: all that was sent, as text: what it names itself may be repeated.
        Returns:
            The body.
        """
        self.sent += 1
        body = text_of(response)
        logged = self.errors.found[:]
        self.errors.found.clear()
        shown = f"{self.asker.name}: {request[:900]!r} -> {response.status_code} {body[:300]!r}"
        if response.status_code == 503 and not logged:
            pass  # it is said so: neither workers nor a queue run here
        elif logged:
            self.faults.append(Fault(logged[-1], shown))
        elif response.status_code >= 500:
            self.faults.append(Fault(f"status {response.status_code}", shown))
        elif '"internal-error"' in body:
            self.faults.append(Fault("unexpected error", shown))
        elif _TRACEBACK.search(body):
            self.faults.append(Fault("traceback", shown))
        headers = "\n".join(f"{name}: {value}" for name, value in response.items())
        known = marks_in(request) | marks_in(unquote(request))
        received = {
            mark
            for mark in marks_in(body) | marks_in(headers)
            if not any(mark in one for one in known)
        }
        self.marks |= received
        if self.asker.outsider and received:
            self.faults.append(Fault(f"leak of {sorted(received)}", shown))
        return body


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _same(body: str, pairs: list[tuple[str, str]], side: int) -> str:
    """An answer without what was asked, and without what differs each time."""
    changed = sorted({pair for pair in pairs if pair[0] != pair[1]}, key=lambda pair: -len(pair[0]))
    for number, pair in enumerate(changed):
        for form in (json.dumps(pair[side])[1:-1], pair[side]):
            body = body.replace(form, f"<{number}>")
    return _VARYING.sub("", body)


def text_of(response: Any) -> str:
    if response.streaming:

        async def read() -> bytes:
            return b"".join([part async for part in response.streaming_content])

        content = (
            async_to_sync(read)() if response.is_async else b"".join(response.streaming_content)
        )
    else:
        content = response.content
    return content.decode("utf-8", "replace")


@contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture
def tenants(db: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Tenants:
    """Two tenants, on a server that waits for nothing and counts no attempts."""
    monkeypatch.setattr(mirrors, "WAIT", 0.0)
    settings.AUDIT_REFUSALS = 10**6
    settings.ACCOUNT_RATE_LIMITS = False
    settings.SCIM_FAILURES = "100000/m/ip"
    settings.REGISTRY_WAIT = settings.ARTIFACT_TIME_LIMIT = settings.BACKOFF * 0
    return make_tenants()


@pytest.fixture
def errors() -> Iterator[Errors]:
    handler = Errors()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def checkers(tenants: Tenants, errors: Errors) -> dict[str, Checker]:
    """By the names of the askers."""
    found = {one.name: Checker(asker=one, tenants=tenants, errors=errors) for one in tenants.askers}
    for checker in found.values():
        checker.remember_rows()
    return found


def report(checkers: Mapping[str, Checker]) -> None:
    """Fail where something was wrong: each kind of fault with its first example."""
    kinds: dict[str, list[str]] = {}
    for one in checkers.values():
        for fault in one.faults:
            kinds.setdefault(fault.kind, []).append(fault.shown)
    shown = [f"{len(found)} x {kind}\n    {found[0]}" for kind, found in kinds.items()]
    sent = sum(one.sent for one in checkers.values())
    print(sent, "requests")
    assert not kinds, f"{sent} requests, seed {SEED}:\n" + "\n".join(shown[:40])


# --- the world ----------------------------------------------------------------------------------

#: Models without a row of a tenant, and why.
NOT_OF_A_TENANT = {
    "SolveRow": "is shared by equal requests, and no interface shows it",
    "PypiRecord": "is shown like CondaRecord",
    "LockedPypi": "is shown like LockedConda",
    "Layer": "is shared by equal packages, and no interface shows it",
    "BaseLayer": "no interface shows it",
    "MappedRole": "is shown as a role",
    "LockConflicts": "is shown in the verdicts and the provenance of a build only",
    "FolderRestore": "is shown with its build only",
    "Leader": "no interface shows it",
    "EnvironmentGroupObjectPermission": "is shown like that of a user",
}


def test_the_marked_tenant_has_a_row_of_every_kind(tenants: Tenants) -> None:
    ours = {model for model in tenants.rows if model._meta.app_label == "environments"}
    empty = {model.__name__ for model in ours if not tenants.rows[model]}
    assert empty == set(NOT_OF_A_TENANT)


def test_the_checks_find_a_leak_and_a_change(
    tenants: Tenants, checkers: dict[str, Checker]
) -> None:
    """The control of all that follows: dora may see and change what outsiders may not."""
    checker = checkers["dora"]
    checker.asker = replace(checker.asker, outsider=True)
    checker.graphql(Document(text="{ environments { edges { node { name } } } }", variables={}))
    assert [fault.kind.partition(" of ")[0] for fault in checker.faults] == ["leak"]
    checker.faults.clear()
    rename = 'mutation($v: ID!) { renameEnvironment(environmentId: $v, name: "x") { __typename } }'
    (key,) = [str(pk) for pk in tenants.rows[Environment] if str(pk) == ids_of(tenants, "id")[0]]
    checker.graphql(Document(text=rename, variables={"v": key}))
    assert [fault.kind for fault in checker.faults] == ["Environment of another tenant changed"]
    checker.faults.clear()
    found = "query($v: ID!) { build(id: $v) { __typename } }"
    build = str(min(tenants.rows[Build]))
    checker.graphql(Document(text=found, variables={"v": build}), twin=True)
    assert [fault.kind for fault in checker.faults] == [
        "what is hidden differs from what is absent"
    ]


# --- GraphQL ------------------------------------------------------------------------------------


def some(of: list[Any], number: int | None) -> list[Any]:
    """A sample that is the same for the same seed; None: all."""
    return of if number is None else Random(SEED).sample(of, min(number * ROUNDS, len(of)))


def ids_of(tenants: Tenants, kind: str) -> list[str]:
    return [key for key in map(str, tenants.theirs[kind]) if key in tenants.absent]


def id_arguments(documents: Documents) -> Iterator[tuple[str, str, str]]:
    """Operation, field and argument of everything that takes ids or digests."""
    for operation in ("query", "mutation"):
        for name, one in documents.fields(operation).items():
            for argument, arg in one.args.items():
                kind = get_named_type(arg.type).name
                if kind in ("ID", "UUID") or argument == "digest":
                    yield operation, name, argument


def test_graphql_gives_one_tenant_nothing_of_another(
    tenants: Tenants, checkers: dict[str, Checker]
) -> None:
    """Every field with the names of the other's rows, and every id in every argument of ids."""
    random = Random(SEED)
    # The keys of every table begin with the same number: the first few are rows of every kind.
    ids = ids_of(tenants, "id")
    digests = ids_of(tenants, "digest")
    for name, changes in (
        *(("signed out", 10), ("olga", None), ("limited token of olga", 10), ("dora", 5)),
    ):
        checker = checkers[name]
        documents = Documents(schema=schema._schema, random=random, pools=tenants.pools("theirs"))
        for _ in range(ROUNDS):
            names = [("query", one) for one in documents.fields("query")]
            names += some([("mutation", one) for one in documents.fields("mutation")], changes)
            for operation, field_name in names:
                document = documents.document(operation, [field_name])
                twin = name == "olga" and random.random() < 0.5
                checker.graphql(document, twin=twin)
        for operation, field_name, argument in id_arguments(documents):
            if operation == "query" or name == "olga":
                values = digests if argument == "digest" else ids
                if operation == "mutation":  # each refusal is recorded, which takes its time
                    values = [*ids[:4], *ids[-1:]]
                for document in documents.every_id(operation, field_name, argument, values):
                    checker.graphql(document)
    report(checkers)
    # The control: to those who may see it, the same documents show it.
    kinds = {mark.split("-")[1] for mark in checkers["dora"].marks if "-" in mark}
    assert len(kinds) > 2, kinds


#: Types that only subscriptions give.
OF_SUBSCRIPTIONS = ("BuildUpdate", "EnvironmentEvent")


def test_graphql_answers_hostile_values_without_an_error_of_its_own(
    tenants: Tenants, checkers: dict[str, Checker]
) -> None:
    random = Random(SEED)
    used: dict[str, int] = {}
    for name, whose, hostile in (
        ("signed out", "both", 0.5),
        ("olga", "own", 0.3),
        ("dora", "theirs", 0.3),
        ("root", "both", 0.2),
    ):
        documents = Documents(
            schema=schema._schema, random=random, pools=tenants.pools(whose), hostile=hostile
        )
        documents.selected.update(used)
        for _ in range(ROUNDS):
            for operation in ("query", "mutation"):
                for field_name in documents.fields(operation):
                    checkers[name].graphql(documents.document(operation, [field_name]))
        used = documents.selected
    report(checkers)
    unused = {
        f"{kind.name}.{field_name}"
        for kind in schema._schema.type_map.values()
        if isinstance(kind, GraphQLObjectType)
        and kind.name not in ("Query", "Mutation", "Subscription", *OF_SUBSCRIPTIONS)
        and not kind.name.startswith("__")
        for field_name, one in kind.fields.items()
        if is_leaf_type(get_named_type(one.type)) and not used.get(f"{kind.name}.{field_name}")
    }
    assert not unused, "fields that no document selected"


@pytest.mark.django_db(transaction=True)
def test_subscriptions_tell_outsiders_nothing(settings: Any) -> None:
    tenants = make_tenants()
    random = Random(SEED)
    theirs = Documents(schema=schema._schema, random=random, pools=tenants.pools("theirs"))
    hostile = Documents(
        schema=schema._schema, random=random, pools=tenants.pools("theirs"), hostile=1.0
    )
    limited = next(one for one in tenants.askers if one.secret)

    async def first(document: Document) -> str:
        results = await schema.subscribe(
            document.text,
            variable_values=dict(document.variables),
            context_value=context_of(actor),
        )
        if not hasattr(results, "__aiter__"):
            return str(results)
        try:
            return str(await asyncio.wait_for(anext(aiter(results)), 5))
        finally:
            await results.aclose()  # type: ignore[union-attr]

    actor = actor_with_token(limited.secret)
    for documents in (theirs, hostile):
        for name in documents.fields("subscription"):
            for _ in range(5):
                document = documents.document("subscription", [name])
                if "\\ud" in document.body():
                    continue  # half of a surrogate pair is refused before
                answer = asyncio.run(first(document))
                assert "errors=[" in answer, (document, answer)
                assert "internal-error" not in answer, (document, answer)
                assert not marks_in(answer) - marks_in(document.body()), (document, answer)


# --- WebSockets ---------------------------------------------------------------------------------

#: What a client may send after the handshake.
FRAMES: tuple[Any, ...] = (
    {"text": ""},
    {"text": "null"},
    {"text": "[]"},
    {"text": "0"},
    {"text": "{"},
    {"text": "{}"},
    {"text": "[" * 20_000},
    {"text": '{"type": {"a": 1}}'},
    {"text": '{"type": "subscribe"}'},
    {"text": '{"type": "subscribe", "id": null, "payload": null}'},
    {"text": '{"type": "connection_init", "payload": []}'},
    {"text": '{"type": "connection_init", "payload": {"Authorization": "Bearer \\u0000"}}'},
    {"text": '{"type": "connection_init", "payload": {"Authorization": "Basic /w=="}}'},
    {"text": '{"type": "connection_init", "payload": {"Authorization": {"a": 1}}}'},
    {"text": '{"type": "ping", "payload": 1}'},
    {"text": '{"type": "complete", "id": "x"}'},
    {"text": '{"type": "\\ud800"}'},
    {"bytes": b"\xff\xfe"},
    {"bytes": b"{}"},
)
SUBSCRIBE = {"type": "subscribe", "id": "1", "payload": {"query": "{ me { username } }"}}
SUBSCRIPTIONS: tuple[Any, ...] = (
    SUBSCRIBE,
    {**SUBSCRIBE, "id": 1},
    {**SUBSCRIBE, "payload": {"query": 1}},
    {**SUBSCRIBE, "payload": {"query": "{"}},
    {**SUBSCRIBE, "payload": {"query": "subscription { nothing }"}},
    {**SUBSCRIBE, "payload": {"query": "{" * 5_000}},
    {**SUBSCRIBE, "payload": {"query": "{ me { username } }", "variables": []}},
    {**SUBSCRIBE, "payload": {"query": "{ me { username } }", "operationName": {}}},
    {**SUBSCRIBE, "payload": {"query": "{ me { username } }", "extensions": 1}},
    {
        **SUBSCRIBE,
        "payload": {"query": 'subscription { buildProgress(buildId: "²") { nextLine } }'},
    },
)


async def talk(
    frames: list[dict[str, Any]], headers: list[tuple[bytes, bytes]] | None = None
) -> list[dict[str, Any]]:
    """What the server sends to a WebSocket that sends `frames` and goes."""
    sent: list[dict[str, Any]] = []
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for one in ({"type": "websocket.connect"}, *frames):
        incoming.put_nowait({"type": "websocket.receive"} | one)
    closed = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if incoming.empty():  # what was sent is being answered: the client stays a little
            await asyncio.wait([asyncio.ensure_future(closed.wait())], timeout=0.05)
            return {"type": "websocket.disconnect", "code": 1000}
        return await incoming.get()

    async def send(message: Any) -> None:
        sent.append(dict(message))
        if message["type"] == "websocket.close":
            closed.set()

    scope = {
        "type": "websocket",
        "path": "/graphql",
        "raw_path": b"/graphql",
        "query_string": b"",
        "root_path": "",
        "scheme": "ws",
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
        "subprotocols": ["graphql-transport-ws"],
        "headers": [(b"host", b"testserver"), *(headers or [])],
    }
    await asyncio.wait_for(application(scope, receive, send), 20)
    return sent


@pytest.mark.django_db(transaction=True)
def test_a_websocket_survives_whatever_is_sent(errors: Errors) -> None:
    begin = {"text": '{"type": "connection_init"}'}
    for frame in FRAMES:
        asyncio.run(talk([frame]))
        asyncio.run(talk([begin, frame]))
    for message in SUBSCRIPTIONS:
        sent = asyncio.run(talk([begin, {"text": json.dumps(message)}]))
        assert "internal-error" not in str(sent), (message, sent)
        assert not _TRACEBACK.search(str(sent)), (message, sent)
    for name in (b"cookie", b"authorization", b"origin", b"x-forwarded-for"):
        for value in (b"", b"\xff", b"Bearer \x00", b"Basic /w==", b"sessionid=\x00", b"http://["):
            asyncio.run(talk([begin], [(name, value)]))
    assert not errors.found
    sent = asyncio.run(talk([begin, {"text": json.dumps(SUBSCRIBE)}]))
    assert any('"next"' in str(one.get("text")) for one in sent), sent  # the control


# --- REST, registry, channels, console, admin -----------------------------------------------------


def test_no_route_gives_one_tenant_anything_of_another(
    tenants: Tenants, checkers: dict[str, Checker]
) -> None:
    random = Random(SEED)
    every = list(routes())
    assert len(every) > 200
    console = [one for one in every if one.name.startswith("admin:")]
    others = [one for one in every if not one.name.startswith("admin:")]
    leading = [one for one in others if set(one.parts) & {"namespace", "channel", "mirror"}]
    for name, own, sample in (
        *(("signed out", others, 20), ("olga", [*others, *leading], 80)),
        *(("limited token of olga", leading, 20), ("dora", leading, 20), ("root", [], 40)),
    ):
        requests = Requests(random=random, pools=tenants.pools("theirs"))
        for _ in range(ROUNDS):
            for route in (*own, *leading, *some(console, sample)):
                checkers[name].request(requests.request(route))
            for route in leading:
                method = random.choice(("HEAD", "POST", "PUT"))
                checkers[name].request(requests.request(route, method))
    report(checkers)
    kinds = {mark.split("-")[1] for mark in checkers["root"].marks if "-" in mark}
    assert len(kinds) > 2, kinds


def test_no_route_answers_hostile_requests_with_an_error_of_its_own(
    tenants: Tenants, checkers: dict[str, Checker]
) -> None:
    random = Random(SEED)
    every = list(routes())
    console = [one for one in every if one.name.startswith("admin:")]
    others = [one for one in every if not one.name.startswith("admin:")]
    for name, whose, hostile in (
        ("signed out", "both", 0.4),
        ("olga", "own", 0.3),
        ("limited token of olga", "own", 0.3),
        ("dora", "theirs", 0.3),
        ("root", "both", 0.3),
    ):
        requests = Requests(random=random, pools=tenants.pools(whose), hostile=hostile)
        for route in (*some(console, 15), *some(others, 30)):
            checkers[name].request(requests.request(route))
            checkers[name].request(requests.request(route, random.choice(METHODS)))
    report(checkers)


_INPUT = re.compile(r'<(?:input|select|textarea)[^>]*\bname="([^"]+)"')
_FORM = re.compile(r"<form[^>]*\bmethod=\"post\"", re.I)


def test_forms_refuse_hostile_values(tenants: Tenants, checkers: dict[str, Checker]) -> None:
    """Every form of the console of administrators, with values that it does not expect."""
    random = Random(SEED)
    checker = checkers["root"]
    forms = 0
    for route in routes():
        if not route.name.startswith("admin:"):
            continue
        if any(name not in ("object_id", "pk") for name in route.parts):
            continue
        path = Requests(random=random, pools=tenants.pools("both")).path(route)
        page = checker.client.get(path)
        if page.status_code != 200 or page.streaming:
            continue
        text = page.content.decode()
        names = sorted(set(_INPUT.findall(text)) - {"csrfmiddlewaretoken"})
        if not _FORM.search(text) or not names:
            continue
        forms += 1
        for _ in range(ROUNDS):
            values = {
                name: hostile_values.text(random)
                if random.random() < 0.6
                else random.choice(tenants.theirs["text"])
                for name in names
            }
            checker.request(
                Request(
                    method="POST",
                    path=path,
                    content_type="application/x-www-form-urlencoded",
                    body=_urlencoded(values),
                )
            )
    assert forms > 20
    assert MARK in str(checker.marks)
    report(checkers)


def _urlencoded(values: Mapping[str, str]) -> bytes:
    from urllib.parse import urlencode

    return urlencode(values, errors="surrogatepass").encode()
