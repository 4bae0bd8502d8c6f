"""Translation of SCIM filters to querysets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

from django.db.models import Q
from scim2_models import InvalidFilterException
from scim2_models.path import (
    AttrPath,
    CompareOperator,
    Comparison,
    FilterNode,
    FilterVisitor,
    LogicalExpr,
    LogicalOperator,
    Not,
    Present,
    ValuePath,
)

_TEXT = {
    CompareOperator.eq: "exact",
    CompareOperator.co: "contains",
    CompareOperator.sw: "startswith",
    CompareOperator.ew: "endswith",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Column of an attribute. Keys are integers and support equality only."""

    lookup: str
    exact: bool = False  # case-sensitive
    key: bool = False


class RowFilter(FilterVisitor[Q]):
    """Translate a filter.

    Raises:
        InvalidFilterException: an attribute has no column.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = columns

    def visit_comparison(self, node: Comparison) -> Q:
        column = self._column(node.attr_path)
        if node.op is CompareOperator.ne:
            return ~self._compared(column, CompareOperator.eq, node)
        return self._compared(column, node.op, node)

    def _compared(self, column: Column, op: CompareOperator, node: Comparison) -> Q:
        if column.key and op is CompareOperator.eq:
            key = str(node.value)
            return Q(**{column.lookup: int(key)}) if is_key(key) else Q(pk__in=())
        if column.key or op not in _TEXT or not isinstance(node.value, str):
            raise InvalidFilterException(detail=f"{node}: this comparison is not supported.")
        return Q(**{f"{column.lookup}__{'' if column.exact else 'i'}{_TEXT[op]}": node.value})

    def visit_present(self, node: Present) -> Q:
        column = self._column(node.attr_path)
        return Q(**{f"{column.lookup}__isnull": False}) if column.key else ~Q(**{column.lookup: ""})

    def visit_not(self, node: Not) -> Q:
        return ~self.visit(node.expr)

    def visit_logical_expr(self, node: LogicalExpr) -> Q:
        join = and_ if node.op is LogicalOperator.and_ else or_
        return reduce(join, map(self.visit, node.terms))

    def visit_value_path(self, node: ValuePath) -> Q:
        """Rewrite `members[value eq "7"]` as `members.value eq "7"`."""
        inner = node.val_filter
        if isinstance(inner, Comparison) and inner.attr_path.sub_attr is None:
            path = AttrPath(node.attr_path.attr, inner.attr_path.attr, node.attr_path.uri)
            return self.visit(Comparison(path, inner.op, inner.value))
        raise self._unknown(node)

    def _column(self, path: AttrPath) -> Column:
        name = path.attr if path.sub_attr in (None, "value") else f"{path.attr}.{path.sub_attr}"
        column = self.columns.get(name.lower())
        if column is None:
            raise self._unknown(path)
        return column

    def _unknown(self, node: AttrPath | FilterNode) -> InvalidFilterException:
        return InvalidFilterException(
            detail=f"{node}: supported attributes are {', '.join(sorted(self.columns))} here."
        )


def is_key(text: str) -> bool:
    """Parse a primary key."""
    return text.isascii() and text.isdecimal() and len(text) < 18
