"""The queue of SQLite's writers: order, patience, processes, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.db import OperationalError

from condastore.databases.writers import (
    WriteQueue,
    WriteQueueTimeoutError,
    optional_write,
    patience_of,
)

PATIENCE = 30.0
HOLD = """
import sys, pathlib
from condastore.databases.writers import WriteQueue
queue = WriteQueue(pathlib.Path(sys.argv[1]))
queue.acquire(30)
print("held", flush=True)
sys.stdin.readline()
"""


def test_threads_write_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    queue, order = WriteQueue(tmp_path / "writers"), []
    queue.acquire(PATIENCE)
    threads = []

    def write(number: int) -> None:
        queue.acquire(PATIENCE)
        order.append(number)
        queue.release()

    for number in range(12):
        threads.append(threading.Thread(target=write, args=(number,)))
        threads[-1].start()
        while queue.waiting <= number:
            time.sleep(0.001)
    queue.release()
    for thread in threads:
        thread.join()
    assert order == list(range(12))
    assert queue.waiting == 0


def test_who_waits_too_long_leaves_the_queue_to_the_others(tmp_path: Path) -> None:
    queue = WriteQueue(tmp_path / "writers")
    queue.acquire(PATIENCE)
    with pytest.raises(WriteQueueTimeoutError):
        queue.acquire(0.01)
    queue.release()
    queue.acquire(0.01)
    queue.release()


def test_processes_wait_for_each_other_and_for_none_that_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "writers"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    queue = WriteQueue(path)
    with pytest.raises(WriteQueueTimeoutError):
        queue.acquire(0.05)
    other.kill()
    other.communicate()
    assert queue.acquire(PATIENCE) > 0
    queue.release()


def test_a_write_that_is_optional_is_left_out_where_the_lock_is_not_free() -> None:
    with optional_write():
        assert patience_of(60) < 1
        raise OperationalError("database is locked: others are writing")
    assert patience_of(60) == 60
    with pytest.raises(OperationalError, match="disk"), optional_write():
        raise OperationalError("disk I/O error")
