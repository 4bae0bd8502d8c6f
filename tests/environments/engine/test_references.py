"""Parsing of image references of other registries."""

from __future__ import annotations

import pytest

from condastore.errors import InvalidInputError
from environments.engine.images.remote import Reference


@pytest.mark.parametrize(
    ("text", "address", "tag"),
    [
        ("registry.example.org/base", "https://registry.example.org/v2/base", "latest"),
        ("docker.io/library/debian:12", "https://registry-1.docker.io/v2/library/debian", "12"),
        ("http://[::1]:5000/a/b:x", "http://[::1]:5000/v2/a/b", "x"),
        ("r.example.org/a__b/c--d/e.f_g:1", "https://r.example.org/v2/a__b/c--d/e.f_g", "1"),
    ],
)
def test_a_reference_leads_to_one_repository(text: str, address: str, tag: str) -> None:
    found = Reference.parse(text)
    assert (found.address, found.tag) == (address, tag)


@pytest.mark.parametrize(
    "name", ["team/../other/x", "team/./x", "team//x", "../x", "team/x/..", "a..b", "a/-b"]
)
def test_no_reference_can_leave_its_repository_path(name: str) -> None:
    with pytest.raises(InvalidInputError, match="is not the name of an image"):
        Reference.parse(f"registry.example.org/{name}")
