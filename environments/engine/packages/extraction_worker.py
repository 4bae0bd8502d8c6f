"""Program that extracts packages one at a time, confined, and killed together with its parent.

It is run by its path and not imported: it needs only the standard library, rattler's native module
and `confinement.py`, and starts in 30 ms. The parent's side is `extraction.py`.

    extraction_worker.py SOCKET ALIVE NATIVE CONFINEMENT READABLE WRITABLE LARGEST

Each line from the socket is a JSON request {archive, folder, largest}; the response is
{sha256, md5}, in hex, or {error}.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import importlib.util
import json
import os
import resource
import select
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

#: Bytes that the process may allocate; zstd's largest window is 128 MiB.
MEMORY = 1 << 30


def main() -> None:
    link, alive = int(sys.argv[1]), int(sys.argv[2])
    native, confinement, readable, writable = map(Path, sys.argv[3:7])
    _end_with_parent(alive)
    _limit(largest=int(sys.argv[7]))
    extract = _load("rattler", native).extract
    _load("confinement", confinement).confine(readable=[readable], writable=[writable], connect=())
    with socket.socket(fileno=link) as connection, connection.makefile("rwb") as stream:
        for line in stream:
            stream.write(json.dumps(_answer(extract, json.loads(line))).encode() + b"\n")
            stream.flush()


def _answer(extract: Any, request: dict[str, Any]) -> dict[str, str]:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(request["largest"], hard), hard))
    try:
        sha256, md5 = extract(request["archive"], request["folder"])
    except BaseException as error:  # a Rust panic is not an Exception
        return {"error": str(error) or type(error).__name__}
    return {"sha256": sha256.hex(), "md5": md5.hex()}


def _end_with_parent(alive: int) -> None:
    """Let the kernel kill this process when the other end of the pipe `alive` closes.

    SIGIO does it by its default action. A Python thread could not: rattler holds the interpreter
    lock while it extracts.
    """
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([alive], [], [], 0)[0]:  # it is closed already
        os._exit(0)


def _limit(*, largest: int) -> None:
    for name, value in (
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_FSIZE, largest),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower limit is already set
            resource.setrlimit(name, (value, value))


def _load(name: str, path: Path) -> ModuleType:
    """Import a module from its file, without its package."""
    loader: Any = (
        importlib.machinery.SourceFileLoader(name, str(path))
        if path.suffix == ".py"
        else importlib.machinery.ExtensionFileLoader(name, str(path))
    )
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None, "a loader was given"
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
