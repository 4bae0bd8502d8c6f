"""Optimizer of the schema. It lies here, as this package imports strawberry_django without GDAL."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from strawberry.extensions import SchemaExtension
from strawberry_django.optimizer import DjangoOptimizerExtension

from environments.graphql.pages import check_nested_pages


class Optimizer(DjangoOptimizerExtension):
    """The fields optimize their querysets themselves; a hook around each field would cost more."""

    resolve = SchemaExtension.resolve  # type: ignore[assignment]

    def optimize(self, qs: Any, info: Any, *, store: Any = None) -> QuerySet[Any]:
        try:
            return super().optimize(qs, info, store=store)
        except ValueError:
            # A nested list is sliced before its own field can refuse the arguments of its page.
            check_nested_pages(info)
            raise
