"""Sixty random kills of all kinds of processes; `tests.faults.soak` runs more."""

from __future__ import annotations

from pathlib import Path

from tests.channels.server import ChannelServer
from tests.faults.soaking import Soak

FAULTS = 60
SEED = 20260101


def test_sixty_kills_at_random_moments_lose_nothing(channel: ChannelServer, tmp_path: Path) -> None:
    soak = Soak(tmp_path, channel=channel.url, faults=FAULTS, seed=SEED)
    soak.run()
    assert len(soak.states) > 2, soak.states
    assert len(soak.done) > 4, soak.done
