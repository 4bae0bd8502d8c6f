"""Names of models and fields that people read in the admin."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db.models import Field, Model

MODELS = [
    model for model in apps.get_models() if model._meta.app_label in {"accounts", "environments"}
]
#: Written with other letters than in the names of columns.
ABBREVIATIONS = {"api", "id", "ip", "json", "md5", "oci", "pypi", "sha256", "uid", "url"}
#: Ends of plurals that Django builds by adding an s.
WRONG_PLURALS = ("chs", "shs", "sss", "xs", "cys", "persons")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_names_of_a_model_and_its_fields_are_spelled_as_people_write_them(
    model: type[Model],
) -> None:
    fields = [field for field in model._meta.get_fields() if isinstance(field, Field)]
    names = [model._meta.verbose_name, *(field.verbose_name for field in fields)]
    assert {str(name) for name in names if ABBREVIATIONS & set(str(name).split())} == set()
    plural = str(model._meta.verbose_name_plural)
    assert not plural.endswith(WRONG_PLURALS), plural
