"""How NAMESPACE/ENV[:BUILD] is read."""

from __future__ import annotations

import pytest

from condastore.cli.errors import CommandError, Status
from condastore.cli.references import Reference, parse_reference


def parse(text: str) -> Reference:
    return parse_reference(text, own_namespace=lambda: "alice")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("research/ml", ("research", "ml", "")),
        ("research/ml:12", ("research", "ml", "12")),
        ("research/ml:prod", ("research", "ml", "prod")),
        ("research/ml:current", ("research", "ml", "current")),
        ("ml", ("alice", "ml", "")),
        ("ml:3", ("alice", "ml", "3")),
    ],
)
def test_a_reference_names_a_namespace_an_environment_and_perhaps_a_build(
    text: str, parts: tuple[str, str, str]
):
    found = parse(text)
    assert (found.namespace, found.environment, found.build) == parts


@pytest.mark.parametrize(
    "text", ["", "/", "research/", "/ml", "a/b/c", "research/ml:", "a:1:2", ":3", "research/m l"]
)
def test_what_is_no_reference_is_refused_with_the_form(text: str):
    with pytest.raises(CommandError) as caught:
        parse(text)
    assert caught.value.status == Status.USAGE
    assert "NAMESPACE/ENV" in caught.value.hint


def test_the_own_namespace_is_not_asked_for_where_one_is_named():
    found = parse_reference("research/ml", own_namespace=pytest.fail)
    assert str(found) == "research/ml"
