"""Parse untrusted JSON strictly and within limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from condastore.errors import InvalidInputError

#: Maximum nesting depth of arrays and objects in a request.
MAX_DEPTH = 64
#: Maximum digits of an integer; conversion takes quadratic time.
MAX_DIGITS = 64


class JsonTextError(ValueError):
    """The text cannot be parsed; the message says why."""


def parse_json(content: str | bytes) -> Any:
    """Parse a JSON file of a package, an image or a response.

    Args:
        content: the text; bytes are UTF-8, or UTF-16 or UTF-32 that `json` detects.
    Raises:
        JsonTextError: it is not JSON, or nested deeper than Python's stack allows.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise JsonTextError("It is nested too deeply.") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise JsonTextError("It is not JSON.") from error


def parse_strict_json(content: str | bytes) -> Any:
    """Parse the JSON body of a request (RFC 8259, and I-JSON's demand for unique names).

    Args:
        content: the text; bytes are UTF-8.
    Raises:
        JsonTextError: it is not JSON; or it is nested deeper than MAX_DEPTH, repeats a name, has a
            number that JSON or a float does not have, or half of a surrogate pair.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonTextError("It is not UTF-8.") from error
    try:
        document = _STRICT.decode(text)
    except RecursionError as error:
        raise JsonTextError("It is nested too deeply.") from error
    except json.JSONDecodeError as error:
        message = f"{error.msg}, in line {error.lineno}, column {error.colno}"
        raise JsonTextError(f"It is not JSON: {message}.") from error
    # Surrogates come from escapes alone where the text was UTF-8.
    surrogates = "\\u" in text or isinstance(content, str)
    for depth, texts in _levels(document):
        if depth > MAX_DEPTH:
            raise JsonTextError(f"It is nested more than {MAX_DEPTH} levels deep.")
        if surrogates:
            _require_text(texts)
    return document


def json_object(content: str | bytes, *, hint: str = "") -> dict[str, Any]:
    """Parse the body of a request that must be one JSON object.

    Raises:
        InvalidInputError: it is not, or `parse_strict_json` refuses it.
    """
    try:
        document = parse_strict_json(content)
    except JsonTextError as error:
        raise InvalidInputError(
            f"The request's body cannot be read. {error}", where="request", hint=hint
        ) from error
    if not isinstance(document, dict):
        raise InvalidInputError(
            "The request's body must be a JSON object.", where="request", hint=hint
        )
    return document


def _levels(document: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the depth of arrays and objects level by level, and the texts.

    Not recursive, so that depth uses no stack.
    """
    depth, level = 0, [document]
    while level:
        texts: list[str] = []
        below: list[Any] = []
        nested = False
        for value in level:
            kind = type(value)
            if kind is str:
                texts.append(value)
            elif kind is dict:
                nested = True
                texts += value
                below += value.values()
            elif kind is list:
                nested = True
                below += value
        depth += nested
        yield depth, texts
        level = below


def _require_text(texts: list[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise JsonTextError("It contains half of a surrogate pair.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonTextError(f"It names {name[:50]!r} twice in one object.")
            seen.add(name)
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonTextError(f"It has a number of more than {MAX_DIGITS} digits.")
    return int(digits)


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise JsonTextError("It has a number that is too large.")
    return number


def _constant(name: str) -> NoReturn:
    raise JsonTextError(f"{name} is not valid JSON.")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
