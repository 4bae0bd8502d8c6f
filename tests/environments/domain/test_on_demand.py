"""Names of images on demand."""

from __future__ import annotations

import json

import pytest

from condastore.errors import InvalidInputError
from environments.domain.on_demand import MAX_PACKAGES, OnDemand


@pytest.mark.parametrize(
    ("path", "dependencies"),
    [
        ("python.3.12/numpy.2/pandas", ["numpy =2", "pandas", "python =3.12"]),
        ("pandas/python.3.12/numpy.2", ["numpy =2", "pandas", "python =3.12"]),
        ("ruamel.yaml.0.18", ["ruamel.yaml =0.18"]),
        ("ruamel.yaml", ["ruamel.yaml"]),
        ("scikit-learn.1.5.2", ["scikit-learn =1.5.2"]),
        ("7zip", ["7zip"]),
    ],
)
def test_a_path_names_packages_in_any_order(path: str, dependencies: list[str]) -> None:
    assert json.loads(OnDemand.parse(path).specification) == {"dependencies": dependencies}


def test_the_order_makes_no_other_environment() -> None:
    one, other = OnDemand.parse("numpy.2/python"), OnDemand.parse("python/numpy.2")
    assert one.name == other.name != OnDemand.parse("numpy.1/python").name


@pytest.mark.parametrize("path", ["", "a//b", "a/a", "UPPER", "a b", "..", "a/../b", "-x", "x;y"])
def test_what_is_no_list_of_packages_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError):
        OnDemand.parse(path)


def test_a_long_text_is_refused_before_it_is_read() -> None:
    """Reading it would take minutes, in which a web process answers nobody."""
    with pytest.raises(InvalidInputError, match="is not a package"):
        OnDemand.parse("a" + ".1" * 50_000 + "!")


def test_all_faults_are_told_at_once() -> None:
    many = "/".join(f"p{number}" for number in range(MAX_PACKAGES + 1))
    with pytest.raises(InvalidInputError, match=r"'A' is not a package.*more than"):
        OnDemand.parse(f"A/{many}")
