"""A mirror's history: whatever a channel does later, a day that is over stays as it was."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.domain.mirrors import Entry, join, shown
from environments.domain.shard_pack import PackWriter, find, read_table

Listed = Mapping[str, Mapping[str, Any]]
FILES = st.dictionaries(
    st.sampled_from(["a-1-0.conda", "a-2-0.conda", "a-3-0.conda"]),
    st.fixed_dictionaries({"build_number": st.integers(0, 2)}),
)


def history(looks: Sequence[Listed]) -> list[Entry]:
    """A look every ten minutes, from the tenth on."""
    entries: list[Entry] = []
    for number, found in enumerate(looks, 1):
        entries = list(join("a", entries, found, minute=10 * number))
    return entries


def files(entries: Sequence[Entry], end: int | None) -> dict[str, Any]:
    return {name: entry.record for name, entry in shown(entries, end=end, baseline=10).items()}


@given(st.lists(FILES, min_size=1, max_size=6))
def test_each_moment_stays_as_it_was_whatever_comes_later(looks: list[Listed]) -> None:
    entries = history(looks)
    for number, found in enumerate(looks, 1):
        assert files(entries, 10 * number + 5) == dict(found)
    assert files(entries, None) == dict(looks[-1])


@given(FILES)
def test_a_look_that_finds_the_same_changes_nothing(found: Listed) -> None:
    assert history([found]) == history([found, found, found])


@pytest.mark.parametrize(
    ("minute", "listed"), [(None, False), (28_800_000, True), (28_950_000, False)]
)
def test_before_the_first_look_only_the_channels_own_clock_counts(
    minute: int | None, listed: bool
) -> None:
    record = {} if minute is None else {"indexed_timestamp": minute * 60_000}
    first = 29_000_000
    entry = Entry(name="a", file_name="a-1-0.conda", seen=first, gone=None, record=record)
    assert bool(shown([entry], end=28_900_000, baseline=first)) == listed
    assert shown([entry], end=first + 1, baseline=first)


def test_what_is_packed_is_found_by_its_digest() -> None:
    file = io.BytesIO()
    pack = PackWriter(file)
    parts = [bytes([number]) * number for number in range(200)]
    keys = [pack.add(part) for part in (*parts, *parts)]
    pack.finish()
    content = file.getvalue()
    table = read_table(len(content), partial(_part, content))
    for key, part in zip(keys, parts, strict=False):
        location = find(table, key)
        assert location is not None
        assert content[location[0] : sum(location)] == part
    assert find(table, b"\0" * 32) is None
    for damaged in (b"", b"short", content[:-1]):
        with pytest.raises(ValueError, match="not a pack"):
            read_table(len(damaged), partial(_part, damaged))


def _part(content: bytes, start: int, length: int) -> bytes:
    return content[start : start + length]
