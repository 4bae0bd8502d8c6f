"""A listening port of this machine that nothing may connect to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Canary:
    """What connected, in order; `url` ends with a slash."""

    url: str
    port: int
    contacts: list[str] = field(default_factory=list)


@contextlib.contextmanager
def canary() -> Iterator[Canary]:
    """Listen on a free port of the loopback interface, IPv4 and IPv6, and answer nothing."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = first.getsockname()[1]
        found = Canary(url=f"http://127.0.0.1:{port}/", port=port)
        listeners = [first]
        with contextlib.suppress(OSError):  # a machine without IPv6
            listeners.append(
                stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
            )

        def listen(listener: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, address = listener.accept()
                    found.contacts.append(str(address))
                    connection.close()

        threads = [threading.Thread(target=listen, args=(one,)) for one in listeners]
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            for listener in listeners:
                listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
