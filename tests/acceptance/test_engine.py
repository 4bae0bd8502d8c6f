"""The engine's acceptance: a scientist with the client only, against a running system."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.acceptance.conftest import Laptop
from tests.migrated import PASSWORD
from tests.system import System

FIRST = """\
name: ml  # the comment stays
dependencies:
  - python
  - libalpha 1.*
condastore:
  tests: {imports: [json]}
"""
SECOND = FIRST.replace("libalpha 1.*", "libalpha 2.*\n  - hello-noarch")


@pytest.fixture(scope="module")
def scientist(system: System, laptop: Laptop) -> Laptop:
    laptop.run(
        "login", system.url, "--username", "admin", "--password-stdin", stdin=f"{PASSWORD}\n"
    )
    return laptop


def test_a_scientist_lives_with_the_url_and_the_command_line(system: System, scientist: Laptop):
    assert "admin" in scientist.run("whoami").stdout
    scientist.run("namespace", "create", "research")

    # An environment is submitted; its build is followed live and ends READY.
    file = scientist.write("environment.yml", FIRST)
    followed = scientist.run("env", "build", "research/ml", "-f", file)
    # A state that lasts shorter than a poll is visible in the log only.
    for word in ("--- solving", "--- linking", "READY"):
        assert word in followed.stdout
    folder = system.data / "envs" / "research" / "ml"
    first = folder.resolve()
    assert (first / "bin" / "python").exists()

    # Python runs in it, through the command line and as a script's first line.
    printed = scientist.run(
        "run", "research/ml", "--", "python", "-c", "import sys; print(sys.prefix)"
    ).stdout.strip()
    assert Path(printed) == first
    status = scientist.run(
        "run", "research/ml", "--", "python", "-c", "raise SystemExit(7)", status=7
    )
    assert status.stderr == ""
    script = scientist.home / "script"
    script.write_text(
        "#!/usr/bin/env -S condastore run research/ml python\nprint('from a script')\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert scientist.run("run", "research/ml", str(script)).stdout == "from a script\n"

    # What would a change do? Nothing is built for the answer.
    scientist.write("environment.yml", SECOND)
    previewed = scientist.run("env", "preview", "research/ml", "-f", file).stdout
    assert "hello-noarch" in previewed
    assert folder.resolve() == first

    # The change: the folder follows, the difference is shown, and why each package is there.
    scientist.run("env", "build", "research/ml", "-f", file)
    second = folder.resolve()
    assert second != first
    difference = scientist.run("env", "diff", "research/ml:1", "research/ml:2").stdout
    assert "hello-noarch" in difference
    assert "libalpha" in difference
    assert "python" in scientist.run("env", "why", "research/ml", "python").stdout
    assert scientist.run("env", "specification", "research/ml").stdout.strip() == SECOND.strip()

    # Back, and forward again.
    scientist.run("env", "rollback", "research/ml")
    assert folder.resolve() == first
    scientist.run("env", "unpin", "research/ml")
    assert folder.resolve() == second

    # The old build's bytes go, and come back on demand from the same lock.
    scientist.run("env", "archive", "research/ml:1")
    scientist.run("env", "restore", "research/ml:1")
    scientist.run("env", "wait", "research/ml:1")
    scientist.run("env", "pin", "research/ml:1")
    assert folder.resolve().name == first.name


def test_the_lock_leaves_in_every_form_and_comes_back(system: System, scientist: Laptop):
    file = scientist.write("small.yml", "dependencies: [libalpha]\n")
    scientist.run("env", "build", "admin/small", "-f", file)
    for form in ("conda-lock.yml", "environment.yml", "explicit.txt", "pixi.lock"):
        name = f"out-{form}"
        scientist.run("env", "export", "admin/small", "--format", form, "-o", name)
        assert "libalpha" in (scientist.home / name).read_text()
    for index, name in enumerate(("out-conda-lock.yml", "out-explicit.txt")):
        again = f"admin/again-{index}"
        scientist.run("env", "build", again, "-f", name)
        assert (system.data / "envs" / again).is_dir()
    path = "/api/envs/admin/small/current/conda-lock.yml"
    answer = system.get(path)
    assert answer.text == (scientist.home / "out-conda-lock.yml").read_text()
    assert system.get(path, **{"If-None-Match": answer.headers["ETag"]}).status_code == 304


def test_a_conflict_is_explained_in_the_words_of_the_request(scientist: Laptop):
    file = scientist.write("bad.yml", "dependencies: [conflict-left, conflict-right]\n")
    failed = scientist.run("env", "build", "admin/bad", "-f", file, status=1)
    said = failed.stdout + failed.stderr
    assert "conflict-left" in said
    assert "conflict-right" in said
    broken = scientist.write("broken.yml", "dependencis: [python]\nname: [1, 2]\n")
    refused = scientist.run("env", "build", "admin/bad", "-f", broken, status=6)
    assert "dependencies" in refused.stderr
    assert "line 1" in refused.stderr


def test_what_is_deleted_is_gone(system: System, scientist: Laptop):
    file = scientist.write("gone.yml", "dependencies: [libalpha]\n")
    scientist.run("env", "build", "admin/gone", "-f", file)
    folder = system.data / "envs" / "admin" / "gone"
    assert folder.is_symlink()
    scientist.run("env", "delete", "admin/gone", "--yes")
    assert not os.path.lexists(folder)
    scientist.run("env", "show", "admin/gone", status=4)
