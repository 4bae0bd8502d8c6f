"""Run the suite, or lanes of it.

Usage: `test.py [--lane LANE]... [arguments of pytest]`.

What fails is run once more, alone. A test that passes then is reported as flaky and counted; a
test that fails again fails the run, and so does every run that ends otherwise than with failed
tests. Results: `.cache/tests.xml`, and `.cache/again.xml` of the second run.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import count

PROJECT = Path(__file__).resolve().parent.parent
FIRST_RESULTS, SECOND_RESULTS = PROJECT / ".cache" / "tests.xml", PROJECT / ".cache" / "again.xml"
TESTS_FAILED = 1  # pytest.ExitCode
#: More failures than this are no matter of chance, and are not run again.
MOST_FLAKY = 20


def pytest(*arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=PROJECT, check=False).returncode


def main(arguments: list[str]) -> int:
    FIRST_RESULTS.parent.mkdir(exist_ok=True)
    FIRST_RESULTS.unlink(missing_ok=True)
    SECOND_RESULTS.unlink(missing_ok=True)
    lanes = [lane for option, lane in itertools.pairwise(arguments) if option == "--lane"]
    # Tests of services and systems wait more than they calculate.
    processes = (os.cpu_count() or 1) + (lanes != ["fast"])
    spread = ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]
    status = pytest(*spread, f"--junitxml={FIRST_RESULTS}", *arguments)
    if not FIRST_RESULTS.exists():
        return status or 2
    failed = sum(how == "failed" for how in count.outcomes(FIRST_RESULTS).values())
    if status == TESTS_FAILED and 0 < failed <= MOST_FLAKY:
        print(f"\n{failed} failed; once more, alone:", flush=True)
        again = ["--last-failed", "--last-failed-no-failures", "none", "-n", "0"]
        status = pytest(*arguments, *again, f"--junitxml={SECOND_RESULTS}")
    return count.main(str(FIRST_RESULTS), str(SECOND_RESULTS)) or status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
