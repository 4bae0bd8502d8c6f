"""Statements and subqueries whose SQL text is compiled once per process.

Django compiles a queryset anew for each request, which takes many times longer than the database
needs to answer it. Only the text is remembered here, by what it depends on: each request runs it
with parameters of its own, and the database reads the rows as they are then.

A queryset is compiled with stand-ins for its parameters (KEY, `word("name")`, MOMENT), which are
replaced when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from django.db import connection
from django.db.models import Field, Model, QuerySet
from django.db.models.expressions import RawSQL

M = TypeVar("M", bound=Model)
Values = Mapping[Any, Any]

#: Stand-ins: a key, a number that every column of numbers takes, and a moment before all others.
KEY, NUMBER = -(2**62), 2**31 - 5
MOMENT = datetime(1, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
#: Texts that are remembered.
_MOST = 1024

_texts: dict[tuple[Hashable, ...], tuple[str, tuple[Any, ...]]] = {}


def word(name: str | int) -> str:
    """The stand-in of a text."""
    return f"\x01{name}"


def marks(words: Sequence[str] | None) -> list[str] | None:
    """The stand-ins of a list of texts, such as the namespaces that a token is limited to."""
    return None if words is None else [word(number) for number in range(len(words))]


def values_of(key: int, words: Sequence[str] | None) -> dict[Any, Any]:
    """The values of KEY and of `marks(words)`."""
    return {KEY: key, **{word(number): each for number, each in enumerate(words or ())}}


def _text(
    kind: tuple[Hashable, ...], build: Callable[[], QuerySet[Any, Any]]
) -> tuple[str, tuple[Any, ...]]:
    kind = (connection.vendor, *kind)
    if (found := _texts.get(kind)) is None:
        sql, parameters = build().query.sql_with_params()
        if len(_texts) >= _MOST:
            _texts.clear()
        found = _texts[kind] = (sql, tuple(parameters))
    return found


def subquery(
    kind: tuple[Hashable, ...],
    build: Callable[[Any, Sequence[str] | None], QuerySet[Any, Any]],
    *,
    key: int,
    words: Sequence[str] | None = None,
) -> RawSQL:
    """Return the subquery that `build` describes, with `key` and `words` as its parameters.

    Args:
        kind: what its text depends on, beside the number of `words`.
        build: makes the queryset for a key and words; called once for each kind.
    """
    number = None if words is None else len(words)
    sql, parameters = _text((*kind, number), lambda: build(KEY, marks(words)))
    values = values_of(key, words)
    # The text is Django's own; what callers give are its parameters.
    return RawSQL(sql, [values.get(one, one) for one in parameters])  # noqa: S611  # nosec B611


class Lookup(Generic[M]):
    """A statement that finds rows, and rows that they refer to, with the columns named here."""

    def __init__(self, model: type[M], **columns: Sequence[str]) -> None:
        """`own`: columns of the model; the others by the path of their relation."""
        self._model = model
        self._parts = [("" if path == "own" else path, names) for path, names in columns.items()]

    def first(
        self,
        kind: tuple[Hashable, ...],
        build: Callable[[], QuerySet[M]],
        values: Values,
    ) -> M | None:
        """Return the first row of the queryset that `build` describes.

        Args:
            kind: what its text depends on.
            build: makes the queryset, of stand-ins; called once for each kind.
            values: what replaces each stand-in.
        """
        rows = self._rows((*kind, "first"), lambda: build().values_list(*self._paths())[:1], values)
        return self._instance(rows[0]) if rows else None

    def all(
        self,
        kind: tuple[Hashable, ...],
        build: Callable[[], QuerySet[M]],
        values: Values,
    ) -> list[M]:
        """Return all rows of the queryset that `build` describes; see `first`."""
        rows = self._rows((*kind, "all"), lambda: build().values_list(*self._paths()), values)
        return [self._instance(row) for row in rows]

    def _rows(
        self, kind: tuple[Hashable, ...], build: Callable[[], QuerySet[Any, Any]], values: Values
    ) -> Sequence[Sequence[Any]]:
        sql, parameters = _text(kind, build)
        adapt = connection.ops.adapt_datetimefield_value
        given = dict(values)
        if MOMENT in given:
            given[adapt(MOMENT)] = adapt(given.pop(MOMENT))
        with connection.cursor() as cursor:
            cursor.execute(sql, [given.get(one, one) for one in parameters])
            rows: Sequence[Sequence[Any]] = cursor.fetchall()
        return rows

    def _paths(self) -> list[str]:
        return [
            f"{path}__{name}" if path else name for path, names in self._parts for name in names
        ]

    def _instance(self, row: Sequence[Any]) -> M:
        found: dict[str, Any] = {}
        start = 0
        for path, names in self._parts:
            model, names = self._model_at(path), list(names)
            part = _converted(model, names, row[start : start + len(names)])
            start += len(names)
            instance = None if part[0] is None else model.from_db(connection.alias, names, part)
            found[path] = instance
            if path:
                parent, _, name = path.rpartition("__")
                setattr(found[parent], name, instance)
        instance = found[""]
        assert instance is not None
        return instance  # type: ignore[no-any-return]

    def _model_at(self, path: str) -> type[Model]:
        model: Any = self._model
        for name in path.split("__") if path else ():
            model = model._meta.get_field(name).related_model
        return model  # type: ignore[no-any-return]


_converters: dict[tuple[Any, ...], list[Sequence[Any]]] = {}


def _converted(model: type[Model], names: Sequence[str], values: Sequence[Any]) -> list[Any]:
    known = _converters.get((model, connection.vendor, *names))
    if known is None:
        known = _converters[model, connection.vendor, *names] = [
            _converters_of(model, name) for name in names
        ]
    converted = []
    for value, (expression, converters) in zip(values, known, strict=True):
        for convert in converters:
            value = convert(value, expression, connection)
        converted.append(value)
    return converted


def _converters_of(model: type[Model], name: str) -> Sequence[Any]:
    """Those of the database and of the field, which turn a column's value into Python's."""
    attribute = {field.attname: field for field in model._meta.concrete_fields}
    field: Field[Any, Any] = attribute[name]
    expression: Any = field.get_col(model._meta.db_table)
    of_database = connection.ops.get_db_converters(expression)
    return expression, [*of_database, *expression.get_db_converters(connection)]
