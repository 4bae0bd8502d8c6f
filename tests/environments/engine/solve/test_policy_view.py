"""Solves through a namespace's policy: visible packages, and reasons if none are left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import UnsatisfiableError
from environments.domain.policy import Policy, Ruling, parse_rule
from environments.engine.channels.first_seen import FirstSeen, Scan
from environments.engine.solve.client import RattlerSolver
from environments.engine.solve.policy_view import Rules
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageSpec, write_package
from tests.environments.engine.solver_fixtures import request, solve, versions

DAY = 86_400


def rules(*parsed: Any, rulings: tuple[Ruling, ...] = (), **options: Any) -> Rules:
    version = repr((parsed, rulings))
    policy = Policy(rules=parsed, version=version, rulings=rulings, **options.pop("known", {}))
    return Rules(policy=policy, now=options.pop("now", time.time()), **options)


def rule(kind: str, effect: str = "enforce", **settings: Any) -> Any:
    return parse_rule(kind=kind, effect=effect, name=f"our {kind}", settings=settings)


def note(folder: Path, channel: str, subdir: str, digests: list[str], *, now: float) -> int:
    poll = Scan(folder, channel)
    for digest in digests:
        poll.add(subdir, bytes.fromhex(digest))
    return poll.save(now=now)


def test_an_allowed_version_is_found_where_the_newest_is_denied(solver, channel):
    lock = solve(
        solver,
        "libalpha",
        channels=[channel],
        rules=rules(rule("packages-denied", packages=["libalpha >=2"])),
    )
    assert versions(lock) == {"libalpha": "1.1"}


def test_a_denied_package_deep_below_moves_what_needs_it(solver, channel):
    lock = solve(
        solver,
        "apptool",
        channels=[channel],
        rules=rules(rule("packages-denied", packages=["libalpha >=2"])),
    )
    assert versions(lock)["apptool"] == "1.0"


@pytest.mark.parametrize("named", ["", "channel"])
def test_an_old_version_that_is_denied_is_not_taken_where_the_newest_is_allowed(
    solver, channel, named
):
    """The first answer has it, read from the channel itself: it must not be given."""
    ours = rules(rule("packages-denied", packages=["libalpha <2"]))
    spec = f"{channel}::libalpha" if named else "libalpha"
    assert versions(solve(solver, spec, channels=[channel], rules=ours)) == {"libalpha": "2.1"}
    for _ in range(2):  # the second time from what is remembered
        with pytest.raises(UnsatisfiableError) as caught:
            solve(solver, "libalpha <2", channels=[channel], rules=ours)
        assert "rule “our packages-denied”" in caught.value.message
    assert versions(solve(solver, "libalpha", channels=[channel], rules=ours)) == {
        "libalpha": "2.1"
    }


def test_a_denied_old_version_below_moves_what_needs_it(solver, channel):
    ours = rules(rule("packages-denied", packages=["libalpha <2"]))
    free = solve(solver, "apptool", channels=[channel])
    lock = solve(solver, "apptool", channels=[channel], rules=ours)
    assert versions(lock) == versions(free)
    with pytest.raises(UnsatisfiableError, match="rule “our packages-denied”"):
        solve(solver, "apptool =1.0", channels=[channel], rules=ours)


def test_where_nothing_is_allowed_the_error_names_rule_package_and_chain(solver, channel):
    with pytest.raises(UnsatisfiableError) as caught:
        solve(
            solver,
            "apptool",
            channels=[channel],
            rules=rules(rule("packages-denied", packages=["libalpha"], reason="unmaintained")),
        )
    message = caught.value.message
    assert "libalpha 2.1 is denied (libalpha) (rule “our packages-denied”)" in message
    assert "apptool → libalpha" in message
    [removed] = caught.value.details["policy"]
    assert removed["nothing_left"]
    assert not removed["can_ask"]


def test_a_conflict_that_no_rule_made_is_explained_without_rules(solver, channel):
    with pytest.raises(UnsatisfiableError) as caught:
        solve(
            solver,
            "conflict-left",
            "conflict-right",
            channels=[channel],
            rules=rules(rule("packages-denied", packages=["apptool"])),
        )
    assert "rule" not in caught.value.message
    assert caught.value.details["conflicts"]


def test_packages_that_need_approval_are_skipped_if_others_are_allowed(solver, channel):
    lines: list[str] = []
    requested = request(
        "libalpha",
        channels=[channel],
        rules=rules(rule("packages-denied", "ask", packages=["libalpha >=2"])),
    )
    lock = solver.solve(requested, cancelled=lambda: False, log=lines.append)
    assert versions(lock) == {"libalpha": "1.1"}
    assert any("libalpha 2.1 needs approval" in line and "1.1 was chosen" in line for line in lines)


def test_packages_that_need_approval_are_chosen_if_nothing_else_exists(solver, channel):
    lock = solve(
        solver,
        "license-agpl",
        "apptool",
        channels=[channel],
        rules=rules(
            rule("licenses", "ask", allow=["MIT", "BSD-*", "Apache-2.0"]),
            rule("packages-denied", "ask", packages=["libbeta >=2"]),
        ),
    )
    # The one that has no allowed release is asked about; the other one keeps to what is allowed.
    assert versions(lock)["license-agpl"] == "1.0"
    assert versions(lock)["libbeta"] == "1.2"


def test_all_packages_that_need_approval_are_tried_before_the_solve_fails(solver, channel):
    lock = solve(
        solver,
        "libalpha 2.*",
        channels=[channel],
        rules=rules(rule("packages-denied", "ask", packages=["libalpha >=2"])),
    )
    assert versions(lock) == {"libalpha": "2.1"}


def test_an_approved_package_is_seen_and_a_rejected_one_is_not(solver, channel):
    asks = rule("packages-denied", "ask", packages=["libalpha >=2"])
    yes = Ruling(id=1, approved=True, manager="conda", spec="libalpha 2.0")
    no = Ruling(id=2, approved=False, manager="conda", spec="libalpha >=2", reason="no")
    approved = solve(solver, "libalpha", channels=[channel], rules=rules(asks, rulings=(yes,)))
    assert versions(approved) == {"libalpha": "2.0"}
    with pytest.raises(UnsatisfiableError, match="was rejected: no"):
        solve(solver, "libalpha 2.*", channels=[channel], rules=rules(asks, rulings=(no,)))


@pytest.fixture
def two_channels(tmp_path: Path) -> list[str]:
    """`first` has shared 1.0; `second`, which anybody may publish in, has shared 2.0."""
    created = []
    for name, version in (("first", "1.0"), ("second", "2.0")):
        folder = tmp_path / name
        write_package(PackageSpec("shared", version, noarch="generic", license="MIT"), folder)
        index_channel(folder)
        created.append(folder.as_uri())
    return created


@pytest.mark.parametrize("effect", ["enforce", "ask"])
def test_a_rule_never_lets_a_lower_channel_answer_for_a_higher_one(solver, two_channels, effect):
    denied = rules(rule("packages-denied", effect, packages=["first::shared"]))
    plain = solve(solver, "shared", channels=two_channels)
    assert versions(plain) == {"shared": "1.0"}
    if effect == "ask":  # held for a decision, rather than taken from elsewhere
        lock = solve(solver, "shared", channels=two_channels, rules=denied)
        assert versions(lock) == {"shared": "1.0"}
    else:
        with pytest.raises(UnsatisfiableError, match="the rules leave no solution"):
            solve(solver, "shared", channels=two_channels, rules=denied)


def test_a_package_of_one_channel_only_is_not_taken_from_another(solver, two_channels):
    only = rules(rule("channels", packages={"shared": [two_channels[1]]}))
    with pytest.raises(UnsatisfiableError, match="is allowed"):
        solve(solver, "shared", channels=two_channels, rules=only)
    lock = solve(solver, "shared", channels=two_channels[::-1], rules=only)
    assert versions(lock) == {"shared": "2.0"}


def test_licenses_decide_what_the_solver_sees(solver, channel):
    rule_ = rule("licenses", allow=["MIT", "GPL-*"], deny=["AGPL-*"])
    for name in ("license-agpl", "license-free-text", "license-missing", "license-bsd"):
        with pytest.raises(UnsatisfiableError, match=name):
            solve(solver, name, channels=[channel], rules=rules(rule_))
    for name in ("license-mit", "license-gpl", "license-dual"):
        assert name in versions(solve(solver, name, channels=[channel], rules=rules(rule_)))


def test_age_counts_from_when_we_first_saw_a_package(solver, channel, tmp_path):
    week = rule("age", minimum="7 days")
    now = time.time()
    with pytest.raises(UnsatisfiableError, match="no date that can be trusted"):
        solve(solver, "libalpha", channels=[channel], rules=rules(week))
    records = solver.channels.records(channel, "linux-64", "libalpha")
    old = [record.sha256 for record in records if record.version in ("1.0", "1.1")]
    new = [record.sha256 for record in records]
    note(tmp_path, channel, "linux-64", old, now=now - 8 * DAY)
    note(tmp_path, channel, "linux-64", new, now=now - DAY)
    lock = solve(
        solver, "libalpha", channels=[channel], rules=rules(week, first_seen=tmp_path, now=now)
    )
    assert versions(lock) == {"libalpha": "1.1"}


def test_cached_results_expire_with_the_channel_the_policy_and_the_age(solver, tmp_path):
    folder, seen, now = tmp_path / "channel", tmp_path / "seen", time.time()
    channel = folder.as_uri()

    def release(version: str, *, at: float) -> None:
        write_package(PackageSpec("tool", version, noarch="generic", license="MIT"), folder)
        index_channel(folder)
        found = solver.channels.records(channel, "noarch", "tool")
        note(seen, channel, "noarch", [record.sha256 for record in found], now=at)

    def chosen(*parsed: Any, at: float = now) -> str:
        requested = rules(*parsed, first_seen=seen, now=at)
        return versions(solve(solver, "tool", channels=[channel], rules=requested))["tool"]

    denied, week = rule("packages-denied", packages=["tool >=2"]), rule("age", minimum="7 days")
    release("1.0", at=now - 30 * DAY)
    assert (chosen(denied), chosen(week)) == ("1.0", "1.0")
    release("2.0", at=now - DAY)
    for _ in range(2):
        assert (chosen(denied), chosen(week)) == ("1.0", "1.0")
    assert chosen(week, at=now + 7 * DAY) == "2.0"
    assert chosen(rule("packages-denied", packages=["tool <2"])) == "2.0"


def test_the_publishers_own_date_counts_where_the_rule_says_so(solver, channel):
    trusting = rule("age", minimum="100 days", publisher_timestamp="always")
    lock = solve(solver, "fresh-release", channels=[channel], rules=rules(trusting))
    assert versions(lock) == {"fresh-release": "1.0"}


def test_first_seen_keeps_the_oldest_sighting_and_marks_the_baseline(tmp_path):
    one, two, three = (f"{number:02x}" * 32 for number in (1, 2, 3))
    assert note(tmp_path, "c", "noarch", [two, one], now=600) == 2
    assert note(tmp_path, "c", "noarch", [three, one], now=1200) == 1
    seen = FirstSeen(tmp_path)
    sightings = [seen.sighting("c", "noarch", digest) for digest in (one, two, three)]
    assert [(found.at, found.baseline) for found in sightings] == [
        (600, True),
        (600, True),
        (1200, False),
    ]
    assert seen.sighting("c", "noarch", "ff" * 32) is None
    assert seen.sighting("c", "linux-64", one) is None


def test_the_policy_reaches_the_solvers_own_process(channel, tmp_path):
    from environments.engine.channels.repodata import Channels

    cache = tmp_path / "repodata"
    apart = RattlerSolver(cache=cache, channels=Channels(cache=cache))
    try:
        lock = solve(
            apart,
            "libalpha",
            channels=[channel],
            rules=rules(
                rule("licenses", allow=["MIT"]),
                rule("packages-denied", packages=["libalpha >=2"]),
            ),
        )
    finally:
        apart.close()
    assert versions(lock) == {"libalpha": "1.1"}
