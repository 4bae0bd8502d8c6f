"""Every element of the schema has a description that stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    is_introspection_type,
    is_specified_scalar_type,
)

from condastore.schema import schema
from environments.graphql._private import graphql_schema


def elements(shown: GraphQLSchema) -> Iterator[tuple[str, str | None]]:
    """Name and description of each type, field, argument, input and enum value."""
    for name, kind in shown.type_map.items():
        if is_introspection_type(kind) or is_specified_scalar_type(kind):
            continue
        yield name, kind.description
        if isinstance(kind, GraphQLEnumType):
            for value, one in kind.values.items():
                yield f"{name}.{value}", one.description
        if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType):
            fields: dict[str, Any] = kind.fields
            for field, definition in fields.items():
                yield f"{name}.{field}", definition.description
                for argument, one in getattr(definition, "args", {}).items():
                    yield f"{name}.{field}({argument})", one.description


def test_every_element_is_described() -> None:
    assert [name for name, text in elements(graphql_schema(schema)) if not text] == []


def test_no_description_is_a_fragment_or_a_question() -> None:
    for name, text in elements(graphql_schema(schema)):
        assert text is not None, name
        assert text[0].isupper() or text[0] in "`0123456789", (name, text)
        assert not text.startswith(("Of ", "By the ", "That ", "Their ", "Its ")), (name, text)
        assert "?" not in text, (name, text)
