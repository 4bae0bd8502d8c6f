"""The suite's own rules: lanes, and the second try of what failed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import lanes
from tests.lanes import FILES, FIXTURES, FOLDERS, LANES, PARAMETERS, lane_of

PROJECT = Path(__file__).resolve().parent.parent
PLUGINS = [
    "-p",
    "tests.lane_plugin",
    "-p",
    "no:django",
    "-p",
    "no:asyncio",
    "-p",
    "no:cacheprovider",
]


def test_a_file_outside_the_known_folders_fails_collection(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_new="def test_it(): pass")
    result = pytester.runpytest_inprocess(*PLUGINS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_new.py: no lane*tests/lanes.py*"])


def test_a_lane_that_is_asked_for_runs_alone(pytester: pytest.Pytester) -> None:
    for folder in ("faults", "accounts"):
        path = pytester.path / "tests" / folder
        path.mkdir(parents=True)
        (path / f"test_{folder}.py").write_text("def test_it(): pass\n")
    result = pytester.runpytest_inprocess(*PLUGINS, "--lane", "system", "-v")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["tests/faults/test_faults.py::test_it PASSED*"])


def test_a_test_is_in_the_most_expensive_lane_that_it_needs() -> None:
    assert lane_of("tests/accounts/test_sign_in.py") == "fast"
    assert lane_of("tests/accounts/test_sign_in.py", ["db", "valkey_service"]) == "services"
    assert lane_of("tests/faults/test_soak.py", ["valkey_service"]) == "system"
    assert lane_of("tests/condastore/supervisor/test_up.py") == "system"
    assert lane_of("tests/environments/services/test_blobs.py::test_it[s3]") == "services"
    assert lane_of("tests/elsewhere/test_new.py") is None


def test_what_the_tables_name_exists() -> None:
    assert all((PROJECT / name.partition("::")[0]).exists() for name in (*FOLDERS, *FILES))
    assert {*FOLDERS.values(), *FILES.values(), *FIXTURES.values(), *PARAMETERS.values()} == set(
        LANES
    )


def test_a_fast_test_may_not_start_a_service() -> None:
    with pytest.raises(AssertionError, match="may not start valkey"):
        lanes.require("services", "valkey")
    lanes.require("fast", "a solver")


FLAKY = """
from pathlib import Path

def test_passes_always(): pass

def test_passes_at_the_second_try():
    tried = Path(__file__).with_name("tried")
    before = tried.exists()
    tried.touch()
    assert before
"""


@pytest.mark.parametrize(
    ("more", "status", "last"),
    [
        ("", 0, "2 passed, 0 failed, 1 flaky"),
        ("\ndef test_fails(): assert False\n", 1, "2 passed, 1 failed, 1 flaky"),
        ("\nraise SystemExit(3)\n", 1, "0 passed, 1 failed"),
    ],
    ids=["flaky", "failed", "broken"],
)
def test_what_passes_only_at_the_second_try_is_named_and_counted(
    tmp_path: Path, more: str, status: int, last: str
) -> None:
    (tmp_path / ".ci").mkdir()
    for name in ("test.py", "count.py"):
        shutil.copy(PROJECT / ".ci" / name, tmp_path / ".ci" / name)
    (tmp_path / "test_some.py").write_text(FLAKY + more)
    done = subprocess.run(
        [sys.executable, ".ci/test.py", "-n", "1", "-p", "no:django", "-p", "no:asyncio"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (status, last), done.stdout
    flaky = "flaky: test_some::test_passes_at_the_second_try failed, and passed alone"
    assert (flaky in lines) == ("flaky" in last)
