"""What changed between two locks, and why a package is in one."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from environments.domain.diff import ChangeKind, compare_versions, diff, needed_by, why
from environments.domain.lock import Lock, dependency_order, required_name
from tests.environments.domain.packages import conda, locks, platform_lock, pypi


def test_a_diff_names_what_came_what_went_and_what_changed() -> None:
    old = platform_lock(
        conda("python", "3.11.2"),
        conda("numpy", "1.24", size=10),
        conda("gone"),
        pypi("six", "1.9"),
    )
    new = platform_lock(
        conda("python", "3.11.2"),
        conda("numpy", "2.3", size=30, license="BSD-3-Clause", channel="https://h.org/own"),
        conda("fresh", size=7),
        pypi("six", "1.16"),
    )
    found = diff(old, new)
    assert [p.name for p in found.added] == ["fresh"]
    assert [p.name for p in found.removed] == ["gone"]
    assert [(c.manager, c.name, c.kind) for c in found.changed] == [
        ("conda", "numpy", ChangeKind.UPGRADE),
        ("pypi", "six", ChangeKind.UPGRADE),
    ]
    numpy = found.changed[0]
    assert numpy.size_delta == 20
    assert numpy.channel_changed
    assert numpy.license_changed
    assert found.size_delta == 20 + 7 - 1000


def test_versions_are_compared_by_the_order_of_their_manager() -> None:
    assert compare_versions("1.9", "1.10", "conda") < 0
    assert compare_versions("1.1.1k", "1.1.1l", "conda") < 0
    assert compare_versions("1.0", "1.0.0", "conda") == 0
    assert compare_versions("1.0rc1", "1.0", "pypi") < 0
    assert compare_versions("not a version", "1.0", "pypi") > 0


def test_another_build_of_a_version_is_a_rebuild_and_a_lower_version_a_downgrade() -> None:
    old = platform_lock(conda("a", "1.0", build="h0_0"), conda("b", "2.0"))
    new = platform_lock(conda("a", "1.0", build="h0_1"), conda("b", "1.0"))
    assert [c.kind for c in diff(old, new).changed] == [ChangeKind.REBUILD, ChangeKind.DOWNGRADE]


def test_the_same_bytes_from_a_mirror_are_no_change() -> None:
    here = conda("a", sha256="0" * 64)
    there = conda("a", sha256="0" * 64, channel="https://mirror.example.org/conda-forge")
    assert not diff(platform_lock(here), platform_lock(there))


def test_a_package_that_moves_to_pypi_is_removed_and_added() -> None:
    found = diff(platform_lock(conda("six")), platform_lock(pypi("six")))
    assert ([p.name for p in found.added], [p.name for p in found.removed]) == (["six"], ["six"])
    assert not found.changed


def test_against_nothing_everything_is_added() -> None:
    new = platform_lock(conda("a"), pypi("b"))
    assert [p.name for p in diff(None, new).added] == ["a", "b"]
    assert [p.name for p in diff(new, None).removed] == ["a", "b"]


@settings(max_examples=40, deadline=None)
@given(locks(), locks())
def test_a_diff_backwards_mirrors_it(one: Lock, two: Lock) -> None:
    old, new = one.platforms[0], two.platforms[0]
    forth, back = diff(old, new), diff(new, old)
    assert forth.added == back.removed
    assert forth.removed == back.added
    assert [(c.old, c.new) for c in forth.changed] == [(c.new, c.old) for c in back.changed]
    assert forth.size_delta == -back.size_delta
    assert not diff(old, old)


LOCK = platform_lock(
    conda("python", depends=("openssl >=3", "pip")),
    conda("pip", depends=("python >=3.9",)),
    conda("openssl"),
    conda("numpy", depends=("python >=3.11,<3.12.0a0", "libblas")),
    conda("pandas", depends=("python", "numpy >=1.26,<3", "python-dateutil")),
    conda("python-dateutil", depends=("six >=1.5",)),
    conda("six", depends=("python",)),
    conda("libblas", depends=("__glibc >=2.17",)),
    pypi("httpx", requires=("anyio", "h11")),
    pypi("anyio", requires=("Python_Dateutil",)),
    pypi("h11"),
)


def test_why_gives_the_chains_from_what_was_asked_for_the_shortest_first() -> None:
    assert why(LOCK, ["pandas >=2", "numpy"], "libblas") == (("numpy", "libblas"),)
    assert why(LOCK, ["pandas", "httpx[http2]>=0.28"], "six") == (
        ("pandas", "python-dateutil", "six"),
        ("httpx", "anyio", "python-dateutil", "six"),
    )
    assert why(LOCK, ["pandas"], "libblas") == (("pandas", "numpy", "libblas"),)


def test_why_of_what_was_asked_for_is_the_request_itself() -> None:
    assert why(LOCK, ["conda-forge::numpy 1.*", "pandas"], "NumPy")[0] == ("numpy",)


def test_why_of_what_nothing_needs_is_empty() -> None:
    assert why(LOCK, ["numpy"], "httpx") == ()
    assert why(LOCK, ["numpy"], "unheard-of") == ()


def test_a_package_of_pypi_hangs_from_condas_python() -> None:
    assert why(LOCK, ["httpx"], "openssl", limit=1) == (("httpx", "python", "openssl"),)


def test_a_cycle_ends() -> None:
    assert why(LOCK, ["python"], "pip") == (("python", "pip"),)
    assert why(LOCK, ["pip"], "python") == (("pip", "python"),)


def test_a_densely_connected_lock_is_answered_within_the_limit() -> None:
    names = [f"p{index:03d}" for index in range(200)]
    packages = [
        conda(name, depends=tuple(names[index + 1 : index + 30]))
        for index, name in enumerate(names)
    ]
    chains = why(platform_lock(*packages), ["p000"], "p199")
    assert 0 < len(chains) <= 10
    assert len(chains[0]) == min(len(chain) for chain in chains)
    assert all(chain[0] == "p000" and chain[-1] == "p199" for chain in chains)


def test_needed_by_names_the_direct_ones() -> None:
    assert needed_by(LOCK, "python-dateutil") == ("anyio", "pandas")


def test_names_are_read_from_every_form_of_a_dependency() -> None:
    forms = ["a", "a >=1", "a>=1", "a=1", "a[version='>=1']", "conda-forge::a 1.*", "A ~=1"]
    assert {required_name(form) for form in forms} == {"a"}


@settings(max_examples=60, deadline=None)
@given(locks(), st.randoms(use_true_random=False))
def test_the_order_has_dependencies_first_and_does_not_hang_on_the_input(
    lock: Lock, random: Random
) -> None:
    for part in lock:
        shuffled = list(part.conda)
        random.shuffle(shuffled)
        assert dependency_order(shuffled) == part.conda


def test_in_a_cycle_python_comes_first() -> None:
    names = [package.name for package in LOCK.conda]
    assert names.index("openssl") < names.index("python") < names.index("pip")
    assert names.index("numpy") < names.index("pandas")
