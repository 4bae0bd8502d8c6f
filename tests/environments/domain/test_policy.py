"""What each kind of rule says of a package, and what decisions of people change about it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from condastore.errors import ChannelNotAllowedError, PolicyError, RuleError
from environments.domain.lock import Lock, PlatformLock
from environments.domain.policy import (
    KINDS,
    Effect,
    Known,
    Policy,
    Ruling,
    Sighting,
    Verdict,
    judge_lock,
    judge_names,
    package_spec,
    parse_rule,
)
from environments.domain.specification import Specification
from tests.environments.domain.packages import pypi
from tests.factories import CHANNEL, PLATFORM, make_package

DAY = 86_400.0
NOW = 1_800_000_000.0


def rule(kind: str, effect: str = "enforce", **settings: Any) -> Any:
    return parse_rule(kind=kind, effect=effect, name=f"our {kind}", settings=settings)


def asked(*specs: str, pip: tuple[str, ...] = ()) -> Specification:
    return Specification(
        kind="environment",
        channels=(CHANNEL,),
        platforms=(PLATFORM,),
        dependencies={PLATFORM: specs},
        pip={PLATFORM: pip},
    )


def lock(*packages: Any, wheels: tuple[Any, ...] = (), platforms: tuple[str, ...] = (PLATFORM,)):
    parts = tuple(PlatformLock(platform=name, conda=packages, pypi=wheels) for name in platforms)
    return Lock(channels=(CHANNEL,), platforms=parts)


def judged(*rules: Any, of: Lock, want: Specification | None = None, **options: Any):
    """The verdicts, refusals among them."""
    known = options.pop("evidence", Known(now=NOW))
    policy = Policy(rules=rules, version="7", **options)
    try:
        return judge_lock(policy, of, want or asked("a"), evidence=known)
    except PolicyError as error:
        return tuple(Verdict.from_json(each) for each in error.details["verdicts"])


# --- packages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fits", "not_"),
    [
        ("numpy <2", ["numpy 1.26"], ["numpy 2.0", "numpy-base 1.0"]),
        ("*-gpl", ["x264-gpl 1"], ["gpl 1"]),
        ("numpy 1.26.*", ["numpy 1.26.4"], ["numpy 1.2"]),
        ("main::numpy", ["numpy 1"], []),
        ("other::numpy", [], ["numpy 1"]),
        (f"{CHANNEL}::num* >=2", ["numpy 2"], ["numpy 1"]),
        ("numpy * h0_*", ["numpy 1"], []),
        ("numpy * other_*", [], ["numpy 1"]),
        ("pypi:numpy", [], ["numpy 1"]),
    ],
)
def test_a_line_of_a_rule_means_these_packages(line, fits, not_):
    denied = rule("packages-denied", packages=[line])
    for text, expected in [*((t, True) for t in fits), *((t, False) for t in not_)]:
        found = judged(denied, of=lock(make_package(*text.split())))
        assert bool(found) == expected, text


def test_what_tightens_means_both_managers_and_what_loosens_conda_alone():
    both = lock(make_package("requests"), wheels=(pypi("requests"),))
    denied = judged(rule("packages-denied", packages=["requests"]), of=both)
    assert {verdict.package.manager for verdict in denied} == {"conda", "pypi"}
    allowed = judged(rule("packages-allowed", packages=["requests"]), of=both)
    assert {verdict.package.manager for verdict in allowed} == {"pypi"}
    assert not judged(rule("packages-allowed", packages=["requests", "pypi:requests"]), of=both)


def test_pypi_names_are_compared_as_pypi_does():
    found = judged(
        rule("packages-denied", packages=["pypi:ruamel.yaml >=1"]),
        of=lock(wheels=(pypi("ruamel-yaml", "1.0"),)),
    )
    assert [str(verdict.package) for verdict in found] == ["ruamel-yaml 1.0"]


# --- licenses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("license_text", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", True),
        ("GPL-3.0-only", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", True),
        ("GPL-2.0-only WITH GCC-exception-2.0", False),
        ("MIT WITH GCC-exception-2.0", True),
        ("BSD 3-Clause", True),
        ("our own words", True),
        ("see the vendor's agreement", False),
        ("LicenseRef-Proprietary", False),
        ("", False),
        ("NOASSERTION", False),
    ],
)
def test_a_license_is_read_as_spdx_says(license_text, allowed):
    one = rule(
        "licenses",
        allow=["MIT", "BSD-*", "GPL-2.0-only WITH Classpath-exception-2.0"],
        map={"Our own words": "MIT"},
    )
    found = judged(one, of=lock(make_package("a", license=license_text)))
    assert (not found) == allowed


def test_unknown_and_missing_licenses_are_cases_of_their_own():
    odd = lock(make_package("odd", license="whatever"), make_package("none", license=""))
    unknown = judged(rule("licenses", deny=["AGPL-*"], missing="accept"), of=odd)
    assert [verdict.package.name for verdict in unknown] == ["odd"]
    missing = judged(rule("licenses", deny=["AGPL-*"], unknown="accept"), of=odd)
    assert [verdict.package.name for verdict in missing] == ["none"]


# --- age ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "seen", "publisher", "allowed"),
    [
        ({}, None, "never", False),
        ({"timestamp": (NOW - 99 * DAY) * 1000}, None, "never", False),
        ({"timestamp": (NOW - 99 * DAY) * 1000}, None, "always", True),
        ({"timestamp": (NOW - 99 * DAY) * 1000}, (1, True), "baseline", True),
        ({"timestamp": (NOW - 99 * DAY) * 1000}, (1, False), "baseline", False),
        ({"indexed_timestamp": (NOW - 8 * DAY) * 1000}, None, "never", True),
        ({"indexed_timestamp": (NOW - 6 * DAY) * 1000}, (8, False), "never", True),
        ({}, (8, True), "never", True),
        ({}, (6, True), "never", False),
    ],
)
def test_age_rests_on_the_earliest_evidence_that_can_be_trusted(record, seen, publisher, allowed):
    package = make_package("a", **record)
    key = (package.channel, package.sha256)
    sightings = {key: Sighting(at=NOW - seen[0] * DAY, baseline=seen[1])} if seen else {}
    found = judged(
        rule("age", minimum="7 days", publisher_timestamp=publisher),
        of=lock(package),
        evidence=Known(now=NOW, seen=sightings),
    )
    assert (not found) == allowed


def test_a_long_text_is_no_age_and_found_so_at_once():
    """Spaces at two places would be tried in all ways: for hours, of which a server has none."""
    with pytest.raises(RuleError) as caught:
        rule("age", minimum="1" + " " * 500_000 + "x")
    assert "is not an age" in str(caught.value.faults[0])


def test_an_age_can_differ_by_channel_and_exempt_packages():
    new = lock(make_package("a"), make_package("ours-a"))
    assert not judged(rule("age", minimum="7 days", channels={CHANNEL: "0 days"}), of=new)
    exempt = judged(rule("age", "enforce", minimum="7 days", **{"except": ["ours-*"]}), of=new)
    assert [verdict.package.name for verdict in exempt] == ["a"]


# --- the rest -------------------------------------------------------------------------------------


def test_a_verdict_names_the_rule_the_package_and_the_chain():
    of = lock(
        make_package("c", license="AGPL-3.0-only"),
        make_package("b", depends=["c"]),
        make_package("a", depends=["b >=1"]),
    )
    [found] = judged(rule("licenses", deny=["AGPL-*"], reason="legal"), of=of)
    assert found.chain == ("a", "b", "c")
    assert found.policy == "7"
    assert found.sentence == (
        "c 1.0 is under AGPL-3.0-only, which is not allowed (rule “our licenses”: legal); "
        "required through a → b → c."
    )


def test_a_package_that_platforms_share_is_spoken_of_once():
    of = lock(make_package("a"), platforms=("linux-64", "osx-arm64"))
    assert len(judged(rule("packages-denied", packages=["a"]), of=of)) == 1


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (rule("size", packages=1), "has 2 packages; 1 are allowed"),
        (rule("size", bytes="1 kB"), "are allowed"),
        (rule("required", packages=["ca-certificates"]), "is required in every environment"),
        (rule("constraints", packages=["b >=2"]), "does not match b >=2"),
        (rule("pins", packages={"b": "2.*"}), "does not match b 2.*"),
        (rule("channels", packages={"b": ["pytorch"]}), "only pytorch is allowed"),
    ],
)
def test_each_kind_says_what_it_objects_to(one, says):
    [found] = judged(one, of=lock(make_package("a"), make_package("b")))
    assert says in found.reason
    assert found.package is not None


def test_install_scripts_are_refused_once_they_are_known():
    package = make_package("a")
    one = rule("install-scripts")
    assert not judged(one, of=lock(package))
    seen = Known(now=NOW, found_scripts={package.sha256: ("bin/.a-post-link.sh",)})
    [found] = judged(one, of=lock(package), evidence=seen)
    assert "post-link" in found.reason


def test_the_license_that_a_package_names_itself_counts_where_it_is_stricter():
    package = make_package("a", license="MIT")
    one = rule("licenses", deny=["AGPL-*"], missing="accept")

    def said(own: str) -> list[str]:
        known = Known(now=NOW, own_licenses={package.sha256: own})
        return [found.reason for found in judged(one, of=lock(package), evidence=known)]

    assert said("") == said("BSD-3-Clause") == []
    [reason] = said("AGPL-3.0-only")
    assert "says of itself that it is under AGPL-3.0-only" in reason
    worse = make_package("a", license="AGPL-3.0-only")
    [found] = judged(one, of=lock(worse))
    assert "itself" not in found.reason


def test_a_source_distribution_is_no_wheel():
    wheel = pypi("app")
    assert not judged(rule("pypi", packages="wheels"), of=lock(wheels=(wheel,)))
    [found] = judged(rule("pypi"), of=lock(wheels=(wheel,)))
    assert "Python index" in found.reason


def test_channels_and_names_are_refused_before_any_solve():
    policy = Policy(rules=(rule("channels", deny=[CHANNEL]),), version="1")
    with pytest.raises(ChannelNotAllowedError, match="not allowed here"):
        judge_names(policy, asked("a"))
    policy = Policy(
        rules=(rule("packages-denied", packages=["a", "b <2"]), rule("pypi")), version="1"
    )
    with pytest.raises(PolicyError) as caught:
        judge_names(policy, asked("a >=1", "b", pip=("httpx>=0.28",)))
    assert [each["subject"] for each in caught.value.details["verdicts"]] == ["a", "httpx"]


# --- decisions ------------------------------------------------------------------------------------


def decision(number: int, *, approved: bool = True, **options: Any) -> Ruling:
    return Ruling(id=number, approved=approved, manager="conda", reason="so", **options)


@pytest.mark.parametrize(
    ("rulings", "effect"),
    [
        ((), Effect.ASK),
        ((decision(1, spec="a"),), None),
        ((decision(1, spec="a >=2"),), Effect.ASK),
        ((decision(1, spec="a", channel="https://other.example.org"),), Effect.ASK),
        ((decision(1, spec="a", approved=False),), Effect.ENFORCE),
        ((decision(1, spec="a", approved=False), decision(2, spec="a")), None),
        ((decision(1, spec="a"), decision(2, spec="a", approved=False)), Effect.ENFORCE),
        # What the whole installation rejects, a namespace cannot approve.
        (
            (decision(1, spec="a", approved=False, everywhere=True), decision(2, spec="a")),
            Effect.ENFORCE,
        ),
    ],
)
def test_the_newest_decision_holds_and_none_loosens_that_of_all(rulings, effect):
    found = judged(
        rule("packages-denied", "ask", packages=["a"]), of=lock(make_package("a")), rulings=rulings
    )
    assert ([verdict.effect for verdict in found] or [None]) == [effect]


def test_a_decision_about_bytes_is_about_no_others():
    mine, other = make_package("a", build="h0_0"), make_package("a", build="h0_1")
    one = rule("packages-denied", "ask", packages=["a"])
    yes = (decision(1, sha256=mine.sha256),)
    assert not judged(one, of=lock(mine), rulings=yes)
    assert judged(one, of=lock(other), rulings=yes)


def test_an_approval_does_not_lift_what_another_rule_refuses():
    found = judged(
        rule("packages-denied", "ask", packages=["a"]),
        rule("licenses", deny=["MIT"]),
        of=lock(make_package("a")),
        rulings=(decision(1, spec="a"),),
    )
    assert [(verdict.rule, verdict.effect) for verdict in found] == [
        ("our licenses", Effect.ENFORCE)
    ]


def test_a_question_about_a_whole_lock_can_be_decided_too():
    one = rule("size", "ask", packages=1)
    of = lock(make_package("a"), make_package("b"))
    [question] = judged(one, of=of)
    assert (question.package.manager, question.package.name) == ("rule", "our size")
    yes = Ruling(id=1, approved=True, manager="rule", name="our size")
    assert not judged(one, of=of, rulings=(yes,))


# --- as written -----------------------------------------------------------------------------------


def test_every_kind_has_a_summary_travels_and_says_what_its_settings_mean():
    least: dict[str, dict[str, Any]] = {
        "channels": {"allow": ["conda-forge"]},
        "packages-denied": {"packages": "numpy <2"},
        "age": {"minimum": 14},
        "constraints": {"packages": ["openssl >=3"]},
        "pins": {"packages": {"python": "3.12.*"}},
        "required": {"packages": ["pip"]},
        "size": {"bytes": "5 GB"},
    }
    for kind in KINDS:
        created = rule(kind, **least.get(kind, {}))
        assert created.summary, kind
        assert "\n" not in created.summary
        assert pickle.loads(pickle.dumps(created)) == created  # noqa: S301
        assert "reason" in created.settings_help, kind


@pytest.mark.parametrize(
    ("kind", "content", "where"),
    [
        ("licenses", {"alow": ["MIT"]}, "settings.alow"),
        ("licenses", {"deny": ["no-license"]}, "settings.deny[0]"),
        ("licenses", {"map": {"x": "no such thing"}}, "settings.map.x"),
        ("age", {"minimum": "soon"}, "settings.minimum"),
        ("age", {}, "settings.minimum"),
        ("packages-denied", {}, "settings.packages"),
        ("packages-denied", {"packages": ["numpy =>2"]}, "settings.packages[0]"),
        ("constraints", {"packages": ["openssl*"]}, "settings.packages[0]"),
        ("size", {"packages": 0}, "settings.packages"),
        ("size", {"bytes": "much"}, "settings.bytes"),
        ("channels", {"allow": ["https://user@host/x"]}, "settings.allow[0]"),
        ("no-such-kind", {}, "kind"),
        ("pins", "text", "settings"),
    ],
)
def test_a_fault_of_a_rule_is_told_with_its_place(kind, content, where):
    with pytest.raises(RuleError) as caught:
        parse_rule(kind=kind, effect="enforce", name="x", settings=content)
    assert where in [fault.where for fault in caught.value.faults]


def test_a_line_is_read_once_and_means_the_same_written_again():
    for text in ("numpy >=1.26,<2", "conda-forge::openssl <3", "pypi:requests", "*-gpl 1.*"):
        once = package_spec(text, wide=True)
        assert package_spec(once.text, wide=True) == once
