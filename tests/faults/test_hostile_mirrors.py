"""Mirrored channels that are slow, endless or send bombs: fetches end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

from condastore.errors import ChannelUnavailableError, LeaseLostError
from environments.domain.progress import Cancelled, never
from environments.engine.channels import mirrors
from environments.engine.channels.mirror_fetch import State, fetch_index
from environments.engine.channels.mirror_history import Join
from environments.engine.network.addresses import UNRESTRICTED
from environments.engine.network.bounded_reading import ReadLimits
from tests.channels.hostile_server import (
    Asked,
    HostileServer,
    Script,
    dribble,
    endless,
    gzip_spaces,
    head,
    hostile,
    missing,
    whole,
)

QUICK = ReadLimits(silence=timedelta(seconds=2), size=96 << 20)
DRIBBLED = head("200 OK", Content_Length=1_000_000)


def fetch(
    server: HostileServer, to: Path, *, limits: ReadLimits = QUICK, cancelled: Cancelled = never
) -> State | None:
    return fetch_index(
        server.url,
        "noarch",
        to=to,
        known=State(),
        credential=None,
        cancelled=cancelled,
        limits=limits,
        within=UNRESTRICTED,
    )


def packed(asked: Asked) -> Iterator[bytes | float]:
    return (
        whole(zstandard.compress(b" " * (512 << 20))) if asked.path.endswith("zst") else missing()
    )


def plain(asked: Asked) -> Iterator[bytes | float]:
    if not asked.path.endswith(".json"):
        return missing()
    return whole(gzip_spaces(512 << 20), Content_Encoding="gzip")


def slow(asked: Asked) -> Iterator[bytes | float]:
    if not asked.path.endswith(".json"):
        return missing()
    return dribble(b"", first=DRIBBLED, pause=0.1)


HOSTILE = {
    "a body that dribbles": slow,
    "a head that dribbles": lambda asked: dribble(DRIBBLED, pause=0.1),
    "an endless body": lambda asked: endless(head("200 OK")),
    "a bomb in zstd": packed,
    "a bomb in gzip": plain,
    "a body that is cut": lambda asked: iter([DRIBBLED + b"x"]),
}


@pytest.mark.parametrize("script", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_repodata_of_a_hostile_channel_is_abandoned(tmp_path: Path, script: Script) -> None:
    gzip_spaces(512 << 20)  # takes longer to pack than a server may be silent
    with hostile(script) as server, pytest.raises(ChannelUnavailableError):
        fetch(server, tmp_path / "fetched")
    fetched = tmp_path / "fetched"
    assert not fetched.exists() or fetched.stat().st_size <= QUICK.size + (33 << 20)


def test_a_fetch_that_dribbles_can_be_cancelled(tmp_path: Path) -> None:
    with hostile(slow) as server, pytest.raises(LeaseLostError):
        fetch(
            server,
            tmp_path / "fetched",
            limits=ReadLimits(silence=timedelta(hours=1)),
            cancelled=lambda: len(server.requests) == 2,
        )


def test_reading_one_name_with_too_many_records_is_ended(tmp_path: Path) -> None:
    record = {"name": "a", "version": "1", "build_number": 0, "depends": ["b"] * 40}
    packages = {f"a-1-{number}.conda": record | {"build": str(number)} for number in range(50_000)}
    fetched = tmp_path / "fetched"
    fetched.write_text(json.dumps({"info": {"subdir": "noarch"}, "packages.conda": packages}))
    work = Join(
        channel="https://example.org/c",
        subdir="noarch",
        fetched=fetched,
        history=None,
        out=tmp_path / "out",
        minute=1,
    )

    def join(memory_limit: int) -> dict[str, Any]:
        return mirrors.run_work(
            work,
            folder=tmp_path,
            cancelled=never,
            time_limit=timedelta(minutes=5),
            memory_limit=memory_limit,
        )

    with pytest.raises(ChannelUnavailableError, match=r"example\.org/c .* 200 MiB of memory"):
        join(200 << 20)
    assert join(mirrors.MEMORY_LIMIT)["records"] == 50_000


def test_an_ordinary_answer_is_unpacked(tmp_path: Path) -> None:
    content = b'{"packages": {}}'
    with hostile(lambda asked: whole(zstandard.compress(content), ETag="1")) as server:
        state = fetch(server, tmp_path / "fetched")
    assert state == State(form="repodata.json.zst", etag="1")
    assert (tmp_path / "fetched").read_bytes() == content
