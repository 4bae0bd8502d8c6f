"""The GraphQL schema: queries, mutations, subscriptions and their extensions."""

from __future__ import annotations

from pathlib import Path

import strawberry
from django.conf import settings
from graphql import GraphQLError
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

from condastore.metrics import OperationTimes
from environments.graphql.errors import StoreErrors, refused_query, told
from environments.graphql.fast_execution import Straight
from environments.graphql.limits import Limits
from environments.graphql.mutations import Mutation
from environments.graphql.optimizer import Optimizer
from environments.graphql.queries import Query
from environments.graphql.scalars import BIG_INT, BigInt
from environments.graphql.subscriptions import Subscription

#: The committed text of the schema; `manage.py export_graphql` writes it.
SCHEMA_FILE = Path(__file__).resolve().parent.parent / "schema.graphql"


class Schema(strawberry.Schema):
    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        request = getattr(getattr(execution_context, "context", None), "request", None)
        if request is not None:
            for error in errors:
                refused_query(error, request.actor)
        errors[:] = [told(error) for error in errors]


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    extensions=[OperationTimes, Limits, lambda: Optimizer(prefetch_custom_queryset=True)],
    exception_handlers=[StoreErrors()],
    execution_context_class=Straight,
    config=StrawberryConfig(
        relay_max_results=settings.GRAPHQL_MAX_PAGE, scalar_map={BigInt: BIG_INT}
    ),
)
