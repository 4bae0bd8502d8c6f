"""Check that private names of libraries are used in `_private.py` only.

Run by `check_texts.py`. Private are names that begin with an underscore and modules below
`internal`. Names that a library documents for its users are in `DOCUMENTED`. Annotations are not
evaluated, so they may name what exists for the type checker only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PRODUCT = ("accounts", "condastore", "environments", "deploy")
#: Documented by Django (`_meta`, managers, `_state`, storages) and by Python's library.
DOCUMENTED = {
    "_meta",
    "_state",
    "_default_manager",
    "_base_manager",
    "_replace",
    "_make",
    "_asdict",
    "_fields",
    "_exit",
}
#: Modules that collect private names, with a test that fails when a library changes them.
COLLECTED = "_private.py"
ADVICE = (
    "use a public name, or add a function to the package's _private.py and a test of what it does"
)
_MODULE = re.compile(r"[a-z][a-z0-9]*\.(?:\w+\.)*_[a-z]\w*")
_OWN = ("self", "cls", "super()")
_FUNCTIONS = {"getattr", "setattr", "hasattr", "delattr"}


def names_defined(trees: list[ast.Module]) -> set[str]:
    """Return the underscored names that our own classes and modules define."""
    return {name for tree in trees for name in _defined(tree)}


def private_uses(path: Path, tree: ast.Module, inherited: set[str]) -> Iterator[tuple[int, str]]:
    """Yield uses of private names in one file: (line number from 1, message).

    Args:
        inherited: `names_defined` of the product, which `self` may have from another module.
    """
    if path.parts[0] not in PRODUCT or path.name == COLLECTED:
        return
    own = set(_defined(tree))
    for node in _evaluated(tree):
        name = ""
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            foreign = not module.startswith(PRODUCT) and not node.level
            names = [*module.split("."), *(one.name for one in node.names)] if foreign else []
            name = next(filter(_is_private, names), "")
        elif isinstance(node, ast.Import):
            parts = [part for one in node.names for part in one.name.split(".")]
            name = next(filter(_is_private, parts), "")
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            known = own | inherited if ast.unparse(node.value) in _OWN else own
            name = "" if node.attr in known else node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _FUNCTIONS:
            given = node.args[1] if len(node.args) > 1 else None
            if isinstance(given, ast.Constant) and _is_private(str(given.value)):
                name = "" if given.value in own else str(given.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value if _MODULE.fullmatch(node.value) else ""
        if name:
            yield node.lineno, f"{name} is private to its library: {ADVICE}."


def _is_private(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name == "internal" or (name.startswith("_") and not dunder and name not in DOCUMENTED)


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in _OWN
        ):
            yield node.attr


def _evaluated(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Yield the nodes below `node` without annotations."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                if isinstance(child, ast.expr | ast.stmt):
                    yield child
                yield from _evaluated(child)
