"""The server answers as a good one does, and fails in the ways that a test sets."""

from __future__ import annotations

import base64
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import SIMPLE_JSON, ChannelServer, Fault, serving

CONTENT = bytes(range(256)) * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "noarch").mkdir()
    (tmp_path / "noarch" / "one.conda").write_bytes(CONTENT)
    (tmp_path / "noarch" / "empty").write_bytes(b"")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[ChannelServer]:
    with serving(folder) as server:
        yield server


class Answer:
    """Status, headers and body; `cut` if the body was shorter than promised."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.cut = response.status, response.headers, False
        try:
            self.body = response.read()
        except http.client.IncompleteRead as error:
            self.body, self.cut = error.partial, True


def ask(
    server: ChannelServer,
    path: str = "noarch/one.conda",
    *,
    method: str = "GET",
    timeout: float = 5,
    **headers: str,
) -> Answer:
    """One request; a header's name is written with `_` for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=timeout)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"/{path}", headers=named)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def test_a_file_is_given_whole_and_known_again(server: ChannelServer) -> None:
    whole = ask(server)
    assert (whole.status, whole.body) == (200, CONTENT)
    assert whole.headers["Accept-Ranges"] == "bytes"
    for again in (
        ask(server, If_None_Match=whole.headers["ETag"]),
        ask(server, If_Modified_Since=whole.headers["Last-Modified"]),
    ):
        assert (again.status, again.body) == (304, b"")
    assert ask(server, If_None_Match='"another"').status == 200
    assert ask(server, method="HEAD").headers["Content-Length"] == str(len(CONTENT))
    assert ask(server, "noarch/empty").body == b""


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", CONTENT[:1]),
        ("bytes=1000-", CONTENT[1000:]),
        ("bytes=10-19", CONTENT[10:20]),
        ("bytes=-5", CONTENT[-5:]),
        ("bytes=0-99999999", CONTENT),
    ],
)
def test_a_part_is_given_to_who_asks_for_it(server: ChannelServer, asked: str, part: bytes) -> None:
    answer = ask(server, Range=asked)
    assert (answer.status, answer.body) == (206, part)
    assert answer.headers["Content-Range"].endswith(f"/{len(CONTENT)}")
    assert server.requests.matching("noarch/*")[0].range == asked


def test_a_part_that_is_not_there_is_refused(server: ChannelServer) -> None:
    answer = ask(server, Range=f"bytes={len(CONTENT)}-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")


def test_a_part_of_a_file_that_changed_is_not_given(server: ChannelServer, folder: Path) -> None:
    tag = ask(server).headers["ETag"]
    assert ask(server, Range="bytes=5-", If_Range=tag).status == 206
    (folder / "noarch" / "one.conda").write_bytes(CONTENT[::-1] + b"more")
    changed = ask(server, Range="bytes=5-", If_Range=tag)
    assert (changed.status, changed.body) == (200, CONTENT[::-1] + b"more")


@pytest.mark.parametrize(
    "path", ["absent", "noarch/", "", "../secret", "%2e%2e/secret", "noarch//one.conda"]
)
def test_nothing_else_is_given(server: ChannelServer, folder: Path, path: str) -> None:
    folder.with_name("secret").write_text("secret")
    assert ask(server, path).status == 404


def test_a_page_is_given_in_the_form_that_is_asked_for(server: ChannelServer, folder: Path) -> None:
    (folder / "index.html").write_text("page")
    (folder / "index.v1.json").write_text("{}")
    assert ask(server, "", Accept="text/html").body == b"page"
    answer = ask(server, "", Accept=f"{SIMPLE_JSON}, text/html;q=0.1")
    assert (answer.body, answer.headers["Content-Type"]) == (b"{}", SIMPLE_JSON)
    assert ask(server, "noarch").headers["Location"] == "/noarch/"


def test_several_folders_are_served_below_their_names(folder: Path, tmp_path: Path) -> None:
    with serving({"main": folder, "other": folder / "noarch"}) as server:
        assert ask(server, "main/noarch/one.conda").status == 200
        assert ask(server, "other/one.conda").status == 200
        assert ask(server, "noarch/one.conda").status == 404


def test_a_cut_download_can_be_taken_up_again(server: ChannelServer) -> None:
    server.faults.add(Fault("noarch/*", cut_after=1000, times=2))
    first = ask(server)
    assert (first.cut, first.body) == (True, CONTENT[:1000])
    second = ask(server, Range="bytes=1000-")
    assert (second.cut, second.body) == (True, CONTENT[1000:2000])
    third = ask(server, Range="bytes=2000-")
    assert first.body + second.body + third.body == CONTENT
    assert server.requests.count("*.conda") == 3
    assert server.requests.count("*.conda", status=206) == 2


def test_wrong_bytes_have_the_right_length(server: ChannelServer) -> None:
    server.faults.add(Fault("*.conda", wrong_bytes=True))
    middle = len(CONTENT) // 2
    body = ask(server).body
    assert [i for i, byte in enumerate(body) if byte != CONTENT[i]] == [middle]
    assert len(body) == len(CONTENT)
    assert ask(server, Range=f"bytes={middle}-{middle}").body != CONTENT[middle : middle + 1]
    assert ask(server, Range=f"bytes={middle + 1}-").body == CONTENT[middle + 1 :]


def test_a_server_that_is_busy_twice_serves_at_the_third_time(server: ChannelServer) -> None:
    server.faults.add(Fault("*", status=503, times=2, retry_after=1))
    assert [ask(server).status for _ in range(3)] == [503, 503, 200]
    assert server.requests.count(status=503) == 2


def test_the_oldest_fault_that_is_not_used_up_counts(server: ChannelServer) -> None:
    server.faults.add(Fault("*", status=500, times=1))
    server.faults.add(Fault("*.conda", status=404))
    assert [ask(server).status for _ in range(3)] == [500, 404, 404]
    server.faults.clear()
    assert ask(server).status == 200


def test_a_redirect_leads_elsewhere(server: ChannelServer) -> None:
    server.faults.add(Fault("*", status=302, location="http://127.0.0.1:1/"))
    assert ask(server).headers["Location"] == "http://127.0.0.1:1/"


@pytest.mark.parametrize("after", [0, 100])
def test_a_hanging_answer_goes_on_in_the_end(server: ChannelServer, after: int) -> None:
    server.faults.add(Fault("*", hang=0.3, hang_after=after, times=2))
    started = time.monotonic()
    assert ask(server).body == CONTENT
    assert time.monotonic() - started >= 0.3
    with pytest.raises(TimeoutError):
        ask(server, timeout=0.1)


def test_a_slow_answer_takes_its_time(server: ChannelServer) -> None:
    server.faults.add(Fault("*", bytes_per_second=len(CONTENT) * 4))
    started = time.monotonic()
    assert ask(server).body == CONTENT
    assert 0.2 < time.monotonic() - started < 2


def test_a_server_with_a_hanging_answer_can_be_stopped(folder: Path) -> None:
    with serving(folder) as server:
        server.faults.add(Fault("*", hang=60, hang_after=10))
        client = threading.Thread(target=ask, args=(server,))
        client.start()
        while not server.requests:
            time.sleep(0.01)
        started = time.monotonic()
    client.join()
    assert time.monotonic() - started < 2


def test_a_password_is_asked_for(folder: Path) -> None:
    with serving(folder, basic=("alice", "p@ss")) as server:
        refused = ask(server)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic")
        wrong, right = (base64.b64encode(pair).decode() for pair in (b"alice:no", b"alice:p@ss"))
        assert ask(server, Authorization=f"Basic {wrong}").status == 401
        assert ask(server, Authorization=f"Basic {right}").status == 200
        assert "alice:p%40ss@" in server.url_with_credentials


def test_a_token_is_part_of_the_path(folder: Path) -> None:
    with serving(folder, token="s3cret") as server:
        assert ask(server).status == 401
        assert ask(server, "t/other/noarch/one.conda").status == 403
        assert ask(server, "t/s3cret/noarch/one.conda").status == 200
        assert server.url_with_credentials == f"{server.url}t/s3cret/"
        assert server.requests.count("noarch/one.conda", status=200) == 1


def test_a_bearer_token_is_asked_for(folder: Path) -> None:
    with serving(folder, bearer="s3cret") as server:
        assert ask(server, Authorization="Bearer other").status == 401
        assert ask(server, Authorization="Bearer s3cret").status == 200
