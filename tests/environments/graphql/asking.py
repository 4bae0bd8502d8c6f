"""How tests ask the schema: by HTTP as somebody, or straight."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from asgiref.sync import async_to_sync
from django.test import Client, RequestFactory
from strawberry.types import ExecutionResult

from accounts.access import Actor
from condastore.schema import schema

Json = dict[str, Any]
Ask = Callable[..., Json]
ERROR = "... on OperationError { code message where hint details faults { message } }"


def context_of(actor: Actor) -> Any:
    request: Any = RequestFactory().post("/graphql")
    request.actor = actor
    return SimpleNamespace(request=request)


def execute(actor: Actor, document: str, **variables: Any) -> ExecutionResult:
    """Straight at the schema, as the view does it."""
    context = context_of(actor)
    if "mutation" in document:
        return async_to_sync(schema.execute)(
            document, variable_values=variables, context_value=context
        )
    return schema.execute_sync(document, variable_values=variables, context_value=context)


def ask(actor: Actor, document: str, **variables: Any) -> Json:
    """The data; fails where there are errors."""
    result = execute(actor, document, **variables)
    assert not result.errors, [(error.message, error.extensions) for error in result.errors]
    data: Json = result.data  # type: ignore[assignment]
    return data


def post(client: Client, document: str, variables: Json | None = None, **headers: str) -> Any:
    body = json.dumps({"query": document, "variables": variables or {}})
    return client.post("/graphql", body, content_type="application/json", headers=headers)
