"""Which builds stay: by table, and by property for what no rule may ever touch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.domain.lifecycle import BuildState
from environments.domain.retention import Bounds, Candidate, Fate, Rules, decide

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def build(number: int, *, age: float = 100, state: str = "READY", **more: Any) -> Candidate:
    """`age` in days, of the build and of its end."""
    moment = NOW - timedelta(days=age)
    return Candidate(
        number=number, state=BuildState(state), created_at=moment, finished_at=moment, **more
    )


def fates(builds: list[Candidate], **rules: Any) -> dict[int, str]:
    found = decide(builds, Rules(**rules).within(Bounds()), now=NOW)
    return {one.number: one.fate.value for one in found}


def test_without_rules_everything_stays() -> None:
    assert set(fates([build(1), build(2, state="ARCHIVED")], delete_days=1).values()) == {"keep"}


@pytest.mark.parametrize(
    ("rules", "archived"),
    [
        ({"keep_last": 2}, {1, 2, 3}),
        ({"keep_last": 9}, set()),
        ({"keep_days": 50}, {1, 2, 3}),  # least_builds keeps the newest, too
        ({"keep_days": 50, "keep_last": 3}, {1, 2}),
        ({"keep_days": 200}, set()),
    ],
)
def test_what_one_of_the_rules_keeps_stays(rules: dict[str, int], archived: set[int]) -> None:
    builds = [build(1), build(2), build(3), build(4, age=10), build(5)]
    found = fates(builds, **rules)
    assert {number for number, fate in found.items() if fate == "archive"} == archived


@pytest.mark.parametrize("why", ["current", "tagged", "held"])
def test_no_rule_touches_what_is_current_tagged_or_held(why: str) -> None:
    so: Any = {why: True}
    ready, archived = build(1, **so), build(2, state="ARCHIVED", **so)
    found = fates([ready, archived, build(3)], keep_last=1, delete_days=1)
    assert found == {1: "keep", 2: "keep", 3: "keep"}


def test_tags_protect_only_where_they_are_to() -> None:
    builds = [build(1, tagged=True), build(2)]
    assert fates(builds, keep_last=1, keep_tagged=False)[1] == "archive"


def test_what_is_ready_is_archived_before_it_is_deleted() -> None:
    builds = [build(1), build(2, state="ARCHIVED"), build(3, state="ARCHIVED", age=5), build(4)]
    assert fates(builds, keep_last=1, delete_days=30) == {
        1: "archive",
        2: "delete",
        3: "keep",
        4: "keep",
    }


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_what_never_was_ready_is_deleted_after_its_time(state: str) -> None:
    builds = [build(1, state=state), build(2, state=state, age=1), build(3)]
    assert fates(builds, keep_last=1, delete_days=30) == {1: "delete", 2: "keep", 3: "keep"}
    assert fates(builds, keep_last=1)[1] == "keep"


@pytest.mark.parametrize(
    ("asked", "bounds", "last", "days"),
    [
        (Rules(), Bounds(), None, None),
        (Rules(), Bounds(most_days=30), 1, 30),
        (Rules(keep_last=50), Bounds(most_builds=10), 10, 0),
        (Rules(keep_last=1), Bounds(least_builds=3, least_days=7), 3, 7),
        (Rules(keep_days=400), Bounds(most_days=365), 1, 365),
        (Rules(keep_last=5, keep_days=2), Bounds(least_days=7), 5, 7),
    ],
)
def test_rules_act_within_the_bounds(
    asked: Rules, bounds: Bounds, last: int | None, days: int | None
) -> None:
    found = asked.within(bounds)
    assert (found.keep_last, found.keep_days) == (last, days)


candidates = st.lists(
    st.builds(
        build,
        st.integers(1, 50),
        age=st.floats(0, 1000),
        state=st.sampled_from([state.value for state in BuildState]),
        current=st.booleans(),
        tagged=st.booleans(),
        held=st.booleans(),
    ),
    unique_by=lambda one: one.number,
)
days = st.none() | st.integers(0, 500)


@given(candidates, st.builds(Rules, keep_last=days, keep_days=days, delete_days=days))
def test_never_what_is_current_held_tagged_or_under_way_and_never_bytes_at_once(
    builds: list[Candidate], rules: Rules
) -> None:
    by_number = {one.number: one for one in builds}
    found = decide(builds, rules.within(Bounds()), now=NOW)
    assert {one.number for one in found} == set(by_number)
    for one in found:
        of = by_number[one.number]
        if one.fate is not Fate.KEEP:
            assert not any((of.current, of.held, of.tagged))
        if one.fate is Fate.ARCHIVE:
            assert of.state is BuildState.READY
        if one.fate is Fate.DELETE:
            assert of.state in {BuildState.ARCHIVED, BuildState.FAILED, BuildState.CANCELLED}
