"""The command line sends again what a busy server refused for the moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from condastore.cli import client, config
from condastore.cli.errors import CommandError
from tests.condastore.scripted_server import Page, answering

Api = Callable[[str], client.Api]
QUERY = "query Names { namespaces { name } }"
SUBMIT = "mutation Submit { submitBuild { __typename } }"
DONE = {"data": {"submitBuild": {"__typename": "SubmittedBuild", "created": True}}}
_REFUSAL = {
    "data": {
        "submitBuild": {
            "__typename": "OperationError",
            "code": "unavailable",
            "message": "The database is busy: more is being changed than it can write.",
            "where": "",
            "hint": "Try again in 10 seconds.",
            "details": {"retry_after": 1},
            "faults": [],
        }
    }
}
BUSY = Page(status=503, body=json.dumps(_REFUSAL), kind="application/json", retry_after=1)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two requests, which are not waited for."""
    found: list[float] = []
    monkeypatch.setattr("condastore.cli.client.time.sleep", found.append)
    return found


@pytest.fixture
def api() -> Iterator[Api]:
    """A client of the server at a URL, which is closed at the end."""
    created: list[client.Api] = []

    def connect(url: str) -> client.Api:
        created.append(client.Api(config.Server(url=url, token="a-token")))
        return created[-1]

    yield connect
    for one in created:
        one._http.close()


def _in_turn(*answers: Any) -> Any:
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_request_is_sent_again_when_the_server_says(api: Api, pauses: list[float]) -> None:
    full = Page(status=503, body="{}", kind="application/json", retry_after=7)
    with answering({"Names": _in_turn(full, full, {"data": {"namespaces": []}})}) as server:
        assert api(server.url).ask(QUERY) == {"namespaces": []}
        assert len(server.asked) == 3
    assert pauses == [7, 7]


def test_a_long_pause_is_cut_short(api: Api, pauses: list[float]) -> None:
    full = Page(status=503, body="{}", kind="application/json", retry_after=3600)
    with answering({"Names": _in_turn(full, {"data": {"namespaces": []}})}) as server:
        api(server.url).ask(QUERY)
    assert pauses == [client.LONGEST_PAUSE]


def test_a_change_that_may_be_repeated_is_sent_again_while_the_database_is_busy(
    api: Api, pauses: list[float]
) -> None:
    with answering({"Submit": _in_turn(BUSY, BUSY, DONE)}) as server:
        assert api(server.url).change(SUBMIT, repeat=True) == {"created": True}
        assert len(server.asked) == 3
    assert pauses == [1, 1]


def test_in_the_end_the_server_is_believed(api: Api) -> None:
    with (
        answering({"Submit": _in_turn(BUSY)}) as server,
        pytest.raises(CommandError, match="database is busy") as refused,
    ):
        api(server.url).change(SUBMIT, repeat=True)
    assert len(server.asked) == client.BUSY_ATTEMPTS + 1
    assert refused.value.code == "unavailable"


def test_a_change_that_may_not_be_repeated_is_sent_once(api: Api, pauses: list[float]) -> None:
    with answering({"Submit": _in_turn(BUSY, DONE)}) as server, pytest.raises(CommandError):
        api(server.url).change(SUBMIT)
    assert len(server.asked) == 1
    assert pauses == []
