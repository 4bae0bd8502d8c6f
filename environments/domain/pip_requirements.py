"""Parse the lines of a `pip:` section."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from environments.domain.errors import InvalidInputError
from environments.domain.names import printable

_LONGEST = 1_000  # characters


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
