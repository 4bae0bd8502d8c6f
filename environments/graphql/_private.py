"""Private functions of strawberry and strawberry-django that have no public counterpart.

The only module that uses them. `tests/environments/graphql/test_private.py` fails when a release
changes one of them, and says what to do.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Model
from graphql import GraphQLResolveInfo, GraphQLSchema, get_named_type
from strawberry import Info
from strawberry.types import ExecutionContext
from strawberry_django.optimizer import (
    OptimizerConfig,
    OptimizerStore,
    _generate_selection_resolve_info,
    _get_model_hints,
    _get_selections,
)


def graphql_info(info: Info) -> GraphQLResolveInfo[Any]:
    """Return graphql-core's resolve info, of which strawberry shows a part only."""
    return info._raw_info


def graphql_schema(schema: Any) -> GraphQLSchema:
    """Return graphql-core's schema of a strawberry schema."""
    found: GraphQLSchema = schema._schema
    return found


def names_operation(context: ExecutionContext) -> bool:
    """Return True when the request says which operation of its document is run."""
    return context._provided_operation_name is not None


def enclosing_type(info: Info) -> str:
    """Return the name of the class that declares the field; empty when there is none."""
    origin = info._field.origin
    return origin.__name__ if origin else ""


def hints_below(info: Info, model: type[Model]) -> OptimizerStore | None:
    """Return what the optimizer would read of the rows of `model` that the field answers with."""
    raw = info._raw_info
    kind: Any = get_named_type(raw.return_type)
    schema: Any = info.schema
    return _get_model_hints(
        model,
        schema,
        schema.get_type_by_name(kind.name),
        parent_type=kind,
        info=raw,
        config=OptimizerConfig(prefetch_custom_queryset=True),
        level=1,
    )


def selected_below(info: GraphQLResolveInfo[Any], name: str) -> GraphQLResolveInfo[Any] | None:
    """Return the resolve info of the field `name` of the answer; None when it is not selected."""
    parent: Any = get_named_type(info.return_type)
    nodes = [
        node
        for same in _get_selections(info, parent).values()
        for node in same
        if node.name.value == name
    ]
    if not nodes:
        return None
    found: GraphQLResolveInfo[Any] = _generate_selection_resolve_info(
        info, nodes, parent.fields[name].type, parent
    )
    return found
