"""Parse requirements of conda (MatchSpec)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from rattler import MatchSpec

from condastore.errors import InvalidInputError
from environments.domain.default_channels import CONDA_DEFAULTS, default_channel_of
from environments.domain.names import SUBDIRS, ChannelRef, canonical_channel, printable
from environments.domain.version_ranges import disjoint, impossible

_LONGEST = 1_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaRequirement:
    """One MatchSpec, in rattler's strict syntax."""

    text: str
    name: str
    version: str  # conda's version requirement, or ""
    build: str  # exact, a glob, or ""
    channel: str  # base URL, or ""
    subdir: str
    note: str = ""  # warning about how it was interpreted

    def excludes(self, other: CondaRequirement) -> bool:
        """True only if no package can satisfy both."""
        return self.name == other.name and (
            bool(self.version and other.version and disjoint(self.version, other.version))
            or _builds_differ(self.build, other.build)
            or bool(self.channel and other.channel and self.channel != other.channel)
            or bool(self.subdir and other.subdir and self.subdir != other.subdir)
        )


def _builds_differ(one: str, other: str) -> bool:
    if not one or not other or "^" in one + other:
        return False
    if "*" in one and "*" in other:
        return False
    if "*" in one:
        return not fnmatchcase(other, one)
    return not fnmatchcase(one, other)


# --- conda ------------------------------------------------------------------------------------

_PREFIX = re.compile(r"(?P<channel>[^\s\[\]]*[^\s\[\]:]):(?P<namespace>[^\s\[\]:/]*):(?=[^/:])")
_NAME = re.compile(r"[^\s=<>!~\[\]]+")
_BRACKET_CHANNEL = re.compile(
    r"""(?P<key>\[(?:[^\]]*[,\s])?channel\s*=\s*)(?P<quote>["']?)(?P<channel>[^"',\]\s]+)(?P=quote)"""
)
_RELATIONAL_STAR = re.compile(r"([<>]=?\s*[0-9][0-9A-Za-z_.!+-]*?)\.\*")
#: `=>3.1`, which conda reads as `>=3.1`. (It reads `=<3.1` as less than, which is not meant.)
_AT_LEAST = re.compile(r"^(?P<name>[^\s=<>!~\[\]]+)\s*=>\s*(?P<version>[0-9][0-9A-Za-z_.!+-]*)$")
_HINT = "Write it like 'numpy', 'numpy >=1.26,<3', 'numpy =1.26' or 'conda-forge::numpy'."


def parse_conda_requirement(
    text: str, *, alias: str, hosted: str = "", default_channels: Sequence[str] = CONDA_DEFAULTS
) -> tuple[CondaRequirement, ChannelRef | None]:
    """Parse a conda requirement in any documented form, with the channel that it names.

    It has conda's meaning: `=1.24` is 1.24.*, `numpy 1.24` and `numpy=1.24=py39_0` are exact.

    Raises:
        InvalidInputError: it is not a requirement. The message contains no credentials.
    """
    text = text.strip()
    shown = printable(text)
    if len(text) > _LONGEST:
        raise InvalidInputError(f"A requirement of {len(text)} characters.", hint=_HINT)
    problem = _not_a_requirement(text)
    if problem:
        raise InvalidInputError(f"{shown} {problem[0]}", hint=problem[1])
    plain, reference = _with_canonical_channel(
        text, alias=alias, hosted=hosted, default_channels=default_channels
    )
    plain, reversed_operator = _AT_LEAST.subn(r"\g<name> >=\g<version>", plain)
    try:
        spec = _match_spec(_RELATIONAL_STAR.sub(r"\1", plain))
    except Exception as error:  # rattler's errors have no common base
        reason = printable(str(error).split("\n")[0], limit=160).strip("'\"")
        raise InvalidInputError(
            f"{shown} is not a requirement: {reason}.", hint=_hint(text)
        ) from error
    version = spec.version or ""
    if version and not re.search(r"[\d*]", version):
        raise InvalidInputError(
            f"{shown} asks for the version {printable(version.lstrip('='))}, which has no number.",
            hint="Write one package per line; names of packages contain no space.",
        )
    if impossible(version):
        raise InvalidInputError(
            f"{shown} excludes every version: {version}.", hint="Loosen one of its parts."
        )
    if spec.version == "*" and not spec.build:
        version = ""
    name = spec.name.normalized if hasattr(spec.name, "normalized") else str(spec.name)
    canonical = str(spec)
    return (
        CondaRequirement(
            text=name if canonical == f"{name} *" else canonical,
            name=name,
            version=version,
            build=spec.build or "",
            channel=reference.url if reference else "",
            subdir=spec.subdir or "",
            note=f"{shown} is read as {canonical!r}, as conda reads it."
            if reversed_operator
            else "",
        ),
        reference,
    )


@lru_cache(maxsize=4096)
def _match_spec(text: str) -> MatchSpec:
    return MatchSpec(text, extras=False, conditionals=False, flags=False)


def _not_a_requirement(text: str) -> tuple[str, str] | None:
    """Return (fault, hint) of common mistakes that can be recognized."""
    head = text.partition("[")[0]
    if not text:
        return "is empty.", _HINT
    if not text.isascii() or not text.isprintable():
        return "contains characters that are not allowed in names and versions of packages.", _HINT
    if "{{" in text or "{%" in text:
        return (
            "is a template, which is not supported.",
            "Render the file first, and submit the result.",
        )
    if "$" in head:
        return (
            "refers to a shell variable, or is a regular expression; neither is supported.",
            "Write the channel or the version itself.",
        )
    if re.match(r"[A-Za-z0-9._/-]+:[A-Za-z0-9._-]+", head):
        return "has one ':' after the channel.", "Write it with two: CHANNEL::NAME."
    if text.startswith("-"):
        return "is an option, which is not allowed here.", "Name the packages one by one."
    if head.rstrip().endswith((".conda", ".tar.bz2")) or re.search(r"[\[,\s]url\s*=", text):
        return (
            "is the address of a file.",
            "Write CHANNEL::NAME=VERSION=BUILD, or submit an explicit list (@EXPLICIT).",
        )
    if text.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", text):
        return (
            "is a path on your machine, which the server cannot read.",
            "Publish the package in a channel.",
        )
    if "git+" in head or head.endswith(".git"):
        return "is the address of a repository.", "Publish the package in a channel."
    return None


def _hint(text: str) -> str:
    if "@" in text.partition("[")[0]:
        return "conda writes a version with a space or '=': 'numpy =1.26'."
    if re.search(r"=[<>]", text):
        return "Write '>=' and '<=', not '=>' and '=<'."
    if "===" in text:
        return "Write '==' for an exact version."
    if re.search(r"[a-z0-9]\[[a-z0-9_,-]+\]", text):
        return "Extras belong to PyPI: write the requirement under 'pip:'."
    return _HINT


def _with_canonical_channel(
    text: str, *, alias: str, hosted: str, default_channels: Sequence[str]
) -> tuple[str, ChannelRef | None]:
    """Return `text` with its channel as a URL without credentials, and that channel."""
    reference: ChannelRef | None = None
    match = _PREFIX.match(text) or _BRACKET_CHANNEL.search(text)
    if match is None:
        return text, None
    written, subdir = match["channel"], ""
    if written.rpartition("/")[2] in SUBDIRS:
        written, _, subdir = written.rpartition("/")
    if written == "*" and subdir:
        rest = text[match.end() :]
        head, bracket, keys = rest.partition("[")
        return f"{head}[subdir={subdir}{',' + keys if bracket else ']'}", None
    if "*" in written:
        raise InvalidInputError(
            f"{printable(text)} does not name one channel.", hint="Name one channel."
        )
    channel_name = written
    if written == "defaults" and default_channels:
        name = _NAME.match(text[match.end() :] if match.re is _PREFIX else text)
        channel_name = default_channel_of(name[0] if name else "", default_channels)
    reference = canonical_channel(channel_name, alias=alias, hosted=hosted)
    if channel_name != written:
        reference = replace(reference, name=written)
    channel = reference.url + (f"/{subdir}" if subdir else "")
    if match.re is _PREFIX:
        return f"{channel}::{text[match.end() :]}", reference
    return f'{text[: match.start()]}{match["key"]}"{channel}"{text[match.end() :]}', reference
