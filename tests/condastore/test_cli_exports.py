"""A build as a file: waited for, continued after a cut, compared with its sha256."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from condastore.cli import client, config, exports, namespaces
from condastore.cli.errors import CommandError
from tests.condastore.scripted_server import answering

CONTENT = random.Random(7).randbytes(3_000_000)
ETAG = f'"sha256:{hashlib.sha256(CONTENT).hexdigest()}"'
FILE = "/api/envs/research/ml/current/env.tar.zst"


@dataclass
class Server:
    """Serves one file as condastore does; `making`: how often it says that it is not there yet."""

    url: str = ""
    making: int = 0
    cut_after: list[int] = field(default_factory=list)  # bytes, of one answer after the other
    content: bytes = CONTENT
    redirect_to: str = ""
    failure: dict[str, Any] | None = None
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, range, token


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        self._begin(200, {"ETag": ETAG, "Content-Length": str(len(CONTENT))})

    def do_GET(self) -> None:
        reported: Server = self.server.told
        requested = self.headers.get("Range", "")
        reported.asked.append(("GET", requested, self.headers.get("Authorization", "")))
        if reported.failure is not None:
            return self._json(422, reported.failure)
        if reported.making:
            reported.making -= 1
            return self._json(202, {"state": "MAKING", "progress": {"stage": "packing"}})
        if reported.redirect_to and self.path.startswith("/api"):
            headers = {"Location": reported.redirect_to, "ETag": ETAG, "Content-Length": "0"}
            return self._begin(307, headers)
        first, last = 0, len(reported.content) - 1
        if requested:
            begin, _, end = requested.removeprefix("bytes=").partition("-")
            first, last = int(begin), int(end or last)
        if first > last:
            headers = {"Content-Range": f"bytes */{len(reported.content)}", "Content-Length": "0"}
            return self._begin(416, headers)
        headers = {"ETag": ETAG, "Content-Length": str(last - first + 1)}
        self._begin(206 if requested else 200, headers)
        body = reported.content[first : last + 1]
        if requested != "bytes=0-0" and reported.cut_after:
            self.wfile.write(body[: reported.cut_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)
        return None

    def _json(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self._begin(status, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is named there
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    reported = Server(url=f"http://127.0.0.1:{http.server_address[1]}")
    http.told = reported  # type: ignore[attr-defined]
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("CONDASTORE_URL", reported.url)
    monkeypatch.setenv("CONDASTORE_TOKEN", "t0ken")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(exports, "PAUSE", 0.001)
    monkeypatch.setattr(exports, "LOOK", 0.001)
    monkeypatch.chdir(tmp_path)
    created: list[client.Api] = []

    def connect() -> client.Api:
        created.append(client.connect())
        return created[-1]

    monkeypatch.setattr(exports, "connect", connect)
    yield reported
    for api in created:  # a command leaves that to its end
        api._http.close()
    http.shutdown()
    thread.join()
    http.server_close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_it_waits_until_the_file_is_made_and_then_gets_it(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.making = 3
    exports.export("research/ml", format_="tar.zst", as_json=True)
    assert (tmp_path / "ml.tar.zst").read_bytes() == CONTENT
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "file": "ml.tar.zst",
        "bytes": len(CONTENT),
        "format": "tar.zst",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    assert "packing" in said.err
    assert files(tmp_path) == ["ml.tar.zst"]
    assert server.asked[-1] == ("GET", "", "Bearer t0ken")


def test_a_cut_download_is_continued_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100_000, 1, 2_000_000]
    exports.export("research/ml", format_="tar.zst")
    assert (tmp_path / "ml.tar.zst").read_bytes() == CONTENT
    ranges = [requested for _, requested, _ in server.asked if requested != "bytes=0-0"]
    assert ranges[0] == ""
    assert len(ranges) == 4
    starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in ranges[1:]]
    assert starts == sorted(starts)
    assert starts[-1] > 2_000_000


def test_what_a_stopped_command_got_is_continued_by_the_next(
    server: Server, tmp_path: Path
) -> None:
    server.cut_after = [1_000_000] + [0] * 20
    with pytest.raises(CommandError) as stopped:
        exports.export("research/ml", format_="tar.zst")
    assert stopped.value.code == "unreachable"
    assert not (tmp_path / "ml.tar.zst").exists()
    server.cut_after.clear()
    server.asked.clear()
    exports.export("research/ml", format_="tar.zst")
    assert (tmp_path / "ml.tar.zst").read_bytes() == CONTENT
    assert int(server.asked[-1][1].removeprefix("bytes=").rstrip("-")) > 500_000
    assert files(tmp_path) == ["ml.tar.zst"]


def test_other_bytes_than_the_server_says_are_refused(server: Server, tmp_path: Path) -> None:
    server.content = bytes(len(CONTENT))
    with pytest.raises(CommandError, match="another sha256"):
        exports.export("research/ml", format_="tar.zst")
    assert not (tmp_path / "ml.tar.zst").exists()
    server.content = CONTENT
    exports.export("research/ml", format_="tar.zst")
    assert (tmp_path / "ml.tar.zst").read_bytes() == CONTENT


def test_a_store_of_files_gets_no_token(server: Server, tmp_path: Path) -> None:
    server.redirect_to = f"{server.url.replace('127.0.0.1', 'localhost')}/signed?x=1"
    server.cut_after = [1000]
    exports.export("research/ml", format_="installer", output=tmp_path / "i.sh")
    assert (tmp_path / "i.sh").read_bytes() == CONTENT
    assert (tmp_path / "i.sh").stat().st_mode & 0o111
    tokens = {token for _, _, token in server.asked}
    assert tokens == {"Bearer t0ken", ""}


def test_a_file_that_could_not_be_made_says_why(server: Server, tmp_path: Path) -> None:
    server.failure = {"code": "artifact-failed", "detail": "mksquashfs is missing", "hint": "x"}
    with pytest.raises(CommandError, match="mksquashfs is missing"):
        exports.export("research/ml", format_="squashfs")
    assert files(tmp_path) == []


def test_an_unknown_format_is_refused_with_those_that_there_are(server: Server) -> None:
    with pytest.raises(CommandError, match="not a format") as refused:
        exports.export("research/ml", format_="zip")
    assert "tar.zst" in refused.value.hint


def test_what_is_made_of_every_build_is_named_as_export_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        "SetEagerArtifacts": lambda given: {
            "data": {
                "setEagerArtifacts": {
                    "__typename": "Namespace",
                    "name": given["namespace"],
                    "eagerArtifacts": given["kinds"],
                }
            }
        }
    }
    with answering(answers) as script:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        api = client.Api(config.Server(url=script.url, username="a", token="t"))
        monkeypatch.setattr(namespaces, "connect", lambda: api)
        namespaces.eager("research", ["tar.zst", "installer"])
        assert "tar.zst, installer" in capsys.readouterr().out
        namespaces.eager("research", nothing=True)
        api._http.close()
    assert [one.variables["kinds"] for one in script.asked] == [["TAR_ZST", "INSTALLER"], []]
    for wrong in (["zip"], [], ["environment.yml"]):
        with pytest.raises(CommandError):
            namespaces.eager("research", wrong)


def test_pip_beside_python_is_switched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        "SetAddPipAsPythonDependency": lambda given: {
            "data": {
                "setAddPipAsPythonDependency": {
                    "__typename": "Namespace",
                    "name": given["namespace"],
                    "addPipAsPythonDependency": given["on"],
                }
            }
        }
    }
    with answering(answers) as script:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        api = client.Api(config.Server(url=script.url, username="a", token="t"))
        monkeypatch.setattr(namespaces, "connect", lambda: api)
        namespaces.add_pip("research", on=False)
        assert "no longer add pip" in capsys.readouterr().out
        namespaces.add_pip("research")
        api._http.close()
    assert [one.variables["on"] for one in script.asked] == [False, True]
