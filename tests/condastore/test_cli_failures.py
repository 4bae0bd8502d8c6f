"""Failures of builds and previews as the command line prints them."""

from __future__ import annotations

import pytest

from condastore.cli.errors import operation_error
from condastore.cli.render import failure_lines


@pytest.mark.parametrize(("own", "shown"), [("Write numpy.", "Write numpy."), ("", "Correct it.")])
def test_one_fault_has_one_hint(own: str, shown: str) -> None:
    fault = {"message": "no such package", "where": "dependencies[0]", "hint": own}
    payload = {"message": "Invalid.", "hint": "Correct it.", "faults": [fault]}
    for lines in (operation_error(payload).lines(), failure_lines(payload)):
        assert [line.strip() for line in lines if "hint:" in line] == [f"hint: {shown}"]


@pytest.mark.parametrize(
    ("requirements", "heading"),
    [(["pandas <2"], "this has no solution:"), (["a 1", "a 2"], "these exclude each other:")],
)
def test_only_several_requirements_are_said_to_exclude_each_other(
    requirements: list[str], heading: str
) -> None:
    conflict = {"requirements": requirements, "reason": "it does not exist", "chain": []}
    lines = failure_lines({"message": "There is no solution.", "conflicts": [conflict]})
    assert heading in [line.strip() for line in lines]
