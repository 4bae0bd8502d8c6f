"""How does one package become a layer of a container image, without the others?

What rattler would link for the prefix of images goes straight from the package cache into an
archive: no prefix is made, and no other package is asked. So the layer is a function of the
package, of the prefix, and of the Python whose folders a `noarch: python` package is put into.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rattler.package import PathsJson

from environments.domain.artifacts import STANDARD_PREFIX
from environments.domain.errors import LinkError
from environments.domain.images import Compression, PackageLayer
from environments.domain.linking import PackageFile, PythonInfo, find_faults, prefix_path
from environments.domain.progress import Cancelled, never, obey
from environments.engine.images.archives import FIXED_TIME, Entry, LayerFile, write_layer
from environments.engine.package_cache import CachedPackage
from environments.engine.pypi_install import CachedWheel, install_wheels

_ROOT = STANDARD_PREFIX.lstrip("/")
_VARIABLES = re.compile(r"etc/conda/env_vars\.d/[^/]+\.json")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST = 1 << 20  # bytes of such a file
_PREFIX = STANDARD_PREFIX.encode()


def make_layer(
    layer: PackageLayer,
    to: Path,
    *,
    packages: Sequence[CachedPackage],
    wheels: Sequence[CachedWheel],
    platform: str,
    compression: Compression,
    work: Path,
    cancelled: Cancelled = never,
) -> LayerFile:
    """Write the layer of `packages` and `wheels`, which are those of `layer`, to `to`.

    Args:
        work: a folder for wheels, on the file system of the cache.
    Raises:
        LinkError: a package cannot be linked; each fault is named.
    """
    faults = find_faults(
        [one.contents for one in packages],
        python=layer.python,
        platform=platform,
        prefix=STANDARD_PREFIX,
    )
    if faults:
        raise LinkError("; ".join(fault.reason.rstrip(".") for fault in faults[:20]) + ".")
    entries: dict[str, Entry] = {}
    for package in packages:
        obey(cancelled)
        entries |= _package_entries(package, layer.python)
    for number, wheel in enumerate(wheels):
        obey(cancelled)
        assert layer.python is not None, "wheels are locked beside a python only"
        entries |= _wheel_entries(wheel, layer.python, work / f"wheel-{number}")
    return write_layer(entries, to, compression=compression, cancelled=cancelled)


def variables_of(packages: Sequence[CachedPackage]) -> dict[str, str]:
    """What `packages` want to be set while their environment is active (env_vars.d)."""
    found: dict[str, str] = {}
    for package in packages:
        for file in package.contents.files:
            if file.kind == "file" and _VARIABLES.fullmatch(file.path) and file.size < _MOST:
                try:
                    told = json.loads((package.folder / file.path).read_bytes())
                except ValueError:
                    continue  # conda too goes on without it
                if isinstance(told, dict):
                    found |= {
                        str(name): str(value)
                        for name, value in told.items()
                        if _NAME.fullmatch(str(name)) and "\0" not in str(value)
                    }
    return found


# --- conda packages -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placeholder:
    text: bytes
    binary: bool


def _package_entries(package: CachedPackage, python: PythonInfo | None) -> dict[str, Entry]:
    contents = package.contents
    placeholders = (
        _placeholders(package.folder) if any(file.placeholder for file in contents.files) else {}
    )
    entries: dict[str, Entry] = {}
    notes: list[dict[str, Any]] = []
    for file in contents.files:
        place = prefix_path(file.path, noarch_python=contents.noarch_python, python=python)
        entry, note = _linked(package.folder / file.path, file, placeholders.get(file.path))
        entries[f"{_ROOT}/{place}"] = entry
        if note:
            notes.append({"_path": place, **note})
    if contents.noarch_python and python is not None:
        for text in contents.entry_points:
            place, script = _entry_point(text, python)
            entries[f"{_ROOT}/{place}"] = Entry(content=script, mode=0o755)
            digest = hashlib.sha256(script).hexdigest()
            notes.append(
                {
                    "_path": place,
                    "path_type": "unix_python_entry_point",
                    "sha256": digest,
                    "sha256_in_prefix": digest,
                    "size_in_bytes": len(script),
                }
            )
    record = f"{_ROOT}/conda-meta/{contents.label}.json"
    entries[record] = Entry(content=_note(package, notes))
    return entries


def _linked(
    source: Path, file: PackageFile, placeholder: _Placeholder | None
) -> tuple[Entry, dict[str, Any]]:
    """What the archive gets, and what conda notes of it."""
    if file.kind == "folder":
        return Entry(mode=0o755), {}
    if file.kind == "link":
        return Entry(link=file.target), {"path_type": "softlink"}
    status = source.stat()
    mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    note = {"path_type": "hardlink", "sha256": file.sha256, "size_in_bytes": file.size}
    time = max(0, int(status.st_mtime))
    if placeholder is None:
        return Entry(content=source, mode=mode, time=time), note
    replace = _in_binary if placeholder.binary else bytes.replace
    content = replace(source.read_bytes(), placeholder.text, _PREFIX)
    note |= {
        "size_in_bytes": len(content),
        "sha256_in_prefix": hashlib.sha256(content).hexdigest(),
        "file_mode": "binary" if placeholder.binary else "text",
        "prefix_placeholder": placeholder.text.decode(),
    }
    return Entry(content=content, mode=mode, time=time), note


def _placeholders(folder: Path) -> dict[str, _Placeholder]:
    document = PathsJson.from_package_directory_with_deprecated_fallback(folder)
    return {
        entry.relative_path.as_posix()
        if isinstance(entry.relative_path, Path)
        else str(entry.relative_path): _Placeholder(
            text=found.placeholder.encode(), binary=found.file_mode.binary
        )
        for entry in document.paths
        if (found := entry.prefix_placeholder) is not None
    }


def _in_binary(content: bytes, old: bytes, new: bytes) -> bytes:
    """Replace `old` in the strings of a compiled file, each of which keeps its length."""
    parts: list[bytes] = []
    position = 0
    while (start := content.find(old, position)) >= 0:
        end = content.find(b"\0", start)
        end = len(content) if end < 0 else end
        replaced = content[start:end].replace(old, new)
        parts += (content[position:start], replaced, bytes(end - start - len(replaced)))
        position = end
    return b"".join((*parts, content[position:]))


def _entry_point(text: str, python: PythonInfo) -> tuple[str, bytes]:
    """`command = module:function` -> where its script is, and the script, as conda writes it."""
    command, _, target = (part.strip() for part in text.partition("="))
    module, _, function = (part.strip() for part in target.partition(":"))
    first = function.partition(".")[0]
    script = (
        f"#!{STANDARD_PREFIX}/bin/python{python.version}\n"
        "# -*- coding: utf-8 -*-\n"
        "import re\n"
        "import sys\n\n"
        f"from {module} import {first}\n\n"
        "if __name__ == '__main__':\n"
        "\tsys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])\n"
        f"\tsys.exit({function}())\n"
    )
    return f"{python.scripts}/{command}", script.encode()


def _note(package: CachedPackage, paths: Sequence[Mapping[str, Any]]) -> bytes:
    """conda's own note of an installed package (CEP 32), without anything of this machine."""
    conda, ordered = package.package, sorted(paths, key=lambda note: str(note["_path"]))
    record = {
        **conda.record,
        "fn": conda.file_name,
        "url": conda.url,
        "channel": conda.channel,
        "files": [note["_path"] for note in ordered],
        "paths_data": {"paths_version": 1, "paths": ordered},
        "link": {"type": 1},
        "requested_specs": [],
    }
    return (json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n").encode()


# --- wheels ---------------------------------------------------------------------------------------


def _wheel_entries(wheel: CachedWheel, python: PythonInfo, target: Path) -> dict[str, Entry]:
    target.mkdir(parents=True)
    install_wheels([wheel], target=target, final_prefix=Path(STANDARD_PREFIX), python=python)
    entries: dict[str, Entry] = {}
    for folder, _, names in os.walk(target):
        for name in names:
            path = Path(folder, name)
            mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
            place = f"{_ROOT}/{path.relative_to(target).as_posix()}"
            entries[place] = Entry(content=path, mode=mode, time=FIXED_TIME)
    return entries
