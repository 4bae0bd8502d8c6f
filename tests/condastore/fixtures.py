"""A running `condastore up`, and people at the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.condastore.command_line import Person


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """Somebody who is signed in nowhere; port 9 answers nobody."""
    home = tmp_path / "home"
    home.mkdir()
    return Person(home=home, url="http://127.0.0.1:9")
