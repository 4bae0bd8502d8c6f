"""Size of a prefix, computed from what was linked into it instead of walking over its files.

A walk would take a third of the time of a warm build. The files of one package are linked into
prefixes together, so the link count of one of them gives the number of prefixes that share it.
`disk.tree_size` computes exact numbers periodically.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from environments.engine.packages.cache import CachedPackage
from environments.engine.prefix.bytecode import LinkedBytecode
from environments.engine.pypi.install import CachedWheel
from environments.engine.system.disk import tree_size


@dataclass(slots=True, kw_only=True)
class PrefixSize:
    """Sizes in bytes, as in `disk.TreeSize`."""

    apparent: int = 0
    unique: int = 0
    share: int = 0

    def add_own(self, size: int) -> None:
        """Count files that only this prefix has."""
        self.apparent += size
        self.unique += size
        self.share += size

    def add_shared(self, size: int, sample: str | os.PathLike[str]) -> None:
        """Count files that are hard-linked from a cache; `sample` is one of them."""
        self.apparent += size
        self.share += size // sharers(sample)

    def add_packages(self, packages: Iterable[CachedPackage]) -> None:
        """Count linked conda packages; files with a placeholder are copies."""
        for cached in packages:
            shared = own = 0
            sample = ""
            for file in cached.contents.files:
                if file.kind != "file":
                    own += len(file.target)
                elif file.placeholder:
                    own += file.size
                else:
                    shared += file.size
                    sample = sample or file.path
            self.add_own(own)
            if sample:
                self.add_shared(shared, cached.folder / sample)

    def add_wheels(self, wheels: Sequence[CachedWheel], *, apparent: int, written: int) -> None:
        """Count installed wheels.

        Args:
            apparent: bytes of all their files.
            written: bytes of those that are not hard links.
        """
        self.add_own(written)
        self.apparent += apparent - written
        linked = [(sum(entry.size for entry in wheel.entries), wheel) for wheel in wheels]
        total = sum(size for size, _ in linked)
        for size, wheel in linked:
            if size:
                part = (apparent - written) * size // total
                self.share += part // sharers(wheel.folder / wheel.entries[0].path)

    def add_compiled(self, linked: LinkedBytecode) -> None:
        """Count linked compiled Python files."""
        for sample, size in linked.samples.items():
            self.add_shared(size, sample)

    def add_folder(self, folder: Path) -> None:
        """Count a folder whose files only this prefix has."""
        self.add_own(tree_size(folder).apparent)


def sharers(sample: str | os.PathLike[str]) -> int:
    """Return how many prefixes share a file of a cache; 1 if it no longer exists."""
    try:
        return max(os.lstat(sample).st_nlink - 1, 1)
    except OSError:
        return 1
