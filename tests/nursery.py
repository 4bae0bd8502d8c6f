"""Starts workers at once, as `condastore up` does: they go on from a process with all imports.

``python -m tests.nursery``: each line that it reads is the arguments of `condastore`; it answers
with the number of the process. Nobody starts again what dies.
"""

from __future__ import annotations

import importlib
import os
import selectors
import signal
import socket
import sys

import django

from condastore.supervisor import fork
from condastore.supervisor.child import die_with
from condastore.supervisor.fork import Fork


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    django.setup()
    importlib.import_module("environments.jobs.builds")  # else each worker does it
    assert fork.safe()
    started: list[Fork] = []
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(_ends(), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if isinstance(key.data, Fork):
                    if not _pass_on(key.data):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                elif isinstance(key.fileobj, socket.socket):
                    key.fileobj.recv(4096)
                    started = [one for one in started if one.poll() is None]
                elif line := sys.stdin.readline():
                    one = _start(line.split())
                    started.append(one)
                    selector.register(one.stdout, selectors.EVENT_READ, one)  # type: ignore[arg-type]
                    sys.stdout.write(f"{one.pid}\n")
                    sys.stdout.flush()
                else:
                    return


def _ends() -> socket.socket:
    """What can be read when a child has ended."""
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.detach())
    return woken


def _start(arguments: list[str]) -> Fork:
    return Fork(
        "condastore.cli.main",
        arguments,
        title=f"condastore {arguments[0]}",
        environ={},
        descriptors=[],
        first=die_with(os.getpid()),
    )


def _pass_on(started: Fork) -> bool:
    """Say what it says; False at its end."""
    assert started.stdout is not None
    said = os.read(started.stdout.fileno(), 65536)
    os.write(sys.stderr.fileno(), said)
    return bool(said)


if __name__ == "__main__":
    main()
