"""Browser files of other projects: unchanged, and with their licenses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_vendored_files_have_the_recorded_digests() -> None:
    command = [sys.executable, ".ci/vendor.py", "--check"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_vendored_package_has_its_license() -> None:
    licenses = (PROJECT / "static" / "vendor" / "LICENSES.txt").read_text()
    for name in (PROJECT / "static" / "vendor").iterdir():
        if name.suffix in {".js", ".css", ".woff2"}:
            assert name.name in licenses


def test_stylesheets_of_console_and_admin_share_their_tokens() -> None:
    blocks = [
        (PROJECT / "static" / "console" / name)
        .read_text()
        .partition("/* tokens:start")[2]
        .partition("/* tokens:end")[0]
        .partition("*/")[2]
        for name in ("console.css", "admin.css")
    ]
    assert blocks[0]
    assert blocks[0] == blocks[1]
