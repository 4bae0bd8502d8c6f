"""Field executor that reads plain fields directly from their rows.

graphql-core makes for each field a path, a record of where it is, and a dictionary of arguments. A
field that is only read from its row needs none of these: it is read straight. What fails that way
is executed again by graphql-core, which reports the path of the error.

Measured, processor time of the schema for a list of 100 among 1,000, as administrator and as
member: 7.5 and 8.9 ms instead of 12.6 and 14.0 ms by strawberry's own execution context. To
measure again, run `python -m tests.benchmarks.executors`; remove the module when it saves less than
a tenth.
`tests/environments/graphql/test_prepared.py` compares its answers with those of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from graphql import (
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLField,
    GraphQLID,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLString,
    Undefined,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
)
from graphql.execution.executor import to_nodes
from graphql.execution.values import get_argument_values
from graphql.pyutils import Path
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
from strawberry.types.field import StrawberryField

from accounts.access import kind_of
from environments.graphql.connections import Pages, RowsWanted, checked_page
from environments.graphql.errors import in_event_loop
from environments.graphql.fields import Column, actor_in
from environments.graphql.prepared import (
    LONGEST,
    CursorError,
    NotPlainError,
    Remembered,
    prepare,
)

Read = Callable[[Any], Any]
#: What these types answer as it is.
AS_IT_IS: dict[str, type] = {
    GraphQLString.name: str,
    GraphQLID.name: str,
    GraphQLBoolean.name: bool,
}


#: Lists of which the statement and the shape of the answer are known.
_pages = Remembered()


class Straight(StrawberryGraphQLCoreExecutionContext):
    """Reads plain fields straight from their rows, and leaves the others to graphql-core."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: By the identity of a set of fields, which is kept here as long as its key.
        self._plans: dict[int, tuple[Any, dict[str, Read]]] = {}
        self._wrapped = bool(self.middleware_manager and self.middleware_manager.middlewares)

    def execute_fields(
        self,
        parent_type: GraphQLObjectType,
        source_value: Any,
        path: Path | None,
        grouped_field_set: Any,
        position_context: Any,
    ) -> Any:
        readers = self._readers(parent_type, grouped_field_set)
        results: dict[str, Any] = {}
        for name, read in readers.items():
            try:
                results[name] = read(source_value)
            except Exception:  # noqa: S112 - it is raised again below and reported there
                continue
        if parent_type is self.schema.query_type and not in_event_loop():
            for name, details in grouped_field_set.items():
                if name not in results:
                    try:
                        results[name] = self._page(parent_type, source_value, path, name, details)
                    except Exception:  # noqa: S112 - it is raised again below and reported there
                        continue
        if len(results) == len(grouped_field_set):
            return _in_order(grouped_field_set, results)
        left = {name: it for name, it in grouped_field_set.items() if name not in results}
        others: Any = super().execute_fields(
            parent_type, source_value, path, left, position_context
        )
        if self.is_awaitable(others):

            async def later() -> dict[str, Any]:
                return _in_order(grouped_field_set, results | await others)

            return later()
        return _in_order(grouped_field_set, results | others)

    def _page(
        self,
        parent_type: GraphQLObjectType,
        source: Any,
        path: Path | None,
        name: str,
        details: Any,
    ) -> Any:
        """Answer a list by its prepared statement.

        Raises:
            NotPlainError: there is none.
        """
        node = details[0].node
        field = self.schema.get_field(parent_type, node.name.value)
        if field is None or self._wrapped or not _is_prepared(field):
            raise NotPlainError
        text = node.loc.source.body if node.loc else ""
        if not text or len(text) > LONGEST or "@" in text:  # a directive may change its shape
            raise NotPlainError
        given = get_argument_values(field, node, self.variable_values)
        first, after, order = (given.pop(one, None) for one in ("first", "after", "order"))
        if any(value is not None for value in given.values()):
            raise NotPlainError
        part = checked_page(first=first, after=after, last=None, before=None)
        if order is not None and len(order) > len({name for one in order for name in one}):
            raise NotPlainError  # a key of any length would be remembered
        nodes = to_nodes(details)
        info = self.build_resolve_info(field, nodes, parent_type, Path(path, name, ""))
        actor = actor_in(self.context_value.request)

        def find(context: RowsWanted) -> None:
            assert field.resolve is not None
            field.resolve(source, info._replace(context=context), order=order)

        key = *map(id, nodes), repr(order), kind_of(actor), connection.vendor, after is None
        page = _pages.get(
            key,
            nodes,
            lambda: prepare(self, field.type, details, find, actor, after=after is not None),
        )
        if page is None:
            raise NotPlainError
        try:
            return page.read(actor, part)
        except CursorError:  # says nothing about the list
            raise
        except NotPlainError:
            _pages.forget(key)
            raise

    def _readers(self, parent_type: GraphQLObjectType, fields: Any) -> dict[str, Read]:
        """By name in the answer: how a plain field is read and completed."""
        known = self._plans.get(id(fields))
        if known is None:
            readers = {}
            if not self._wrapped:
                for name, details in fields.items():
                    try:
                        readers[name] = self._reader(parent_type, details)
                    except NotPlainError:
                        continue
            known = self._plans[id(fields)] = (fields, readers)
        return known[1]

    def _reader(self, parent_type: GraphQLObjectType, details: Any) -> Read:
        node = details[0].node
        if node.name.value == "__typename":
            return lambda row: parent_type.name
        field = self.schema.get_field(parent_type, node.name.value)
        if field is None or field.args or node.arguments:
            raise NotPlainError
        value = _value_of(field)
        complete = self.completion(field.type, details)
        return lambda row: complete(value(row))

    def completion(self, kind: GraphQLOutputType, details: Any) -> Read:
        if is_non_null_type(kind):
            return _required(self.completion(kind.of_type, details))
        if is_list_type(kind):
            return _listed(self.completion(kind.of_type, details))
        if is_leaf_type(kind):
            return _leaf(kind)
        if isinstance(kind, GraphQLObjectType):
            return self._object(kind, details)
        raise NotPlainError

    def _object(self, kind: GraphQLObjectType, details: Any) -> Read:
        fields, deferred, _ = self.collect_subfields(kind, details)
        readers = self._readers(kind, fields)
        if deferred or len(readers) != len(fields):
            raise NotPlainError
        pairs = list(readers.items())
        fits: set[type] = set()

        def complete(row: Any) -> Any:
            if row is None:
                return None
            if type(row) not in fits:
                # Its second argument is for predicates that we do not have.
                if kind.is_type_of and kind.is_type_of(row, None) is not True:  # type: ignore[arg-type]
                    raise NotPlainError
                fits.add(type(row))
            return {name: read(row) for name, read in pairs}

        return complete


def _is_prepared(field: GraphQLField) -> bool:
    definition = field.extensions.get("strawberry-definition")
    return any(
        isinstance(one, Pages) and one.prepared for one in getattr(definition, "extensions", ())
    )


def _in_order(fields: Any, results: dict[str, Any]) -> dict[str, Any]:
    return {name: results[name] for name in fields if name in results}


def _value_of(field: GraphQLField) -> Read:
    """How the field's own value comes from its row."""
    definition = field.extensions.get("strawberry-definition")
    if isinstance(definition, Column) and definition.is_plain:
        if (of_key := definition.of_key) is not None:
            return lambda row: of_key(row.pk)
        return definition.reader
    if type(definition) is StrawberryField and definition.is_basic_field:
        return attrgetter(definition.python_name)
    raise NotPlainError


def _required(complete: Read) -> Read:
    def completed(value: Any) -> Any:
        found = complete(value)
        if found is None:
            raise NotPlainError
        return found

    return completed


def _listed(complete: Read) -> Read:
    def completed(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, list | tuple | QuerySet):
            raise NotPlainError
        return [complete(item) for item in value]

    return completed


def _id_of(coerce: Read) -> Read:
    """Write keys directly, without the checks of graphql-core's ID serializer."""
    return lambda value: str(value) if type(value) is int else coerce(value)


def _leaf(kind: Any) -> Read:
    coerce = kind.coerce_output_value
    same = AS_IT_IS.get(kind.name)
    if kind is GraphQLID:
        coerce = _id_of(coerce)
    known: dict[Any, Any] = {}  # an enum has few values, and looks long for each

    def completed(value: Any) -> Any:
        if value is None or type(value) is same:
            return value
        if isinstance(value, Exception):
            raise NotPlainError
        found = coerce(value)
        if found is None or found is Undefined:
            raise NotPlainError
        return found

    def of_enum(value: Any) -> Any:
        if type(value) is not str:
            return completed(value)
        if value not in known:
            known[value] = completed(value)
        return known[value]

    return of_enum if isinstance(kind, GraphQLEnumType) else completed
