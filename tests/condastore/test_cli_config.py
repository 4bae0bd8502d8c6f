"""Which server, which token; and that nobody else gets to see it."""

from __future__ import annotations

import json
import stat
from dataclasses import replace

import pytest

from condastore.cli import config
from condastore.cli.errors import CommandError
from tests.condastore.command_line import Person
from tests.condastore.scripted_server import answering

ME = {
    "data": {
        "me": {
            "username": "alice",
            "email": "",
            "isSuperuser": False,
            "tokenName": "laptop",
            "namespaces": [],
        }
    }
}
NOBODY = {"data": {"me": None}}


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8470", "http://localhost:8470"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("conda.example.org", "https://conda.example.org"),
        ("https://conda.example.org/", "https://conda.example.org"),
        ("https://conda.example.org/store/", "https://conda.example.org/store"),
        ("https://alice:secret@conda.example.org", "https://conda.example.org"),
        ("HTTP://Conda.Example.org", "http://conda.example.org"),
    ],
)
def test_an_address_has_one_form(text: str, url: str):
    assert config.normal_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://example.org", "https://", "http://host:port"])
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(CommandError, match="is not the address"):
        config.normal_url(text)


def test_a_sign_in_is_kept_in_a_file_that_only_its_owner_reads(person: Person):
    with answering({"Me": lambda _: ME}) as server:
        person = replace(person, url="")
        person.does("login", server.url, "--token", "cs_secret").succeeded()
        assert "alice" in person.does("whoami").succeeded().out
        assert [requested.token for requested in server.asked] == ["cs_secret", "cs_secret"]
    (file,) = (person.home / "config").rglob("servers.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_text())["servers"][server.url]["token"] == "cs_secret"


def test_a_token_that_the_server_does_not_know_is_not_kept(person: Person):
    with answering({"Me": lambda _: NOBODY}) as server:
        ended = person.does("login", server.url, "--token", "cs_wrong")
        assert ended.status == 3
        assert "does not know this token" in ended.err
    assert not list(person.home.rglob("servers.json"))


def test_a_stored_token_goes_to_its_own_server_only(person: Person):
    with answering({"Me": lambda _: ME}) as first, answering({"Me": lambda _: NOBODY}) as second:
        person.does("login", first.url, "--token", "cs_secret").succeeded()
        assert replace(person, url=second.url).does("whoami").status == 3
        assert [requested.token for requested in second.asked] == [""]


def test_variables_win_over_the_stored_sign_in(person: Person):
    with answering({"Me": lambda _: ME}) as first, answering({"Me": lambda _: ME}) as second:
        person.does("login", first.url, "--token", "cs_stored").succeeded()
        replace(person, url=second.url, token="cs_given").does("whoami").succeeded()
        assert [requested.token for requested in second.asked] == ["cs_given"]


def test_a_password_becomes_a_token_that_logging_out_revokes(person: Person):
    created: dict[str, str] = {}

    def sign_in(body: dict[str, str]) -> dict[str, str]:
        created.update(body)
        return {"token": "cs_made", "expires_at": "2030-01-01T00:00:00Z"}

    def tokens(_: object) -> object:
        shown = {"id": "7", "name": created["name"], "revoked": False}
        me = {"username": "alice", "tokenName": created["name"], "tokens": [shown]}
        return {"data": {"me": me}}

    answers = {
        "/api/token": sign_in,
        "Me": lambda _: ME,
        "Tokens": tokens,
        "RevokeToken": lambda _: {"data": {"revokeToken": {"__typename": "ApiToken", "name": "x"}}},
    }
    with answering(answers) as server:
        person = replace(person, url=server.url)
        arguments = ("login", "--username", "alice", "--password-stdin")
        person.does(*arguments, says="pass word\n").succeeded()
        assert (created["username"], created["password"]) == ("alice", "pass word")
        person.does("logout").succeeded()
        assert server.asked_for("RevokeToken")[0].variables == {"id": "7"}
        assert person.does("logout").status == 3


def test_a_password_is_never_asked_for_where_there_is_no_terminal(person: Person):
    ended = person.does("login", "--username", "alice")
    assert ended.status == 2
    assert "--password-stdin" in ended.err


def test_a_damaged_file_of_servers_is_named(person: Person):
    file = person.home / "config" / "condastore" / "servers.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    ended = replace(person, url="").does("whoami")
    assert ended.status == 6
    assert str(file) in ended.err
