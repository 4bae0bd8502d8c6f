"""Query optimization: joined rows, and hints for lists that the optimizer cannot see itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from django.db.models import (
    Model,
    Prefetch,
    QuerySet,
)
from graphql import (
    GraphQLResolveInfo,
)
from strawberry import Info
from strawberry.extensions import SchemaExtension
from strawberry_django.optimizer import (
    DjangoOptimizerExtension,
    OptimizerStore,
    optimizer,
)

from environments.graphql._private import enclosing_type, graphql_info, hints_below, selected_below
from environments.graphql.connections import check_nested_pages


class Optimizer(DjangoOptimizerExtension):
    """The optimizer without its hook around each field: fields optimize their own querysets."""

    resolve = SchemaExtension.resolve  # type: ignore[assignment]

    def optimize(self, qs: Any, info: Any, *, store: Any = None) -> QuerySet[Any]:
        try:
            return super().optimize(qs, info, store=store)
        except ValueError:
            # A nested list is sliced before its own field can refuse its page arguments.
            check_nested_pages(info)
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Part of a joined row that is shown to callers who may not see it."""

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
        below = hints_below(info, self.model)
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


def optimized(rows: QuerySet[Any], info: Any) -> QuerySet[Any]:
    """With what `info` asks of the rows; for lists that the optimizer does not see by itself."""
    extension = optimizer.get()
    return extension.optimize(rows, info=info) if extension is not None else rows


def below(info: Info, *way: str) -> GraphQLResolveInfo[Any]:
    """Return the resolve info of a field further down, as the optimizer itself would build it.

    For the optimizer, when no row leads to that field. Without such a selection it has no nodes.
    """
    found = graphql_info(info)
    for name in way:
        deeper = selected_below(found, name)
        if deeper is None:
            return found._replace(field_nodes=[])
        found = deeper
    return found


def inside(info: Info, *parents: str) -> bool:
    """Return True when the field belongs to one of these types, which lead to visible rows only."""
    return enclosing_type(info) in parents
