"""Matching of licenses: SPDX expressions and free texts.

`A OR B` is acceptable if one of them is, `A AND B` if both are; `A WITH E` is as `A`, unless the
rule names `A WITH E` itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from license_expression import (
    AND,
    OR,
    LicenseSymbol,
    LicenseWithExceptionSymbol,
    Licensing,
    get_spdx_licensing,
)

from condastore.errors import InvalidInputError
from environments.domain.names import did_you_mean, printable

_LONGEST = 2_000  # characters; a longer text is not an expression

#: SPDX expressions for common free texts; the map of a rule takes precedence.
FREE_TEXT: Mapping[str, str] = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 2-clause": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "bsd_2_clause": "BSD-2-Clause",
    "bsd_3_clause": "BSD-3-Clause",
    "boost": "BSL-1.0",
    "gpl v2": "GPL-2.0-only",
    "gpl v3": "GPL-3.0-only",
    "gplv2": "GPL-2.0-only",
    "gplv3": "GPL-3.0-only",
    "gpl-2": "GPL-2.0-only",
    "gpl-3": "GPL-3.0-only",
    "gpl-3.0-only with gcc-exception-3.1": "GPL-3.0-only WITH GCC-exception-3.1",
    "isc license": "ISC",
    "mit license": "MIT",
    "the mit license": "MIT",
    "mpl 2.0": "MPL-2.0",
    "psf": "PSF-2.0",
    "public domain": "LicenseRef-Public-Domain",
    "public-domain": "LicenseRef-Public-Domain",
    "python software foundation license": "PSF-2.0",
    "unlicense": "Unlicense",
    "zlib license": "Zlib",
}


@lru_cache(maxsize=1)
def _licensing() -> Licensing:
    return get_spdx_licensing()


@lru_cache(maxsize=10_000)
def expression(text: str) -> Any | None:
    """Parse an SPDX expression; None if it is not an expression of known licenses."""
    if not text or len(text) > _LONGEST:
        return None
    try:
        tree = _licensing().parse(text, simple=False)
        unknown = [key for key in _licensing().unknown_license_keys(tree) if not _own(key)]
    except Exception:  # the parser's errors have no common base
        return None
    return None if tree is None or unknown else tree


def _own(key: str) -> bool:
    """Return the symbol of a custom license, `LicenseRef-...`."""
    return key.startswith(("LicenseRef-", "DocumentRef-")) and " " not in key


def acceptable(tree: Any, *, allow: Sequence[str], deny: Sequence[str]) -> bool:
    """Whether the expression is acceptable.

    Args:
        allow: names or globs of licenses; empty means all that `deny` does not name.
        deny: names or globs; takes precedence over `allow`.
    """
    if isinstance(tree, OR):
        return any(acceptable(part, allow=allow, deny=deny) for part in tree.args)
    if isinstance(tree, AND):
        return all(acceptable(part, allow=allow, deny=deny) for part in tree.args)
    if isinstance(tree, LicenseWithExceptionSymbol):
        whole = f"{tree.license_symbol.key} WITH {tree.exception_symbol.key}"
        if named(whole, [each for each in deny if " WITH " in each]):
            return False
        if named(whole, [each for each in allow if " WITH " in each]):
            return True
        return acceptable(tree.license_symbol, allow=allow, deny=deny)
    assert isinstance(tree, LicenseSymbol)
    if named(tree.key, deny):
        return False
    return not allow or named(tree.key, allow)


def named(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key.lower(), pattern.lower()) for pattern in patterns)


def license_pattern(text: str) -> str:
    """Parse a license name of a rule: an SPDX name, normalized, or a glob over names.

    Raises:
        InvalidInputError: no SPDX license has this name.
    """
    text = " ".join(text.split())
    if "*" in text:
        known = _licensing().known_symbols
        base = text.partition(" WITH ")[0]
        if base == "*" or base.startswith("LicenseRef-") or any(named(k, [base]) for k in known):
            return text
    else:
        tree = expression(text)
        if tree is not None and not isinstance(tree, OR | AND):
            return str(tree.render())
    raise InvalidInputError(
        f"{printable(text)} is not the name of an SPDX license.",
        hint=did_you_mean_license(text) or "Write names such as MIT, GPL-3.0-only or GPL-*.",
    )


def did_you_mean_license(text: str) -> str:
    mapped = FREE_TEXT.get(text.lower())
    if mapped:
        return f"Did you mean {mapped!r}?"
    names = {key.lower(): key for key in _licensing().known_symbols}
    said = did_you_mean(text, names)
    for lower, key in names.items():
        said = said.replace(f"{lower!r}", f"{key!r}")
    return said
