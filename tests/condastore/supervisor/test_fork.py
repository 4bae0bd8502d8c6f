"""Children that go on from a copy of their parent: which open files they have."""

from __future__ import annotations

import subprocess
import sys

#: The parent keeps a connection open and forks; the child ends that connection after it has opened
#: files of its own.
PROGRAM = """
import os, socket, sys, types
from condastore.supervisor.fork import Fork

near, far = socket.socketpair()
kept, other = os.pipe()

def main():
    opened = [os.pipe() for _ in range(8)]
    near.close()
    far.close()
    for reader, writer in opened:
        os.write(writer, b"x")
        assert os.read(reader, 1) == b"x"
    os.write(other, b"kept")
    try:
        os.write(int(sys.argv[1]), b"never")
    except OSError as error:
        print("closed", error.errno)
    else:
        print("nobody reads it")

child = types.ModuleType("child")
child.main = main
sys.modules["child"] = child
stray, writer = os.pipe()
fork = Fork("child", [str(writer)], title="child", environ={}, descriptors=[other],
            first=lambda: None)
status = fork.wait()
print(status, fork.stdout.read().decode().strip(), os.read(kept, 10).decode())
os.set_blocking(stray, False)
try:
    print(os.read(stray, 10))
except BlockingIOError:
    print("nothing strayed")
near.sendall(b"still open")
print(far.recv(10).decode())
"""


def test_what_a_child_closes_of_its_parent_closes_no_file_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "0 nobody reads it kept",
        "nothing strayed",
        "still open",
    ]
