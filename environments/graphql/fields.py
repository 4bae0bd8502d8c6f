"""Fields of types: columns, computed values and joined rows, with the actor that asks."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, Self, TypeVar

import strawberry
import strawberry_django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db.models.manager import BaseManager
from django.http import HttpRequest
from strawberry import ID, Info
from strawberry_django.fields.field import (
    StrawberryDjangoField,
)

from accounts.access import Actor
from environments.graphql.optimizer import Join
from environments.models._private import prefetched

F = TypeVar("F", bound=Callable[..., Any])

#: The argument that GraphQL calls `id`.
Key = Annotated[ID, strawberry.argument(name="id")]

OptionalKey = Annotated[ID | None, strawberry.argument(name="id")]


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
    """Return the actor of the request."""
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
    """The address of a path of this server, as the caller reaches it."""
    if settings.PUBLIC_URL:
        return str(settings.PUBLIC_URL).rstrip("/") + path
    request = info.context.request
    return request.build_absolute_uri(path) if isinstance(request, HttpRequest) else path


def described(description: str, *, name: str | None = None) -> Any:
    """Describe an argument, in `Annotated[T, described("...")]`."""
    return strawberry.argument(description=description, name=name)


Row = Any  # of a model, or what a resolver made


class Column(StrawberryDjangoField):
    """A field that is read from its row by one plain call, without the steps around a resolver.

    A list of a hundred environments has thousands of these.
    """

    read: Callable[[Row], Any] | None = None
    #: Reads what `read` cannot, as the row was not read with it; the caller's rights may decide.
    read_for: Callable[[Row, Info], Any] | None = None
    #: Makes the value of the row's key alone; then lists need not make an object of each row.
    of_key: Callable[[Any], Any] | None = None

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.read, copied.of_key = self.read, self.of_key
        copied.read_for = self.read_for
        return copied

    @property
    def is_plain(self) -> bool:
        """True if `reader` may answer the field, without a resolver and its steps."""
        return self.base_resolver is None and not self.extensions

    @property
    def is_basic_field(self) -> bool:
        return self.is_plain and self.read_for is None

    def get_result(
        self, source: Row, info: Info | None, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        if self.read_for is not None and info is not None:
            try:
                return self.read_for(source, info)
            except SynchronousOnlyOperation:  # this is the event loop
                return sync_to_async(self.read_for)(source, info)
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
            fetched = prefetched(source, name)
            value = getattr(source, name) if fetched is None else fetched
            return list(value.all()) if isinstance(value, BaseManager) else value
        return getattr(source, name)


def joined(
    join: Join,
    read: Callable[[Row], Any],
    *,
    read_for: Callable[[Row, Info], Any] | None = None,
    description: str | None = None,
) -> Any:
    """A field that `read` takes from a joined row.

    Args:
        read_for: reads it from rows that were not read with the join, such as those that a
            mutation returns; without it `read` does.
    """
    column = computed(read, description=description)
    column.read_for = read_for
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


def column(description: str) -> Any:
    """A field that is a column of its row."""
    found: Any = strawberry_django.field(field_cls=Column, description=description)
    return found
