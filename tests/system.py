"""A whole condastore for a test: its own processes on its own data folder, used by its doors only.

::

    with System(folder, channel=server.url) as system:
        build = system.build("research/ml", "dependencies: [python]")
        system.run("run", "research/ml", "--", "python", "-V")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

PROJECT = Path(__file__).resolve().parent.parent
CONDASTORE = (sys.executable, "-m", "condastore.cli.main")
PASSWORD = "correct horse battery staple"
FINISHED = {"READY", "FAILED", "CANCELLED", "ARCHIVED"}

SUBMIT = """
mutation($namespace: String!, $environment: String!, $text: String!, $force: Boolean!) {
  submitBuild(namespace: $namespace, environment: $environment, specification: $text,
              forceSolve: $force) {
    __typename
    ... on SubmittedBuild { build { id } }
    ... on OperationError { code message where hint }
  }
}
"""
BUILD = """
query($id: ID!) {
  build(id: $id) {
    id number ref state finished attempt isCurrent prefixPath apparentSize uniqueSize
    failure { code message where hint details }
    events { state message }
    timings { stage seconds }
    lock { digest packageCount }
  }
}
"""


class GraphQLFailedError(AssertionError):
    """The server answered with errors."""


class System:
    """`condastore up` in a process group of its own; as the administrator by default."""

    def __init__(
        self,
        data: Path,
        *,
        channel: str,
        pypi: str = "",
        workers: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`channel`: URL of the only channel; `pypi`: URL of a simple index."""
        self.data, self.workers = data, workers
        self.environ = {
            key: value for key, value in os.environ.items() if not key.startswith("CONDASTORE_")
        } | {
            "CONDASTORE_DATA": str(data),
            "CONDASTORE_ADMIN_PASSWORD": PASSWORD,
            "CONDASTORE_DEFAULT_CHANNELS": channel.rstrip("/"),
            "CONDASTORE_PYPI_INDEX_URLS": pypi or f"{channel.rstrip('/')}/pypi/simple/",
            "CONDASTORE_DISK_RESERVE": "0",
            "CONDASTORE_LEASE": "4",
            "CONDASTORE_SWEEP_INTERVAL": "0.5",
            "CONDASTORE_BACKOFF": "0.5",
            "CONDASTORE_CHANNEL_STATE_TTL": "0",
            "CONDASTORE_LOG_LEVEL": "WARNING",
            "PYTHONWARNINGS": "default",
            **(environ or {}),
        }
        self.url = ""
        self.token = ""
        self._up: subprocess.Popen[str] | None = None
        self._client: httpx.Client | None = None

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> Self:
        command = [*CONDASTORE, "up", "--json", "--port", "0", "--workers", str(self.workers)]
        log = (self.data.parent / f"{self.data.name}.up.log").open("ab")
        self._up = subprocess.Popen(
            command,
            env=self.environ,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        log.close()
        assert self._up.stdout is not None
        for line in self._up.stdout:
            if line.startswith("{"):
                self.url = json.loads(line)["url"].rstrip("/")
                break
        else:
            raise AssertionError(f"condastore did not start:\n{self.log()}")
        self._client = httpx.Client(base_url=self.url, timeout=60)
        if not self.token:
            self.token = self.sign_in("admin", PASSWORD)
        return self

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._up is not None and self._up.poll() is None:
            self._up.terminate()
            try:
                self._up.wait(30)
            except subprocess.TimeoutExpired:
                self._up.kill()
                self._up.wait()
        if self._up is not None and self._up.stdout is not None:
            self._up.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def supervisor(self) -> psutil.Process:
        assert self._up is not None
        return psutil.Process(self._up.pid)

    def processes(self, word: str) -> list[psutil.Process]:
        """The children of `up` whose command line holds `word`: worker, scheduler, uvicorn."""
        found = []
        for process in self.supervisor.children(recursive=False):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill_worker(self, index: int = 0) -> None:
        """SIGKILL, to the worker process alone."""
        self.processes("worker")[index].send_signal(signal.SIGKILL)

    def log(self) -> str:
        """What `up` and its children wrote."""
        paths = [self.data.parent / f"{self.data.name}.up.log", *self.data.glob("logs/*.log")]
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())

    # --- doors ---------------------------------------------------------------------------------

    @property
    def http(self) -> httpx.Client:
        assert self._client is not None
        return self._client

    def sign_in(self, username: str, password: str) -> str:
        body = {"username": username, "password": password, "name": f"test-{time.time_ns()}"}
        answer = self.http.post("/api/token", json=body)
        assert answer.status_code < 300, answer.text
        return str(answer.json()["token"])

    def graphql(self, query: str, /, token: str | None = None, **variables: Any) -> Any:
        """The `data` of the answer; GraphQLFailedError with what the server said."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        answer = self.http.post(
            "/graphql", json={"query": query, "variables": variables}, headers=headers
        )
        body = answer.json()
        if body.get("errors") or "data" not in body:
            raise GraphQLFailedError(f"{answer.status_code}: {json.dumps(body)[:2000]}")
        return body["data"]

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers={"Authorization": f"Bearer {self.token}", **headers})

    def run(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """The command line, signed in by the environment."""
        answer = subprocess.run(
            [*CONDASTORE, *arguments],
            env=self.environ | {"CONDASTORE_URL": self.url, "CONDASTORE_TOKEN": self.token},
            cwd=PROJECT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert answer.returncode == 0, f"{arguments}:\n{answer.stdout}\n{answer.stderr}"
        return answer

    def submit(self, reference: str, text: str, *, force: bool = False) -> str:
        """The id of the build. `reference`: "namespace/environment"."""
        namespace, _, environment = reference.partition("/")
        answer = self.graphql(
            SUBMIT, namespace=namespace, environment=environment, text=text, force=force
        )["submitBuild"]
        assert answer["__typename"] == "SubmittedBuild", answer
        return str(answer["build"]["id"])

    def show(self, build: str) -> dict[str, Any]:
        found: dict[str, Any] = self.graphql(BUILD, id=build)["build"]
        return found

    def wait(
        self, build: str, states: Iterable[str] = FINISHED, *, seconds: float = 90
    ) -> dict[str, Any]:
        """The build, once it is in one of `states`."""
        wanted, shown = set(states), self.show(build)

        def there() -> bool:
            nonlocal shown
            shown = self.show(build)
            return shown["state"] in wanted

        until(there, seconds, lambda: f"{shown}\n{self.log()[-4000:]}")
        return shown

    def build(self, reference: str, text: str, **options: Any) -> dict[str, Any]:
        """Submit and wait; the build must become READY."""
        done = self.wait(self.submit(reference, text, **options))
        assert done["state"] == "READY", done
        return done


def until(
    what: Callable[[], object], seconds: float = 30, say: Callable[[], str] = lambda: ""
) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"it did not happen within {seconds} s. {say()}"
        time.sleep(0.05)
