"""Lists in pages: Relay connections whose totals cost a query only where they are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar

import strawberry
import strawberry_django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db.models import (
    Count,
    IntegerField,
    Model,
    OuterRef,
    Prefetch,
    QuerySet,
    Subquery,
    Value,
)
from django.db.models.functions import Coalesce
from django.db.models.manager import BaseManager
from django.http import HttpRequest
from graphql import (
    FieldNode,
    FragmentSpreadNode,
    GraphQLResolveInfo,
    InlineFragmentNode,
    SelectionSetNode,
    get_named_type,
    value_from_ast_untyped,
)
from strawberry import ID, Info, relay
from strawberry.extensions.field_extension import SyncExtensionResolver
from strawberry.relay.utils import (
    SliceMetadata,
    from_base64,
    to_base64,
)
from strawberry.types.nodes import InlineFragment, Selection
from strawberry_django.fields.field import (
    StrawberryDjangoConnectionExtension,
    StrawberryDjangoField,
)
from strawberry_django.optimizer import (
    OptimizerConfig,
    OptimizerStore,
    _generate_selection_resolve_info,
    _get_model_hints,
    _get_selections,
    optimizer,
)
from strawberry_django.queryset import get_queryset_config
from strawberry_django.relay import DjangoListConnection
from strawberry_django.relay.utils import resolve_edge_class
from strawberry_django.resolvers import django_resolver

from accounts.access import Actor
from condastore.errors import InvalidInputError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
#: The argument that GraphQL calls `id`.
Key = Annotated[ID, strawberry.argument(name="id")]
OptionalKey = Annotated[ID | None, strawberry.argument(name="id")]

if TYPE_CHECKING:

    class Connection(Generic[T]):
        """A list in pages."""

else:
    Connection = DjangoListConnection


def field(
    *,
    only: Any = None,
    annotate: Any = None,
    prefetch_related: Any = None,
    description: str | None = None,
) -> Callable[[F], F]:
    """A field with a resolver; the optimizer reads from the row what the rest names."""

    def made(resolver: F) -> F:
        found: Any = strawberry_django.field(
            resolver,
            only=only,
            annotate=annotate,
            prefetch_related=prefetch_related,
            description=description,
        )
        return found  # type: ignore[no-any-return]

    return made


def actor_of(info: Info) -> Actor:
    """Return who asks."""
    return actor_in(info.context.request)


def actor_in(request: Any) -> Actor:
    """Return who sends a request, over HTTP or as a message of a WebSocket.

    Raises:
        NotSignedInError: the sign-in of the WebSocket has ended.
    """
    if (ended := getattr(request, "ended", None)) is not None:
        raise ended
    actor: Actor = request.actor
    return actor


def absolute(info: Info, path: str) -> str:
    """The address of a path of this server, as whoever asks reaches it."""
    if settings.PUBLIC_URL:
        return str(settings.PUBLIC_URL).rstrip("/") + path
    request = info.context.request
    return request.build_absolute_uri(path) if isinstance(request, HttpRequest) else path


Row = Any  # of a model, or what a resolver made


class Column(StrawberryDjangoField):
    """A field that is read from its row by one plain call, without the steps around a resolver.

    A list of a hundred environments has thousands of these.
    """

    read: Callable[[Row], Any] | None = None

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.read = self.read
        return copied

    @property
    def is_basic_field(self) -> bool:
        return self.base_resolver is None and not self.extensions

    def get_result(
        self, source: Row, info: Info | None, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        if info is not None:
            return super().get_result(source, info, args, kwargs)
        try:
            return self._read(source)
        except SynchronousOnlyOperation:  # not read yet, and this is the event loop
            return sync_to_async(self._read)(source)

    @property
    def reader(self) -> Callable[[Row], Any]:
        """What reads the field from a row; SynchronousOnlyOperation where it would have to wait."""
        if self.read is not None:
            return self.read
        return self._read if self.is_list else attrgetter(self.django_name or self.python_name)

    def _read(self, source: Row) -> Any:
        if self.read is not None:
            return self.read(source)
        name = self.django_name or self.python_name
        try:
            return source.__dict__[name]
        except (AttributeError, KeyError):
            pass
        if self.is_list:
            fetched = getattr(source, "_prefetched_objects_cache", {}).get(name)
            value = getattr(source, name) if fetched is None else fetched
            return list(value.all()) if isinstance(value, BaseManager) else value
        return getattr(source, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What is shown of a joined row to those who may not see it."""

    #: The annotation that says who may; absent for actors who see everything.
    unless: str
    #: Columns of the row that it is joined to, and what makes the outline of their values.
    columns: Sequence[str]
    row: Callable[..., Any]


class Join:
    """Hints of a foreign key that is read in the same statement as its row.

    The optimizer reads rows of a type that says who may see them by a statement of their own, and
    names each of them in it. Where that is not needed, as what `only` and `annotate` bring tells
    who may see the row, this saves most of the time of a list.
    """

    prefetch_related: Sequence[Any] = ()
    annotate: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        relation: str,
        model: type[Model],
        rows: Callable[[Info], QuerySet[Any]],
        *,
        only: Sequence[str] = (),
        annotated: Callable[[Info], Mapping[str, Any]] = lambda info: {},
        hidden_by: str = "",
        outline: Outline | None = None,
    ) -> None:
        """`hidden_by`: column of the joined row; where it is set there is no row to be seen."""
        self.relation, self.model, self.rows = relation, model, rows
        self.only, self.annotated = only, annotated
        self.hidden_by, self.outline = hidden_by, outline

    def copy(self) -> Self:
        return self

    def with_resolved_callables(self, info: Info) -> OptimizerStore:
        raw = info._raw_info
        kind: Any = get_named_type(raw.return_type)
        schema: Any = info.schema
        below = _get_model_hints(
            self.model,
            schema,
            schema.get_type_by_name(kind.name),
            parent_type=kind,
            info=raw,
            config=OptimizerConfig(prefetch_custom_queryset=True),
            level=1,
        )
        if below is None or below.annotate or below.prefetch_related:
            prefetch = Prefetch(self.relation, queryset=optimized(self.rows(info), info))
            return OptimizerStore(
                only=[self.relation],
                prefetch_related=[prefetch],
                annotate=dict(self.annotated(info)),
            )
        hints: OptimizerStore = below.with_prefix(self.relation, info=info)
        hints |= OptimizerStore(
            only=[self.relation, *self.only],
            select_related=[self.relation],
            annotate=dict(self.annotated(info)),
        )
        return hints

    def with_prefix(self, prefix: str, *, info: Info) -> OptimizerStore:
        hints: OptimizerStore = self.with_resolved_callables(info).with_prefix(prefix, info=info)
        return hints


def joined(join: Join, read: Callable[[Row], Any], *, description: str | None = None) -> Any:
    """A field that `read` takes from a joined row."""
    column = computed(read, description=description)
    column.store = join
    column.django_name = f"joined {join.relation}"  # of its own the optimizer would not join it
    return column


def computed(
    read: Callable[[Row], Any],
    *,
    only: Any = None,
    annotate: Any = None,
    prefetch_related: Any = None,
    description: str | None = None,
) -> Any:
    """A field that `read` makes of a row; the rest says what of the row it needs."""
    column: Any = strawberry_django.field(
        field_cls=Column,
        only=only,
        annotate=annotate,
        prefetch_related=prefetch_related,
        description=description,
    )
    column.read = read
    return column


@dataclass
class RowsWanted:
    """The context of a list of which the queryset is wanted, and not a page (`prepared`)."""

    request: Any
    rows: Any = None


class Pages(StrawberryDjangoConnectionExtension):
    """Slices a list. Says what is wrong with the arguments, and counts apart from the rows."""

    def __init__(self, *, count: str = "", prepared: bool = False) -> None:
        super().__init__()
        self.count = count  # attribute of the parent that holds the total
        self.prepared = prepared

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


def optimized(rows: QuerySet[Any], info: Any) -> QuerySet[Any]:
    """With what `info` asks of the rows; for lists that the optimizer does not see by itself."""
    extension = optimizer.get()
    return extension.optimize(rows, info=info) if extension is not None else rows


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


def below(info: Info, *way: str) -> GraphQLResolveInfo[Any]:
    """What is asked of a field further down: for the optimizer, where no row leads there.

    It is how the optimizer itself goes down; it has no public name for that.
    """
    found: GraphQLResolveInfo[Any] = info._raw_info
    for name in way:
        parent: Any = get_named_type(found.return_type)
        nodes = [
            node
            for same in _get_selections(found, parent).values()
            for node in same
            if node.name.value == name
        ]
        if not nodes:
            return found._replace(field_nodes=[])
        found = _generate_selection_resolve_info(found, nodes, parent.fields[name].type, parent)
    return found


def inside(info: Info, *parents: str) -> bool:
    """Is the field one of these types, from which only visible rows are reached?"""
    return info._field.origin.__name__ in parents if info._field.origin else False


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
    raw: GraphQLResolveInfo[Any] = info._raw_info if isinstance(info, Info) else info
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
