"""Translation of errors: a StoreError keeps its code and hint, any other gets an id in the log."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable
from functools import partial
from typing import Any

import strawberry
import structlog
from asgiref.sync import sync_to_async
from graphql import GraphQLError
from strawberry import Info
from strawberry.scalars import JSON
from strawberry.types import ExecutionResult
from strawberry.types.field import StrawberryField

from accounts.access import Actor
from condastore.errors import StoreError, UnexpectedError, is_temporary
from condastore.outages import migration_hint, unavailable
from environments.graphql.error_details import ErrorDetails, typed_details
from environments.graphql.nodes import with_database_keys
from environments.operations import audit

logger = structlog.get_logger(__name__)


@strawberry.type(description="One of several faults of a request.")
class Fault:
    message: str = strawberry.field(description="Description of the fault, for people.")
    where: str = strawberry.field(description="Location of the fault; empty when there is none.")
    code: str = strawberry.field(description="Stable code of the fault.")
    hint: str = strawberry.field(description="Suggestion for the next step.")


@strawberry.type(description="Why a mutation was refused.")
class OperationError:
    code: str = strawberry.field(description="Stable code of the error; clients may rely on it.")
    message: str = strawberry.field(description="Description of the error, for people.")
    where: str = strawberry.field(
        description="Argument or location at fault; empty when there is none."
    )
    hint: str = strawberry.field(description="Suggestion for the next step.")
    details: JSON = strawberry.field(
        description="Machine-readable details; the keys depend on `code`."
    )
    typed_details: ErrorDetails | None = strawberry.field(
        description="The details in a type of their own, for codes that have one."
    )
    faults: list[Fault] = strawberry.field(
        description="Individual faults, when several were found."
    )


def refusable(name: str) -> Any:
    """Name the union of a mutation's result and OperationError."""
    return strawberry.union(
        name, description="Result of the mutation, or OperationError when it was refused."
    )


def faults_in(details: Any) -> list[Fault]:
    """The faults that an error's details list."""
    listed = details.get("faults", ()) if isinstance(details, dict) else ()
    return [
        Fault(
            message=fault.get("message", ""),
            where=fault.get("where", ""),
            code=fault.get("code", ""),
            hint=fault.get("hint", ""),
        )
        for fault in listed
    ]


def operation_error(error: StoreError) -> OperationError:
    details = dict(error.details)
    return OperationError(
        code=error.code,
        message=error.message,
        where=error.where,
        hint=error.hint,
        details=JSON(details),
        typed_details=typed_details(details),
        faults=faults_in(details),
    )


def unexpected(error: BaseException, *, doing: str) -> UnexpectedError:
    """Log a bug with its traceback, and return an error with the id of the log record."""
    number = uuid.uuid4().hex[:12]
    logger.error(
        "unexpected error",
        error_id=number,
        doing=doing,
        hint=migration_hint(error),
        exc_info=error,
    )
    return UnexpectedError(
        f"Something went wrong on our side (error {number}).",
        hint="Try again; if it stays, tell the administrators the number of the error.",
        details={"error": number},
    )


def translated(error: BaseException, *, doing: str) -> StoreError:
    """An outage of the database as what it is; all else is unexpected."""
    if (away := unavailable(error)) is not None:
        logger.warning("database unreachable", doing=doing, error=str(error))
        return away
    return unexpected(error, doing=doing)


class StoreErrors(strawberry.ExceptionHandler[Exception, OperationError]):
    """Every field whose union has OperationError answers errors with it: so do all mutations."""

    def handle(
        self, exception: Exception, *, field: StrawberryField, info: Info
    ) -> OperationError | Awaitable[OperationError] | None:
        if isinstance(exception, GraphQLError):
            return None  # the query's own mistake

        def answer() -> OperationError:
            error = exception
            if not isinstance(error, StoreError):
                error = translated(error, doing=field.name)
            if audit.is_refusal(error, changing=True):
                audit.refused_field(
                    info.context.request.actor,
                    info.field_name,
                    with_database_keys(getattr(info.selected_fields[0], "arguments", {})),
                    error,
                    changing=True,
                )
            if is_temporary(error):
                info.context.request.__dict__.setdefault(_REFUSED, set()).add(info.path.key)
            return operation_error(error)

        asks_database = not isinstance(exception, StoreError) or audit.is_refusal(
            exception, changing=True
        )
        if asks_database and in_event_loop():
            return sync_to_async(answer)()
        return answer()


#: Attribute of a request: names in the answer of the mutations that an outage refused.
_REFUSED = "mutations_refused_by_an_outage"


def refused_by_outage(request: Any, result: ExecutionResult) -> bool:
    """Return True if an outage refused every field of the operation, so that nothing was done.

    Where one field succeeded, the operation must not be sent again as a whole.
    """
    refused = set(getattr(request, _REFUSED, ()))
    others = False
    for error in result.errors or ():
        cause = error.original_error
        if isinstance(cause, StoreError) and is_temporary(cause):
            refused.add(error.path[0] if error.path else None)
        else:
            others = True
    if result.data is None:
        return bool(refused) and not others
    # A payload that refuses is an object, a field with an error of its own is null.
    errors = {error.path[0] for error in result.errors or () if error.path}
    return bool(result.data) and all(
        key in refused and (value is None or key not in errors)
        for key, value in result.data.items()
    )


def in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def refused_query(error: GraphQLError, actor: Actor) -> None:
    """Record what a query was not allowed; of mutations `StoreErrors` does it."""
    cause = error.original_error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    if not isinstance(cause, StoreError) or not audit.is_refusal(cause, changing=False):
        return
    path = ".".join(map(str, error.path or ("graphql",)))
    recording = partial(audit.refused_field, actor, path, {}, cause, changing=False)
    if in_event_loop():  # nobody waits for it here: the answer is on its way
        _recordings.add(task := asyncio.ensure_future(sync_to_async(recording)()))
        task.add_done_callback(_recordings.discard)
    else:
        recording()


#: Kept, so that none is collected before it is done.
_recordings: set[asyncio.Future[None]] = set()


def told(error: GraphQLError) -> GraphQLError:
    """An error of a query as the client may see it, with `extensions.code`."""
    cause = error.original_error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    if cause is None:  # the query does not fit the schema, or is too large
        error.extensions = {"code": "bad-query", **(error.extensions or {})}
        return error
    if not isinstance(cause, StoreError):
        cause = translated(cause, doing=".".join(map(str, error.path or ("graphql",))))
    return GraphQLError(
        cause.message,
        nodes=error.nodes,
        source=error.source,
        positions=error.positions,
        path=error.path,
        original_error=cause,
        extensions={
            "code": cause.code,
            "where": cause.where,
            "hint": cause.hint,
            "details": dict(cause.details),
        },
    )
