"""Two requirements are called disjoint only where rattler finds no version for both."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rattler import Version, VersionSpec

from environments.domain.version_ranges import disjoint, impossible

_number = st.integers(0, 3)
_part = st.builds(
    lambda number, letters, more: f"{number}{letters}{more if letters else ''}",
    _number,
    st.sampled_from(["", "", "", "", "a", "b", "rc", "dev", "post"]),
    _number,
)
_epoch = st.sampled_from(["", "", "", "1!"])
_prefixes = st.builds(
    lambda epoch, parts: epoch + ".".join(parts), _epoch, st.lists(_part, min_size=1, max_size=3)
)
_versions = st.builds(
    lambda prefix, local: prefix + local, _prefixes, st.sampled_from(["", "", "", "+l", "+1"])
)
_atoms = st.one_of(
    st.builds("{}{}".format, st.sampled_from(["==", ">=", "<=", ">", "<", "!="]), _versions),
    _prefixes.map("{}.*".format),
    _prefixes.map("={}".format),
    _prefixes.filter(lambda text: "." in text).map("~={}".format),
)
_requirements = st.lists(
    st.lists(_atoms, min_size=1, max_size=3).map(",".join), min_size=1, max_size=2
).map("|".join)


@settings(max_examples=150, deadline=None)
@given(_requirements, _requirements, st.lists(_versions, min_size=10, max_size=30))
def test_no_version_satisfies_two_requirements_that_are_called_disjoint(
    first: str, second: str, versions: list[str]
) -> None:
    one, two = VersionSpec(first), VersionSpec(second)
    for text in versions:
        version = Version(text)
        if one.matches(version):
            assert not impossible(first)
            if two.matches(version):
                assert not disjoint(first, second)


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ("1.24.*", "2.3.*", True),
        ("=1.24", "=1.2", True),
        ("=1.24", "=1.25", True),
        ("=3", "=4", True),
        ("==1.2", ">=1.3", True),
        ("1.24.*", "<1.20", True),
        ("1.24.*", ">=1.25", True),
        ("<2", ">=2", True),
        ("~=1.24", ">=2", True),
        ("==1.25.3", "1.24.*", True),
        (">=1|==0.5", "<0.5", True),
        ("(>=1,<2)|3.*", "4.*", True),
        ("<=2", ">=2", False),
        ("1.24.*", "1.24.3.*", False),
        ("==1.24.3", "1.24.*", False),
        ("1.0.*", "==1", False),
        ("!=1.2", "==1.2", False),  # not decided here: the solver says it
        ("^1\\.2$", "==3", False),
        ("one two", "==3", False),
    ],
)
def test_the_plain_cases_are_decided(first: str, second: str, apart: bool) -> None:
    assert disjoint(first, second) is apart
    assert disjoint(second, first) is apart


def test_a_requirement_that_excludes_every_version_is_impossible() -> None:
    assert impossible(">2,<1")
    assert not impossible(">2,<1|==5")
