"""Reference of the GraphQL API, generated from schema.graphql."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLUnionType,
    build_schema,
    get_named_type,
)

SCHEMA = Path(__file__).parents[2] / "schema.graphql"
MARK = "<!-- schema: generated from schema.graphql by docs/_ext/schema_reference.py -->\n"
ROOTS = ("Query", "Mutation", "Subscription")
BUILT_IN = {"String", "Int", "Float", "Boolean", "ID"}


def markdown(schema: GraphQLSchema) -> str:
    """Return the root fields first, then all types by name."""
    names = [name for name in sorted(schema.type_map) if not name.startswith("__")]
    others = [name for name in names if name not in ROOTS and name not in BUILT_IN]
    order = [*(root for root in ROOTS if root in schema.type_map), *others]
    return "\n".join(_section(schema, schema.type_map[name]) for name in order)


def _section(schema: GraphQLSchema, kind: Any) -> str:
    lines = [f"(graphql-{kind.name.lower()})=", f"### {kind.name}", "", _text(kind.description), ""]
    if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
        rows = [_field(name, field) for name, field in kind.fields.items()]
        lines += ["| field | type | meaning |", "|---|---|---|", *rows]
    elif isinstance(kind, GraphQLInputObjectType):
        rows = [
            f"| `{name}` | {_link(field.type)} | {_text(field.description)} |"
            for name, field in kind.fields.items()
        ]
        lines += ["| input field | type | meaning |", "|---|---|---|", *rows]
    elif isinstance(kind, GraphQLEnumType):
        rows = [f"| `{name}` | {_text(one.description)} |" for name, one in kind.values.items()]
        lines += ["| value | meaning |", "|---|---|", *rows]
    elif isinstance(kind, GraphQLUnionType):
        lines += ["One of " + ", ".join(_link(one) for one in kind.types) + "."]
    elif isinstance(kind, GraphQLScalarType):
        lines += ["Scalar."]
    return "\n".join([*lines, ""])


def _field(name: str, field: Any) -> str:
    text = _text(field.description)
    arguments = "".join(
        f"<br>`{argument}`: {_link(value.type)}. {_text(value.description)}"
        for argument, value in field.args.items()
    )
    return f"| `{name}` | {_link(field.type)} | {text}{arguments} |"


def _link(kind: Any) -> str:
    named = get_named_type(kind).name
    shown = str(kind)
    if named in BUILT_IN:
        return f"`{shown}`"
    return f"[`{shown}`](#graphql-{named.lower()})"


def _text(text: str | None) -> str:
    """Fit a description into a table cell."""
    joined = " ".join((text or "").split())
    return re.sub(r"<(?=\w)", r"\<", joined).replace("|", "\\|")


def insert(app: Any, name: str, source: list[str]) -> None:
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, markdown(build_schema(SCHEMA.read_text())))
        app.env.note_dependency(str(SCHEMA))


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", insert)
    return {"parallel_read_safe": True}
