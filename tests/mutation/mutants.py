"""Small changes to the functions of a module, each of which its tests should notice."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change: where it is, what it is, and the code of the function that has it."""

    module: str
    function: str
    line: int
    change: str
    code: CodeType

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.function}: {self.change}"

    def apply(self) -> None:
        """Give the imported function the changed code, wherever it was imported to."""
        function = _function(self.module, self.function)
        assert function is not None
        function.__code__ = self.code


def mutants_of(module: str, *, number: int, seed: int) -> list[Mutant]:
    """At most `number` mutants of a module, chosen by `seed`, in the order of its lines."""
    path = importlib.import_module(module).__file__
    assert path is not None
    tree = ast.parse(Path(path).read_text())
    count = sum(1 for _ in _changes(tree))
    # More than needed: functions that decorators hide are left out.
    chosen = random.Random(seed).sample(range(count), count)
    found: list[tuple[int, Mutant]] = []
    for index in chosen:
        if len(found) == number:
            break
        changed = copy.deepcopy(tree)
        name, line, change, apply = next(
            change for position, change in enumerate(_changes(changed)) if position == index
        )
        function = _function(module, name)
        if function is None:
            continue
        apply()
        compiled = compile(ast.fix_missing_locations(changed), path, "exec", dont_inherit=True)
        code = _code(compiled, name)
        if code is not None and code.co_freevars == function.__code__.co_freevars:
            mutant = Mutant(module=module, function=name, line=line, change=change, code=code)
            found.append((index, mutant))
    return [mutant for _, mutant in sorted(found, key=lambda pair: pair[0])]


Change = tuple[str, int, str, Callable[[], None]]


def _changes(tree: ast.Module) -> Iterator[Change]:
    """Each possible change: the outermost function, the line, its description, what makes it."""
    for name, function in _functions(tree.body, ""):
        for node in _inside(function):
            for description, apply in _changes_of(node):
                yield name, getattr(node, "lineno", function.lineno), description, apply


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, _Function]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


def _inside(function: _Function) -> Iterator[ast.AST]:
    """The nodes of its body, without docstrings, annotations and messages of errors."""
    waiting: list[ast.AST] = list(reversed(function.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise | ast.AnnAssign) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            continue
        yield node
        waiting += reversed(list(ast.iter_child_nodes(node)))


def _changes_of(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            if other := _OPERATORS.get(type(operator)):
                yield (
                    f"{type(operator).__name__} -> {other.__name__}",
                    functools.partial(node.ops.__setitem__, index, other()),  # type: ignore[arg-type]
                )
    elif isinstance(node, ast.BoolOp | ast.BinOp):
        if other := _OPERATORS.get(type(node.op)):
            description = f"{type(node.op).__name__} -> {other.__name__}"
            yield description, functools.partial(setattr, node, "op", other())
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        opposite = ast.UnaryOp(op=ast.Not(), operand=node.test)
        yield "condition negated", functools.partial(setattr, node, "test", opposite)
    elif isinstance(node, ast.Return) and node.value is not None:
        nothing = ast.Constant(value=None)
        yield "returns None", functools.partial(setattr, node, "value", nothing)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        nothing = ast.Constant(value=None)
        yield "call left out", functools.partial(setattr, node, "value", nothing)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} -> {value}", functools.partial(setattr, node, "value", value)


def _code(code: CodeType, name: str) -> CodeType | None:
    first, _, rest = name.partition(".")
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and constant.co_name == first:
            return _code(constant, rest) if rest else constant
    return None


def _function(module: str, name: str) -> FunctionType | None:
    """The function that a name leads to, below its decorators; None if they hide it."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None)
    for attribute in ("fget", "func", "__func__"):
        found = getattr(found, attribute, None) or found
    while not isinstance(found, FunctionType) or hasattr(found, "__wrapped__"):
        if not hasattr(found, "__wrapped__"):
            return None
        found = found.__wrapped__
    return found if found.__code__.co_name == name.rpartition(".")[2] else None
