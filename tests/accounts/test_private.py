"""The private names in `accounts/_private.py` still do what this package needs.

When one of these tests fails after an update: look for a public replacement in the release notes
first. Otherwise follow the change in `accounts/_private.py`, or keep the former release by the
bounds in pyproject.toml.
"""

from __future__ import annotations

import pytest
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.test import RequestFactory

from accounts import _private


def _view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@pytest.mark.django_db  # the page of a refusal
@pytest.mark.parametrize("exempt", [True, False])
def test_only_exempt_requests_need_no_csrf_token(exempt: bool) -> None:
    request = RequestFactory().post("/")
    if exempt:
        _private.exempt_from_csrf(request)
    refused = CsrfViewMiddleware(_view).process_view(request, _view, (), {})
    assert (refused is None) is exempt


def _consume(request: HttpRequest, **options: object) -> object:
    return _private.ratelimit.consume(
        request, app="test", action="try", config={"try": "2/m/ip"}, limit_get=True, **options
    )


@pytest.mark.django_db
def test_requests_over_the_rate_are_refused_and_a_rolled_back_one_does_not_count() -> None:
    cache.clear()
    request = RequestFactory().get("/")
    first, second = _consume(request), _consume(request)
    assert first is not None
    assert second is not None
    assert _consume(request, dry_run=True) is None
    assert _consume(request) is None
    second.rollback()  # type: ignore[attr-defined]
    assert _consume(request, dry_run=True) is not None
    assert _consume(request) is not None
    assert _consume(request) is None


def test_the_address_of_a_request_is_the_one_that_rates_count() -> None:
    request = RequestFactory().get("/", REMOTE_ADDR="192.0.2.7")
    assert _private.ratelimit.get_ip(request) == "192.0.2.7"
