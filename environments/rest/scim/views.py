"""SCIM 2.0 views: a directory provisions people and groups (RFC 7644)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from pydantic import ValidationError
from scim2_models import (
    Context,
    Error,
    ListResponse,
    Meta,
    NotFoundException,
    NotImplementedException,
    Resource,
    ResponseParameters,
    SCIMException,
)

from accounts.access import Actor
from accounts.authentication import directory_of
from accounts.sign_in import TooManyAttemptsError
from condastore.errors import (
    AccessDeniedError,
    ConflictError,
    InvalidInputError,
    NotSignedInError,
    StoreError,
    UnavailableError,
)
from environments.rest.scim.filters import RowFilter, is_key
from environments.rest.scim.resources import PEOPLE, Kind, root_of
from environments.rest.scim.service import LONGEST_PAGE, PAGE, SERVICE

#: Status and keyword by type of error; the first match counts.
_STATUSES: Sequence[tuple[type[StoreError], HTTPStatus, str | None]] = (
    (TooManyAttemptsError, HTTPStatus.TOO_MANY_REQUESTS, None),
    (NotSignedInError, HTTPStatus.UNAUTHORIZED, None),
    (AccessDeniedError, HTTPStatus.FORBIDDEN, None),
    (ConflictError, HTTPStatus.CONFLICT, "uniqueness"),
    (InvalidInputError, HTTPStatus.BAD_REQUEST, "invalidValue"),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, None),
)


def _answer(body: Any, status: int = HTTPStatus.OK, **headers: str) -> HttpResponse:
    text = json.dumps(body, ensure_ascii=False)
    return HttpResponse(
        text, status=status, content_type="application/scim+json", headers=headers or None
    )


def _refusal(error: Error) -> HttpResponse:
    status = error.status or HTTPStatus.BAD_REQUEST
    answer = _answer(error.model_dump(), status)
    if status == HTTPStatus.UNAUTHORIZED:
        answer["WWW-Authenticate"] = 'Bearer realm="condastore"'
    return answer


def _of_store(error: StoreError) -> Error:
    for kind, status, keyword in _STATUSES:
        if isinstance(error, kind):
            detail = " ".join(part for part in (error.message, error.hint) if part)
            return Error(status=status, scim_type=keyword, detail=detail)
    raise error  # reported by condastore.http.middleware


def _of_validation(error: ValidationError) -> Error:
    """Return all validation faults in one text."""
    faults = Error.from_validation_errors(error)
    faults[0].detail = "; ".join(fault.detail or "" for fault in faults)
    return faults[0]


@method_decorator(csrf_exempt, name="dispatch")  # token-authenticated, so CSRF does not apply
class Door(View):
    """Base view: authenticates the directory and renders SCIM errors."""

    actor: Actor

    def dispatch(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponseBase:
        try:
            with SERVICE:
                self.actor = directory_of(request)
                self.root = root_of(request)
                return super().dispatch(request, *args, **options)
        except ValidationError as error:
            return _refusal(_of_validation(error))
        except SCIMException as error:
            return _refusal(error.to_error())
        except StoreError as error:
            return _refusal(_of_store(error))

    def http_method_not_allowed(
        self, request: HttpRequest, *args: Any, **options: Any
    ) -> HttpResponse:
        answer = _refusal(
            Error(
                status=HTTPStatus.METHOD_NOT_ALLOWED,
                detail=f"Method {request.method} is not supported for this resource.",
            )
        )
        allowed = [name.upper() for name in self.http_method_names if hasattr(self, name)]
        answer["Allow"] = ", ".join(allowed)
        return answer


class Nothing(Door):
    def get(self, request: HttpRequest) -> HttpResponse:
        raise NotFoundException(detail="Resource not found.")

    def post(self, request: HttpRequest) -> HttpResponse:
        if request.path.endswith(("/.search", "/Bulk")):
            raise NotImplementedException(detail="Use GET for one resource type at a time.")
        return self.get(request)

    put = patch = delete = get


# --- service description --------------------------------------------------------------------------


class Config(Door):
    def get(self, request: HttpRequest) -> HttpResponse:
        return _answer(_described([SERVICE.config], self.root)[0])


class Described(Door):
    """Lists the documents of the service description, or returns one by id."""

    def described(self) -> Iterable[Any]:
        raise NotImplementedError

    def get(self, request: HttpRequest, key: str = "") -> HttpResponse:
        if "filter" in request.GET:
            return _refusal(
                Error(
                    status=HTTPStatus.FORBIDDEN,
                    detail="Filters are not supported for this resource (RFC 7644, 4).",
                )
            )
        found = _described(self.described(), self.root)
        if not key:
            return _answer(_listed(found, total=len(found), start=1))
        for one in found:
            if one["id"] == key:
                return _answer(one)
        raise NotFoundException(detail=f"{key} does not exist.")


class ResourceTypes(Described):
    def described(self) -> Iterable[Any]:
        return SERVICE.resource_types


class Schemas(Described):
    def described(self) -> Iterable[Any]:
        return SERVICE.schemas


def _described(resources: Iterable[Any], root: str) -> list[Any]:
    bodies = []
    for one in resources:
        name = type(one).__name__
        location = name if name == "ServiceProviderConfig" else f"{name}s/{one.id}"
        copy = one.model_copy(
            update={"meta": Meta(resource_type=name, location=f"{root}/{location}")}
        )
        bodies.append(copy.model_dump(scim_ctx=Context.RESOURCE_QUERY_RESPONSE))
    return bodies


def _listed(resources: Sequence[Any], *, total: int, start: int) -> dict[str, Any]:
    return {
        "schemas": [str(ListResponse.__schema__)],
        "totalResults": total,
        "startIndex": start,
        "itemsPerPage": len(resources),
        "Resources": list(resources),
    }


# --- users and groups -----------------------------------------------------------------------------


class OfKind(Door):
    kind: Kind = PEOPLE

    def shown(
        self, rows: Sequence[Any], wanted: ResponseParameters[Any], context: Context
    ) -> list[Any]:
        resources = self.kind.show(rows, self.root, asked=lambda name: _asked(wanted, name))
        return [one.model_dump(scim_ctx=context, response_parameters=wanted) for one in resources]

    def parameters(self, request: HttpRequest) -> ResponseParameters[Any]:
        given = {
            name: request.GET[name]
            for name in ("attributes", "excludedAttributes")
            if name in request.GET
        }
        found: ResponseParameters[Any] = self.kind.messages.parameters.model_validate(given)
        return found


def _asked(wanted: ResponseParameters[Any], name: str) -> bool:
    """Whether an expensive attribute is requested."""

    def is_among(paths: Iterable[object]) -> bool:
        return any(str(path).rpartition(":")[2].partition(".")[0].lower() == name for path in paths)

    if wanted.attributes:
        return is_among(wanted.attributes)
    return not is_among(wanted.excluded_attributes or ())


class All(OfKind):
    def get(self, request: HttpRequest) -> HttpResponse:
        requested = self.kind.messages.search.model_validate(request.GET.dict())
        rows = self.kind.rows(self.actor)
        if requested.filter is not None:
            rows = rows.filter(RowFilter(self.kind.columns).visit(requested.filter.ast))
        start = requested.start_index or 1
        count = min(PAGE if requested.count is None else requested.count, LONGEST_PAGE)
        page = list(rows[start - 1 : start - 1 + count])
        shown = self.shown(page, requested, Context.RESOURCE_QUERY_RESPONSE)
        return _answer(_listed(shown, total=rows.count(), start=start))

    def post(self, request: HttpRequest) -> HttpResponse:
        requested = self.parameters(request)
        resource = self.kind.model.model_validate_json(
            request.body, scim_ctx=Context.RESOURCE_CREATION_REQUEST
        )
        row = self.kind.add(self.actor, resource)
        (body,) = self.shown([row], requested, Context.RESOURCE_CREATION_RESPONSE)
        location = f"{self.root}/{self.kind.name}s/{row.pk}"
        return _answer(body, HTTPStatus.CREATED, Location=location)


class One(OfKind):
    def get(self, request: HttpRequest, key: str) -> HttpResponse:
        return self._answer(request, self._row(key), Context.RESOURCE_QUERY_RESPONSE)

    @method_decorator(transaction.atomic)  # locked until the change
    def put(self, request: HttpRequest, key: str) -> HttpResponse:
        row = self._row(key, lock=True)
        resource: Resource[Any] = self.kind.model.model_validate_json(
            request.body, scim_ctx=Context.RESOURCE_REPLACEMENT_REQUEST
        )
        resource.replace(self._now(row))
        changed = self.kind.change(self.actor, row, resource)
        return self._answer(request, changed, Context.RESOURCE_REPLACEMENT_RESPONSE)

    @method_decorator(transaction.atomic)
    def patch(self, request: HttpRequest, key: str) -> HttpResponse:
        row = self._row(key, lock=True)
        resource = self._now(row)
        self.kind.messages.patch.model_validate_json(
            request.body, scim_ctx=Context.RESOURCE_PATCH_REQUEST
        ).patch(resource)
        changed = self.kind.change(self.actor, row, resource)
        return self._answer(request, changed, Context.RESOURCE_PATCH_RESPONSE)

    def delete(self, request: HttpRequest, key: str) -> HttpResponse:
        self.kind.remove(self.actor, self._row(key))
        return HttpResponse(status=HTTPStatus.NO_CONTENT)

    def _row(self, key: str, *, lock: bool = False) -> Any:
        rows = self.kind.rows(self.actor)
        if lock:
            rows = rows.select_for_update(of=("self",))
        row = rows.filter(pk=key).first() if is_key(key) else None
        if row is None:
            raise NotFoundException(detail=f"{self.kind.name} {key} does not exist.")
        return row

    def _now(self, row: Any) -> Any:
        (resource,) = self.kind.show([row], self.root, asked=lambda name: True)
        return resource

    def _answer(self, request: HttpRequest, row: Any, context: Context) -> HttpResponse:
        (body,) = self.shown([row], self.parameters(request), context)
        return _answer(body)
