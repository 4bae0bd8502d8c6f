"""Every document that the command line sends is one that the server understands."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from graphql import GraphQLSchema, build_schema, parse, validate

from condastore.cli import graphql_fragments, queries

SCHEMA = Path(__file__).parents[2] / "schema.graphql"
DOCUMENTS = {
    name: value
    for name, value in vars(queries).items()
    if isinstance(value, str)
    and name.isupper()
    and not name.startswith("_")
    and not hasattr(graphql_fragments, name)
}


@cache
def schema() -> GraphQLSchema:
    return build_schema(SCHEMA.read_text())


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_the_document_fits_the_schema(name: str):
    assert validate(schema(), parse(DOCUMENTS[name])) == []


def test_every_document_is_looked_at():
    assert len(DOCUMENTS) > 30
