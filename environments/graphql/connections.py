"""Relay connections: lists in pages, with totals that are counted only when selected."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import strawberry_django
from django.conf import settings
from django.db.models import (
    Count,
    IntegerField,
    OuterRef,
    QuerySet,
    Subquery,
    Value,
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
from strawberry.relay.utils import SliceMetadata, from_base64, to_base64
from strawberry.types import get_object_definition
from strawberry.types.field import StrawberryField
from strawberry.types.nodes import InlineFragment, Selection
from strawberry_django.fields.field import (
    StrawberryDjangoConnectionExtension,
)
from strawberry_django.queryset import get_queryset_config
from strawberry_django.relay import DjangoListConnection
from strawberry_django.relay.utils import resolve_edge_class
from strawberry_django.resolvers import django_resolver

from condastore.errors import InvalidInputError
from environments.graphql._private import graphql_info

T = TypeVar("T")

if TYPE_CHECKING:

    class Connection(Generic[T]):
        """A list in pages."""

else:
    Connection = DjangoListConnection


@dataclass
class RowsWanted:
    """The context of a list of which the queryset is wanted, and not a page (`prepared`)."""

    request: Any
    rows: Any = None


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
    "has_next_page": "True when more items follow the page.",
    "has_previous_page": "True when items precede the page.",
    "start_cursor": "Cursor of the first item of the page; null when the page is empty.",
    "end_cursor": "Cursor of the last item of the page; null when the page is empty.",
}
for _field in get_object_definition(relay.PageInfo, strict=True).fields:
    _field.description = PAGE_INFO[_field.python_name]


class Pages(StrawberryDjangoConnectionExtension):
    """Slices a list. Says what is wrong with the arguments, and counts apart from the rows."""

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
        page = {"before": before, "after": after, "first": first, "last": last}
        check_page(info, **page)  # type: ignore[arg-type]
        nodes = next_(source, info, **kwargs)
        if isinstance(info.context, RowsWanted):
            info.context.rows = nodes
            return None
        if inspect.isawaitable(nodes):

            async def later() -> Any:
                answer = self._page(await nodes, source, info, page, kwargs)
                return await answer if inspect.isawaitable(answer) else answer

            return later()
        return self._page(nodes, source, info, page, kwargs)

    def _page(
        self,
        nodes: Any,
        source: Any,
        info: Info,
        page: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> Any:
        if isinstance(nodes, QuerySet):
            config = get_queryset_config(nodes)
            if not config.optimized_by_prefetching:
                # Else the total is a window over all rows, however many there are.
                config.optimized = False
                if not selects(info, "edges") or (
                    page["last"] is not None and page["before"] is None
                ):
                    return django_resolver(self._by_count)(nodes, source, info, page, kwargs)
        return self.connection_type.resolve_connection(nodes, info=info, **page, **kwargs)

    def _by_count(
        self, nodes: Any, source: Any, info: Info, page: dict[str, Any], kwargs: dict[str, Any]
    ) -> Any:
        total = getattr(source, self.count, None) if self.count else None
        if total is None:
            total = nodes.order_by().count()
        if page["last"] is not None and page["before"] is None:
            prefix = resolve_edge_class(self.connection_type).CURSOR_PREFIX
            page = page | {"before": to_base64(prefix, total)}
        if selects(info, "edges"):
            return self.connection_type.resolve_connection(nodes, info=info, **page, **kwargs)
        return self._without_rows(total, info, page)

    def _without_rows(self, total: int, info: Info, page: dict[str, Any]) -> Any:
        prefix = resolve_edge_class(self.connection_type).CURSOR_PREFIX
        part = SliceMetadata.from_arguments(info, **page, prefix=prefix)
        end = min(part.end, total)
        some = part.start < end
        connection: Any = self.connection_type(
            edges=[],
            page_info=relay.PageInfo(
                has_next_page=part.end < total,
                has_previous_page=part.start > 0,
                start_cursor=to_base64(prefix, part.start) if some else None,
                end_cursor=to_base64(prefix, end - 1) if some else None,
            ),
        )
        connection.nodes = Counted(total)
        return connection


class Counted:
    """Stands for rows of which only the number was asked for."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return self.total


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


def total_of(rows: Callable[[Info], QuerySet[Any]], parent: str) -> Callable[[Info], Any]:
    """An annotation: how many of `rows` have the row as their `parent`. Where it is of use."""

    def expression(info: Info) -> Any:
        if selects(info, "edges"):
            return Value(None, output_field=IntegerField())  # the rows bring it along
        mine = rows(info).filter(**{parent: OuterRef("pk")}).order_by()
        counted = mine.values(parent).annotate(total=Count("pk")).values("total")
        return Coalesce(Subquery(counted), 0)

    return expression


def selects(info: Info, name: str) -> bool:
    """Is the field `name` selected right below, in a fragment too?"""

    def among(selections: list[Selection]) -> bool:
        return any(
            among(one.selections)
            if isinstance(one, InlineFragment) or not hasattr(one, "arguments")
            else one.name == name
            for one in selections
        )

    return any(among(field.selections) for field in info.selected_fields)


def check_page(
    info: Info,
    *,
    before: str | None,
    after: str | None,
    first: int | None,
    last: int | None,
) -> None:
    """InvalidInputError for arguments of a page that make no sense."""
    most = info.schema.config.relay_max_results
    _check_page(most=most, before=before, after=after, first=first, last=last)


def _check_page(
    *,
    most: int,
    before: str | None,
    after: str | None,
    first: int | None,
    last: int | None,
) -> None:
    for name, number in (("first", first), ("last", last)):
        if number is not None and not 0 <= number <= most:
            raise InvalidInputError(f"{name} is {number}; 0 to {most} are allowed.", where=name)
    if first is not None and last is not None:
        raise InvalidInputError("Give first or last, not both.", where="last")
    for name, cursor in (("before", before), ("after", after)):
        try:
            if cursor is not None and not 0 <= int(from_base64(cursor)[1]) < 2**31:
                raise ValueError(cursor)
        except ValueError:
            raise InvalidInputError(
                f"{name} is not a cursor of this list.",
                where=name,
                hint="Take endCursor or startCursor of a page before.",
            ) from None


def page_part(*, first: int | None, after: str | None) -> SliceMetadata:
    """Return which rows of a list a page holds.

    Raises:
        InvalidInputError: the arguments make no sense.
    """
    most = int(settings.GRAPHQL_MAX_PAGE)
    _check_page(most=most, before=None, after=after, first=first, last=None)
    info: Any = None  # of which it reads the largest page only
    return SliceMetadata.from_arguments(
        info, after=after, first=most if first is None else first, max_results=most
    )


def check_nested_pages(info: Info | GraphQLResolveInfo[Any]) -> None:
    """Check the arguments of every list below a field.

    Raises:
        InvalidInputError: of one of them they make no sense.
    """
    raw = graphql_info(info) if isinstance(info, Info) else info
    # graphql-core has the values in an object, the optimizer's copy of `info` as they are.
    known: Any = getattr(raw.variable_values, "coerced", raw.variable_values)
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
                page: dict[str, Any] = dict.fromkeys(("before", "after", "first", "last"))
                for argument in node.arguments or ():
                    if argument.name.value in page:
                        given = value_from_ast_untyped(argument.value, known)
                        page[argument.name.value] = given
                if any(value is not None for value in page.values()):
                    _check_page(most=settings.GRAPHQL_MAX_PAGE, **page)
                check(node.selection_set)

    for node in raw.field_nodes:
        check(node.selection_set)
