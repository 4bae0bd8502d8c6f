"""Hostile values of every type that an interface reads: texts, numbers, moments, JSON, headers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

#: A lone surrogate, which UTF-8 cannot write.
SURROGATE = "\ud800"
DEEP = 3_000
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    SURROGATE,
    "\udcff-x",
    "\x1b]0;title\x07\x1b[2J",
    "\r\nSet-Cookie: a=b",
    "\u202eevil",
    "\ufeff",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../b",
    "a" * 5_000,
    "-",
    "--help",
    "%",
    "%s%n",
    "%00",
    "\\",
    "'\"`;--",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "${7*7}",
    "*",
    "[",
    "(",
    "(a+)+$",
    "~",
    "²",
    "٣",
    "1e400",
    "NaN",
    "None",
    "null",
    "0",
    "-1",
    "00",
    "1" * 40,
    "1_000",
    "file:///etc/passwd",
    "http://[::1",
    "http://[",
    "https://user:pass@host:99999/x",
    "http://a:b/",
    "//host/x",
    "javascript:alert(1)",
    "data:text/plain,x",
    "numpy >=1,<2|>3 *_cuda*",
    "numpy[version='*', sha256=x]",
    "==",
    ">=",
    "!pack age",
    "tag:yaml.org,2002:python/object",
    "&a [*a]",
    "name: x\ndependencies: [" + "[" * 50,
    "@EXPLICIT\nhttp://[/linux-64/a-1-0.conda#" + "0" * 32,
    "version: 1\npackage: []\nmetadata: 1\n",
    "9999-99-99",
    "0001-01-01",
    "2026-02-30",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "YXJyYXljb25uZWN0aW9uOi0x",  # arrayconnection:-1
    "YXJyYXljb25uZWN0aW9uOjk5OTk5OTk5OTk5OTk5OTk5OTk5OQ==",
    "YXJyYXljb25uZWN0aW9uOsKy",  # of a superscript two
    "sha256:" + "0" * 64,
    "sha256:" + "g" * 64,
    "sha512:0",
    "linux-64",
    "noarch",
    "current",
    "latest",
)
INTEGERS = (0, 1, -1, 2, 99, 2**31 - 1, -(2**31))
LARGE = (2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**40)
FLOATS = (0.0, -0.0, -1.0, 1e-320, 0.5)
MOMENTS = (
    "2026-01-01T00:00:00Z",
    "2026-01-01",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-14:00",
    "1969-12-31T23:59:59.999999+00:00",
    "2026-13-01T00:00:00Z",
    "",
    "now",
)


def one_of(pool: Sequence[Any], random: Random) -> Any:
    """A value of a pool; mostly the first one, so that values that belong together meet."""
    return pool[0] if random.random() < 0.6 else random.choice(pool)


def text(random: Random) -> str:
    return random.choice(TEXTS)


def structure(random: Random, *, depth: int = 3) -> Any:
    """A JSON value."""
    kind = random.randrange(9 if depth else 6)
    match kind:
        case 0:
            return text(random)
        case 1:
            return random.choice((*INTEGERS, *LARGE))
        case 2:
            return random.choice((None, True, False))
        case 3:
            return random.choice((*FLOATS, 1e308))
        case 4:
            return {}
        case 5:
            return []
        case 6:
            return [structure(random, depth=depth - 1) for _ in range(random.randrange(4))]
        case _:
            return {
                random.choice(("", "a", "packages", "days", "\0", "__proto__", SURROGATE)): (
                    structure(random, depth=depth - 1)
                )
                for _ in range(random.randrange(1, 4))
            }


def body(random: Random) -> bytes:
    """A body that says that it is JSON."""
    return random.choice(
        (
            b"",
            b"null",
            b"0",
            b'"text"',
            b"[]",
            b"[[]]",
            b"{",
            b"\xff\xfe",
            b'{"a": "\xff"}',
            b"\xef\xbb\xbf{}",
            b"NaN",
            b'{"a": Infinity}',
            b'{"a": 1e999}',
            b'{"a": ' + b"9" * 5_000 + b"}",
            b'{"a": "\\ud800"}',
            b'{"a": "\\u0000"}',
            b"[" * DEEP,
            b"[" * DEEP + b"]" * DEEP,
            b'{"a":' * DEEP + b"1" + b"}" * DEEP,
            json.dumps(structure(random)).encode(),
            json.dumps({name: structure(random) for name in ("name", "user", "query")}).encode(),
        )
    )
