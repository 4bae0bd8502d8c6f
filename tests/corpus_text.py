"""Cases of `tests/corpus`: texts that people submit, with what is expected of each."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "corpus"


def _alternating(text: str) -> bytes:
    lines = text.split("\n")
    ends = ["\r\n" if number % 2 else "\n" for number in range(len(lines) - 1)]
    return "".join(map("".join, zip(lines, [*ends, ""], strict=True))).encode()


#: How the text of a case becomes the bytes of its file.
ENCODINGS: Mapping[str, Callable[[str], bytes]] = {
    "": str.encode,
    "strip": lambda text: text.rstrip("\n").encode(),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "cr": lambda text: text.replace("\n", "\r").encode(),
    "mixed": _alternating,
    "bom": lambda text: codecs.BOM_UTF8 + text.encode(),
    "bom-crlf": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "utf-16": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "latin-1": lambda text: text.encode("latin-1"),
}


def corpus_cases() -> dict[str, dict[str, Any]]:
    """Return all cases by `DOCUMENT: NAME`."""
    return {
        f"{path.stem}: {case['name']}": case
        for path in sorted(FOLDER.glob("*.yaml"))
        for case in yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    }


def content_of(case: Mapping[str, Any]) -> bytes:
    """Return the bytes of the case's file."""
    return ENCODINGS[case.get("encoding", "")](case["text"])
