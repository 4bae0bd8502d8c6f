"""Parse the lines of a `pip:` section: requirements, direct references and options.

A direct reference names its own source (PEP 508, `name @ URL`). Two forms are accepted, because
their bytes cannot change: the URL of a wheel with its sha256, and Git at a full commit. Whether a
namespace may use them is decided by its policy (`policy.rules.PipSources`), not here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from condastore.errors import InvalidInputError
from environments.domain.names import printable
from environments.domain.urls import UrlError, canonical_url

_LONGEST = 1_000  # characters
#: Maximum hashes of one requirement; pip-compile writes one for each file of a release.
_MAX_ENTRIES_HASHES = 500
_LONGEST_WITH_HASHES = _LONGEST + 100 * _MAX_ENTRIES_HASHES


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectReference:
    """The source that a requirement names itself: a wheel with its sha256, or a Git commit."""

    kind: Literal["wheel", "git"]
    url: str  # canonical, without credentials and fragment
    sha256: str = ""  # of a wheel: hex
    commit: str = ""  # of Git: 40 hex digits
    subdirectory: str = ""  # of Git: relative, or ""

    @property
    def location(self) -> str:
        """URL of a locked package: that of the wheel, or `git+URL@COMMIT#subdirectory=...`."""
        if self.kind == "wheel":
            return self.url
        below = f"#subdirectory={self.subdirectory}" if self.subdirectory else ""
        return f"git+{self.url}@{self.commit}{below}"

    @property
    def text(self) -> str:
        """The reference as PEP 508 writes it after the name."""
        return f"{self.url}#sha256={self.sha256}" if self.kind == "wheel" else self.location

    @classmethod
    def of_location(cls, location: str, *, sha256: str) -> Self:
        """Parse the result of `location`."""
        if not location.startswith("git+"):
            return cls(kind="wheel", url=location, sha256=sha256)
        url, _, fragment = location.removeprefix("git+").partition("#")
        url, _, commit = url.rpartition("@")
        return cls(
            kind="git",
            url=url,
            commit=commit,
            subdirectory=fragment.removeprefix("subdirectory="),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PipRequirement:
    """One normalized PEP 508 requirement."""

    text: str
    name: str  # normalized (PEP 503)
    requirement: Requirement
    direct: DirectReference | None = None
    hashes: tuple[str, ...] = ()  # sha256, hex, one of which the wheel must have; empty: any
    warnings: tuple[str, ...] = ()

    def excludes(self, other: PipRequirement) -> bool:
        """True only if no version can satisfy both, where both apply."""
        if self.name != other.name or self.requirement.marker != other.requirement.marker:
            return False
        if self.direct and other.direct:
            return self.direct != other.direct
        return _pinned_outside(self.requirement, other.requirement) or _pinned_outside(
            other.requirement, self.requirement
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PipOption:
    """An option of pip on a line of its own."""

    kind: Literal["index", "extra-index", "find-links", "prereleases", "ignored"]
    written: str  # the option's name
    url: str = ""  # canonical
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipOptions:
    """The options of a `pip:` section."""

    index: str = ""  # replaces the indexes of the installation; "" keeps them
    extra_indexes: tuple[str, ...] = ()  # searched before the others, in this order
    find_links: tuple[
        str, ...
    ] = ()  # pages whose links are candidates in addition to the indexes' files
    prereleases: bool = False
    #: Allowed sha256 digests (hex) by name of the wheel.
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def urls(self) -> tuple[str, ...]:
        """Named indexes and pages, without duplicates."""
        named = (*([self.index] if self.index else []), *self.extra_indexes, *self.find_links)
        return tuple(dict.fromkeys(named))

    @property
    def lines(self) -> tuple[str, ...]:
        """The options as pip reads them, without hashes."""
        return (
            *([f"--index-url {self.index}"] if self.index else []),
            *(f"--extra-index-url {url}" for url in self.extra_indexes),
            *(f"--find-links {url}" for url in self.find_links),
            *(["--pre"] if self.prereleases else []),
        )

    def __bool__(self) -> bool:
        named = self.index or self.extra_indexes or self.find_links
        return bool(named or self.prereleases or self.hashes)

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "extra_indexes": list(self.extra_indexes),
            "find_links": list(self.find_links),
            "prereleases": self.prereleases,
            "hashes": {name: list(hashes) for name, hashes in sorted(self.hashes.items())},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(
            index=content["index"],
            extra_indexes=tuple(content["extra_indexes"]),
            find_links=tuple(content["find_links"]),
            prereleases=content["prereleases"],
            hashes={name: tuple(hashes) for name, hashes in content["hashes"].items()},
        )


#: Without an option.
NO_OPTIONS = PipOptions()


def direct_reference(requirement: str) -> DirectReference | None:
    """The direct reference of a requirement of a specification; None for one of an index."""
    _, at, rest = requirement.partition(" @ ")
    if not at:
        return None
    url = rest.partition(" ; ")[0].strip()
    if url.startswith("git+"):
        return DirectReference.of_location(url, sha256="")
    url, _, digest = url.partition("#sha256=")
    return DirectReference(kind="wheel", url=url, sha256=digest)


def _pinned_outside(one: Requirement, other: Requirement) -> bool:
    if any("+" in part.version for part in other.specifier):
        return False  # `==1.0` also takes 1.0+local, which the other may ask for
    return any(
        not other.specifier.contains(pin.version, prereleases=True)
        for pin in one.specifier
        if pin.operator == "==" and not pin.version.endswith(".*")
    )


# --- lines ------------------------------------------------------------------------------------

_URL_OPTIONS: Mapping[str, Literal["index", "extra-index", "find-links"]] = {
    "-i": "index",
    "--index-url": "index",
    "--pypi-url": "index",
    "--extra-index-url": "extra-index",
    "-f": "find-links",
    "--find-links": "find-links",
}
_FILE_OPTIONS = {
    "-r": "requirement",
    "--requirement": "requirement",
    "-c": "constraint",
    "--constraint": "constraint",
}
#: Options without effect here, with the reason.
_IDLE = {
    "--prefer-binary": "only wheels are taken from an index",
    "--only-binary": "only wheels are taken from an index",
    "--require-hashes": "every package is locked with its sha256",
    "--upgrade": "every lock is a new solve",
    "-U": "every lock is a new solve",
    "--no-cache-dir": "the server's cache holds verified packages only",
    "--disable-pip-version-check": "pip itself is not run",
    "--no-build-isolation": "a source is always built outside the environment",
    "--use-pep517": "a source is always built by PEP 517",
}
#: Refused options: (fault, hint).
_REFUSED_OPTIONS = {
    "--no-index": (
        "leaves no index to take packages from",
        "Remove the line, or give a wheel by its URL with #sha256=... for each package.",
    ),
    "--trusted-host": (
        "turns off the check of a server's certificate",
        "Remove the line, and ask an administrator to trust the server's certificate authority.",
    ),
    "--no-deps": (
        "leaves out dependencies, so the environment would not work as locked",
        "Remove the option. A dependency that is wrong is replaced by naming another version.",
    ),
    "--no-binary": (
        "asks for source distributions, which are not built here",
        "Remove the line, or name the project's Git repository at a full commit.",
    ),
}
_HASH = re.compile(r"\s--hash[=\s]+([A-Za-z0-9]+):([0-9A-Fa-f]*)(?=\s|$)")
_VCS = re.compile(r"(?i)^(git|hg|svn|bzr)\+")
_SCHEME = re.compile(r"(?i)^[a-z][a-z0-9+.-]*:")
_NAMED = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?P<extras>\[[^\]]*\])?\s*@\s*(?P<url>.*)"
)
_PATH = re.compile(r"^(?:[.~/\\]|[A-Za-z]:[\\/])|[/\\]|\.(?:whl|zip|tar\.gz|tgz|tar\.bz2)\s*$")
_SCP = re.compile(r"^(?:[\w.-]+@)?[\w.-]+\.[A-Za-z]{2,}:(?!//)\S+")
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SUBDIRECTORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")

_PUBLISH = (
    "Build a wheel of it (`python -m build --wheel`) and publish it: to a channel of this "
    "installation (`condastore channel upload`), or to an index that it reads."
)
_CREDENTIAL = "Leave the login out of the line, and store it: `condastore credential set`."


def _shown(line: str) -> str:
    """A line as it was written, without logins; URLs with a commit are long."""
    return printable(line, limit=400)


def parse_pip_line(text: str) -> PipRequirement | PipOption:
    """Parse one line of a `pip:` section.

    Raises:
        InvalidInputError: it cannot be read, or names what cannot be locked. The message shows
            the line as it was written, without logins.
    """
    text = text.strip()
    if not text:
        raise InvalidInputError("A requirement is empty.", hint="Remove the line.")
    if len(text) > _LONGEST_WITH_HASHES or (len(text) > _LONGEST and " --hash" not in text):
        raise InvalidInputError(f"A requirement of {len(text)} characters.", hint="Shorten it.")
    if not text.isprintable():
        raise InvalidInputError(f"{_shown(text)} contains control characters.", hint="Remove them.")
    if text.startswith("-"):
        option, value = _split_option(text)
        if option not in ("-e", "--editable"):
            return _option(text, option, value)
        return _editable(text, value)
    body, hashes = _without_hashes(text)
    if re.search(r"\s--?[A-Za-z]", body):
        raise InvalidInputError(
            f"{_shown(text)} contains an option, which is not supported.", hint="Remove the option."
        )
    return _requirement(text, body, hashes)


def _split_option(text: str) -> tuple[str, str]:
    """(`-f`, `https://...`), whether a space, `=` or nothing is between them."""
    if text.startswith("--"):
        option, _, value = re.sub(r"[\s=]+", " ", text, count=1).partition(" ")
        return option, value.strip()
    return text[:2], text[2:].strip().removeprefix("=").strip()


def _option(text: str, option: str, value: str) -> PipOption:
    if option in _FILE_OPTIONS:
        kind = _FILE_OPTIONS[option]
        does = (
            "Paste the lines of that file into this list, each as one item."
            if kind == "requirement"
            else "Write its versions into the requirements of this list, or under 'dependencies:'."
        )
        raise InvalidInputError(
            f"{_shown(text)} refers to a file on your machine, which the server cannot read.",
            hint=does,
        )
    if option == "--pre" and not value:
        return PipOption(kind="prereleases", written=option)
    if option in _URL_OPTIONS:
        url = _index_url(text, option, value)
        return PipOption(kind=_URL_OPTIONS[option], written=option, url=url)
    if option in _IDLE:
        return PipOption(
            kind="ignored", written=option, warning=f"'{option}' is ignored: {_IDLE[option]}."
        )
    if option in _REFUSED_OPTIONS:
        what, hint = _REFUSED_OPTIONS[option]
        raise InvalidInputError(f"{_shown(text)} {what}.", hint=hint)
    raise InvalidInputError(
        f"{_shown(text)} contains an option, which is not supported.", hint="Remove the option."
    )


def _index_url(text: str, option: str, value: str) -> str:
    if not value:
        raise InvalidInputError(
            f"{option} has no URL.", hint=f"Write it like {option} https://HOST/simple."
        )
    if not re.match(r"(?i)https?://", value):
        raise InvalidInputError(
            f"{_shown(text)} is not the URL of an index that the server can read.",
            hint="Write a URL that starts with https://.",
        )
    return _address(text, value)


def _editable(text: str, value: str) -> PipRequirement:
    if not _VCS.match(value):
        raise InvalidInputError(
            f"{_shown(text)} is a folder on your machine, which the server cannot read.",
            hint=f"{_PUBLISH} Then name it and its version.",
        )
    body, hashes = _without_hashes(value)
    found = _requirement(text, body, hashes)
    warning = (
        f"{_shown(text)} is installed as a package: an environment of the server is never "
        "edited in place."
    )
    return PipRequirement(
        text=found.text,
        name=found.name,
        requirement=found.requirement,
        direct=found.direct,
        warnings=(warning, *found.warnings),
    )


def _without_hashes(text: str) -> tuple[str, tuple[str, ...]]:
    """The line without its `--hash=sha256:...`, and those digests."""
    hashes: dict[str, None] = {}
    for algorithm, digest in _HASH.findall(text):
        if algorithm.lower() != "sha256" or not _SHA256.fullmatch(digest):
            raise InvalidInputError(
                f"{_shown(text)} has a --hash that is not the sha256 of a file.",
                hint="Write --hash=sha256: and 64 hexadecimal digits; `pip hash FILE` prints it.",
            )
        hashes[digest.lower()] = None
    if len(hashes) > _MAX_ENTRIES_HASHES:
        raise InvalidInputError(
            f"A requirement of {len(hashes)} hashes.", hint="Name the hashes of its wheels only."
        )
    body = _HASH.sub("", text).strip()
    if len(body) > _LONGEST:  # parsing takes quadratic time
        raise InvalidInputError(f"A requirement of {len(body)} characters.", hint="Shorten it.")
    return body, tuple(hashes)


def _requirement(written: str, text: str, hashes: tuple[str, ...]) -> PipRequirement:
    named = _NAMED.fullmatch(text)
    if named is not None and not _SCHEME.match(text):
        return _direct(
            written,
            named["url"].strip(),
            hashes,
            name=named["name"],
            extras=(named["extras"] or "").replace(" ", ""),
        )
    if _VCS.match(text) or re.match(r"(?i)[a-z][a-z0-9+.-]*://", text) or _SCP.match(text):
        return _direct(written, text, hashes)
    if _PATH.search(text.partition(";")[0]):
        raise InvalidInputError(
            f"{_shown(written)} is a path on your machine, which the server cannot read.",
            hint=f"{_PUBLISH} Then name it and its version.",
        )
    try:
        requirement = Requirement(text)
    except (InvalidRequirement, RecursionError) as error:
        hint = "Write it like httpx>=0.28 or httpx[http2]>=0.28; sys_platform == 'linux'."
        if re.match(r"[A-Za-z0-9._-]+\s*=[^=]", text):
            hint = "pip writes an exact version with '=='."
        raise InvalidInputError(
            f"{_shown(written)} is not a requirement of a Python package.", hint=hint
        ) from error
    requirement.name = canonicalize_name(requirement.name)
    return PipRequirement(
        text=str(requirement), name=requirement.name, requirement=requirement, hashes=hashes
    )


# --- direct references --------------------------------------------------------------------------


def _direct(
    written: str, text: str, hashes: tuple[str, ...], *, name: str = "", extras: str = ""
) -> PipRequirement:
    url, marker = _split_marker(text)
    vcs = _VCS.match(url)
    if url.lower().startswith("file:") or (
        not vcs and not re.match(r"(?i)https?://|[a-z][a-z0-9+.-]*://", url) and _PATH.match(url)
    ):
        raise InvalidInputError(
            f"{_shown(written)} is a path on your machine, which the server cannot read.",
            hint=f"{_PUBLISH} Then name it and its version.",
        )
    if vcs is not None and vcs[1].lower() != "git":
        raise InvalidInputError(
            f"{_shown(written)} is a {vcs[1].lower()} repository; only Git is supported.",
            hint=f"Name a Git repository at a full commit. Or: {_PUBLISH}",
        )
    if vcs is not None:
        reference, egg = _git(written, url[vcs.end() :], hashes)
        egg_name, _, egg_extras = egg.partition("[")
        base = reference.url.rpartition("/")[2].removesuffix(".git")
        name = name or egg_name or base
        extras = extras or (f"[{egg_extras}" if egg_extras else "")
    else:
        reference, file_name = _wheel(written, url, hashes)
        if name and canonicalize_name(name) != file_name:
            raise InvalidInputError(
                f"{_shown(written)} names {printable(name)}, but the file is a wheel of "
                f"{file_name}.",
                hint=f"Write {file_name} @ URL, or the URL alone.",
            )
        name = name or file_name
    try:
        requirement = Requirement(
            f"{name}{extras} @ {reference.text}" + (f" ; {marker}" if marker else "")
        )
    except (InvalidRequirement, RecursionError) as error:
        raise InvalidInputError(
            f"{_shown(written)} is not a requirement of a Python package.",
            hint="Write it like NAME @ URL, with '; MARKER' after a space.",
        ) from error
    requirement.name = canonicalize_name(requirement.name)
    chosen = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    after = f" ; {requirement.marker}" if requirement.marker else ""
    return PipRequirement(
        text=f"{requirement.name}{chosen} @ {reference.text}{after}",
        name=requirement.name,
        requirement=requirement,
        direct=reference,
    )


def _split_marker(text: str) -> tuple[str, str]:
    """The URL, and the marker that follows it after a space and a semicolon."""
    parts = re.split(r"\s+;\s*|;\s+", text, maxsplit=1)
    return parts[0].strip(), parts[1].strip() if len(parts) == 2 else ""


def _git(written: str, url: str, hashes: tuple[str, ...]) -> tuple[DirectReference, str]:
    """The reference, and what `#egg=` says."""
    if hashes:
        raise InvalidInputError(
            f"{_shown(written)} has a --hash, which does not apply to a Git repository.",
            hint="Remove the option: the commit identifies the contents.",
        )
    url, _, fragment = url.partition("#")
    said = {"egg": "", "subdirectory": ""}
    for entry in filter(None, fragment.split("&")):
        key, _, value = entry.partition("=")
        if key not in said or not value:
            raise InvalidInputError(
                f"{_shown(written)} has {printable(entry)} after '#', which is not supported.",
                hint="Only #egg=NAME and #subdirectory=FOLDER have a meaning.",
            )
        said[key] = value
    if not re.match(r"(?i)https?://", url):
        raise InvalidInputError(
            f"{_shown(written)} is a Git repository without an https URL.",
            hint="Write git+https://HOST/PATH.git@COMMIT. For a private repository, store a login "
            "for its URL: `condastore credential set`.",
        )
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    path, at, commit = path.rpartition("@")
    if not at:
        path, commit = commit, ""
    if not _COMMIT.fullmatch(commit):
        shown = commit if re.fullmatch(r"[\w./-]{1,60}", commit) else "HEAD"
        what = f"{printable(commit)} is not a full commit" if commit else "it names no commit"
        raise InvalidInputError(
            f"{_shown(written)} cannot be locked: {what}, so its contents can change.",
            hint="Write the 40 digits of the commit after '@'; "
            f"`git ls-remote URL {shown}` prints them.",
        )
    folder = said["subdirectory"].strip("/")
    if folder and not _SUBDIRECTORY.fullmatch(folder):
        raise InvalidInputError(
            f"{_shown(written)} has an invalid subdirectory.",
            hint="Write a folder of the repository, such as #subdirectory=python/lib.",
        )
    address = _address(written, f"{scheme}://{authority}{slash}{path}")
    if said["egg"] and not re.fullmatch(r"[A-Za-z0-9][\w.-]*(?:\[[\w.,\s-]*\])?", said["egg"]):
        raise InvalidInputError(
            f"{_shown(written)} has an '#egg=' that is not a name.", hint="Write #egg=NAME."
        )
    return (
        DirectReference(kind="git", url=address, commit=commit.lower(), subdirectory=folder),
        said["egg"],
    )


def _wheel(written: str, url: str, hashes: tuple[str, ...]) -> tuple[DirectReference, str]:
    """The reference, and the normalised name that the file's name holds."""
    plain, _, fragment = url.partition("#")
    if not re.match(r"(?i)https?://", plain):
        raise InvalidInputError(
            f"{_shown(written)} is not a URL that the server reads.",
            hint="Write an https:// URL of a wheel with #sha256=DIGEST, or "
            "git+https://HOST/PATH.git@COMMIT.",
        )
    digests = set(hashes)
    for entry in filter(None, fragment.split("&")):
        key, _, value = entry.partition("=")
        if key == "sha256" and _SHA256.fullmatch(value):
            digests.add(value.lower())
        elif key != "egg":
            raise InvalidInputError(
                f"{_shown(written)} has {printable(entry)} after '#', which is not a sha256.",
                hint="Write #sha256= and 64 hexadecimal digits; `pip hash FILE` prints it.",
            )
    address = _address(written, plain)
    file_name = address.rpartition("/")[2].replace("%2B", "+")
    if not file_name.endswith(".whl"):
        git = " A repository is named as git+https://HOST/PATH.git@COMMIT."
        raise InvalidInputError(
            f"{_shown(written)} is not the URL of a wheel; sources are built from Git only.",
            hint=f"Write the URL of a .whl file with #sha256=DIGEST.{git}",
        )
    try:
        name = parse_wheel_filename(file_name)[0]
    except InvalidWheelFilename as error:
        raise InvalidInputError(
            f"{_shown(written)} is not the URL of a wheel: its file name is not that of a wheel.",
            hint="A wheel is named NAME-VERSION-PYTHON-ABI-PLATFORM.whl.",
        ) from error
    if len(digests) != 1:
        raise InvalidInputError(
            f"{_shown(written)} names "
            + ("two digests." if digests else "no sha256, so its bytes can change."),
            hint="Append #sha256=DIGEST to the URL; `pip hash FILE` prints it.",
        )
    return DirectReference(kind="wheel", url=address, sha256=digests.pop()), name


def _address(written: str, url: str) -> str:
    """The canonical URL; refused with a login in it."""
    authority = re.sub(r"(?i)^[a-z][a-z0-9+.-]*://", "", url).partition("/")[0]
    if "@" in authority or "$" in url:
        raise InvalidInputError(f"{_shown(written)} contains a login.", hint=_CREDENTIAL)
    try:
        found = canonical_url(url)
    except UrlError as error:
        raise InvalidInputError(
            f"{_shown(written)} contains an invalid URL: {error}.",
            hint="Write it plainly: https://HOST/PATH.",
        ) from error
    if "/t/" in url and found.count("/t/") < url.count("/t/"):
        raise InvalidInputError(f"{_shown(written)} contains a login.", hint=_CREDENTIAL)
    return found
