"""The private names in `condastore/cli/_private.py` still do what the command line needs.

When this test fails after an update: look for a public replacement in the release notes first.
Otherwise follow the change in `condastore/cli/_private.py`, or keep the former release by the
bounds in pyproject.toml.
"""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
{first}
import httpx
print(sys.modules.get("httpx._main") is not None, callable(httpx.get))
"""
SKIP = "from condastore.cli._private import skip_command_line_of_httpx as skip; skip()"


def _run(first: str) -> str:
    command = [sys.executable, "-c", PROGRAM.format(first=first)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_httpx_is_imported_without_its_command_line() -> None:
    assert _run(SKIP) == "False True"


def test_the_module_that_is_skipped_exists() -> None:
    found = "from importlib.util import find_spec; assert find_spec('httpx._main')"
    assert _run(found).endswith("True")
