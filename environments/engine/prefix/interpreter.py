"""The interpreter that compiles the Python files of a lock: CPython with its dependencies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments.domain.linking import PythonInfo
from environments.domain.records import CondaPackage
from environments.engine.packages.cache import CachedPackage

#: Part of the key; a change invalidates all entries.
FORMAT = "3"
SHA256 = re.compile(r"[0-9a-f]{64}")
#: Parts of the standard library that compiling does not need: a third of its files.
_LEFT_OUT = frozenset(
    {"ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter", "turtledemo"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """CPython with all its dependencies in one lock: everything that takes part in compiling."""

    key: str
    tag: str  # part of the names of compiled files: cpython-311
    python: PythonInfo
    packages: tuple[CachedPackage, ...]

    @classmethod
    def from_packages(
        cls, packages: Sequence[CachedPackage], python: PythonInfo
    ) -> Interpreter | None:
        """Return the interpreter among the packages of a lock.

        Returns None if it is not CPython, or if one of its packages has no sha256: compiled files
        are shared by digest.
        """
        by_name = {cached.package.name: cached for cached in packages}
        tag = bytecode_tag(by_name["python"].package) if "python" in by_name else None
        if tag is None:
            return None
        found: dict[str, CachedPackage] = {}
        open_names = ["python"]
        while open_names:
            name = open_names.pop()
            if name not in by_name or name in found:  # not in the lock: virtual, such as __glibc
                continue
            found[name] = by_name[name]
            open_names += map(dependency_name, by_name[name].package.depends)
        digests = sorted(cached.folder.parent.name for cached in found.values())
        if not all(map(SHA256.fullmatch, digests)):
            return None
        text = "\n".join([FORMAT, tag, python.site_packages, *digests])
        return cls(
            key=hashlib.sha256(text.encode()).hexdigest(),
            tag=tag,
            python=python,
            packages=tuple(found[name] for name in sorted(found)),
        )


def bytecode_tag(python: CondaPackage) -> str | None:
    """Return the tag in the names of this Python's compiled files; None if it is not CPython."""
    if "pypy" in python.build or "graalpy" in python.build:
        return None
    return "cpython-" + "".join(python.version.split(".")[:2])


def dependency_name(dependency: str) -> str:
    """Return the name in `python >=3.11,<3.12.0a0` or `openssl[version=3]`."""
    match = re.match(r"[\w.-]+", dependency.rpartition("::")[2].strip())
    return match[0].lower() if match else ""


def link_interpreter(interpreter: Interpreter, prefix: Path) -> None:
    """Hard-link what CPython needs to compile into the new folder `prefix`.

    Nothing is relocated: CPython finds its library relative to its program. Symbolic links come
    last, so that nothing is written through a link that leads out.
    """
    library = interpreter.python.site_packages.rpartition("/")[0]  # lib/python3.11
    files: list[tuple[str, str]] = []
    links: list[tuple[str, str]] = []
    for cached in interpreter.packages:
        if cached.contents.noarch_python:
            continue
        for file in cached.contents.files:
            if file.kind == "folder" or not _is_needed(file.path, library):
                continue
            if file.kind == "link":
                links.append((file.target, f"{prefix}/{file.path}"))
            else:
                files.append((f"{cached.folder}/{file.path}", f"{prefix}/{file.path}"))
    for folder in sorted({os.path.dirname(location) for _, location in (*files, *links)}):  # noqa: PTH120
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    link_all(files)
    for target, location in links:
        with contextlib.suppress(FileExistsError):
            os.symlink(target, location)  # noqa: PTH211


def _is_needed(path: str, library: str) -> bool:
    """Return True for programs, shared libraries and the needed part of the standard library."""
    folder, _, name = path.rpartition("/")
    if folder == "bin":
        return name.startswith("python")
    if folder == "lib":
        return ".so" in name or name.endswith(".dylib")
    if not path.startswith(f"{library}/"):
        return False
    return _LEFT_OUT.isdisjoint(path[len(library) + 1 :].split("/")[:-1])


def link_all(plan: Sequence[tuple[str, str]]) -> list[str]:
    """Link each (source, place) whose place is free; return the linked sources."""
    link = os.link
    created = []
    for source, location in plan:
        try:
            link(source, location)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno != errno.EMLINK:  # file systems limit an inode to about 65,000 links
                raise
            shutil.copyfile(source, location)
        created.append(source)
    return created
