"""`condastore up`: everything on one machine, started, watched and stopped by one process.

It has one thread and one loop: the signals, the children's ends and their output all come through
one selector. Output of the children goes to stderr, each line behind the name of its child.
"""

from __future__ import annotations

import contextlib
import gc
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
from typing import Any

from django.conf import settings

from condastore import object_store
from condastore.broker import embedded_socket
from condastore.private_files import PRIVATE_UMASK
from condastore.shared_metrics import share_metrics
from condastore.supervisor.child import Child, Program
from condastore.supervisor.programs import end_left_valkey, plan, require_private
from condastore.supervisor.startup import (
    Administrator,
    end_orphans,
    listen,
    only_one,
    prepare_database,
    prepare_folder,
    public_url,
)

#: Seconds between two looks at the children, and until a system that is not ready is reported;
#: from then on it is asked less often.
TICK, PATIENCE, SELDOM = 0.2, 60.0, 2.0
_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
#: Bytes of output without an end of line that are kept waiting for one.
LONGEST_LINE = 65536
NOBODY_BUILDS = "No worker runs here: builds wait for one (`condastore worker`), here or elsewhere."


def up(
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    open_browser: bool = False,
    as_json: bool = False,
) -> None:
    """Run the whole system on this machine until a signal ends it."""
    os.umask(PRIVATE_UMASK)
    gc.disable()  # modules imported before the children start stay in memory: nothing to collect
    data: Path = settings.DATA
    prepare_folder(data)
    state = data / "run" / "up.json"
    number = settings.WORKERS if workers is None else workers
    with only_one(data) as lock:
        end_orphans(state)
        with listen(
            settings.HOST if host is None else host,
            settings.PORT if port is None else port,
            number=max(1, settings.WEB_PROCESSES),
        ) as listeners:
            url = public_url(listeners[0])
            if len(listeners) > 1:
                share_metrics(data)
            lock.write({"pid": os.getpid(), "url": url})
            administrator = prepare_database(ask=sys.stdin.isatty() and not as_json)
            socket_path = None if settings.BROKER_URL else embedded_socket(data)
            if socket_path is not None:
                require_private(socket_path.parent)
            programs = plan(data=data, listeners=listeners, valkey=socket_path, workers=number)
            if socket_path is not None:
                end_left_valkey(socket_path)
            announcement = Announcement(
                url=url,
                administrator=administrator,
                as_json=as_json,
                open_browser=open_browser,
                warnings=[*store_warnings(), *([] if number else [NOBODY_BUILDS])],
            )
            Supervisor(
                programs,
                listener=listeners[0],
                announcement=announcement,
                state=state,
                dispensable=() if number else ("workers",),
            ).run()


def store_warnings() -> list[str]:
    """Return the fault of the object store; the children report those of the queue."""
    found = object_store.fault()
    return [] if found is None else [f"{found} {found.hint}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Report for the person who started the system, once it is ready."""

    url: str
    administrator: Administrator | None
    as_json: bool
    open_browser: bool
    warnings: Sequence[str] = ()

    def make(self) -> None:
        created = self.administrator
        if self.as_json:
            document: dict[str, Any] = {"ready": True, "url": self.url, "pid": os.getpid()}
            document["data"] = str(settings.DATA)
            if created is not None:
                document["username"] = created.username
                document["password"] = created.password or None
            if self.warnings:
                document["warnings"] = list(self.warnings)
            lines = [json.dumps(document)]
        else:
            lines = ["", f"condastore is ready: {self.url}", f"  data folder: {settings.DATA}"]
            if created is not None and created.password:
                lines += [
                    f"  sign in as:  {created.username}",
                    f"  password:    {created.password}   (shown this once: keep it)",
                ]
            elif created is not None:
                lines.append(f"  sign in as:  {created.username}")
            lines += [f"  warning: {warning}" for warning in self.warnings]
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

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        *,
        dispensable: Sequence[str] = (),
    ) -> None:
        self._listener, self._selector = listener, selector
        self._dispensable = dispensable
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
        return head.split(b" ", 2)[1:2] == [b"200"] or self._enough(body)

    def _enough(self, body: bytes) -> bool:
        """Return whether every check passes, apart from those of parts that do not run here."""
        try:
            checks = json.loads(body)["checks"]
            missing = {name for name, check in checks.items() if not check["ok"]}
        except (ValueError, KeyError, TypeError):
            return False
        return missing <= set(self._dispensable)

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
        dispensable: Sequence[str] = (),
    ) -> None:
        self._ready = False
        self._announcement, self._state = announcement, state
        self._selector = selectors.DefaultSelector()
        self._stopping = 0
        self._children = [Child(program, said=self._sayer(program.name)) for program in programs]
        self._width = max(len(program.name) for program in programs)
        self._partial: dict[str, bytes] = {}
        self._probe = Probe(listener, self._selector, dispensable=dispensable)

    def run(self) -> None:
        with self._signals():
            try:
                self._start_due()
                gc.enable()
                self._watch()
            finally:
                self._stop()
                self._state.unlink(missing_ok=True)

    # --- running -------------------------------------------------------------------------------

    def _watch(self) -> None:
        reported = False
        started = requested = time.monotonic()
        while not self._stopping:
            self._listen(TICK)
            self._reap()
            self._start_due()
            if self._ready:
                continue
            now = time.monotonic()
            if not self._probe.running and now - requested > (SELDOM if reported else TICK):
                requested = now
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

        # SIGHUP is ignored, as under `nohup`: outlive the terminal.
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
            text = line.decode(errors="replace")
            if text and not any(part in text for part in child.program.unsaid):
                self._say(name, text)
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
