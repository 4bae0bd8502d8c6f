"""Check the wording of code: `python .ci/check_texts.py [PATH...]`.

Refused are modules without a docstring, docstrings whose first line is a question or has no end,
names and phrases for which the field has a term, product files of more than 600 lines that give no
reason, elements of the GraphQL schema without a description, and private names of libraries outside
`_private.py` (see `check_private_names.py`).
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from check_private_names import names_defined, private_uses

PRODUCT = ("accounts", "condastore", "environments")
ROOTS = (*PRODUCT, "deploy", "tests", ".ci")
MAX_LINES = 600
#: What a module of more than `MAX_LINES` says in its docstring before the reason.
REASON = "One file:"

#: Phrases of comments, docstrings and messages, with what to write in their place.
PHRASES = {
    r"licen[c]e": "license",
    r"\bgoodbye\b": "name what happens when the process ends",
    r"\bwhoever\b": "name the role: the caller, the worker, an approver",
    r"\bgoes? on\b": "continues",
    r"\b(?:is|are|was|were|be) told\b": "is notified, is reported, receives",
    r"\bis no (?:number|name|file|text)\b": "is not a ...; must be a ...",
    r"\b(?:is|are) made anew\b": "is created again",
    r"\bdoors? (?:is|are|that|which|of|call)\b": "interface",
    r"\blooked? at them again\b": "polls",
    r"\bby the words? of\b": "according to",
    r"\bcomes? upon\b": "finds",
    r"\bas (?:it|they) came\b": "unchanged",
    r"\bhow it came about\b": "cause",
    r"\bany more by itself\b": "no longer changes",
}
#: Identifiers that say nothing of what they hold.
NAMES = {"go_on", "FEW", "MOST", "AGAIN", "OTHERS_TURN"}

#: Files that have to name what is refused.
EXEMPT = {
    Path(".ci/check_texts.py"),
    Path("tests/environments/models/test_license_spelling.py"),
}

_PHRASES = [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in PHRASES.items()]


def faults_of(path: Path) -> Iterator[tuple[int, str]]:
    """Faults of one Python file: (line number from 1, message)."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree)
    if text.strip() and not docstring:
        yield 1, "The module has no docstring."
    if (
        path.parts[0] in PRODUCT
        and text.count("\n") > MAX_LINES
        and REASON not in (docstring or "")
    ):
        yield (
            1,
            f"More than {MAX_LINES} lines: split it by subject, or say why not ({REASON!r} ...).",
        )
    yield from private_uses(path, tree, _product_names())
    yield from _docstrings(tree)
    yield from _names(tree)
    yield from _phrases(text)


@cache
def _product_names() -> set[str]:
    files = [path for root in PRODUCT for path in Path(root).rglob("*.py")]
    return names_defined([ast.parse(path.read_text(encoding="utf-8")) for path in files])


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if not isinstance(node, kinds) or not (docstring := ast.get_docstring(node)):
            continue
        line = node.body[0].lineno
        paragraph = docstring.partition("\n\n")[0].strip()
        if "?" in re.sub(r"`[^`]*`", "", docstring.partition("\n")[0]):
            yield line, "The first line of the docstring is a question: name the thing."
        if not paragraph.endswith((".", ":", "!", "`", '"')):
            yield line, "The first paragraph of the docstring does not end with a full stop."


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        name = getattr(node, "name", None) if isinstance(node, ast.FunctionDef) else None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if name in NAMES:
            yield getattr(node, "lineno", 1), f"{name} does not say what it holds."


def _phrases(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and "licence" in token.string.lower():
            yield token.start[0], f"{token.string}: license."
        if token.type not in (tokenize.STRING, tokenize.COMMENT):
            continue
        for pattern, instead in _PHRASES:
            if found := pattern.search(token.string):
                line = token.start[0] + token.string.count("\n", 0, found.start())
                yield line, f"{found.group()!r}: {instead}."


def schema_faults(path: Path) -> Iterator[tuple[int, str]]:
    """Elements of the GraphQL schema without a description: (line number, message)."""
    from graphql import parse
    from graphql.language import ast as nodes
    from graphql.language.visitor import Visitor, visit

    found: list[tuple[int, str]] = []

    class Undescribed(Visitor):
        def enter(self, node: nodes.Node, *_: object) -> None:
            described = isinstance(
                node,
                nodes.TypeDefinitionNode
                | nodes.FieldDefinitionNode
                | nodes.InputValueDefinitionNode
                | nodes.EnumValueDefinitionNode
                | nodes.DirectiveDefinitionNode,
            )
            # @oneOf is part of the specification of GraphQL; strawberry prints it as it is there.
            specified = (
                isinstance(node, nodes.DirectiveDefinitionNode) and node.name.value == "oneOf"
            )
            if described and not specified and node.description is None:  # type: ignore[attr-defined]
                line = node.loc.start_token.line if node.loc else 1
                found.append((line, f"{node.name.value} has no description."))  # type: ignore[attr-defined]

    visit(parse(path.read_text(encoding="utf-8")), Undescribed())
    yield from found


def main(arguments: list[str]) -> int:
    """Print the faults of the files below `arguments`, all by default; 1 if there are any."""
    number = 0
    for root in map(Path, arguments or [*ROOTS, "schema.graphql"]):
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            if "migrations" in path.parts or path in EXEMPT:
                continue
            faults = schema_faults(path) if path.suffix == ".graphql" else faults_of(path)
            for line, message in faults:
                print(f"{path}:{line}: {message}")
                number += 1
    if number:
        print(f"{number} faults of wording; CONTRIBUTING.md says how texts read here.")
    return 1 if number else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
