"""JSON of strangers: what is refused, and that all other JSON is read as it is."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condastore.errors import InvalidInputError
from environments.domain.json_text import (
    MAX_DEPTH,
    MAX_DIGITS,
    JsonTextError,
    json_object,
    parse_json,
    parse_strict_json,
)

TEXT = st.text(st.characters(codec="utf-8"))
DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(DOCUMENTS, st.booleans())
def test_whatever_is_json_is_read_as_it_is(document: Any, escaped: bool) -> None:
    text = json.dumps(document, ensure_ascii=escaped)
    assert parse_strict_json(text) == parse_strict_json(text.encode()) == document
    assert parse_json(text) == document


@given(st.binary() | st.text())
def test_bytes_of_any_kind_end_in_a_document_or_in_the_one_error(content: bytes | str) -> None:
    for parse in (parse_json, parse_strict_json):
        with contextlib.suppress(JsonTextError):
            parse(content)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "levels deep"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b"9" * (MAX_DIGITS + 1), "digits"),
        (b"9" * 100_000, "digits"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b"\xff\xfe", "UTF-8"),
        ('["ä"]'.encode("utf-16"), "UTF-8"),
        (b"", "line 1, column 1"),
        (b"{} {}", "column 4"),
    ],
)
def test_what_json_does_not_have_is_refused_with_the_reason(text: bytes, why: str) -> None:
    with pytest.raises(JsonTextError, match=why):
        parse_strict_json(text)


def test_the_deepest_document_that_is_allowed_is_read() -> None:
    text = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert json.dumps(parse_strict_json(text)) == text


def test_a_file_of_a_package_is_read_leniently_and_no_deeper_than_the_stack() -> None:
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
    for text in (b"[" * 100_000, b"\xff", b"9" * 100_000, b""):
        with pytest.raises(JsonTextError):
            parse_json(text)


@pytest.mark.parametrize("text", ["null", "[]", '"text"', "1", "[{}]"])
def test_a_body_must_be_an_object(text: str) -> None:
    with pytest.raises(InvalidInputError, match="must be a JSON object") as refused:
        json_object(text, hint="Send {}.")
    assert (refused.value.where, refused.value.hint) == ("request", "Send {}.")
