"""A whole condastore for a test: its own processes on its own data folder, used by its doors only.

::

    with System(folder, channel=server.url) as system:
        system.create("research/ml")
        build = system.build("research/ml", "dependencies: [python]")
        system.run("run", "research/ml", "--", "python", "-V")

Beside its own processes it may have more workers and web servers on the same data
(`add_worker`, `add_web`), which a test may kill, stop and continue one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
import psutil

from environments.engine.system.sandbox import can_sandbox
from tests import lanes, prestarted
from tests.migrated import ADMINISTRATOR, PASSWORD, TOKEN, put_database
from tests.prestarted import Program
from tests.services.processes import free_ports

PROJECT = Path(__file__).resolve().parent.parent
CONDASTORE = (sys.executable, "-m", "condastore.cli.main")
START_WAIT = 180  # seconds
FINISHED = {"READY", "FAILED", "CANCELLED", "ARCHIVED"}

SUBMIT = """
mutation($namespace: String!, $environment: String!, $text: String!, $force: Boolean!) {
  submitBuild(namespace: $namespace, environment: $environment, specification: $text,
              forceSolve: $force) {
    __typename
    ... on SubmittedBuild { build { id: databaseId } }
    ... on OperationError { code message where hint faults { message where hint code } }
  }
}
"""
STATE = "query($id: ID!) { build(id: $id) { state } }"
BUILD = """
query($id: ID!) {
  build(id: $id) {
    id: databaseId number ref state finished attempt isCurrent prefixPath apparentSize uniqueSize
    failure { code message where hint details }
    events { state message }
    timings { stage seconds }
    lock { digest packageCount }
  }
}
"""
#: The variables of a mutation, by name.
VARIABLES = {
    "id": "ID!",
    "environmentId": "ID!",
    "to": "ID",
    "pin": "Boolean!",
    "tag": "String!",
    "name": "String!",
    "namespace": "String!",
    "description": "String!",
    "public": "Boolean!",
}


class GraphQLFailedError(AssertionError):
    """The server answered with errors."""


class Worker:
    """A worker beside those of `up`, as `Popen` would show it."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """None while it runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._process.status() != psutil.STATUS_ZOMBIE:
                return None
        return 0

    def wait(self, seconds: float | None = None) -> None:
        self._process.wait(seconds)

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


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
        within: Sequence[str] = (),
    ) -> None:
        """`channel`: URL of the only channel; `pypi`: URL of a simple index.

        `within`: a command that becomes `up`, such as `unshare --mount`.
        """
        self.data, self.workers, self.within = data, workers, within
        self.environ = {
            key: value for key, value in os.environ.items() if not key.startswith("CONDASTORE_")
        } | {
            # As an operator has it: pytest names the settings of the tests to its children.
            "DJANGO_SETTINGS_MODULE": "condastore.settings",
            "CONDASTORE_DATA": str(data),
            "CONDASTORE_ADMIN_PASSWORD": PASSWORD,
            "CONDASTORE_DEFAULT_CHANNELS": channel.rstrip("/"),
            "CONDASTORE_PYPI_INDEX_URLS": pypi or f"{channel.rstrip('/')}/pypi/simple/",
            "CONDASTORE_ALLOWED_NETWORKS": "127.0.0.0/8",
            "CONDASTORE_DISK_RESERVE": "0",
            "CONDASTORE_LEASE": "4",
            "CONDASTORE_SWEEP_INTERVAL": "1",
            "CONDASTORE_BACKOFF": "0.5",
            "CONDASTORE_CHANNEL_STATE_TTL": "0",
            "CONDASTORE_LOG_LEVEL": "WARNING",
            "CONDASTORE_SANDBOX": "required" if can_sandbox() else "off",
            "PYTHONWARNINGS": "default",
            **(environ or {}),
        }
        self.url = ""
        self.token = ""
        self._up: Program | subprocess.Popen[str] | None = None
        self._client: httpx.Client | None = None
        self.added: list[Worker] = []
        self._webs: list[subprocess.Popen[bytes]] = []
        self._nursery: Program | subprocess.Popen[str] | None = None
        self._copies: list[Program] = []

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> Self:
        lanes.require("system", "`condastore up`")
        own = "CONDASTORE_DATABASE_URL" not in self.environ
        if own and not (self.data / "db.sqlite3").exists():
            put_database(self.data, administrator=True)
            self.token = TOKEN
        arguments = ["up", "--json", "--port", "0", "--workers", str(self.workers)]
        with self._log("up").open("ab") as log:
            self._up = self._start(
                ["condastore.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stderr=log,
                session=True,
            )
        impatient = threading.Timer(START_WAIT, self._up.kill)
        impatient.start()
        try:
            self._wait_for_announcement(self._up)
        finally:
            impatient.cancel()
        self._client = httpx.Client(base_url=self.url, timeout=60)
        if not self.token:
            self.token = self.sign_in(ADMINISTRATOR, PASSWORD)
        return self

    def _start(
        self, arguments: Sequence[str], *, stdin: int, stderr: IO[bytes], session: bool = False
    ) -> Program | subprocess.Popen[str]:
        """Start a module of ours: as a copy of a process with most imports, or `within`."""
        environ, within = self._environ_of_django, self.within if session else ()
        if within:
            return subprocess.Popen(
                [*within, sys.executable, "-m", *arguments],
                env=environ,
                cwd=PROJECT,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=session,
            )
        module, *rest = arguments
        program = prestarted.servers(environ).start(
            {"module": module, "arguments": rest},
            env=environ,
            cwd=PROJECT,
            files=(stdin, subprocess.PIPE, stderr),
            session=session,
        )
        self._copies.append(program)
        return program

    def _wait_for_announcement(self, process: Program | subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self.url = json.loads(line)["url"].rstrip("/")
                break
        else:
            raise AssertionError(f"condastore did not start:\n{self.log()}")

    def restart(self, number: signal.Signals) -> None:
        """End `up` by a signal, and start it again on the same data; it has another URL then."""
        assert self._up is not None
        assert self._up.stdout is not None
        if self._client is not None:
            self._client.close()
        self._up.send_signal(number)
        self._up.wait(60)
        self._up.stdout.close()
        self.start()

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        added: list[Worker | subprocess.Popen[bytes]] = [*self.added, *self._webs]
        for process in added:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in added:
            try:
                process.wait(20)
            except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
                process.kill()
                process.wait()
        self.added.clear()
        self._webs.clear()
        if self._nursery is not None:
            with self._nursery:
                self._nursery.terminate()
            self._nursery = None
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
        """The children of `up` whose name starts with `word`: worker, scheduler, web."""
        found = []
        for process in self.supervisor.children(recursive=False):
            try:
                if f"condastore {word}" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def add_worker(self, *options: str) -> Worker:
        """One more worker, that nobody starts again when it dies."""
        if self._nursery is None:
            with self._log("worker").open("ab") as log:
                self._nursery = self._start(["tests.nursery"], stdin=subprocess.PIPE, stderr=log)
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(f"{' '.join(('worker', *options))}\n")
        self._nursery.stdin.flush()
        answer = self._nursery.stdout.readline()
        assert answer, self.log()
        worker = Worker(psutil.Process(int(answer)))
        self.added.append(worker)
        return worker

    def add_web(self) -> str:
        """One more web server, as it runs in production; its URL."""
        (port,) = free_ports()
        command = [sys.executable, "-m", "uvicorn", "condastore.asgi:application"]
        command += ["--http", "condastore.http.protocol:HttpProtocol"]
        with self._log("web").open("ab") as log:
            self._webs.append(
                subprocess.Popen(
                    [*command, "--port", str(port), "--log-level", "warning"],
                    env=self._environ_of_django,
                    cwd=PROJECT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/readyz").status_code == httpx.codes.OK
            return False

        until(ready, say=self.log)
        return url

    @property
    def _environ_of_django(self) -> dict[str, str]:
        return self.environ | {"DJANGO_SETTINGS_MODULE": "condastore.settings"}

    def manage(self, code: str) -> str:
        """Run Python in a process that has this system's settings; what it printed."""
        environ = self._environ_of_django
        status, out, err = prestarted.servers(environ).run(
            {"code": f"import django; django.setup()\n{code}"},
            env=environ,
            cwd=PROJECT,
        )
        assert status == 0, err
        return out

    def everything(self) -> list[psutil.Process]:
        """Every process on this machine that has to do with the data folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                ours = process.environ().get("CONDASTORE_DATA") == str(self.data)
                if ours or any(str(self.data) in part for part in process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        # Descendants of the copies: their variables are not those of the process that was copied,
        # and sandboxes start without variables.
        left = [process for copy in self._copies for process in copy.descendants()]
        return [process for process in {*found, *left} if process.pid != os.getpid()]

    def kill_worker(self, index: int = 0) -> None:
        """SIGKILL, to the worker process alone."""
        self.processes("worker")[index].send_signal(signal.SIGKILL)

    def log(self) -> str:
        """What `up`, its children and the processes that were added wrote."""
        paths = sorted(self.data.parent.glob(f"{self.data.name}.*.log"))
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())

    def until_logged(self, text: str, seconds: float = 60) -> None:
        """Wait until one of the processes has written `text`."""
        until(lambda: text in self.log(), seconds, self.log)

    def _log(self, name: str) -> Path:
        return self.data.parent / f"{self.data.name}.{name}.log"

    # --- what lies on the disk -----------------------------------------------------------------

    def folder(self, reference: str) -> Path:
        """The link that people use."""
        return self.data / "envs" / reference

    def prefixes(self) -> set[str]:
        """Every folder below `prefixes/`, hidden ones too: `namespace/folder`."""
        root = self.data / "prefixes"
        return {path.relative_to(root).as_posix() for path in root.glob("*/*")}

    @contextlib.contextmanager
    def rows(self) -> Iterator[sqlite3.Connection]:
        """The database, to look at without disturbing it; of a system on SQLite."""
        path = f"file:{self.data}/db.sqlite3?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True, isolation_level=None)) as rows:
            yield rows

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
        """The key of the build; `reference` is "namespace/environment"."""
        namespace, _, environment = reference.partition("/")
        answer = self.graphql(
            SUBMIT, namespace=namespace, environment=environment, text=text, force=force
        )["submitBuild"]
        assert answer["__typename"] == "SubmittedBuild", answer
        return str(answer["build"]["id"])

    def change(self, mutation: str, **variables: Any) -> dict[str, Any]:
        """Do a mutation, which must not be refused."""
        declared = ", ".join(f"${name}: {VARIABLES[name]}" for name in variables)
        passed = ", ".join(f"{name}: ${name}" for name in variables)
        query = f"""mutation({declared}) {{
          {mutation}({passed}) {{
            __typename ... on OperationError {{ code message where hint }} }} }}"""
        answer: dict[str, Any] = self.graphql(query, **variables)[mutation]
        assert answer["__typename"] != "OperationError", answer
        return answer

    def create(self, reference: str) -> str:
        """Make an environment, and its namespace where it is missing; its key."""
        namespace, _, name = reference.partition("/")
        known = "query($namespace: String!) { namespace(name: $namespace) { id } }"
        if self.graphql(known, namespace=namespace)["namespace"] is None:
            self.change("createNamespace", name=namespace, description="", public=False)
        self.change("createEnvironment", namespace=namespace, name=name, description="")
        return str(self.environment(reference)["id"])

    def environment(self, reference: str) -> dict[str, Any]:
        namespace, _, name = reference.partition("/")
        query = """query($namespace: String!, $name: String!) {
          environment(namespace: $namespace, name: $name) {
            id: databaseId pinned current { id: databaseId number ref prefixPath }
            builds(first: 100) {
              edges { node { id: databaseId number state isCurrent prefixPath } } } } }"""
        found: dict[str, Any] = self.graphql(query, namespace=namespace, name=name)["environment"]
        return found

    def show(self, build: str) -> dict[str, Any]:
        found: dict[str, Any] = self.graphql(BUILD, id=build)["build"]
        return found

    def wait(
        self,
        build: str,
        states: Iterable[str] = FINISHED,
        *,
        seconds: float = 90,
        through_outage: bool = False,
    ) -> dict[str, Any]:
        """The build, once it is in one of `states`; `through_outage`: whatever the web answers."""
        wanted = set(states)
        state, shown = "", dict[str, Any]()

        def there() -> bool:
            nonlocal state, shown
            try:
                state = self.graphql(STATE, id=build)["build"]["state"]
                shown = self.show(build) if state in wanted else {}
            except (GraphQLFailedError, httpx.TransportError):
                if not through_outage:
                    raise
                return False
            return bool(shown)

        # What passes quickly is looked for often; what stays, seldom: each look costs the system.
        pause = 0.2 if wanted <= FINISHED else 0.05
        until(there, seconds, lambda: f"{state}: {self.show(build)}\n{self.log()[-4000:]}", pause)
        return shown

    def build(self, reference: str, text: str, **options: Any) -> dict[str, Any]:
        """Submit and wait; the build must become READY."""
        done = self.wait(self.submit(reference, text, **options))
        assert done["state"] == "READY", done
        return done


def until(
    what: Callable[[], object],
    seconds: float = 60,
    say: Callable[[], str] = lambda: "",
    pause: float = 0.05,
) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"it did not happen within {seconds} s. {say()}"
        time.sleep(pause)
