"""Execution of programs: output, limits, cancellation, and no processes left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from condastore.errors import LeaseLostError
from environments.engine.system.processes import LINE_LENGTH, run_tool
from environments.engine.system.sandbox import Sandbox, can_sandbox

LONG = timedelta(minutes=1)


def run(*command: str, cwd: Path, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    chosen: dict[str, Any] = {
        "env": {"PATH": os.environ["PATH"]},
        "time_limit": LONG,
        "cancelled": lambda: False,
        "on_line": lines.append,
    } | options
    return run_tool(list(command), cwd=cwd, **chosen), lines


def wait_for(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_lines_of_output_and_errors_come_in_order(tmp_path: Path) -> None:
    result, lines = run("sh", "-c", "echo one; echo two >&2; printf three", cwd=tmp_path)
    assert lines == ["one", "two", "three"]
    assert result.succeeded
    assert result.tail == ("one", "two", "three")


def test_the_last_output_reaches_a_slow_reader(tmp_path: Path) -> None:
    heard: list[str] = []

    def listen(line: str) -> None:
        heard.append(line)
        if line == "one":  # the command continues to its end meanwhile
            wait_for((tmp_path / "ended").exists)
            time.sleep(0.3)

    command = "echo one; sleep 0.1; echo two; touch ended"
    run("sh", "-c", command, cwd=tmp_path, on_line=listen)
    assert heard == ["one", "two"]


def test_the_status_is_that_of_the_command(tmp_path: Path) -> None:
    result, _ = run("sh", "-c", "exit 7", cwd=tmp_path)
    assert result.status == 7
    assert not result.succeeded


def test_a_command_killed_by_a_signal_says_which(tmp_path: Path) -> None:
    result, _ = run("sh", "-c", "kill -SEGV $$", cwd=tmp_path)
    assert result.status == 128 + signal.SIGSEGV


def test_a_missing_command_is_named(tmp_path: Path) -> None:
    result, lines = run("no-such-program", cwd=tmp_path)
    assert result.status == 127
    assert lines == ["no-such-program: No such file or directory"]


def test_only_the_given_variables_are_seen(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CONDASTORE_SECRET_KEY", "hidden")
    _, lines = run(
        "sh", "-c", 'echo "$CONDASTORE_SECRET_KEY,$GIVEN"', cwd=tmp_path, env={"GIVEN": "1"}
    )
    assert lines == [",1"]


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    _, lines = run("sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo", cwd=tmp_path)
    assert lines
    assert max(len(line) for line in lines) <= LINE_LENGTH + len(" [cut]")


def test_bytes_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    result, lines = run("printf", "\\377\\376ok\\n", cwd=tmp_path)
    assert result.succeeded
    assert lines[0].endswith("ok")


def test_a_cancellation_kills_the_command_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 100 & echo $! >> {pids}; echo $$ >> {pids}; sleep 100"

    def cancelled() -> bool:
        return pids.exists() and len(pids.read_text().split()) == 2

    with pytest.raises(LeaseLostError):
        run("sh", "-c", script, cwd=tmp_path, cancelled=cancelled)
    wait_for(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_a_cancellation_is_noticed_while_the_command_prints(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(LeaseLostError):
        run(
            *("sh", "-c", "while :; do echo busy; done"),
            cwd=tmp_path,
            on_line=seen.append,
            cancelled=lambda: len(seen) > 100,
        )


def test_the_time_limit_ends_it(tmp_path: Path) -> None:
    result, lines = run(
        "sh", "-c", "echo begun; sleep 100", cwd=tmp_path, time_limit=timedelta(seconds=0.5)
    )
    assert result.timed_out
    assert not result.succeeded
    assert lines == ["begun"]


def test_background_processes_end_with_the_command(tmp_path: Path) -> None:
    result, lines = run("sh", "-c", "sleep 100 & echo $!", cwd=tmp_path)
    assert result.succeeded
    wait_for(lambda: not alive(int(lines[0])))


def test_no_zombie_is_left(tmp_path: Path) -> None:
    run("true", cwd=tmp_path)
    children = psutil.Process().children()
    assert not [child for child in children if child.status() == psutil.STATUS_ZOMBIE]


def test_when_the_worker_is_killed_so_is_all_that_its_tool_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    worker = f"""
from datetime import timedelta
from pathlib import Path
from environments.engine.system.processes import run_tool
run_tool(
    ["sh", "-c", "sleep 100 & echo $! >> {pids}; echo $$ >> {pids}; sleep 100"],
    cwd=Path("."), env={{"PATH": "/usr/bin:/bin"}}, time_limit=timedelta(minutes=2),
    cancelled=lambda: False, on_line=print,
)
"""
    process = subprocess.Popen([sys.executable, "-c", worker])
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_a_limit_holds_for_the_command(tmp_path: Path) -> None:
    result, _ = run(
        *("sh", "-c", "head -c 100000 /dev/zero > file"),
        cwd=tmp_path,
        limits={"RLIMIT_FSIZE": 1000},
    )
    assert not result.succeeded
    assert (tmp_path / "file").stat().st_size <= 1000


@pytest.mark.skipif(not can_sandbox(), reason="bubblewrap is not here, or may not make namespaces")
class TestSandbox:
    def test_it_has_no_network(self, tmp_path: Path) -> None:
        _, lines = run(
            *("sh", "-c", "tail -n +3 /proc/net/dev | cut -d: -f1"),
            cwd=Path("/tmp/home"),
            sandbox=Sandbox(),
        )
        assert [line.strip() for line in lines] == ["lo"]

    def test_it_sees_only_what_it_is_given(self, tmp_path: Path) -> None:
        (tmp_path / "given").mkdir()
        (tmp_path / "given" / "file").write_text("seen\n")
        (tmp_path / "secret").write_text("secret")
        result, lines = run(
            *("sh", "-c", f"cat /shown/file; cat {tmp_path}/secret; touch /shown/new"),
            cwd=Path("/tmp"),
            sandbox=Sandbox(readable={Path("/shown"): tmp_path / "given"}),
        )
        assert result.sandboxed
        assert lines[0] == "seen"
        assert "No such file" in lines[1]
        assert "Read-only file system" in lines[2]

    def test_writes_to_a_writable_folder_appear_outside(self, tmp_path: Path) -> None:
        run(
            "touch", f"{tmp_path}/new", cwd=tmp_path, sandbox=Sandbox(writable={tmp_path: tmp_path})
        )
        assert (tmp_path / "new").exists()

    def test_a_cancel_kills_what_runs_in_it(self, tmp_path: Path) -> None:
        mark = f"sleep 98{os.getpid()}"

        def running() -> bool:
            return any(
                mark in " ".join(each.info["cmdline"] or [])
                for each in psutil.process_iter(["cmdline"])
            )

        with pytest.raises(LeaseLostError):
            run(
                "sh",
                "-c",
                f"{mark} & {mark}",
                cwd=Path("/tmp"),
                sandbox=Sandbox(),
                cancelled=running,
            )
        wait_for(lambda: not running())
