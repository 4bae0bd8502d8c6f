"""What the tests of solving share: the small channel, and a solver that works in this process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from environments.engine.channels import Channels
from environments.engine.solver import RattlerSolver

NO_MEMO = timedelta(0)


@pytest.fixture
def channel(small_channel: Path) -> str:
    """The small channel's URL on the disk."""
    return small_channel.as_uri()


@pytest.fixture
def solver(tmp_path: Path) -> Iterator[RattlerSolver]:
    cache = tmp_path / "repodata"
    solver = RattlerSolver(
        cache=cache, channels=Channels(cache=cache, memo=NO_MEMO), isolated=False
    )
    yield solver
    solver.close()
