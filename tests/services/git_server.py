"""Git repositories over HTTP on the loopback interface: git's own http-backend behind a small CGI.

::

    with git_server(folder) as server:
        repository = server.create("acme/lib", {"setup.py": "..."})
        repository.commit  # 40 hex digits
        repository.url     # http://127.0.0.1:PORT/acme/lib.git
"""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOOPBACK = "127.0.0.1"
_IDENTITY = {
    "GIT_AUTHOR_NAME": "Tests",
    "GIT_AUTHOR_EMAIL": "tests@example.org",
    "GIT_COMMITTER_NAME": "Tests",
    "GIT_COMMITTER_EMAIL": "tests@example.org",
    "GIT_AUTHOR_DATE": "2024-01-15T12:00:00Z",
    "GIT_COMMITTER_DATE": "2024-01-15T12:00:00Z",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(*arguments: str, cwd: Path, stdin: str | None = None) -> str:
    """Run git with an identity and nobody's configuration; what it prints."""
    return subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **_IDENTITY},
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    folder: Path  # bare
    work: Path
    url: str

    def commit(self, files: Mapping[str, str | bytes] | None = None, *, tag: str = "") -> str:
        """Write `files`, commit everything and publish it; the commit."""
        for path, content in (files or {}).items():
            location = self.work / path
            location.parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            location.write_bytes(data)
        git("add", "--all", cwd=self.work)
        git("commit", "--quiet", "--allow-empty", "--message", "Change", cwd=self.work)
        if tag:
            git("tag", tag, cwd=self.work)
        return self.publish()

    def publish(self) -> str:
        git("push", "--quiet", "--force", "--tags", str(self.folder), "HEAD:main", cwd=self.work)
        return self.head

    @property
    def head(self) -> str:
        return git("rev-parse", "HEAD", cwd=self.work)


@dataclass(slots=True)
class GitServer:
    root: Path
    url: str
    #: Requests as `METHOD path`, in order.
    requests: list[str] = field(default_factory=list)
    #: Path prefix -> `user:password` that it asks for.
    logins: dict[str, str] = field(default_factory=dict)
    #: Path prefix -> URL prefix to which requests are sent.
    redirects: dict[str, str] = field(default_factory=dict)
    #: Serve the repositories' files as they are: the dumb protocol.
    dumb: bool = False

    def create(self, name: str, files: Mapping[str, str | bytes] | None = None) -> Repository:
        folder, work = self.root / f"{name}.git", self.root / "work" / name
        folder.mkdir(parents=True)
        work.mkdir(parents=True)
        git("init", "--quiet", "--bare", "--initial-branch=main", cwd=folder)
        git("init", "--quiet", "--initial-branch=main", cwd=work)
        repository = Repository(folder=folder, work=work, url=f"{self.url}/{name}.git")
        repository.commit(files or {"README": "Nothing.\n"})
        return repository

    def count(self, text: str) -> int:
        return sum(text in request for request in self.requests)


@contextmanager
def git_server(root: Path) -> Iterator[GitServer]:
    """Serve what is created below `root`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            server.requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path)
            length = int(self.headers.get("Content-Length") or 0)
            chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
            body = self._chunks() if chunked else self.rfile.read(length)
            for prefix, target in server.redirects.items():
                if path.startswith(prefix):
                    self._send(302, {"Location": target + self.path.removeprefix(prefix)}, b"")
                    return
            for prefix, login in server.logins.items():
                wanted = f"Basic {base64.b64encode(login.encode()).decode()}"
                if path.startswith(prefix) and self.headers.get("Authorization") != wanted:
                    self._send(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"")
                    return
            if server.dumb:
                file = root / path.lstrip("/")
                found = file.is_file()
                self._send(200 if found else 404, {}, file.read_bytes() if found else b"")
                return
            self._backend(path, body)

        def _chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def _backend(self, path: str, body: bytes) -> None:
            ran = subprocess.run(
                ["git", "http-backend"],
                input=body,
                env={
                    "PATH": os.environ["PATH"],
                    "GIT_PROJECT_ROOT": str(root),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_CONFIG_GLOBAL": os.devnull,
                    "GIT_CONFIG_COUNT": "1",
                    "GIT_CONFIG_KEY_0": "safe.directory",
                    "GIT_CONFIG_VALUE_0": "*",
                    "PATH_INFO": path,
                    "QUERY_STRING": urlsplit(self.path).query,
                    "REQUEST_METHOD": self.command,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                    "REMOTE_ADDR": LOOPBACK,
                },
                capture_output=True,
                check=False,
            )
            head, _, content = ran.stdout.partition(b"\r\n\r\n")
            headers = dict(
                line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line
            )
            status = int(headers.pop("Status", "200").split()[0])
            self._send(status, headers, content)

        def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as web:
        server = GitServer(root=root, url=f"http://{LOOPBACK}:{web.server_address[1]}")
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            web.shutdown()
            thread.join()
