"""The agent's folder on disk, every change of which is atomic for readers.

    <DIR>/<namespace>/<environment>           a link to the current folder
    <DIR>/.condastore/prefixes/<namespace>/<number>-<digest, 12>-<environment>
    <DIR>/.condastore/cache/                  packages, wheels and compiled files, by digest
    <DIR>/.condastore/trash/                  what is being removed
    <DIR>/.condastore/agent.json, lock        whose it is, and who works in it

There is no other state: an agent that was killed continues from what it finds on disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from condastore.agent.plan import Kept, Name
from condastore.errors import ConflictError, InvalidInputError
from environments.engine.packages.cache import PackageCache
from environments.engine.prefix import linking
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.pypi.install import WheelCache

PRIVATE = ".condastore"
#: What killed agents had received is worth keeping as long as somebody may continue it.
LEFTOVER = timedelta(days=1)
#: Packages that no folder has any more stay in the cache for so long.
UNUSED = timedelta(days=7)


class Folder:
    """Used by one agent at a time: see `held`."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()  # programs get to know it by this name
        self.private = self.root / PRIVATE
        self.prefixes = self.private / "prefixes"
        self.trash = self.private / "trash"
        cache = self.private / "cache"
        # What a server gives its agents was judged there.
        self.packages = PackageCache(cache / "packages", allow_md5=True)
        self.wheels = WheelCache(cache / "wheels")
        self.bytecode = BytecodeCache(cache / "bytecode")

    @contextmanager
    def held(self, *, server: str) -> Iterator[None]:
        """For one agent, and one server, at a time; the system lets it go with its process.

        Raises:
            ConflictError: another agent works in it, or it is kept from another server.
            InvalidInputError: it cannot be written to.
        """
        try:
            self.private.mkdir(parents=True, exist_ok=True)
            for closed in (self.private / "cache", self.trash):
                closed.mkdir(exist_ok=True)
                closed.chmod(0o700)  # namespaces share the cache; users need the prefixes only
            file = (self.private / "lock").open("a+")
        except OSError as error:
            raise InvalidInputError(
                f"The folder cannot be written to: {error.strerror}.", where=str(self.root)
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ConflictError(
                    f"Another agent keeps this folder: process {file.read().strip()}.",
                    where=str(self.root),
                    hint="One agent may keep several namespaces; or choose another folder.",
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}\n")
            file.flush()
            self._bind(server)
            yield

    def _bind(self, server: str) -> None:
        """Nothing is removed because somebody else's server does not know of it."""
        note = self.private / "agent.json"
        own = {"server": server, "folder": str(self.root)}
        try:
            known = json.loads(note.read_text())
        except FileNotFoundError:
            new = note.with_suffix(".new")
            new.write_text(json.dumps(own) + "\n")
            new.replace(note)
            return
        except ValueError:
            known = None
        if known == own:
            return
        known = known if isinstance(known, dict) else {}
        raise ConflictError(
            f"This folder is kept from {known.get('server')} at {known.get('folder')}, "
            f"not from {server} at {self.root}.",
            where=str(note),
            hint=f"Choose another folder. If it was moved, remove {self.prefixes}; "
            f"if the server has a new address, remove {note.name}.",
        )

    # --- what is there -----------------------------------------------------------------------

    def kept(self) -> list[Kept]:
        """The finished folders, current or not."""
        found = (Kept.of(path) for path in self.prefixes.glob("*/*") if path.is_dir())
        return [one for one in found if one is not None]

    def current(self) -> dict[Name, Path]:
        """Where our links lead, whether something is there or not. What others put here is left."""
        found: dict[Name, Path] = {}
        for link in self.root.glob("*/*"):
            if not link.is_symlink() or link.name.startswith("."):
                continue
            target = Path(os.path.normpath(link.parent / link.readlink()))
            if target.is_relative_to(self.prefixes):
                found[Name(link.parent.name, link.name)] = target
        return found

    def place(self, name: Name, folder_name: str) -> Path:
        return self.prefixes / name.namespace / folder_name

    def link(self, name: Name) -> Path:
        return self.root / name.namespace / name.environment

    # --- what changes ------------------------------------------------------------------------

    def require_free(self, name: Name) -> None:
        """Raises ConflictError where something else stands in the place of the link."""
        link = self.link(name)
        others = link.parent if link.parent.is_symlink() else link
        if os.path.lexists(others) and name not in self.current():
            raise ConflictError(
                "Something else is there, which this program did not make.",
                where=str(others),
                hint="Move it away, or choose another folder.",
            )

    def switch(self, name: Name, prefix: Path) -> None:
        """Let the link lead to `prefix`; the folder before it is the newest of the old ones."""
        before = self.current().get(name)
        linking.set_link(self.link(name), prefix)
        if before is not None and before != prefix:
            with contextlib.suppress(FileNotFoundError):
                os.utime(before)

    def remove_link(self, name: Name) -> None:
        linking.remove_link(self.link(name))

    def drop(self, one: Kept) -> None:
        linking.move_to_trash(one.path, self.trash)
        with contextlib.suppress(OSError):
            one.path.parent.rmdir()

    def tidy(self) -> None:
        """Remove what a killed agent left half done. Only its holder may."""
        for path in self.prefixes.glob("*/.*"):
            linking.move_to_trash(path, self.trash)
        for link in self.root.glob("*/.*"):
            if link.is_symlink() and PRIVATE in link.readlink().parts:
                link.unlink(missing_ok=True)
        self.packages.remove_leftovers(older_than=LEFTOVER)
        self.wheels.remove_leftovers(older_than=LEFTOVER)
        self.bytecode.remove_leftovers(older_than=LEFTOVER)
        packages, wheels = self.packages, self.wheels.folder
        for path in (
            *packages.folder.glob(".extracting-*"),
            *packages.views.glob("*"),
            *wheels.glob(".unpacking-*"),
        ):
            shutil.rmtree(path, ignore_errors=True)

    def tidy_cache(self) -> None:
        """Remove the packages that no folder shares files with, and nobody used for a while."""
        oldest = time.time() - UNUSED.total_seconds()
        gone: set[str] = set()
        for cache in (self.packages, self.wheels):
            for digest, used_at in cache.entries():
                if used_at.timestamp() < oldest and not _shared(cache.folder / digest):
                    linking.move_to_trash(cache.folder / digest, self.trash)
                    gone.add(digest)
        self.bytecode.remove(gone)

    def empty_trash(self) -> None:
        linking.empty_trash(self.trash)


def _shared(entry: Path) -> bool:
    """Whether a file of a cached package is linked into a folder, too."""
    for parent, _, files in os.walk(entry):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                if (Path(parent) / name).lstat().st_nlink > 1:
                    return True
    return False
