"""Limits on what an archive unpacks to, and rules for the paths and symbolic links in it.

One set of rules for everything that comes from outside: packages of channels, uploads, wheels and
base images. Whoever reads an archive, as a stream or as an extracted tree, asks these functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

#: Whatever its ratio, an archive may unpack to this many bytes: small packages of text or zeros.
FREE_BYTES = 64 << 20
#: Bytes of one component of a path, as Linux has it.
LONGEST_NAME = 255
#: Symbolic links followed to resolve one path, as in the kernel.
MOST_LINKS = 40

_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one archive may unpack to.

    Attributes:
        unpacked: bytes of all files together.
        ratio: unpacked bytes for each byte of the archive, above `FREE_BYTES`.
        entries: files, links and folders.
        path_bytes: length of a path in the archive, encoded as UTF-8.
    """

    unpacked: int = 16 << 30
    ratio: int = 100
    entries: int = 500_000
    path_bytes: int = 1024

    def bytes_for(self, packed: int) -> int:
        """Return the bytes to which an archive of `packed` bytes may unpack."""
        return min(self.unpacked, max(FREE_BYTES, packed * self.ratio))

    def size_fault(self, packed: int) -> str:
        """Describe what an archive does that unpacks to more than `bytes_for(packed)`."""
        if self.bytes_for(packed) == self.unpacked:
            return f"It unpacks to more than {self.unpacked:,} bytes."
        if packed * self.ratio <= FREE_BYTES:
            return f"It unpacks to more than {FREE_BYTES:,} bytes, and has {packed:,} packed."
        return f"It unpacks to more than {self.ratio} times its size."

    def entries_fault(self) -> str:
        return f"It holds more than {self.entries:,} entries."


DEFAULT_LIMITS = Limits()


def path_fault(path: str, *, longest: int = DEFAULT_LIMITS.path_bytes) -> str:
    """Return what is wrong with a path of an archive, as a predicate; "" if nothing is.

    Args:
        path: relative to the root of the archive, with slashes; folders may end with one.
        longest: bytes.
    """
    if not path or path.startswith("/") or "\\" in path or _DRIVE.match(path):
        return "is empty, or leads out of the package"
    if ".." in path.split("/"):
        return "leads out of the package"
    return name_fault(path, longest=longest)


def name_fault(path: str, *, longest: int) -> str:
    """Return what keeps `path` from being the name of a file; "" if nothing does."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "is no text"
    if _CONTROL.search(path):
        return "holds a character that cannot be printed"
    if len(raw) > longest or any(len(part) > LONGEST_NAME for part in raw.split(b"/")):
        return "is too long"
    return ""


class LinkEnd(StrEnum):
    """Where a symbolic link leads, through other links where it must."""

    INSIDE = "inside"  # of the tree, whether anything is there or not
    OUTSIDE = "outside"
    NOWHERE = "nowhere"  # in a circle, through too many links, or its target is empty


def link_end(start: str, links: Mapping[str, str]) -> LinkEnd:
    """Resolve the link at `start` within a tree as the kernel does.

    Args:
        start: a key of `links`.
        links: path -> target of every symbolic link of the tree; paths relative to its root.
    """
    resolved: list[str] = start.split("/")[:-1]
    pending = [links[start]]
    followed = 0
    while pending:
        target = pending.pop()
        if target.startswith("/"):
            return LinkEnd.OUTSIDE
        part, _, rest = target.partition("/")
        if rest := rest.lstrip("/"):
            pending.append(rest)
        if part in ("", "."):
            if not target:
                return LinkEnd.NOWHERE
            continue
        if part == "..":
            if not resolved:
                return LinkEnd.OUTSIDE
            resolved.pop()
            continue
        further = links.get("/".join([*resolved, part]))
        if further is None:
            resolved.append(part)
            continue
        followed += 1
        if followed > MOST_LINKS:
            return LinkEnd.NOWHERE
        pending.append(further)
    return LinkEnd.INSIDE
