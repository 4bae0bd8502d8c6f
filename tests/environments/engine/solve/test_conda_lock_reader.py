"""Cross-check of imported locks by conda-lock, and its messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from condastore.errors import SpecificationError
from environments.domain.lock import Lock
from environments.domain.lockfiles import read_conda_lock
from environments.domain.rendering import conda_lock_yml
from environments.engine.solve.conda_lock_reader import confirm
from tests.environments.domain.packages import CHANNEL, conda, platform_lock

LOCK = Lock(channels=(CHANNEL,), platforms=(platform_lock(conda("a")),))


def _document(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(conda_lock_yml(LOCK))
    document["package"][0] |= changes
    return document


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_a_lock_is_read_alike_in_each_of_its_forms(write: Any) -> None:
    document = _document()
    del document["version"]
    for text in (write(document), write({"name": "\U0001f40d", "lockfile": _document()})):
        confirm(text, LOCK)


@pytest.mark.filterwarnings("ignore")
def test_a_validator_of_conda_lock_is_quoted_without_its_links() -> None:
    text = json.dumps(_document(optional="perhaps", category=["main"]))
    lock = read_conda_lock(text)
    with pytest.raises(SpecificationError) as caught:
        confirm(text, lock)
    assert caught.value.faults
    for fault in caught.value.faults:
        assert fault.message.startswith("conda-lock cannot read this file: ")
        assert fault.where.startswith("package.0.")
        for word in ("pydantic", "http", "input_", "perhaps", "\n"):
            assert word not in fault.message
    assert "conda-lock lock" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_other_packages_are_refused() -> None:
    other = Lock(channels=(CHANNEL,), platforms=(platform_lock(conda("b")),))
    with pytest.raises(SpecificationError, match="reads different packages"):
        confirm(json.dumps(_document()), other)
