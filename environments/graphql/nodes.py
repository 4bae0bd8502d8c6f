"""Relay's Node interface: global ids, and the lookup of objects by them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import strawberry
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from strawberry import ID, Info
from strawberry.relay.utils import from_base64, to_base64
from strawberry_django.queryset import run_type_get_queryset

from condastore.errors import NotFoundError
from environments.graphql.fields import computed
from environments.graphql.optimizer import optimized

#: Types whose name in the schema is not that of their model.
_TYPE_NAMES = {
    "Decision": "PackageDecision",
    "LockRow": "Lock",
    "SpecificationRow": "Specification",
    "User": "ServiceAccount",
}
_LONGEST_KEY = 40
#: Finds the visible objects of one type by their database keys, which are texts.
Load = Callable[[Info, Sequence[str]], Mapping[str, Any]]
_loads: dict[str, Load] = {}


@strawberry.interface(description="Object with a global id.")
class Node:
    id: ID = strawberry.field(
        description="Global id of the object, unique across all types; see `Query.node`."
    )
    database_id: str = strawberry.field(
        description="Key of the object among those of its type. Arguments that take the id of an "
        "object of one type accept it too."
    )


def global_id(kind: str, key: object) -> ID:
    """Return the global id of an object of a type of the schema, as relay.GlobalID writes it."""
    return ID(b64encode(f"{kind}:{key}".encode()).decode())


def ids_of(kind: str, row: Model) -> dict[str, Any]:
    """Return the fields of Node, for types that are made from a row."""
    return {"id": global_id(kind, row.pk), "database_id": str(row.pk)}


def id_field(kind: str) -> Any:
    """The global id of a row."""
    field = computed(
        lambda row: global_id(kind, row.pk),
        only=["id"],
        description="Global id of the object, unique across all types; see `Query.node`.",
    )
    field.of_key = lambda key: b64encode(f"{kind}:{key}".encode()).decode()
    return field


def key_field() -> Any:
    """The database key of a row."""
    field = computed(
        lambda row: str(row.pk),
        only=["id"],
        description="Key of the object among those of its type. Arguments that take the id of an "
        "object of one type accept it too.",
    )
    field.of_key = str
    return field


def key_in(given: object, kind: str) -> str:
    """Return the database key in an id of an object of type `kind`; "" if there is none in it.

    Keys themselves are accepted too: none of them is also a global id.
    """
    text = str(given)
    if len(text) <= _LONGEST_KEY and (text.isdecimal() or "-" in text):
        return text
    name, key = _parts(text)
    return key if name == kind else ""


def _parts(text: str) -> tuple[str, str]:
    try:
        name, key = from_base64(text)
    except ValueError:
        return "", ""
    if len(key) > _LONGEST_KEY or "\x00" in key or to_base64(name, key) != text:
        return "", ""
    return name, key


#: Arguments that name one object.
_ID_ARGUMENTS = frozenset({"id", "environmentId"})


def with_database_keys(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a field in which global ids are replaced by the keys of their rows."""
    return {
        name: _parts(value)[1] or value
        if isinstance(value, str) and name in _ID_ARGUMENTS
        else value
        for name, value in arguments.items()
    }


def find(rows: QuerySet[Any], given: object, what: str) -> Any:
    """Return the row with this id.

    Raises:
        NotFoundError: there is none, or it is not the id of such a row.
    """
    name = rows.model.__name__
    key = key_in(given, _TYPE_NAMES.get(name, name))
    try:
        found = rows.filter(pk=key).first() if key else None
    except (ValueError, OverflowError, ValidationError):
        found = None
    if found is None:
        raise NotFoundError(f"There is no such {what}.", where="id")
    return found


# --- objects of any type --------------------------------------------------------------------------


def register(kind: str, load: Load) -> None:
    """Let `Query.node` find objects of a type of the schema."""
    _loads[kind] = load


def register_model(kind: str, node: type[Any], rows: Callable[[Info], QuerySet[Any]]) -> None:
    """Let `Query.node` find rows of a type of strawberry-django.

    Args:
        rows: those that the actor may see, unless the type's own `get_queryset` limits them.
    """

    def load(info: Info, keys: Sequence[str]) -> Mapping[str, Any]:
        shown = run_type_get_queryset(rows(info), node, info)
        found = optimized(shown.filter(pk__in=keys), info)
        return {str(row.pk): strawberry.cast(node, row) for row in found}

    register(kind, load)


def register_rows(
    kind: str, rows: Callable[[Info], QuerySet[Any]], convert: Callable[[Info, Any], Any]
) -> None:
    """Let `Query.node` find rows that are answered as other objects.

    Args:
        rows: those that the actor may see.
        convert: makes the object of `info` and a row, without a query.
    """
    register_batches(kind, rows, lambda info, page: [convert(info, row) for row in page])


def register_batches(
    kind: str,
    rows: Callable[[Info], QuerySet[Any]],
    convert: Callable[[Info, Sequence[Any]], Sequence[Any]],
) -> None:
    """Let `Query.node` find rows that are answered as other objects, converted together.

    Args:
        rows: those that the actor may see.
        convert: makes the objects of `info` and the rows of one request, in their order.
    """

    def load(info: Info, keys: Sequence[str]) -> Mapping[str, Any]:
        found = list(rows(info).filter(pk__in=keys))
        objects = convert(info, found)
        return {str(row.pk): one for row, one in zip(found, objects, strict=True)}

    register(kind, load)


def load_nodes(info: Info, ids: Sequence[str]) -> list[Any]:
    """Return the objects with these global ids, in their order; None for what is not visible."""
    parts = [_parts(one) for one in ids]
    found: dict[tuple[str, str], Any] = {}
    for kind in dict.fromkeys(kind for kind, _ in parts):
        if (load := _loads.get(kind)) is None:
            continue
        keys = list(dict.fromkeys(key for name, key in parts if name == kind))
        try:
            objects = load(info, keys)
        except (ValueError, OverflowError, ValidationError):  # a key is not one of this model
            objects = {} if len(keys) == 1 else _each(load, info, keys)
        found |= {(kind, key): one for key, one in objects.items()}
    return [found.get(one) for one in parts]


def _each(load: Load, info: Info, keys: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in keys:
        try:
            found |= load(info, [key])
        except (ValueError, OverflowError, ValidationError):
            continue
    return found


def registered() -> frozenset[str]:
    """Return the names of the types that `Query.node` finds."""
    return frozenset(_loads)
