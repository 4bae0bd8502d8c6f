"""Validation of an extracted tree without following links, before anything else reads it.

The tree is walked once through file descriptors of its folders (`O_NOFOLLOW`), so no component of
a path is ever resolved through a symbolic link. Callers use the result instead of `lstat` on single
paths: a path behind a link is not in it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from condastore.errors import LinkError
from environments.domain.linking import FileKind
from environments.domain.names import printable
from environments.domain.unpacking import Limits, LinkEnd, link_end, name_fault
from environments.engine.packages.file_modes import shared_mode

#: Maximum nesting of folders. Each open folder of the walk takes a file descriptor.
MAX_DEPTH = 100
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Modes of nearly all entries; these are not changed.
_USUAL = frozenset(
    {stat.S_IFDIR | 0o755, *(stat.S_IFREG | mode for mode in (0o444, 0o555, 0o644, 0o755))}
)
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID


class TreeEntry(NamedTuple):
    """One path of a tree; a tuple, because a package may have tens of thousands."""

    kind: FileKind
    size: int  # bytes, of a file
    target: str  # of a link


def read_tree(
    root: Path, *, name: str, packed: int, limits: Limits, linked_elsewhere: bool = False
) -> dict[str, TreeEntry]:
    """Walk the tree below `root` and refuse what no package may hold.

    Every entry must be a regular file, a folder, or a symbolic link that ends inside the tree.
    Files must lie on the tree's file system, belong to its owner, have no set-user-ID or
    set-group-ID bit, and no hard link outside the tree. (Folders inherit set-group-ID from the
    cache's.) Accepted entries get the modes of `file_modes.py`, whatever the archive says.

    Args:
        name: name of the archive, for messages.
        packed: size of the archive in bytes.
        linked_elsewhere: True for a tree whose files prefixes share; its hard links are not
        checked.

    Returns:
        Path relative to `root` -> entry, in no order.

    Raises:
        LinkError: the first fault found.
    """
    found: dict[str, TreeEntry] = {}
    links: dict[str, str] = {}
    shared: dict[int, tuple[int, int, str]] = {}  # inode -> links seen, link count, a path
    modes: list[tuple[str, int]] = []
    left = limits.bytes_for(packed)
    descriptor = os.open(root, _OPEN)
    try:
        own = os.fstat(descriptor)
        for path, status, target in _walk(descriptor, name):
            if len(found) >= limits.entries:
                raise LinkError(f"{name} is refused. {limits.entries_fault()}")
            # True for nearly every path; the full check costs more than the walk.
            plain = path.isascii() and path.isprintable() and len(path) <= limits.path_bytes
            if not plain and (fault := name_fault(path, longest=limits.path_bytes)):
                raise LinkError(f"{name}: the path {printable(path)} {fault}.")
            mode = status.st_mode
            if mode not in _USUAL and not stat.S_ISLNK(mode):
                modes.append((path, shared_mode(mode)))
            if status.st_dev != own.st_dev or status.st_uid != own.st_uid:
                raise _fault(name, path, "was not created by its extraction.")
            if stat.S_ISREG(mode):
                if mode & _SPECIAL_BITS:
                    raise LinkError(
                        f"{name}: {printable(path)} would run as another user (set-ID bit)."
                    )
                if status.st_nlink > 1 and not linked_elsewhere:
                    seen = shared.get(status.st_ino, (0,))[0]
                    shared[status.st_ino] = (seen + 1, status.st_nlink, path)
                left -= status.st_size
                if left < 0:
                    raise LinkError(f"{name} is refused. {limits.size_fault(packed)}")
                found[path] = TreeEntry("file", status.st_size, "")
            elif stat.S_ISLNK(mode):
                links[path] = target
                found[path] = TreeEntry("link", 0, target)
            elif stat.S_ISDIR(mode):
                found[path] = TreeEntry("folder", 0, "")
            else:
                raise LinkError(f"{name}: {printable(path)} is not a file, a link or a folder.")
    finally:
        os.close(descriptor)
    for seen, in_all, path in shared.values():
        if seen != in_all:
            raise LinkError(
                f"{name}: {printable(path)} is a hard link to a file outside the package."
            )
    _refuse_links(name, links)
    for path, requested in modes:
        os.chmod(f"{root}/{path}", requested)  # noqa: PTH101  # no path is behind a link
    return found


def _fault(name: str, path: str, text: str) -> LinkError:
    return LinkError(f"{name}: {printable(path)} {text}")


def _refuse_links(name: str, links: Mapping[str, str]) -> None:
    for path, target in links.items():
        end = link_end(path, links)
        if end is not LinkEnd.INSIDE:
            way = "leads out of the package" if end is LinkEnd.OUTSIDE else "has no target"
            raise LinkError(f"{name}: the link {printable(path)} -> {printable(target)} {way}.")


def _walk(root: int, name: str) -> Iterator[tuple[str, os.stat_result, str]]:
    """Yield (path, status, link target) of everything below the open folder `root`."""
    stack: list[tuple[int, str, Iterator[os.DirEntry[str]]]] = []
    try:
        stack.append((os.dup(root), "", _listed(root)))
        while stack:
            folder, prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(folder)
                stack.pop()
                continue
            path = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                yield path, status, os.readlink(entry.name, dir_fd=folder)
                continue
            yield path, status, ""
            if stat.S_ISDIR(status.st_mode):
                if len(stack) > MAX_DEPTH:
                    raise LinkError(f"{name} nests more than {MAX_DEPTH} folders.")
                below = _opened(entry.name, folder, name, path)
                stack.append((below, f"{path}/", _listed(below)))
    finally:
        for folder, _, _ in stack:
            os.close(folder)


def _listed(folder: int) -> Iterator[os.DirEntry[str]]:
    # Read all entries at once: scandir duplicates the descriptor and closes its copy here.
    with os.scandir(folder) as entries:
        return iter(list(entries))


def _opened(entry: str, folder: int, name: str, path: str) -> int:
    try:
        return os.open(entry, _OPEN, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise LinkError(f"{name}: {printable(path)} was replaced during validation.") from error
        if error.errno == errno.EACCES:
            raise LinkError(
                f"{name}: the folder {printable(path)} cannot be read by its owner."
            ) from error
        raise


def folder_of_links(path: str, tree: Mapping[str, TreeEntry]) -> str:
    """Return the first parent of `path` that is a link or a file; "" if there is none."""
    end = path.find("/")
    while end > 0:
        entry = tree.get(path[:end])
        if entry is not None and entry.kind != "folder":
            return path[:end]
        end = path.find("/", end + 1)
    return ""


def measure(root: Path) -> tuple[int, int]:
    """Return (bytes, entries) below `root`, while another process writes there."""
    size = entries = 0
    folders = [os.fspath(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as listed:
                for entry in listed:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        size += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return size, entries
