"""What does one line of `dependencies` or `pip` ask for?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from rattler import MatchSpec

from environments.domain.errors import InvalidInputError
from environments.domain.names import SUBDIRS, ChannelRef, canonical_channel, printable
from environments.domain.version_ranges import disjoint, impossible

_LONGEST = 1_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaRequirement:
    """One MatchSpec, in the form that rattler reads strictly and people can read too."""

    text: str
    name: str
    version: str  # conda's version requirement, or ""
    build: str  # exact, a glob, or ""
    channel: str  # base URL, or ""
    subdir: str

    def excludes(self, other: CondaRequirement) -> bool:
        """True only where no package at all can satisfy both."""
        return self.name == other.name and (
            bool(self.version and other.version and disjoint(self.version, other.version))
            or _builds_differ(self.build, other.build)
            or bool(self.channel and other.channel and self.channel != other.channel)
            or bool(self.subdir and other.subdir and self.subdir != other.subdir)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PipRequirement:
    """One requirement of PEP 508, normalised."""

    text: str
    name: str  # normalised (PEP 503)
    requirement: Requirement

    def excludes(self, other: PipRequirement) -> bool:
        """True only where no version can satisfy both, wherever both apply."""
        if self.name != other.name or self.requirement.marker != other.requirement.marker:
            return False
        return _pinned_outside(self.requirement, other.requirement) or _pinned_outside(
            other.requirement, self.requirement
        )


def _pinned_outside(one: Requirement, other: Requirement) -> bool:
    if any("+" in part.version for part in other.specifier):
        return False  # `==1.0` also takes 1.0+local, which the other may ask for
    return any(
        not other.specifier.contains(pin.version, prereleases=True)
        for pin in one.specifier
        if pin.operator == "==" and not pin.version.endswith(".*")
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
_BRACKET_CHANNEL = re.compile(
    r"""(?P<key>\[(?:[^\]]*[,\s])?channel\s*=\s*)(?P<quote>["']?)(?P<channel>[^"',\]\s]+)(?P=quote)"""
)
_RELATIONAL_STAR = re.compile(r"([<>]=?\s*[0-9][0-9A-Za-z_.!+-]*?)\.\*")
_HINT = "Write it like 'numpy', 'numpy >=1.26,<3', 'numpy =1.26' or 'conda-forge::numpy'."


def parse_conda_requirement(
    text: str, *, alias: str, hosted: str = ""
) -> tuple[CondaRequirement, ChannelRef | None]:
    """One requirement of conda in any form that conda documents, with the channel that it names.

    conda's meaning holds: `=1.24` is 1.24.*, `numpy 1.24` and `numpy=1.24=py39_0` are exact.

    Raises:
        InvalidInputError: it is none. The message repeats no credentials.
    """
    text = text.strip()
    shown = printable(text)
    if len(text) > _LONGEST:
        raise InvalidInputError(f"A requirement of {len(text)} characters.", hint=_HINT)
    problem = _not_a_requirement(text)
    if problem:
        raise InvalidInputError(f"{shown} {problem[0]}", hint=problem[1])
    plain, reference = _with_canonical_channel(text, alias=alias, hosted=hosted)
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
            hint="One package a line; a package's name holds no space.",
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
        ),
        reference,
    )


@lru_cache(maxsize=4096)
def _match_spec(text: str) -> MatchSpec:
    return MatchSpec(text, extras=False, conditionals=False, flags=False)


def _not_a_requirement(text: str) -> tuple[str, str] | None:
    """What people write here that can be told apart, and what to do instead."""
    head = text.partition("[")[0]
    if not text:
        return "is empty.", _HINT
    if not text.isascii() or not text.isprintable():
        return "holds characters that no package's name or version has.", _HINT
    if "$" in head:
        return (
            "refers to a variable of your shell, or is a regular expression; neither is read.",
            "Write the channel or the version itself.",
        )
    if re.match(r"[A-Za-z0-9._/-]+:[A-Za-z0-9._-]+", head):
        return "has one ':' after the channel.", "Write it with two: CHANNEL::NAME."
    if text.startswith("-"):
        return "is an option, which cannot stand here.", "Name the packages one by one."
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
        return "Extras are PyPI's: such a requirement stands under 'pip:'."
    return _HINT


def _with_canonical_channel(text: str, *, alias: str, hosted: str) -> tuple[str, ChannelRef | None]:
    """`text` with its channel as a URL without credentials, and that channel."""
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
            f"{printable(text)} leaves the channel open.", hint="Name one channel."
        )
    reference = canonical_channel(written, alias=alias, hosted=hosted)
    channel = reference.url + (f"/{subdir}" if subdir else "")
    if match.re is _PREFIX:
        return f"{channel}::{text[match.end() :]}", reference
    return f'{text[: match.start()]}{match["key"]}"{channel}"{text[match.end() :]}', reference


# --- pip --------------------------------------------------------------------------------------

_INDEX_OPTIONS = (
    "-i",
    "-f",
    "--index-url",
    "--extra-index-url",
    "--find-links",
    "--no-index",
    "--trusted-host",
)
_FILE_OPTIONS = ("-r", "--requirement", "-c", "--constraint")
_ADDRESS = re.compile(r"(?i)^(?:(?:git|hg|svn|bzr)\+|[a-z][a-z0-9+.-]*://)|\s@\s|@\s*[a-z+]+://")
_PATH = re.compile(r"^(?:[.~/\\]|[A-Za-z]:[\\/])|[/\\]|\.(?:whl|zip|tar\.gz|tgz|tar\.bz2)\s*$")


def parse_pip_requirement(text: str) -> PipRequirement:
    """One requirement of PEP 508, as `pip` takes it from an index.

    Raises:
        InvalidInputError: it is none, or asks for what is not an index. The message repeats no
            credentials.
    """
    text = text.strip()
    option = re.split(r"[\s=]", text, maxsplit=1)[0]
    problem = _not_from_an_index(text, option)
    if problem:
        raise InvalidInputError(problem[0], hint=problem[1])
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        hint = "Write it like httpx>=0.28 or httpx[http2]>=0.28; sys_platform == 'linux'."
        if re.match(r"[A-Za-z0-9._-]+\s*=[^=]", text):
            hint = "pip writes an exact version with '=='."
        raise InvalidInputError(
            f"{printable(text)} is not a requirement of PyPI.", hint=hint
        ) from error
    requirement.name = canonicalize_name(requirement.name)
    return PipRequirement(text=str(requirement), name=requirement.name, requirement=requirement)


def _not_from_an_index(text: str, option: str) -> tuple[str, str] | None:
    if not text:
        return "A requirement is empty.", "Remove the line."
    if len(text) > _LONGEST:
        return f"A requirement of {len(text)} characters.", "Shorten it."
    if not text.isprintable():
        return f"{printable(text)} holds control characters.", "Remove them."
    if option in _FILE_OPTIONS or text.startswith(("-r", "-c")):
        return (
            f"{printable(text)} refers to a file on your machine, which the server cannot read.",
            "Copy the requirements of that file into this list.",
        )
    if option in _INDEX_OPTIONS or text.startswith(("-i", "-f")):
        # The rest of the line may hold a credential: never repeated.
        return (
            f"{option[:20] if option.startswith('--') else option[:2]} chooses an index.",
            "Indexes are configured by the administrators of this installation; remove the line.",
        )
    if option in ("-e", "--editable"):
        return (
            f"{printable(text)} is an editable installation, which cannot be reproduced.",
            "Publish the package to an index and name its version.",
        )
    if text.startswith("-") or " --" in text:
        return f"{printable(text)} holds an option, which is not read.", "Remove the option."
    if _ADDRESS.search(text):
        return (
            f"{printable(text)} is an address, not a package of an index.",
            "Publish the package to an index: what an address gives can change later.",
        )
    if _PATH.search(text.partition(";")[0]):
        return (
            f"{printable(text)} is a path on your machine, which the server cannot read.",
            "Publish the package to an index and name its version.",
        )
    return None
