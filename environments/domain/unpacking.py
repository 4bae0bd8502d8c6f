"""Limits on what an archive unpacks to, and rules for the paths and symbolic links in it.

One set of rules for everything that comes from outside: packages of channels, uploads, wheels and
base images. Every reader of an archive, as a stream or as an extracted tree, uses these functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

#: Size in bytes below which the ratio is not checked: small packages of text or zeros.
FREE_BYTES = 64 << 20
#: Maximum bytes of one path component (Linux).
LONGEST_NAME = 255
#: Maximum symbolic links followed for one path, as in the kernel.
MOST_LINKS = 40

_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the unpacked contents of one archive.

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
        """Return the maximum unpacked size of an archive of `packed` bytes."""
        return min(self.unpacked, max(FREE_BYTES, packed * self.ratio))

    def size_fault(self, packed: int) -> str:
        """Return the fault of an archive that unpacks to more than `bytes_for(packed)`."""
        if self.bytes_for(packed) == self.unpacked:
            return f"It unpacks to more than {self.unpacked:,} bytes."
        if packed * self.ratio <= FREE_BYTES:
            return f"It unpacks to more than {FREE_BYTES:,} bytes, and has {packed:,} packed."
        return f"It unpacks to more than {self.ratio} times its size."

    def entries_fault(self) -> str:
        return f"It has more than {self.entries:,} entries."


DEFAULT_LIMITS = Limits()


def path_fault(path: str, *, longest: int = DEFAULT_LIMITS.path_bytes) -> str:
    """Return the fault of a path in an archive, as a predicate; "" if it is valid.

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
    """Return why `path` is not a valid file name; "" if it is."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "is not text"
    if _CONTROL.search(path):
        return "contains a character that cannot be printed"
    if len(raw) > longest or any(len(part) > LONGEST_NAME for part in raw.split(b"/")):
        return "is too long"
    return ""


class LinkEnd(StrEnum):
    """Target of a symbolic link after following other links."""

    INSIDE = "inside"  # in the tree, whether it exists or not
    OUTSIDE = "outside"
    NOWHERE = "nowhere"  # a cycle, too many links, or an empty target


def link_end(start: str, links: Mapping[str, str]) -> LinkEnd:
    """Resolve the link at `start` within a tree as the kernel does.

    Args:
        start: a key of `links`.
        links: target of every symbolic link of the tree by path, relative to its root.
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
