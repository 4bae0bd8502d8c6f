"""Pages of lists by statements that are compiled once, answered column by column.

Most of the time of a list goes into building and compiling its queryset, into an object for each
row and each row beside it, and into a call for each field of each row. A page whose fields are all
columns needs none of it: the same queryset is read as values, each column is completed at once, and
the answer's objects are put together of them.

Only the text of the statement and the shape of the answer are remembered, by the field of the
document, the order, and the kind of actor (`accounts.access.kind_of`). Who asks is a parameter, as
in `condastore.statements`: each request reads rows and rights as they are then. Whatever is not
plain enough is left to the ordinary way, errors too.

Measured, processor time of the schema for a list of 100 among 1,000, as administrator and as
member: 2.2 and 2.5 ms; 7.5 and 8.9 ms without this module. To measure again, run
`python -m tests.benchmarks.executors`; remove the module when it saves less than a tenth.
`tests/environments/graphql/test_prepared.py` compares its answers with those of the library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from types import SimpleNamespace
from typing import Any, NoReturn

from django.core.exceptions import EmptyResultSet, FieldDoesNotExist, ValidationError
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.models import CharField, DateTimeField, IntegerField, Model, QuerySet, TextField
from graphql import (
    GraphQLBoolean,
    GraphQLID,
    GraphQLInt,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLString,
    get_named_type,
    is_list_type,
    is_non_null_type,
)
from strawberry.relay.utils import from_base64, to_base64
from strawberry_django.relay.cursor_connection import (
    DjangoCursorEdge,
    OrderingDescriptor,
    annotate_ordering_fields,
    build_tuple_compare,
)

from accounts.access import Actor, stand_in, values_for
from condastore.statements import MOMENT, NUMBER, word
from environments.graphql.connections import (
    ORDER_MARK,
    Page,
    RowsWanted,
    explicitly_ordered,
    order_mark,
)
from environments.graphql.fields import Column
from environments.graphql.optimizer import Join
from environments.models._private import has_prefetches

Read = Callable[[Any], Any]
Values = Sequence[Any]
Columns = Sequence[Values]
#: Makes the values of one field of the answer, one for each row, of the columns that were selected.
Part = Callable[[Columns], Values]
#: Makes an answer of the columns of its rows, their number, and whether more follow.
Whole = Callable[[Columns, int, bool], Any]

#: Lists that are remembered, and the length of their documents at most, in characters.
KEPT, LONGEST = 256, 4_000
#: Types whose values are answered as they are.
_SAME: dict[Any, type] = {GraphQLString: str, GraphQLID: str, GraphQLBoolean: bool}


#: How a date, a moment, or a time of day begins as a text.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d|\d\d:\d\d")
#: What a GraphQL Int holds.
_INTEGERS = -(2**31), 2**31 - 1


class NotPlainError(Exception):
    """The field, or one below it, needs more than its row."""


class CursorError(NotPlainError):
    """A cursor is not one of the list; the ordinary way says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPage:
    """One list of one document, as actors of one kind see it."""

    sql: str
    parameters: tuple[Any, ...]
    #: By the number of the column: what turns the database's values into Python's. Of the columns
    #: that all rows of an answer need; the others are converted where a row needs them.
    converters: Mapping[int, tuple[Sequence[Callable[..., Any]], Any]]
    width: int
    answer: Whole
    #: The sort keys of a row; those of a cursor replace their stand-ins.
    keys: Sequence[SortKey]
    #: End of the cursors, which names the order.
    mark: str

    def read(self, actor: Actor, page: Page) -> Any:
        """Return the answer's page.

        Raises:
            CursorError: the page begins after a cursor of another list.
            NotPlainError: a value is not what its field says.
        """
        database = connections[DEFAULT_DB_ALIAS]  # not its proxy, which takes long for each value
        limit = database.ops.limit_offset_sql(0, page.size + 1)
        values = values_for(actor)
        if page.after is not None:
            values |= _after(self.keys, page.after, self.mark)
        with database.cursor() as cursor:
            cursor.execute(f"{self.sql} {limit}", [values.get(one, one) for one in self.parameters])
            rows = cursor.fetchall()
        more = len(rows) > page.size
        rows = rows[: page.size]
        columns: list[Values] = list(zip(*rows, strict=True)) if rows else [()] * self.width
        for position, (converters, expression) in self.converters.items():
            column = columns[position]
            for convert in converters:
                column = [convert(value, expression, database) for value in column]
            columns[position] = column
        try:
            return self.answer(columns, len(rows), more)
        except Exception as error:  # it is raised again on the ordinary path and reported there
            raise NotPlainError from error


def prepare(
    execution: Any,
    kind: GraphQLOutputType,
    details: Any,
    find: Callable[[Any], Any],
    actor: Actor,
    *,
    after: bool,
) -> PreparedPage:
    """Compile a list.

    Args:
        execution: what completes values and collects fields (`execution.Straight`).
        kind: type of the connection.
        details: the selections of its field.
        find: runs the field with a context; it leaves its queryset there.
        actor: of the kind that it is for.
        after: the page begins after a cursor.
    Raises:
        NotPlainError: a field needs more than columns, or the queryset more than one statement.
    """
    wanted = RowsWanted(request=SimpleNamespace(actor=stand_in(actor)))
    with connection.execute_wrapper(_refuse):  # what was read would be the same for ever
        find(wanted)
    rows = wanted.rows
    if not isinstance(rows, QuerySet) or has_prefetches(rows) or rows.query.distinct:
        raise NotPlainError
    annotations = frozenset(rows.query.annotations)
    rows = explicitly_ordered(rows)
    mark = order_mark(rows)
    rows, ordering, _ = annotate_ordering_fields(rows)
    keys = [_sort_key(number, one) for number, one in enumerate(ordering)]
    if after:
        stand_ins = [key.stand_in for key in keys]
        rows = rows.filter(build_tuple_compare(ordering, stand_ins, before=False))
    shapes = _Shapes(execution, annotations, keys, mark=mark, sees_everything=actor.sees_everything)
    answer = shapes.connection(kind, rows.model, details)
    compiler = rows.values_list(*shapes.paths).query.get_compiler(connection=connection)
    try:
        sql, parameters = compiler.as_sql()
    except EmptyResultSet:
        raise NotPlainError from None
    known = {key.parameter for key in keys}
    if not all(one in known or _is_lasting(one) for one in parameters):
        raise NotPlainError
    selected = [one[0] for one in compiler.select[: compiler.col_count]]
    converters = compiler.get_converters(selected)
    shapes.converters |= converters
    return PreparedPage(
        sql=sql,
        # Database adapters are slow for parameters other than text.
        parameters=tuple(one.value if isinstance(one, Enum) else one for one in parameters),
        converters={at: one for at, one in converters.items() if at in shapes.converted},
        width=len(selected),
        answer=answer,
        keys=keys,
        mark=mark,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SortKey:
    """A column of the order of a list."""

    name: str
    field: Any
    stand_in: Any  # in the statement, for the value of a cursor
    parameter: Any  # the same, as the database gets it


def _sort_key(number: int, ordering: OrderingDescriptor) -> SortKey:
    expression: Any = ordering.order_by.expression
    field = expression.output_field
    value: Any
    if isinstance(field, CharField | TextField):
        value = word(f"after {number}")
    elif isinstance(field, IntegerField):
        value = NUMBER - 1 - number
    elif isinstance(field, DateTimeField):
        value = MOMENT + timedelta(microseconds=1 + number)
    else:
        raise NotPlainError
    parameter = field.get_db_prep_value(value, connection)
    return SortKey(name=ordering.attname, field=field, stand_in=value, parameter=parameter)


def _after(keys: Sequence[SortKey], cursor: str, mark: str) -> dict[Any, Any]:
    """Return the values of a cursor by the parameters that they replace."""
    encoded, sign, order = cursor.partition(ORDER_MARK)
    texts = json.loads(from_base64(encoded)[1])
    if (
        sign + order != mark
        or len(texts) != len(keys)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise CursorError
    try:
        return {
            key.parameter: key.field.get_db_prep_value(key.field.to_python(text), connection)
            for key, text in zip(keys, texts, strict=True)
        }
    except (ValidationError, ValueError) as error:
        raise CursorError from error


def _cursors(columns: Sequence[Values], mark: str) -> list[str]:
    """Make the cursor of each row of its sort keys, as DjangoCursorConnection does."""
    texts = [list(map(_text_of, column)) for column in columns]
    dump = json.dumps
    return [
        to_base64(DjangoCursorEdge.CURSOR_PREFIX, dump(row, separators=(",", ":"))) + mark
        for row in zip(*texts, strict=True)
    ]


def _text_of(value: Any) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _is_lasting(parameter: Any) -> bool:
    """Return whether it is the same at each request: not a moment, which SQLite takes as a text."""
    if isinstance(parameter, str):
        return _MOMENT.match(parameter) is None
    return isinstance(parameter, int)


def _refuse(*_: Any) -> NoReturn:
    raise NotPlainError


class _Shapes:
    """Makes the parts of an answer of the selections of an operation."""

    def __init__(
        self,
        execution: Any,
        annotations: frozenset[str],
        keys: Sequence[SortKey],
        *,
        mark: str,
        sees_everything: bool,
    ) -> None:
        self._mark = mark
        self._execution, self._annotations, self._keys = execution, annotations, keys
        self._sees_everything = sees_everything
        self.paths: list[str] = []  # the columns to select, each once
        self.converted: set[int] = set()  # those whose values the answer shows
        self.converters: dict[int, Any] = {}  # of all columns; known after compilation

    def connection(self, kind: Any, model: type[Model], details: Any) -> Whole:
        kind = _nullable(kind)
        parts: dict[str, Whole] = {}
        for name, below in self._fields(kind, details).items():
            match below[0].node.name.value:
                case "edges":
                    parts[name] = self._edges(_field_type(kind, "edges"), model, below)
                case "pageInfo":
                    parts[name] = self._page_info(_field_type(kind, "pageInfo"), below)
                case "__typename":
                    parts[name] = lambda *_: kind.name
                case _:
                    raise NotPlainError
        if not self.paths:  # without rows it is another statement
            raise NotPlainError

        def whole(columns: Columns, count: int, more: bool) -> Any:
            return {name: made(columns, count, more) for name, made in parts.items()}

        return whole

    def _edges(self, kind: Any, model: type[Model], details: Any) -> Whole:
        edge = get_named_type(kind)
        parts: dict[str, Part | None] = {}  # None: the cursor
        for name, below in self._fields(edge, details).items():
            match below[0].node.name.value:
                case "node":
                    node: Any = get_named_type(_field_type(edge, "node"))
                    parts[name] = self._objects(node, model, below, "")
                case "cursor":
                    parts[name] = None
                case "__typename":
                    parts[name] = _named(edge.name)
                case _:
                    raise NotPlainError

        positions = self._key_positions() if None in parts.values() else []

        def edges(columns: Columns, count: int, more: bool) -> Any:
            made = [
                _cursors([columns[one] for one in positions], self._mark)
                if make is None
                else make(columns)
                for make in parts.values()
            ]
            return _rows(list(parts), made)

        return edges

    def _page_info(self, kind: Any, details: Any) -> Whole:
        info = get_named_type(kind)
        names = {name: one[0].node.name.value for name, one in self._fields(info, details).items()}
        if not set(names.values()) <= _PAGE_INFO | {"__typename"}:
            raise NotPlainError

        wanted = {"startCursor", "endCursor"} & set(names.values())
        positions = self._key_positions() if wanted else []

        def cursor_at(columns: Columns, number: int) -> str:
            keys = [columns[one][number : number + 1] for one in positions]
            return _cursors(keys, self._mark)[0]

        def value(name: str, columns: Columns, count: int, more: bool) -> Any:
            match name:
                case "hasNextPage":
                    return more
                case "hasPreviousPage":
                    return False
                case "startCursor":
                    return cursor_at(columns, 0) if count else None
                case "endCursor":
                    return cursor_at(columns, count - 1) if count else None
            return info.name

        def page_info(columns: Columns, count: int, more: bool) -> Any:
            return {name: value(one, columns, count, more) for name, one in names.items()}

        return page_info

    def _fields(self, kind: Any, details: Any) -> dict[str, Any]:
        if not isinstance(kind, GraphQLObjectType):
            raise NotPlainError
        fields, deferred, _ = self._execution.collect_subfields(kind, details)
        if deferred:
            raise NotPlainError
        found: dict[str, Any] = fields
        return found

    def _key_positions(self) -> list[int]:
        return [self._path(key.name) for key in self._keys]

    def _path(self, name: str) -> int:
        """Select a column whose values are converted for all rows."""
        position = self._raw(name)
        self.converted.add(position)
        return position

    def _raw(self, name: str) -> int:
        """Select a column whose values are converted one by one by `_value`, or never."""
        if name not in self.paths:
            self.paths.append(name)
        return self.paths.index(name)

    def _value(self, columns: Columns, position: int, row: int) -> Any:
        value = columns[position][row]
        if position not in self.converted and position in self.converters:
            converters, expression = self.converters[position]
            for convert in converters:
                value = convert(value, expression, connections[DEFAULT_DB_ALIAS])
        return value

    def _objects(self, kind: Any, model: type[Model], details: Any, prefix: str) -> Part:
        fields = self._fields(kind, details)
        parts = [self._part(kind, model, below, prefix) for below in fields.values()]
        names = list(fields)
        return lambda columns: _rows(names, [part(columns) for part in parts])

    def _part(self, kind: GraphQLObjectType, model: type[Model], details: Any, prefix: str) -> Part:
        node = details[0].node
        if node.name.value == "__typename":
            self._path(prefix + _key(model))
            return _named(kind.name)
        found = self._execution.schema.get_field(kind, node.name.value)
        column = found.extensions.get("strawberry-definition") if found else None
        if not isinstance(column, Column) or not column.is_plain:
            raise NotPlainError
        if found.args or node.arguments:
            raise NotPlainError
        store: Any = column.store
        if isinstance(store, Join):
            if prefix:
                raise NotPlainError
            return self._joined(store, found.type, details)
        complete = self._execution.completion(found.type, details)
        name = str(column.django_name or column.python_name)
        if column.of_key is not None:
            of_key, position = column.of_key, self._path(prefix + _key(model))
            return lambda columns: list(map(of_key, columns[position]))
        if column.read is not None:
            return self._computed(column.read, store, model, name, complete, prefix)
        attribute = _attribute(model, name)
        if attribute != name:  # the key of another row, of which the field shows more
            raise NotPlainError
        position = self._path(prefix + attribute)
        finish = _finish(found.type, complete)
        return lambda columns: finish(columns[position])

    def _computed(
        self, read: Read, hints: Any, model: type[Model], name: str, complete: Read, prefix: str
    ) -> Part:
        """A field that is made of a few columns of its row: of nothing but its hints."""
        annotated = list(hints.annotate)
        if hints.prefetch_related or (prefix and annotated):
            raise NotPlainError
        own = hints.only or ([] if annotated else [name])
        attributes = [_attribute(model, one) for one in own] + annotated
        positions = [self._path(prefix + one) for one in [*attributes, _key(model)]]
        attributes.append("pk")

        def part(columns: Columns) -> Values:
            rows = zip(*(columns[position] for position in positions), strict=True)
            return [
                complete(read(SimpleNamespace(**dict(zip(attributes, values, strict=True)))))
                for values in rows
            ]

        return part

    def _joined(self, join: Join, kind: GraphQLOutputType, details: Any) -> Part:
        prefix = f"{join.relation}__"
        required = is_non_null_type(kind)
        if is_list_type(_nullable(kind)):
            raise NotPlainError
        objects = self._objects(get_named_type(kind), join.model, details, prefix)
        key = self._path(prefix + _key(join.model))
        hidden = self._raw(prefix + join.hidden_by) if join.hidden_by else None
        shown = outline = complete = None
        needed: list[int] = []
        if join.outline is not None and not self._sees_everything:
            if join.outline.unless not in self._annotations:  # nothing says who may see the row
                raise NotPlainError
            shown, outline = self._raw(join.outline.unless), join.outline.row
            needed = [self._raw(one) for one in join.outline.columns]
            complete = self._execution.completion(kind, details)

        def part(columns: Columns) -> Values:
            there = [one is not None for one in columns[key]]
            if hidden is not None:
                there = [
                    one and off is None for one, off in zip(there, columns[hidden], strict=True)
                ]
            whole = there
            if shown is not None:
                whole = [one and bool(may) for one, may in zip(there, columns[shown], strict=True)]
            if all(whole):
                return objects(columns)
            if required and not all(there):
                raise NotPlainError
            chosen = [at for at, one in enumerate(whole) if one]
            made: list[Any] = [None] * len(whole)
            parts = [[column[at] for at in chosen] for column in columns]
            for at, value in zip(chosen, objects(parts), strict=True):
                made[at] = value
            if outline is not None and complete is not None:
                for at, one in enumerate(whole):
                    if there[at] and not one:
                        made[at] = complete(
                            outline(*(self._value(columns, each, at) for each in needed))
                        )
            return made

        return part


def _rows(names: Sequence[str], columns: Columns) -> list[dict[str, Any]]:
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _named(name: str) -> Part:
    return lambda columns: [name] * len(columns[0])


def _nullable(kind: Any) -> Any:
    return kind.of_type if is_non_null_type(kind) else kind


def _field_type(kind: Any, name: str) -> Any:
    return kind.fields[name].type


def _key(model: type[Model]) -> str:
    key: Any = model._meta.pk
    return str(key.attname)


def _attribute(model: type[Model], name: str) -> str:
    """The attribute of a column of its own."""
    try:
        column: Any = model._meta.get_field(name)
    except FieldDoesNotExist:
        raise NotPlainError from None
    if not column.concrete:
        raise NotPlainError
    return str(column.attname)


def _finish(kind: GraphQLOutputType, complete: Read) -> Callable[[Values], Values]:
    """Complete a column. Where all of its values are of one simple type, at once."""
    leaf = _nullable(kind)
    empty = set() if is_non_null_type(kind) else {type(None)}
    same, moments = {_SAME.get(leaf)} | empty, {datetime} | empty
    is_moment = getattr(leaf, "name", "") == "DateTime"  # strawberry writes it by isoformat()

    def finish(values: Values) -> Values:
        types = set(map(type, values))
        if types <= same:
            return values
        if leaf is GraphQLID and types == {int}:
            return list(map(str, values))
        if (
            leaf is GraphQLInt
            and types == {int}
            and _INTEGERS[0] <= min(values) <= max(values) <= _INTEGERS[1]
        ):
            return values
        if is_moment and types <= moments:
            return [value and value.isoformat() for value in values]
        return [complete(value) for value in values]

    return finish


_PAGE_INFO = {"hasNextPage", "hasPreviousPage", "startCursor", "endCursor"}


class Remembered:
    """Prepared pages, by what they depend on. A list is prepared when it is asked for again."""

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._pages: dict[Hashable, tuple[Any, PreparedPage | None]] = {}

    def get(
        self, key: Hashable, anchor: Any, make: Callable[[], PreparedPage]
    ) -> PreparedPage | None:
        """Return the page; None where there is none, or where this is the first time.

        Args:
            anchor: what the identities in the key belong to; it lives as long as the key.
        """
        known = self._pages.get(key)
        if known is None:
            while len(self._pages) >= self._most:
                self._pages.pop(next(iter(self._pages)), None)
            self._pages[key] = (anchor, _NEVER)
            return None
        if known[1] is not _NEVER:
            return known[1]
        try:
            page: PreparedPage | None = make()
        except NotPlainError:
            page = None
        self._pages[key] = (anchor, page)
        return page

    def forget(self, key: Hashable) -> None:
        """Leave this list to the ordinary way from now on."""
        if (known := self._pages.get(key)) is not None:
            self._pages[key] = (known[0], None)


_NEVER: Any = object()
