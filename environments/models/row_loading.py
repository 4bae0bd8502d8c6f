"""Fast loading of rows for lists, without `Model.__init__`.

Django passes each value, and a marker for each deferred column, through the constructor, which
takes most of the time of a list with many columns.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

from django.db import models
from django.db.models.base import ModelState
from django.db.models.signals import post_init, pre_init


class LoadedDirectly(models.Model):
    """A model whose rows are loaded by setting one attribute for each column."""

    class Meta:
        abstract = True

    @classmethod
    def from_db(
        cls, db: str | None, field_names: Collection[str], values: Collection[Any], **options: Any
    ) -> Self:
        if pre_init.receivers or post_init.receivers:  # these expect a constructor
            return super().from_db(db, field_names, values, **options)
        loaded = cls.__new__(cls)
        state = ModelState()
        state.adding, state.db = False, db
        attributes = loaded.__dict__
        attributes["_state"] = state
        attributes.update(zip(field_names, values, strict=True))
        return loaded
