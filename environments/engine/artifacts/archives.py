"""Relocatable archives of an environment, in the format of conda-pack.

The format is conda-pack's: the packages' files unchanged, `bin/activate`, and `bin/conda-unpack`,
which knows the files where the prefix must be replaced. Added files are conda-pack's own. The order
is fixed, and times and owners do not depend on the machine, so the bytes are reproducible.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from condastore.errors import DiskSpaceError, InvalidInputError
from environments.engine._private import conda_unpack_progress, conda_unpack_template
from environments.engine.artifacts.parts import GZIP, ZSTD, Compression, PartFolder, write_parts
from environments.engine.artifacts.staging import Material
from environments.engine.artifacts.tar import END, Entry
from environments.engine.artifacts.tree import Part, PrefixRecord, parts_of
from environments.engine.artifacts.variables import exports, variables_of

#: Script that sets the variables of packages and of the specification at activation.
_VARIABLES = "etc/conda/{moment}.d/condastore-variables.sh"


def make_tar_gz(material: Material) -> Path:
    return _make(material, "env.tar.gz", GZIP)


def make_tar_zst(material: Material) -> Path:
    return _make(material, "env.tar.zst", ZSTD)


def parts_folder(material: Material) -> PartFolder:
    """Return the folder of compressed parts, beside the package cache."""
    return PartFolder(material.cache.folder.with_name("parts"))


def _make(material: Material, name: str, compression: Compression) -> Path:
    if material.platform.startswith("win-"):
        raise InvalidInputError(
            f"Archives are not supported for {material.platform}: the program that completes them "
            "there is not available.",
            hint="Request the bundle or the lock file instead.",
        )
    path = material.work / name
    with removed_on_failure(path), path.open("xb") as out:
        write_parts(
            archive_parts(material),
            out,
            compression=compression,
            kept=parts_folder(material),
            progress=material.progress,
            cancelled=material.cancelled,
        )
    return path


def archive_parts(material: Material) -> list[Part]:
    """Return the parts of the packages, then one with conda-pack's files and the archive's end."""
    parts = parts_of(material, prefix=None)
    notes = parts.pop()
    prefixes = [record for part in parts for record in part.prefixes]
    moment = int(material.moment.timestamp())
    own = sorted(
        [*notes.entries, *_added(prefixes, _variables(material), moment)],
        key=lambda entry: entry.path,
    )
    names = {entry.path for entry in own}
    # conda-pack's scripts replace those of the package conda.
    retained = [
        part
        if names.isdisjoint(entry.path for entry in part.entries)
        else Part(
            key="",
            name=part.name,
            entries=[entry for entry in part.entries if entry.path not in names],
        )
        for part in parts
    ]
    return [*retained, Part(key="", name="notes", entries=own, tail=END)]


def _added(
    prefixes: Sequence[PrefixRecord], variables: Mapping[str, str], moment: int
) -> Iterator[Entry]:
    def entry(path: str, text: str, *, executable: bool = False) -> Entry:
        return Entry.file(path, text.encode(), moment, executable=executable)

    package = resources.files("conda_pack")
    scripts = package / "scripts" / "posix"
    for name in ("activate", "activate.fish", "deactivate"):
        yield entry(f"bin/{name}", (scripts / name).read_text())
    yield entry("bin/conda_unpack_progress.py", conda_unpack_progress())
    yield entry("bin/conda-unpack", _unpacker(prefixes), executable=True)
    if variables:
        yield entry(_VARIABLES.format(moment="activate"), exports(variables))
        unset = "".join(f"unset {name}\n" for name in sorted(variables))
        yield entry(_VARIABLES.format(moment="deactivate"), unset)


def _variables(material: Material) -> dict[str, str]:
    """Return the variables of the packages, overridden by the specification's, as in conda."""
    return variables_of(material.packages) | dict(material.variables)


def _unpacker(prefixes: Sequence[PrefixRecord]) -> str:
    """Return `bin/conda-unpack`: conda-pack's program, with the places of the prefix."""
    # A running program cannot be rewritten, so Python itself is left out.
    records = [tuple(one) for one in prefixes if not one.path.startswith("bin/python")]
    text: str = conda_unpack_template().format(
        shebang="#!/usr/bin/env python",
        prefixes_py=(resources.files("conda_pack") / "prefixes.py").read_text(),
        prefix_records=",\n".join(map(repr, sorted(records))),
        version=version("conda-pack"),
    )
    return text


@contextlib.contextmanager
def disk_full_as_error() -> Iterator[None]:
    """Convert errors of a full disk to DiskSpaceError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                "The disk is full: the artifact could not be written.",
                hint="Ask an administrator to free disk space, then try again.",
            ) from error
        raise


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove an unfinished file at once, to free its disk space.

    Raises:
        DiskSpaceError: the disk is full.
    """
    with disk_full_as_error():
        try:
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            raise
