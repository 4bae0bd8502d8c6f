"""Governance's acceptance: an administrator's tour with a real directory and a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import governance_tour


@pytest.mark.component("slapd")
@pytest.mark.component("chromium")
def test_an_administrator_can_follow_the_tour(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A directory's groups, a held build, an approval with an end, a recall, the audit log."""
    governance_tour.main(["--screenshots", str(tmp_path)])
    assert "That was the tour." in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} >= {"requests.png", "approve.png"}
