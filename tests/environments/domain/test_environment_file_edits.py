"""Edits of environment files by their fields: the text around a change stays as it was."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condastore.errors import InvalidInputError, SpecificationError
from environments.domain.environment_file_edits import (
    FileFields,
    join_requirement,
    read_fields,
    requirement_lines,
    split_requirement,
    with_fields,
    with_requirement,
)

FILE = """\
# what the team uses
channels: [conda-forge, "research"]
dependencies:
  - python 3.12.*   # until the next release
  # plots
  - 'matplotlib'
  # numbers
  - numpy>=1.26  # [linux]
  - pip:
      - shap ==0.49
# at the end
variables:
  THREADS: "4"
"""


def edited(text: str, **changes: object) -> str:
    base = read_fields(text)
    return with_fields(text, base=base, changed=replace(base, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        (
            {"dependencies": ("python 3.13.*", "matplotlib", "numpy>=1.26")},
            "python 3.12.*   #",
            "python 3.13.*   #",
        ),
        ({"dependencies": ("python 3.12.*", "numpy>=1.26")}, "  - 'matplotlib'\n", ""),
        (
            {"dependencies": ("python 3.12.*", "seaborn", "numpy>=1.26")},
            "'matplotlib'",
            "'seaborn'",
        ),
        (
            {"dependencies": ("python 3.12.*", "matplotlib", "numpy>=1.26", "pandas")},
            "# [linux]\n",
            "# [linux]\n  - pandas\n",
        ),
        ({"pip": ("shap ==0.50",)}, "shap ==0.49", "shap ==0.50"),
        ({"pip": ("shap ==0.49", "x")}, "shap ==0.49\n", "shap ==0.49\n      - x\n"),
        ({"channels": ("conda-forge",)}, '[conda-forge, "research"]', "[conda-forge]"),
        ({"channels": ("a", "research")}, "conda-forge,", "a,"),
        ({"variables": (("THREADS", "8"),)}, '"4"', '"8"'),
        (
            {"variables": (("THREADS", "4"), ("X", "1"))},
            '"4"\n',
            '"4"\n  X: "1"\n',
        ),
        (
            {"platforms": ("linux-64", "osx-arm64")},
            '"4"\n',
            '"4"\nplatforms:\n  - linux-64\n  - osx-arm64\n',
        ),
        (
            {"virtual_packages": ("__cuda=12",)},
            '"4"\n',
            '"4"\ncondastore:\n  virtual-packages:\n    - __cuda=12\n',
        ),
        (
            {"description": "For all: of us"},
            '"4"\n',
            '"4"\ncondastore:\n  description: "For all: of us"\n',
        ),
    ],
)
def test_a_change_of_a_field_changes_only_its_own_lines(
    changes: dict[str, object], old: str, new: str
) -> None:
    assert FILE.count(old) == 1
    assert edited(FILE, **changes) == FILE.replace(old, new)


def test_nothing_is_written_where_nothing_changed() -> None:
    assert edited(FILE) == FILE


def test_a_file_is_written_from_nothing_but_comments() -> None:
    assert edited("# mine\n", channels=("conda-forge",), dependencies=("python 3.12.*",)) == (
        "# mine\ndependencies:\n  - python 3.12.*\nchannels:\n  - conda-forge\n"
    )


def test_changes_of_the_form_and_of_the_text_are_merged() -> None:
    base = read_fields(FILE)
    typed = FILE.replace("  # numbers\n", "  - six\n  # numbers\n").replace('"4"', '"16"')
    form = replace(base, dependencies=("python 3.13.*", "numpy>=1.26", "pandas"))
    result = read_fields(with_fields(typed, base=base, changed=form))
    assert result.dependencies == ("python 3.13.*", "six", "numpy>=1.26", "pandas")
    assert result.variables == (("THREADS", "16"),)


@pytest.mark.parametrize(
    "text", ["&a", "- a: b", "#c", "'", "1.10", "null", "a: b", "{", " x", "é"]
)
def test_values_that_mean_something_in_yaml_are_quoted(text: str) -> None:
    for file in (FILE, "channels: []\nvariables: {A: b}\n"):
        result = read_fields(edited(file, variables=(("A", text),)))
        assert result.variables == (("A", text),)


@pytest.mark.parametrize(
    "text",
    [
        "dependencies: &a [x]\nchannels: *a\n",
        '{"dependencies": ["python"]}',
        "- python\n",
        "x" * 70_000,
        "dependencies:\n" + "- a\n" * 1_001,
    ],
)
def test_texts_without_fields_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises((InvalidInputError, SpecificationError)) as caught:
        read_fields(text)
    assert caught.value.hint


def test_a_value_in_a_form_that_is_not_known_stays_as_it_is() -> None:
    text = "dependencies:\n  -\n    python\n"
    with pytest.raises(InvalidInputError):
        edited(text, dependencies=("python", "six"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("numpy", ("numpy", "")),
        ("numpy >=1.26,<3", ("numpy", ">=1.26,<3")),
        ("numpy>=1.26", ("numpy", ">=1.26")),
        ("conda-forge::numpy=1.26=py*", ("conda-forge::numpy", "=1.26=py*")),
        ("numpy[version='>=1']", ("numpy", "[version='>=1']")),
    ],
)
def test_a_requirement_is_split_and_joined_in_its_own_spacing(
    text: str, parts: tuple[str, str]
) -> None:
    assert split_requirement(text) == parts
    assert join_requirement(*parts, was=text) == text


def test_entries_that_repeat_are_changed_in_their_place() -> None:
    text = "dependencies:\n  - a\n  - b\n  - a\n  # end\n  - c\n"
    assert edited(text, dependencies=("a", "a", "c")) == text.replace("  - b\n  - a\n", "  - a\n")
    assert edited(text, dependencies=("a", "b", "a", "d", "c")).count("- d\n") == 1


def test_requirements_have_their_lines() -> None:
    assert requirement_lines(FILE) == (("python 3.12.*", 4), ("matplotlib", 6), ("numpy>=1.26", 8))


def test_one_requirement_is_replaced_removed_or_added() -> None:
    assert "- numpy <2  # [linux]" in with_requirement(FILE, "numpy>=1.26", "numpy <2")
    assert "numpy" not in with_requirement(FILE, "numpy>=1.26", "")
    assert "- pandas\n" in with_requirement(FILE, "", "pandas")


WORD = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
ITEMS = st.lists(WORD, max_size=6, unique=True).map(tuple)
PAIRS = st.dictionaries(WORD, WORD, max_size=4).map(lambda found: tuple(found.items()))
FIELDS = st.builds(
    FileFields,
    dependencies=ITEMS,
    pip=ITEMS,
    channels=ITEMS,
    platforms=ITEMS,
    variables=PAIRS,
    virtual_packages=ITEMS,
    imports=ITEMS,
    commands=ITEMS,
    description=WORD,
    exclude_newer=st.just(""),
)


@settings(max_examples=40, deadline=None)
@given(FIELDS, FIELDS)
def test_any_fields_can_follow_any_others_and_comments_stay(
    one: FileFields, other: FileFields
) -> None:
    start = "# head\n" + with_fields("", base=FileFields(), changed=one) + "# tail\n"
    result = with_fields(start, base=read_fields(start), changed=other)
    read = read_fields(result)
    assert result.startswith("# head\n")
    assert "# tail\n" in result
    assert dict(read.variables) == dict(other.variables)
    assert replace(read, variables=()) == replace(other, variables=())


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_reason(text: str) -> None:
    with suppress(InvalidInputError, SpecificationError):
        assert with_fields(text, base=read_fields(text), changed=read_fields(text)) is not None
