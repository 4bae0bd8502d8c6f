"""Validation and canonical forms of names, platforms and channel URLs."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import quote, unquote

from condastore.errors import InvalidInputError
from environments.domain.urls import (
    UrlError,
    canonical_or_same,
    canonical_parts,
    is_below,
    path_pattern,
    pattern_parts,
)

NameKind = Literal["namespace", "environment", "tag", "token", "channel"]

#: Characters. The path of a prefix holds the first two and must stay under conda's 255 bytes.
MAX_LENGTH: dict[NameKind, int] = {
    "namespace": 40,
    "environment": 64,
    "tag": 64,
    "token": 64,
    "channel": 64,
}
#: Names reserved by routes and by the syntax `NAMESPACE/ENV:BUILD`.
RESERVED: dict[NameKind, frozenset[str]] = {
    "namespace": frozenset(
        {"accounts", "api", "assets", "auth", "channel", "channels", "console", "docs"}
        | {"dynamic", "envs", "favicon.ico", "graphql", "healthz", "hosted", "login", "logout"}
        | {
            "media",
            "metrics",
            "mirror",
            "new",
            "none",
            "null",
            "readyz",
            "rest",
            "robots.txt",
            "static",
        }
        | {"system", "v1", "v2"}
    ),
    "environment": frozenset({"new", "none", "null"}),
    "tag": frozenset({"current", "none", "null"}),
    "token": frozenset(),
    "channel": frozenset({"new", "none", "null"}),
}
# Parts of letters and digits joined by single separators: also a path of an image's name (OCI).
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")

KNOWN_PLATFORMS = (
    "linux-64",
    "linux-aarch64",
    "linux-armv7l",
    "linux-ppc64le",
    "linux-riscv64",
    "linux-s390x",
    "osx-64",
    "osx-arm64",
    "win-64",
    "win-arm64",
)
SUBDIRS = (*KNOWN_PLATFORMS, "noarch", "linux-32", "linux-armv6l", "win-32")


def parse_name(text: str, *, what: NameKind) -> str:
    """Return `text` if it is a valid name of a `what`.

    Raises:
        InvalidInputError: it is not. Names are never repaired.
    """
    problem = _name_problem(text, what)
    if problem:
        message, hint = problem
        raise InvalidInputError(message, where=what, hint=hint)
    return text


def _name_problem(text: str, what: NameKind) -> tuple[str, str] | None:
    rule = "Use lowercase letters and digits, joined by single '-', '_' or '.'."
    if not text:
        return f"The name of the {what} is empty.", rule
    strange = next((c for c in text if not c.isascii() or not c.isprintable()), None)
    if strange is not None:
        label = unicodedata.name(strange, f"U+{ord(strange):04X}")
        return f"The name of the {what} contains the character {label}.", rule
    shown = repr(text[:80])
    if len(text) > MAX_LENGTH[what]:
        return (
            f"The name of the {what} has {len(text)} characters; at most {MAX_LENGTH[what]}.",
            "Choose a shorter name.",
        )
    if _NAME.fullmatch(text) is None:
        lower = text.lower()
        if lower != text and _NAME.fullmatch(lower):
            return f"The name {shown} contains capital letters.", f"Write it as {lower!r}."
        return f"{shown} is not a valid {what} name.", rule
    if text in RESERVED[what]:
        return f"The name {shown} is reserved.", "Choose another name."
    if what == "tag" and text.isdigit():
        return f"The tag {shown} could be mistaken for a build number.", "Add a letter."
    return None


def parse_platform(text: str) -> str:
    """Return `text` if it is one of `KNOWN_PLATFORMS`.

    Raises:
        InvalidInputError: it is not.
    """
    if text in KNOWN_PLATFORMS:
        return text
    raise InvalidInputError(
        f"{printable(text)} is not a known platform.",
        where="platform",
        hint=did_you_mean(text, KNOWN_PLATFORMS) or f"Use one of {', '.join(KNOWN_PLATFORMS)}.",
    )


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name, or "" if none is similar."""
    near = difflib.get_close_matches(text.lower(), list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else ""


def printable(text: str, *, limit: int = 80) -> str:
    """Quote `text` for a message: shortened, one line, no control characters, no credentials."""
    shown = _AT_SIGN.sub(_without_slashed_login, without_credentials(text[:2000]))
    return ascii(shown[:limit] + ("..." if len(shown) > limit else ""))


#: A URL up to the last `@` of its path.
_AT_SIGN = re.compile(
    r"(?i)(?P<scheme>[a-z][a-z0-9+.-]{0,15})://(?P<authority>[^\s/@]*)/(?:(?!://)\S)*@"
)
_HOST = re.compile(r"(?i)(?:[a-z0-9-]+(?:\.[a-z0-9-]+)+|localhost)(?P<port>:\d{1,5})?")
_OF_REPOSITORIES = ("git+", "hg+", "svn+", "bzr+")


def _without_slashed_login(match: re.Match[str]) -> str:
    """Return the URL without a login whose password has an unquoted slash.

    By the syntax of URLs that is not a login, but it is a secret. After the host name, `@` precedes
    the revision of a repository: `git+https://host/repository.git@master`.
    """
    host = _HOST.fullmatch(match["authority"])
    repository = match["scheme"].lower().startswith(_OF_REPOSITORIES)
    if host is not None and (repository or not host["port"]):
        return match[0]
    return f"{match['scheme']}://"


# --- channels ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """Credential for the URLs under `url_prefix`; its repr does not contain the secret."""

    url_prefix: str  # a channel's URL; no credentials, no trailing slash
    kind: Literal["token", "basic"]
    secret: str = field(repr=False)  # the token, or `user:password`, percent-decoded
    #: Part of `url_prefix` after which `/t/<token>` is inserted.
    base: str = ""

    def covers(self, url: str) -> bool:
        return is_below(url, self.url_prefix)

    def authenticated(self, url: str) -> str:
        """Return `url` with the secret, for a request only: never store or show it."""
        if not self.covers(url):
            return url
        if self.kind == "token":
            return f"{self.base}/t/{quote(self.secret, safe='')}{url[len(self.base) :]}"
        user, _, password = self.secret.partition(":")
        scheme, rest = url.split("://", 1)
        return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRef:
    """A channel: base URL, display name, and the credentials of the text."""

    url: str  # no trailing slash, no credentials
    name: str  # `conda-forge` if it is under the alias, else the URL
    credentials: tuple[Credential, ...] = ()


_CHANNEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
# The bounds prevent quadratic time on hostile text.
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,15}://)([^/\s?#]*)@")
_TOKEN = re.compile(
    r"""(?i)(\b[a-z][a-z0-9+.-]{0,15}://(?:(?!://)[^\s"'<>]){0,500}?)/{1,9}(?-i:t|%74)/{1,9}(\$\{\w+\}|[^/\s"'<>,\]}]+)(?=[/\s"'<>,\]}]|$)"""
)
_VARIABLE = re.compile(r"\$\{?\w+\}?")
_LONGEST_URL = 500


def without_credentials(text: str) -> str:
    """Remove `user:password@` and `/t/<token>` from every URL in `text`."""
    return _TOKEN.sub(r"\1", _USERINFO.sub(r"\1", text)) if "://" in text else text


def split_credentials(url: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Return `url` without credentials, and the credentials as (kind, secret, base).

    References to shell variables (`$TOKEN`) are removed too, and are not credentials.
    """
    found: list[tuple[str, str, str]] = []
    plain = without_credentials(url)
    if plain == url:
        return url, found
    userinfo = _USERINFO.match(url)
    if userinfo and userinfo[2] and not _VARIABLE.search(userinfo[2]):
        user, _, password = userinfo[2].partition(":")
        found.append(("basic", f"{unquote(user)}:{unquote(password)}", ""))
    token = _TOKEN.match(_USERINFO.sub(r"\1", url))
    if token and token[2] and not _VARIABLE.search(token[2]):
        found.append(("token", unquote(token[2]), token[1]))
    return plain, found


def canonical_channel(text: str, *, alias: str, hosted: str = "") -> ChannelRef:
    """Return the channel that `text` names: a name under `alias`, or a URL with or without login.

    `hosted/NAME` is a hosted channel under the URL `hosted`, unless that is empty.

    Raises:
        InvalidInputError: it does not name a channel. The message contains no credentials.
    """
    text = text.strip()
    shown = printable(text)
    if len(text) > _LONGEST_URL:
        raise InvalidInputError(
            f"A channel of {len(text):,} characters; {_LONGEST_URL} are allowed.",
            where="channel",
            hint="Write a channel's name, such as conda-forge, or its URL.",
        )
    if "://" not in text:
        if _CHANNEL_NAME.fullmatch(text) is None or text.rsplit("/", 1)[-1] in SUBDIRS:
            hint = "Write a channel's name, such as conda-forge, or its URL."
            if text.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:", text):
                hint = "A folder is named by a URL that starts with file://."
            elif text.rsplit("/", 1)[-1] in SUBDIRS:
                hint = "Leave the platform out: it is added automatically."
            raise InvalidInputError(
                f"{shown} is not the name of a channel.", where="channel", hint=hint
            )
        first, _, rest = text.partition("/")
        if hosted and first == "hosted" and rest:
            return ChannelRef(url=canonical_or_same(f"{hosted}/{rest}"), name=text)
        # conda resolves these names by its own table, independent of the alias.
        base = "https://repo.anaconda.com" if text.startswith("pkgs/") else alias.rstrip("/")
        return ChannelRef(url=canonical_or_same(f"{base}/{text}"), name=text)
    if _VARIABLE.search(text):
        raise InvalidInputError(
            f"The channel {shown} refers to a shell variable, which the server does not know.",
            where="channel",
            hint="Write the credentials themselves: they are stored apart from the specification.",
        )
    plain, found = split_credentials(text)
    url, problem = _normal_url(plain)
    if problem:
        raise InvalidInputError(
            f"{shown} is not the URL of a channel: {problem}.",
            where="channel",
            hint="Write it like https://HOST/CHANNEL.",
        )
    credentials = tuple(
        Credential(url_prefix=url, kind="basic", secret=secret)
        if kind == "basic"
        else Credential(url_prefix=url, kind="token", secret=secret, base=_normal_url(base)[0])
        for kind, secret, base in found
    )
    root = canonical_or_same(alias.rstrip("/")) + "/"
    name = url[len(root) :] if url.startswith(root) else url
    if hosted and url.startswith(f"{hosted}/"):
        name = f"hosted/{url[len(hosted) + 1 :]}"
    return ChannelRef(url=url, name=name, credentials=credentials)


def _normal_url(url: str) -> tuple[str, str]:
    """Return the canonical URL of a channel and its fault, or ""."""
    try:
        parts = canonical_parts(url)
    except UrlError as error:
        return url, str(error)
    problem = ""
    if parts.path.rsplit("/", 1)[-1] in SUBDIRS:
        problem = "it ends in a platform, which is added automatically"
    elif parts.path.endswith((".json", ".zst", ".conda", ".bz2")):
        problem = "it names a file"
    return str(parts), problem


def channel_allowed(url: str, patterns: Sequence[str]) -> bool:
    """Whether the URL of a channel matches one of `patterns`; both are canonicalized first.

    `*` matches everything. Otherwise scheme, host and path are compared separately with shell
    wildcards: the star in `https://*.example.com/*` never extends beyond the host.
    """
    scheme, _, rest = canonical_or_same(url).partition("://")
    netloc, slash, path = rest.partition("/")
    for pattern in patterns:
        if pattern == "*":
            return True
        requested = pattern_parts(pattern)
        if (
            fnmatchcase(scheme, requested.scheme)
            and fnmatchcase(netloc, requested.netloc)
            and fnmatchcase(slash + path, requested.path)
        ):
            return True
    return False


def in_channel(url: str, wanted: str) -> bool:
    """Whether the URL of a channel matches `wanted`: a URL pattern, or the last parts of a URL."""
    if "://" in wanted or wanted == "*":
        return channel_allowed(url, (wanted.rstrip("/"),))
    return canonical_or_same(url).endswith(path_pattern(f"/{wanted.strip('/')}"))
