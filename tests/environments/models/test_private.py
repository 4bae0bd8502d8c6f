"""The private names in `environments/models/_private.py` still do what rows and GraphQL need.

When one of these tests fails after an update: look for a public replacement in the release notes
first. Otherwise follow the change in `environments/models/_private.py`, or keep the former release
by the bounds in pyproject.toml.
"""

from __future__ import annotations

from typing import Any

import pytest

from environments.models import Namespace, _private
from tests.factories import make_namespace

pytestmark = pytest.mark.django_db


def test_rows_are_loaded_once_they_were_read() -> None:
    rows = Namespace.objects.all()
    assert not _private.is_loaded(rows)
    list(rows)
    assert _private.is_loaded(rows)


def test_a_queryset_tells_whether_it_prefetches() -> None:
    assert not _private.has_prefetches(Namespace.objects.all())
    assert _private.has_prefetches(Namespace.objects.prefetch_related("environments"))


def test_prefetched_relations_of_a_row_are_found(django_assert_num_queries: Any) -> None:
    make_namespace("research")
    plain = Namespace.objects.get(name="research")
    assert not _private.has_prefetched(plain)
    assert _private.prefetched(plain, "environments") is None
    row = Namespace.objects.prefetch_related("environments").get(name="research")
    with django_assert_num_queries(0):
        assert _private.has_prefetched(row)
        assert list(_private.prefetched(row, "environments")) == []
    assert _private.prefetched(row, "other") is None
