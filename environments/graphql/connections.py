"""Relay connections with keyset cursors, and totals that are counted only when selected.

A cursor holds the sort keys of its item: rows that are added or removed between two pages shift
nothing, so no item is skipped or repeated. Cursors of lists of `Query` also name the order of the
list, after ORDER_MARK; a list in another order refuses them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

import strawberry_django
from django.conf import settings
from django.db import DataError
from django.db.models import (
    Count,
    ExpressionWrapper,
    F,
    IntegerField,
    OrderBy,
    OuterRef,
    Prefetch,
    QuerySet,
    Subquery,
)
from django.db.models.functions import Coalesce
from graphql import (
    FieldNode,
    FragmentSpreadNode,
    GraphQLResolveInfo,
    InlineFragmentNode,
    SelectionSetNode,
    value_from_ast_untyped,
)
from strawberry import Info, relay
from strawberry.extensions.field_extension import SyncExtensionResolver
from strawberry.types import get_object_definition
from strawberry.types.field import StrawberryField
from strawberry.types.nodes import InlineFragment, Selection
from strawberry_django.fields.field import StrawberryDjangoConnectionExtension
from strawberry_django.optimizer import OptimizerStore, mark_optimized_by_prefetching
from strawberry_django.relay import DjangoCursorConnection
from strawberry_django.relay.cursor_connection import DjangoCursorEdge, apply_cursor_pagination
from strawberry_django.relay.utils import resolve_edge_class
from strawberry_django.resolvers import django_resolver

from condastore.errors import InvalidInputError
from environments.graphql._private import graphql_info
from environments.models._private import is_loaded

T = TypeVar("T")
#: Separates the keys in a cursor, as strawberry-django writes them, from the list's order.
ORDER_MARK = "~"
Key = Sequence[Any]

if TYPE_CHECKING:

    class Connection(Generic[T]):
        """A list in pages."""

else:
    Connection = DjangoCursorConnection


@dataclass
class RowsWanted:
    """Context of a field whose queryset is wanted instead of a page (`prepared`)."""

    request: Any
    rows: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Checked arguments of a page; exactly one of `first` and `last` is set."""

    first: int | None
    last: int | None
    after: str | None = None
    before: str | None = None

    def arguments(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "last": self.last,
            "after": self.after,
            "before": self.before,
        }

    @property
    def size(self) -> int:
        number = self.first if self.first is not None else self.last
        assert number is not None
        return number


class Rows:
    """Rows of a queryset, answered as other objects: `convert` is called once for each page."""

    def __init__(self, rows: QuerySet[Any], convert: Callable[[list[Any]], list[Any]]) -> None:
        self.rows, self.convert = rows, convert

    @classmethod
    def each(cls, rows: QuerySet[Any], convert: Callable[[Any], Any]) -> Self:
        return cls(rows, lambda page: [convert(row) for row in page])


def explicitly_ordered(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Name the default order of a model: pagination replaces an order that is only implied."""
    if rows.query.order_by or is_loaded(rows):
        return rows
    return rows.order_by(*(rows.model._meta.ordering or ("pk",)))


def ordered_by_keys(rows: QuerySet[Any], *names: str) -> QuerySet[Any]:
    """Order the rows of a nested list by copies of their columns.

    The optimizer defers columns that are not selected; a cursor would read them row by row.
    """
    keys = []
    for name in names:
        column = name.removeprefix("-")
        field: Any = rows.model._meta.get_field(column)
        key = ExpressionWrapper(F(column), output_field=field.clone())
        keys.append(key.desc() if name.startswith("-") else key.asc())
    return rows.order_by(*keys)


class Keyed:
    """A list that is ordered by a key of its own: JSON scalars that are unique to each item."""

    def count(self) -> int:
        raise NotImplementedError

    def read(
        self, *, after: Key | None, before: Key | None, size: int, backwards: bool
    ) -> list[tuple[Key, Any]]:
        """Return up to `size` keys and items between two keys.

        Args:
            after: only items with a greater key.
            before: only items with a smaller key.
            backwards: from the end of the list, in descending order.
        Raises:
            ValueError, TypeError: a key does not belong to this list.
        """
        raise NotImplementedError


class SortedItems(Keyed):
    """A list in memory, ordered by the key that `key` returns for each item."""

    def __init__(self, items: Sequence[Any], key: Callable[[Any], Key]) -> None:
        self._items = sorted(((tuple(key(item)), item) for item in items), key=lambda one: one[0])

    def count(self) -> int:
        return len(self._items)

    def read(
        self, *, after: Key | None, before: Key | None, size: int, backwards: bool
    ) -> list[tuple[Key, Any]]:
        found: list[tuple[Key, Any]] = [
            (key, item)
            for key, item in self._items
            if (after is None or key > tuple(after)) and (before is None or key < tuple(before))
        ]
        return found[::-1][:size] if backwards else found[:size]


class LazyCount(QuerySet[Any]):
    """Placeholder for rows of which only the number is needed."""

    counted: Callable[[], int]

    def count(self) -> int:
        return self.counted()


def lazy_count(counted: Callable[[], int]) -> LazyCount:
    found = LazyCount()
    found.counted = counted
    return found


#: Descriptions of the arguments of a page, by name.
PAGE_ARGUMENTS = {
    "first": "Maximum number of items, from the start of the list or after `after`; at most "
    f"{settings.GRAPHQL_MAX_PAGE}, which is also the default.",
    "after": "Cursor of an item; only items after it are returned.",
    "last": "Maximum number of items, from the end of the list or before `before`. Give either "
    "`first` or `last`.",
    "before": "Cursor of an item; only items before it are returned.",
}
#: Descriptions of the fields of PageInfo; strawberry's own are questions.
PAGE_INFO = {
    "has_next_page": "With `first`: true when more items follow the page. Otherwise false.",
    "has_previous_page": "With `last`: true when items precede the page. Otherwise false.",
    "start_cursor": "Cursor of the first item of the page; null when the page is empty.",
    "end_cursor": "Cursor of the last item of the page; null when the page is empty.",
}
for _field in get_object_definition(relay.PageInfo, strict=True).fields:
    _field.description = PAGE_INFO[_field.python_name]


class Pages(StrawberryDjangoConnectionExtension):
    """Answers one page of a list."""

    def __init__(self, *, count: str = "", prepared: bool = False) -> None:
        super().__init__()
        self.count = count  # attribute of the parent that holds the total
        self.prepared = prepared

    def apply(self, field: StrawberryField) -> None:
        super().apply(field)
        for argument in field.arguments:
            if argument.python_name in PAGE_ARGUMENTS:
                argument.description = PAGE_ARGUMENTS[argument.python_name]

    def resolve(
        self,
        next_: SyncExtensionResolver,
        source: Any,
        info: Info,
        *,
        before: str | None = None,
        after: str | None = None,
        first: int | None = None,
        last: int | None = None,
        **kwargs: Any,
    ) -> Any:
        page = checked_page(before=before, after=after, first=first, last=last)
        nodes = next_(source, info, **kwargs)
        if isinstance(info.context, RowsWanted):
            info.context.rows = nodes
            return None
        if inspect.isawaitable(nodes):

            async def later() -> Any:
                answer = self._page(await nodes, source, info, page)
                return await answer if inspect.isawaitable(answer) else answer

            return later()
        return self._page(nodes, source, info, page)

    def _page(self, nodes: Any, source: Any, info: Info, page: Page) -> Any:
        if isinstance(nodes, Rows):
            return django_resolver(self._converted)(nodes, info, page)
        if isinstance(nodes, Keyed):
            return django_resolver(self._keyed)(nodes, info, page)
        total = getattr(source, self.count, None) if self.count else None
        if total is not None and not _reads_rows(info):
            return self._empty(lambda: int(total))
        if is_loaded(nodes):  # prefetched: nothing waits for the database
            return self._of_rows(nodes, info, page)
        return django_resolver(self._of_rows)(nodes, info, page)

    def _of_rows(self, rows: QuerySet[Any], info: Info, page: Page) -> Any:
        rows, mark = explicitly_ordered(rows), ""
        arguments = page.arguments()
        if graphql_info(info).path.prev is None:  # the order of nested lists is fixed
            mark = order_mark(rows)
            arguments |= {
                name: arguments[name] and _unmarked(name, arguments[name], mark)
                for name in ("after", "before")
            }
        try:
            found = self.connection_type.resolve_connection(rows, info=info, **arguments)
            return _marked(found, mark) if mark else found
        except (ValueError, OverflowError, DataError) as error:
            if page.after is None and page.before is None:
                raise
            _refuse_cursor("before" if page.after is None else "after", error)

    def _converted(self, nodes: Rows, info: Info, page: Page) -> Any:
        found = self._of_rows(nodes.rows, info, page)
        shown = nodes.convert([edge.node for edge in found.edges])
        for edge, node in zip(found.edges, shown, strict=True):
            edge.node = node
        return found

    def _keyed(self, nodes: Keyed, info: Info, page: Page) -> Any:
        if not _reads_rows(info):
            return self._empty(nodes.count)
        backwards = page.last is not None
        try:
            found = nodes.read(
                after=_key_in(page.after),
                before=_key_in(page.before),
                size=page.size + 1,
                backwards=backwards,
            )
        except (ValueError, TypeError, OverflowError, DataError) as error:
            _refuse_cursor("before" if page.after is None else "after", error)
        more = len(found) > page.size
        found = found[: page.size]
        edge_type = resolve_edge_class(self.connection_type)
        edges: list[Any] = [
            edge_type.resolve_edge(item, cursor=json.dumps(list(key), separators=(",", ":")))
            for key, item in (reversed(found) if backwards else found)
        ]
        return self._connection(
            edges,
            nodes.count,
            has_next_page=more and not backwards,
            has_previous_page=more and backwards,
        )

    def _empty(self, count: Callable[[], int]) -> Any:
        return self._connection([], count, has_next_page=False, has_previous_page=False)

    def _connection(
        self,
        edges: list[Any],
        count: Callable[[], int],
        *,
        has_next_page: bool,
        has_previous_page: bool,
    ) -> Any:
        found: Any = self.connection_type(
            edges=edges,
            page_info=relay.PageInfo(
                has_next_page=has_next_page,
                has_previous_page=has_previous_page,
                start_cursor=edges[0].cursor if edges else None,
                end_cursor=edges[-1].cursor if edges else None,
            ),
        )
        found.total_count_qs = lazy_count(count)
        return found


def _key_in(cursor: str | None) -> Key | None:
    if cursor is not None and ORDER_MARK in cursor:
        raise ValueError(cursor)
    return None if cursor is None else [*_values_in(cursor)]


def order_mark(rows: QuerySet[Any]) -> str:
    """Return the end of the cursors of rows in this order."""
    keys = []
    for one in rows.query.order_by:
        if isinstance(one, OrderBy):
            name = getattr(one.expression, "name", type(one.expression).__name__)
            keys.append(f"-{name}" if one.descending else str(name))
        else:
            keys.append(str(one))
    return ORDER_MARK + ",".join(keys)


def _unmarked(name: str, cursor: str, mark: str) -> str:
    """Return the keys of a cursor of this order.

    Raises:
        InvalidInputError: it is a cursor of another order, or of none.
    """
    keys, sign, order = cursor.partition(ORDER_MARK)
    if sign + order == mark:
        return keys
    raise InvalidInputError(
        f"{name} is a cursor of another order; the list is ordered by {mark[len(ORDER_MARK) :]}.",
        where=name,
        hint="Use endCursor or startCursor of another page, with the same filters and order.",
    )


def _marked(found: Any, mark: str) -> Any:
    for edge in found.edges:
        edge.cursor += mark
    info = found.page_info
    if info.start_cursor is not None:
        info.start_cursor += mark
        info.end_cursor += mark
    return found


def connection(
    resolver: Callable[..., Any] | None = None,
    *,
    graphql_type: Any = None,
    count: str = "",
    annotate: Any = None,
    prefetch_related: Any = None,
    description: str | None = None,
    prepared: bool = False,
) -> Any:
    """A list in pages.

    Args:
        count: an annotation of the parent that holds the total.
        prepared: its queryset, without filters, depends on nothing but its order and the actor,
            so that it may be compiled once (`environments.graphql.prepared`).
    """
    found: Any = strawberry_django.field(
        resolver,  # type: ignore[arg-type]
        graphql_type=graphql_type,
        description=description,
        extensions=[Pages(count=count, prepared=prepared)],
        annotate=annotate,
        prefetch_related=prefetch_related,
    )
    return found


def nested_connection(
    relation: str, parent: str, rows: Callable[[Info], QuerySet[Any]], *, description: str
) -> Any:
    """A list of rows that belong to the row of its type.

    Args:
        relation: name of the relation from the parent to the rows.
        parent: foreign key from the rows to the parent.
        rows: the rows that the actor may see.
    """
    field = connection(count=f"{relation}_total", description=description)
    field.store = _NestedHints(relation, parent, rows)
    return field


class _NestedHints:
    """Hints of a list in a list. Where `edges` are selected, the optimizer reads the rows itself.

    Otherwise the total is an annotation, and the ends of the pages are one statement.
    """

    prefetch_related: Sequence[Any] = ()
    annotate: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, relation: str, parent: str, rows: Callable[[Info], QuerySet[Any]]) -> None:
        self.relation, self.parent, self.rows = relation, parent, rows

    def copy(self) -> Self:
        return self

    def with_resolved_callables(self, info: Info) -> OptimizerStore:
        if selects(info, "edges"):
            return OptimizerStore()  # the rows bring their number
        if not selects(info, "pageInfo"):
            return OptimizerStore(annotate={f"{self.relation}_total": self._total(info)})
        arguments = page_arguments(graphql_info(info), graphql_info(info).field_nodes[0])
        rows, _ = apply_cursor_pagination(
            self.rows(info),
            related_field_id=f"{self.parent}_id",
            info=info,
            max_results=None,
            **checked_page(**arguments).arguments(),
        )
        page = mark_optimized_by_prefetching(rows)
        return OptimizerStore(prefetch_related=[Prefetch(self.relation, queryset=page)])

    def with_prefix(self, prefix: str, *, info: Info) -> OptimizerStore:
        found: OptimizerStore = self.with_resolved_callables(info).with_prefix(prefix, info=info)
        return found

    def _total(self, info: Info) -> Any:
        mine = self.rows(info).filter(**{self.parent: OuterRef("pk")}).order_by()
        counted = mine.values(self.parent).annotate(total=Count("pk")).values("total")
        return Coalesce(Subquery(counted), 0, output_field=IntegerField())


def _reads_rows(info: Info) -> bool:
    return selects(info, "edges") or selects(info, "pageInfo")


def selects(info: Info, name: str) -> bool:
    """Return True when the field `name` is selected right below, in a fragment too."""

    def among(selections: list[Selection]) -> bool:
        return any(
            among(one.selections)
            if isinstance(one, InlineFragment) or not hasattr(one, "arguments")
            else one.name == name
            for one in selections
        )

    return any(among(field.selections) for field in info.selected_fields)


# --- arguments of pages ---------------------------------------------------------------------------


def checked_page(
    *, before: str | None, after: str | None, first: int | None, last: int | None
) -> Page:
    """Check the arguments of a page; without `first` and `last` it is the first of full size.

    Raises:
        InvalidInputError: they make no sense.
    """
    most = int(settings.GRAPHQL_MAX_PAGE)
    for name, number in (("first", first), ("last", last)):
        if number is not None and not 0 <= number <= most:
            raise InvalidInputError(f"{name} is {number}; 0 to {most} are allowed.", where=name)
    if first is not None and last is not None:
        raise InvalidInputError("Give first or last, not both.", where="last")
    for name, cursor in (("before", before), ("after", after)):
        if cursor is not None:
            try:
                _values_in(cursor)
            except ValueError as error:
                _refuse_cursor(name, error)
    return Page(
        first=most if first is None and last is None else first,
        last=last,
        after=after,
        before=before,
    )


def _values_in(cursor: str) -> list[Any]:
    """Return the sort keys in a cursor. ValueError: it is not one."""
    kind, text = relay.from_base64(cursor.partition(ORDER_MARK)[0])
    values = json.loads(text) if kind == DjangoCursorEdge.CURSOR_PREFIX else None
    if not isinstance(values, list) or not all(
        one is None or isinstance(one, str | int) for one in values
    ):
        raise ValueError(cursor)
    if any(isinstance(one, str) and "\x00" in one for one in values):
        raise ValueError(cursor)
    return values


def _refuse_cursor(name: str, error: Exception) -> NoReturn:
    raise InvalidInputError(
        f"{name} is not a cursor of this list.",
        where=name,
        hint="Use endCursor or startCursor of another page, with the same filters and order.",
    ) from error


def page_arguments(info: GraphQLResolveInfo[Any], node: FieldNode) -> dict[str, Any]:
    """Return the arguments of a page of a field of the document; None for those not given."""
    # graphql-core has the values in an object, the optimizer's copy of `info` as they are.
    known: Any = getattr(info.variable_values, "coerced", info.variable_values)
    page: dict[str, Any] = dict.fromkeys(("before", "after", "first", "last"))
    for argument in node.arguments or ():
        if argument.name.value in page:
            page[argument.name.value] = value_from_ast_untyped(argument.value, known)
    return page


def check_nested_pages(info: Info | GraphQLResolveInfo[Any]) -> None:
    """Check the arguments of every list below a field.

    Raises:
        InvalidInputError: of one of them they make no sense.
    """
    raw = graphql_info(info) if isinstance(info, Info) else info
    seen: set[str] = set()

    def check(selections: SelectionSetNode | None) -> None:
        for node in selections.selections if selections else ():
            if isinstance(node, FragmentSpreadNode):
                name = node.name.value
                if name not in seen:
                    seen.add(name)
                    check(raw.fragments[name].selection_set)
            elif isinstance(node, InlineFragmentNode):
                check(node.selection_set)
            elif isinstance(node, FieldNode):
                page = page_arguments(raw, node)
                if any(value is not None for value in page.values()):
                    checked_page(**page)
                for name in ("after", "before"):
                    if page[name] and ORDER_MARK in page[name]:
                        _refuse_cursor(name, ValueError(page[name]))
                check(node.selection_set)

    for node in raw.field_nodes:
        check(node.selection_set)
