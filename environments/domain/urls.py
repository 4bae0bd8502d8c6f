"""Canonical form of URLs: one spelling for each resource.

Rules, recalls, credentials and locks are compared by text. Two spellings that a server answers
alike must therefore become one text before anything is compared, and what has no canonical
spelling is refused.
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
#: Written plainly in a path: unreserved characters, and the delimiters that mean themselves there.
_PLAIN = _UNRESERVED | frozenset("!&(),;=:@")
#: Written as escapes: some object stores read a plus as a space, and shells read a dollar.
_ESCAPED = {"+": "%2B", "$": "%24"}
_WILDCARDS = frozenset("*?[]")
#: Escapes that hide a separator, another escape or a control character from who reads the path.
_HIDING = frozenset([*range(0x20), 0x7F, ord("/"), ord("\\"), ord("%")])
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_REFUSED = re.compile(r"[\s\\<>\"'{}|^`*\x00-\x1f\x7f]")
_SPLIT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")


class UrlError(ValueError):
    """The URL has no canonical form; the message says why, in words that follow the URL."""


class Parts(NamedTuple):
    """The canonical parts of a URL; `path` begins with a slash or is empty."""

    scheme: str
    netloc: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"


def canonical_url(url: str) -> str:
    """Return the one spelling of `url`, without user information and `/t/TOKEN`.

    The scheme and the host are lower case; a numeric host is a dotted or a compressed address; a
    default port is left out. Unreserved characters of the path are not escaped, escapes are upper
    case, slashes single, and none ends the path. The spelling does not depend on how often the
    function is applied.

    Raises:
        UrlError: it cannot be read, or is no URL of a channel, an index or a file of one.
    """
    return str(canonical_parts(url))


def canonical_parts(url: str) -> Parts:
    """As `canonical_url`, in its parts."""
    # A bracket stands around an IPv6 address only; whatever else it is in is refused below.
    if not url.isascii() or _REFUSED.search(url):
        raise UrlError("it holds a character that a URL must not hold")
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
    """`canonical_url`, or the text itself where it has none: for what was stored before."""
    try:
        return canonical_url(url)
    except UrlError:
        return url


def is_below(url: str, prefix: str) -> bool:
    """Whether `url` is `prefix` or lies below it; both canonical."""
    return url == prefix or url.startswith(f"{prefix}/")


# --- hosts --------------------------------------------------------------------------------------


def _netloc(scheme: str, authority: str) -> str:
    host, port = _host_and_port(authority)
    if scheme == "file":
        # Another host's file is nobody's here: the path alone would be read.
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
    """Return the one spelling of a host: a name, an IPv4 address or an IPv6 address in brackets.

    Raises:
        UrlError: it is none of them. A name of other letters must be written as `xn--`.
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
    """The address of one to four numbers, each decimal, octal or hexadecimal: `127.1`, `0x7f.1`."""
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise UrlError("its host is not an address")
    try:
        *first, last = (_number(label) for label in labels)
    except ValueError:
        raise UrlError("its host is not an address") from None
    if any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        raise UrlError("its host is not an address")
    value = last + sum(number << 8 * (3 - place) for place, number in enumerate(first))
    return str(ipaddress.IPv4Address(value))


def _number(label: str) -> int:
    if len(label) > 40:
        raise ValueError("too long")
    if label[:2] in ("0x", "0X"):
        return int(label[2:] or "0", 16)
    return int(label, 8) if label.startswith("0") else int(label)


# --- paths --------------------------------------------------------------------------------------


def _path(text: str, *, wild: bool = False) -> str:
    """Return the path in canonical form; with `wild`, the wildcards of a shell stay in it."""
    allowed = _PLAIN | _WILDCARDS if wild else _PLAIN
    written: list[str] = []
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "%":
            match = _ESCAPE.match(text, position - 1)
            if match is None:
                raise UrlError("it holds a percent sign that escapes nothing")
            code = int(match[1], 16)
            if code in _HIDING:
                raise UrlError("its path goes up, or hides a separator")
            character = chr(code)
            written.append(character if character in _PLAIN else f"%{code:02X}")
            position += 2
        elif character == "/" or character in allowed:
            written.append(character)
        elif character in _ESCAPED:
            written.append(_ESCAPED[character])
        else:
            raise UrlError("it holds a character that a URL must not hold")
    segments = [segment for segment in "".join(written).split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise UrlError("its path goes up, or hides a separator")
    return "".join(f"/{segment}" for segment in segments)


def _without_token(path: str) -> str:
    """Leave out the `/t/TOKEN` with which some servers of channels open their URLs."""
    if "/t/" not in path:
        return path
    segments = path.split("/")
    at = segments.index("t")
    left = [*segments[:at], *segments[at + 2 :]]
    if "t" in left[:-1]:
        raise UrlError("it holds more than one token")
    return "/".join(left)


# --- patterns -----------------------------------------------------------------------------------


@lru_cache(maxsize=10_000)
def pattern_parts(pattern: str) -> Parts:
    """Return a pattern of URLs (`https://*.example.com/*`) in parts that canonical URLs fit.

    Each part has the wildcards of a shell. What cannot be read is compared as it is written: it
    may fit nothing.
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
    """Return a pattern of paths so that canonical paths fit."""
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
