"""What another account of this machine reaches below a folder, whose names it all knows.

As root a process really becomes that account. Without root nobody can: then the modes are judged
as the kernel does.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

#: An account that nobody has, and a group of it.
STRANGER, STRANGERS = 65123, 65123
_TRY = """
import json, os, sys
asked = json.load(sys.stdin)
os.setgroups(asked["groups"]); os.setresgid(*3 * [asked["gid"]]); os.setresuid(*3 * [asked["uid"]])
found = {"read": [], "write": []}
for path in asked["paths"]:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
        found["read"].append(path)
    except OSError:
        pass
    if not os.path.islink(path) and os.access(path, os.W_OK):
        found["write"].append(path)
print(json.dumps(found))
"""


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """A temporary folder that others pass through, as they do not through pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="condastore-shared-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)


def everything_below(root: Path) -> list[Path]:
    """Regular files, folders and links; no sockets."""
    found = [root]
    for parent, folders, files in os.walk(root):
        found += [Path(parent, name) for name in (*folders, *files)]
    return [path for path in found if path.is_symlink() or path.is_dir() or path.is_file()]


def reached(root: Path, *, groups: Sequence[int] = ()) -> set[str]:
    """What a stranger with `groups` lists or reads below `root`: paths relative to it."""
    return {_relative(path, root) for path in _tried(root, groups)["read"]}


def written(root: Path, *, groups: Sequence[int] = ()) -> set[str]:
    """What a stranger may change below `root`."""
    return {_relative(path, root) for path in _tried(root, groups)["write"]}


_ASK = """
import encodings.idna, json, os, socket, sys
asked = json.load(sys.stdin)
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(*3 * [asked["gid"]]); os.setresuid(*3 * [asked["uid"]])
request = "GET {url} HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n".format(**asked)
try:
    with socket.create_connection(("127.0.0.1", asked["port"]), 10) as connection:
        connection.sendall(request.encode())
        answer = connection.recv(100)
except OSError:
    answer = b""
sys.stdout.buffer.write(answer.partition(b" ")[2])
"""


def answer_to_stranger(port: int, url: str) -> bytes:
    """What a service on `port` says to another account that asks it for `url`, from the status."""
    requested = {"uid": STRANGER, "gid": STRANGERS, "port": port, "url": url}
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", _ASK],
        input=json.dumps(requested).encode(),
        stdout=subprocess.PIPE,
        check=True,
        cwd="/",
    ).stdout


def _relative(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix()


def _tried(root: Path, groups: Sequence[int]) -> dict[str, list[str]]:
    paths = list(map(str, everything_below(root)))
    if os.geteuid() != 0:
        return {
            "read": [path for path in paths if _may(path, stat.S_IROTH, groups)],
            "write": [path for path in paths if _may(path, stat.S_IWOTH, groups)],
        }
    requested = {"uid": STRANGER, "gid": STRANGERS, "groups": list(groups), "paths": paths}
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _TRY],
        input=json.dumps(requested),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd="/",
    )
    found: dict[str, list[str]] = json.loads(answer.stdout)
    return found


def _may(path: str, wanted: int, groups: Sequence[int]) -> bool:
    """Return whether a stranger with `groups` has the access that the bits of others give."""
    if wanted == stat.S_IWOTH and Path(path).is_symlink():
        return False
    real = Path(os.path.realpath(path))
    way = [*Path(path).parents, *real.parents]
    return all(_grants(folder.stat(), stat.S_IXOTH, groups) for folder in way) and _grants(
        real.stat(), wanted, groups
    )


def _grants(status: os.stat_result, wanted: int, groups: Sequence[int]) -> bool:
    return bool(status.st_mode & (wanted << 3 if status.st_gid in groups else wanted))
