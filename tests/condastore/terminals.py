"""The `condastore` command at a terminal of a given width."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

from tests.condastore.command_line import COMMAND, Ended, Person

_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def at_terminal(person: Person, *arguments: str, columns: int = 80, types: str = "") -> Ended:
    """Run the command at a terminal, which shows stdout and stderr alike."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {"TERM": "xterm"} | person.environ
    environ.pop("COLUMNS", None)
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environ,
        cwd=person.home,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        os.write(ours, types.encode())
        output = b""
        with contextlib.suppress(OSError):  # EIO: the command has closed the terminal
            while part := os.read(ours, 65536):
                output += part
        os.close(ours)
    text = _SEQUENCE.sub("", output.decode()).replace("\r\n", "\n")
    return Ended(status=process.returncode, out=text, err="")
