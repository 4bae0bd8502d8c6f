"""Imports that a module runs are found in its text; those of its functions are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.domain.python_imports import import_closure, imported_names


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a", ["a"]),
        ("import a.b as c, d  # e", ["a.b", "d"]),
        ("from a.b import c as x, d", ["a.b", "a.b.c", "a.b.d"]),
        ("from a import (  # why\n    b,\n    c as z,\n)\n", ["a", "a.b", "a.c"]),
        ("from a import *\r\nimport b\r\n", ["a", "b"]),
        ("from . import x", ["p.q", "p.q.x"]),
        ("from .. import x", ["p", "p.x"]),
        ("from ..r import x", ["p.r", "p.r.x"]),
        ("from .... import x", []),
        ("try:\n    import a\nexcept ImportError:\n    import b\n", ["a", "b"]),
        ("def f():\n    import a\nimport b\n", ["b"]),
        ("async def f():\n    import a\n", []),
        ("class C:\n    import a\n    def f(self):\n        import b\n    import c\n", ["a", "c"]),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b\n", ["b"]),
        ("if typing.TYPE_CHECKING:\n    import a\n", []),
        ('if __name__ == "__main__":\n    import a\n', []),
        ("def __getattr__(name):\n    import a\n", ["a"]),
        ("imported = 1\nfromage = 2\n# import a\n", []),
    ],
)
def test_what_a_module_imports(source: str, expected: list[str]) -> None:
    assert imported_names(source.encode(), module="p.q.m", is_package=False) == expected


def test_relative_imports_of_a_package_start_in_it() -> None:
    found = imported_names(b"from .a import b", module="p", is_package=True)
    assert found == ["p.a", "p.a.b"]


def test_the_closure_follows_packages_and_ends() -> None:
    texts = {"a": b"import b.c", "b": b"from . import d", "b.c": b"import a", "b.d": b"", "x": b""}
    modules = {"a": "a.py", "b": "b/__init__.py", "b.c": "b/c.py", "b.d": "b/d.py", "x": "x.py"}
    found = import_closure(["a", "gone"], modules, texts.__getitem__, most=10)
    assert sorted(found) == ["a", "b", "b.c", "b.d"]
    assert len(import_closure(["a"], modules, texts.__getitem__, most=2)) == 2


@given(st.binary(max_size=2_000), st.booleans())
def test_any_bytes_are_read(source: bytes, is_package: bool) -> None:
    for name in imported_names(source, module="p.q", is_package=is_package):
        assert name
