"""Canonical form of URLs: one spelling for each resource.

Rules, recalls, credentials and locks are compared by text. Two spellings for which a
server gives the same answer must become one text before anything is compared; a URL without a
canonical spelling is refused.
"""

from __future__ import annotations

import ipaddress
import re
import string
from functools import lru_cache
from typing import NamedTuple

SCHEMES = ("http", "https", "file")
DEFAULT_PORTS = {"http": 80, "https": 443}

_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
#: Not escaped in a path: unreserved characters, and delimiters without a meaning there.
_PLAIN = _UNRESERVED | frozenset("!&(),;=:@")
#: Written as escapes: some object stores read a plus as a space, and shells read a dollar.
_ESCAPED = {"+": "%2B", "$": "%24"}
_WILDCARDS = frozenset("*?[]")
#: Escapes that hide a separator, another escape or a control character from a reader.
_HIDING = frozenset([*range(0x20), 0x7F, ord("/"), ord("\\"), ord("%")])
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_REFUSED = re.compile(r"[\s\\<>\"'{}|^`*\x00-\x1f\x7f]")
_SPLIT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")


class UrlError(ValueError):
    """The URL has no canonical form; the message is a predicate that follows the URL."""


class Parts(NamedTuple):
    """The canonical parts of a URL; `path` begins with a slash or is empty."""

    scheme: str
    netloc: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"


def canonical_url(url: str) -> str:
    """Return the canonical spelling of `url`, without user information and `/t/TOKEN`.

    The scheme and the host are lower case; a numeric host is a dotted or a compressed address; a
    default port is left out. Unreserved characters of the path are not escaped, escapes are upper
    case, slashes single, and none ends the path. The spelling does not depend on how often the
    function is applied.

    Raises:
        UrlError: it cannot be parsed, or is not a URL of a channel, an index or their files.
    """
    return str(canonical_parts(url))


def canonical_parts(url: str) -> Parts:
    """As `canonical_url`, in its parts."""
    # Brackets are allowed around an IPv6 address only; other uses are refused below.
    if not url.isascii() or _REFUSED.search(url):
        raise UrlError("it contains a character that is not allowed in a URL")
    match = _SPLIT.fullmatch(url)
    if match is None:
        raise UrlError("it is not http, https or file")
    scheme, authority, path = match[1].lower(), match[2] or "", match[3]
    if scheme not in SCHEMES:
        raise UrlError(f"{scheme} is not http, https or file")
    netloc = _netloc(scheme, authority.rpartition("@")[2])
    if match[4] or match[5]:
        raise UrlError("it has a query or a fragment")
    return Parts(scheme, netloc, _without_token(_path(path)))


@lru_cache(maxsize=50_000)
def canonical_or_same(url: str) -> str:
    """Return `canonical_url`, or the text itself if it has none: for values stored earlier."""
    try:
        return canonical_url(url)
    except UrlError:
        return url


def is_below(url: str, prefix: str) -> bool:
    """Whether `url` equals `prefix` or is below it; both canonical."""
    return url == prefix or url.startswith(f"{prefix}/")


# --- hosts --------------------------------------------------------------------------------------


def _netloc(scheme: str, authority: str) -> str:
    host, port = _host_and_port(authority)
    if scheme == "file":
        # Clients ignore the host of a file URL and would read the local path.
        if host not in ("", "localhost") or port:
            raise UrlError("it names a file of another machine")
        return ""
    if not host:
        raise UrlError("it has no host")
    host = canonical_host(host)
    if not port:
        return host
    if not port.isdecimal() or len(port.lstrip("0")) > 5 or not 0 < int(port) < 65536:
        raise UrlError("it cannot be read")
    number = int(port)
    return host if number == DEFAULT_PORTS[scheme] else f"{host}:{number}"


def _host_and_port(authority: str) -> tuple[str, str]:
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UrlError("it cannot be read")
        return f"{host}]", rest[1:]
    host, _, port = authority.partition(":")
    return host, port


def canonical_host(text: str) -> str:
    """Return the canonical host: a name, an IPv4 address or an IPv6 address in brackets.

    Raises:
        UrlError: it is not a host. A name with non-ASCII letters must be written as `xn--`.
    """
    if text.startswith("["):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise UrlError("its host is not an address") from None
        if address.scope_id:
            raise UrlError("its host is not an address")
        return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address}]"
    host = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text).lower()
    host = host.removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(labels)
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlError("its host is not a name")
    return host


def _ipv4(labels: list[str]) -> str:
    """Parse an address of one to four numbers, decimal, octal or hexadecimal: `127.1`, `0x7f.1`."""
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise UrlError("its host is not an address")
    try:
        *first, last = (_number(label) for label in labels)
    except ValueError:
        raise UrlError("its host is not an address") from None
    if any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        raise UrlError("its host is not an address")
    value = last + sum(number << 8 * (3 - location) for location, number in enumerate(first))
    return str(ipaddress.IPv4Address(value))


def _number(label: str) -> int:
    if len(label) > 40:
        raise ValueError("too long")
    if label[:2] in ("0x", "0X"):
        return int(label[2:] or "0", 16)
    return int(label, 8) if label.startswith("0") else int(label)


# --- paths --------------------------------------------------------------------------------------


def _path(text: str, *, wild: bool = False) -> str:
    """Return the canonical path; with `wild`, shell wildcards are kept."""
    allowed = _PLAIN | _WILDCARDS if wild else _PLAIN
    written: list[str] = []
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "%":
            match = _ESCAPE.match(text, position - 1)
            if match is None:
                raise UrlError("it contains a percent sign that is not part of an escape")
            code = int(match[1], 16)
            if code in _HIDING:
                raise UrlError("its path contains `..` or a hidden separator")
            character = chr(code)
            written.append(character if character in _PLAIN else f"%{code:02X}")
            position += 2
        elif character == "/" or character in allowed:
            written.append(character)
        elif character in _ESCAPED:
            written.append(_ESCAPED[character])
        else:
            raise UrlError("it contains a character that is not allowed in a URL")
    segments = [segment for segment in "".join(written).split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise UrlError("its path contains `..` or a hidden separator")
    return "".join(f"/{segment}" for segment in segments)


def _without_token(path: str) -> str:
    """Remove `/t/TOKEN`, by which some channel servers authenticate requests."""
    if "/t/" not in path:
        return path
    segments = path.split("/")
    at = segments.index("t")
    left = [*segments[:at], *segments[at + 2 :]]
    if "t" in left[:-1]:
        raise UrlError("it contains more than one token")
    return "/".join(left)


# --- patterns -----------------------------------------------------------------------------------


@lru_cache(maxsize=10_000)
def pattern_parts(pattern: str) -> Parts:
    """Split a URL pattern (`https://*.example.com/*`) into parts that match canonical URLs.

    Each part may contain shell wildcards. A pattern that cannot be parsed is compared as text and
    may match nothing.
    """
    scheme, _, rest = pattern.partition("://")
    authority, slash, path = rest.partition("/")
    scheme = scheme.lower()
    try:
        netloc = _netloc(scheme, authority).replace("[", "[[]")
    except (UrlError, KeyError):
        netloc = _wild_netloc(scheme, authority)
    return Parts(scheme, netloc, path_pattern(slash + path))


@lru_cache(maxsize=10_000)
def path_pattern(text: str) -> str:
    """Canonicalize a path pattern so that it matches canonical paths."""
    try:
        return _path(text, wild=True)
    except UrlError:
        return text.rstrip("/")


def _wild_netloc(scheme: str, authority: str) -> str:
    host, colon, port = authority.rpartition(":")
    if not colon or "]" in port:
        host, port = authority, ""
    host = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), host).lower().removesuffix(".")
    if port.isdecimal():
        port = str(int(port))
    return host if not port or port == str(DEFAULT_PORTS.get(scheme, "")) else f"{host}:{port}"
