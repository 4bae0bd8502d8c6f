"""What `condastore up` shows a person at a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import tempfile
from pathlib import Path

from tests import lanes
from tests.condastore.command_line import COMMAND
from tests.condastore.running_system import make_system


def test_a_terminal_shows_the_address_and_no_informational_records() -> None:
    lanes.require("system", "`condastore up`")
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as folder:
        system = make_system(Path(folder))
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*COMMAND, "up", "--port", "0"],
            env=system.person.environ,
            cwd=system.person.home,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            output = b""
            stopped = False
            with contextlib.suppress(OSError):  # EIO: the command has closed the terminal
                while part := os.read(ours, 65536):
                    output += part
                    if b"Ctrl-C stops everything." in output and not stopped:
                        stopped = True
                        process.send_signal(signal.SIGTERM)
            os.close(ours)
    assert b"condastore is ready: http://127.0.0.1:" in output
    assert b"[info" not in output
