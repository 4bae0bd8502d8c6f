"""Rows that are loaded without their constructor are the rows that Django itself would load."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import models
from django.db.models.signals import post_init

from environments.models import Build, Environment, Namespace
from tests import factories

pytestmark = pytest.mark.django_db
MODELS = (Build, Environment, Namespace)


@pytest.fixture(autouse=True)
def build() -> Build:
    namespace = factories.make_namespace("research")
    return factories.make_build(factories.make_environment(namespace, "ml"))


@pytest.mark.parametrize("model", MODELS)
def test_all_columns_are_as_django_loads_them(model: Any) -> None:
    [loaded] = model.objects.all()
    names = [field.attname for field in model._meta.concrete_fields]
    values = [getattr(loaded, name) for name in names]
    expected: Any = models.Model.from_db.__func__(model, "default", names, values)  # type: ignore[attr-defined]
    assert set(loaded.__dict__) == set(expected.__dict__)
    assert loaded == expected
    assert (loaded._state.adding, loaded._state.db) == (False, "default")


def test_columns_that_were_not_read_are_read_when_they_are_asked_for(
    django_assert_num_queries: Any,
) -> None:
    found = Build.objects.only("number", "environment__name").select_related("environment").get()
    assert {"source", "state"} <= found.get_deferred_fields()
    with django_assert_num_queries(0):
        assert (found.number, found.environment.name) == (1, "ml")
    with django_assert_num_queries(1):
        assert found.state == "READY"


def test_a_loaded_row_is_saved_and_refreshed(django_assert_num_queries: Any) -> None:
    environment = Environment.objects.defer("created_at").get()
    environment.description = "changed"
    with django_assert_num_queries(1):
        environment.save()
    assert Environment.objects.get().description == "changed"
    Environment.objects.update(description="once more")
    environment.refresh_from_db()
    assert environment.description == "once more"


def test_those_who_listen_to_constructors_hear_them() -> None:
    heard: list[object] = []

    def listen(instance: object, **_: object) -> None:
        heard.append(instance)

    post_init.connect(listen, sender=Namespace)
    try:
        assert heard == [Namespace.objects.get()]
    finally:
        post_init.disconnect(listen, sender=Namespace)
