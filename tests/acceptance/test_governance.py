"""Governance's acceptance: an administrator's tour with a real directory and a real browser."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from docs import governance_tour
from tests.benchmarks.inside import inside
from tests.migrated import put_database
from tests.system import CONDASTORE, PROJECT, System

EVENTS = 5_000  # tests/benchmarks/audit.py does it with a million
EDITED = 1_234


@pytest.mark.component("slapd")
@pytest.mark.component("chromium")
def test_an_administrator_can_follow_the_tour(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A directory's groups, a held build, an approval with an end, a recall, the audit log."""
    governance_tour.main(["--screenshots", str(tmp_path)])
    assert "The tour is complete." in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} >= {"requests.png", "approve.png"}


def test_one_edited_or_missing_event_of_many_is_named(tmp_path: Path):
    put_database(tmp_path)
    inside(tmp_path, "chain", EVENTS)
    intact = verify(tmp_path)
    assert intact.returncode == 0, intact.stderr
    assert f"{EVENTS} events verified" in intact.stdout
    change(tmp_path, "DELETE FROM environments_auditevent WHERE position = ?", EVENTS)
    cut = verify(tmp_path)
    assert (cut.returncode, f"event {EVENTS}: " in cut.stderr) == (1, True), cut.stderr
    assert f"Event {EVENTS} and all later events are missing." in cut.stderr
    change(tmp_path, "DELETE FROM environments_auditevent WHERE position = ?", 3_000)
    gone = verify(tmp_path)
    assert (gone.returncode, "event 3000: " in gone.stderr) == (1, True), gone.stderr
    edit = "UPDATE environments_auditevent SET username = 'eve' WHERE position = ?"
    change(tmp_path, edit, EDITED)
    edited = verify(tmp_path)
    assert (edited.returncode, f"event {EDITED}: " in edited.stderr) == (1, True), edited.stderr
    assert "was changed" in edited.stderr


def verify(data: Path) -> subprocess.CompletedProcess[str]:
    """`condastore manage audit verify`, on the server."""
    return subprocess.run(
        [*CONDASTORE, "manage", "audit", "verify"],
        env={**os.environ, "CONDASTORE_DATA": str(data)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def change(data: Path, statement: str, *values: int) -> None:
    """Behind everybody's back."""
    with closing(sqlite3.connect(data / "db.sqlite3", timeout=30)) as database, database:
        database.execute(statement, values)


def test_an_administrator_far_away_is_told_of_the_edited_event(system: System):
    intact = system.run("audit", "verify")
    assert "intact" in intact.stdout
    edit = "UPDATE environments_auditevent SET refused = NOT refused WHERE position = 1"
    change(system.data, edit)
    try:
        edited = system.run("audit", "verify", check=False)
    finally:
        change(system.data, edit)
    assert edited.returncode == 1
    assert "Event 1 was changed." in edited.stderr
