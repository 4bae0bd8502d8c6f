"""Metadata of an extracted package: validated once, and stored in `contents.json`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rattler.exceptions import IoError
from rattler.package import PathsJson

from condastore.errors import LinkError
from environments.domain.json_text import parse_json
from environments.domain.linking import PackageContents, PackageFile
from environments.domain.names import printable
from environments.domain.records import CondaPackage, record_differences
from environments.domain.unpacking import Limits
from environments.engine.packages.extracted_tree import TreeEntry, folder_of_links, read_tree

CONTENTS = "contents.json"
_CONTENTS_VERSION = 3
#: First bytes of the contents file of a validated entry.
VALIDATED = b'{"version":%d,' % _CONTENTS_VERSION
#: Version written by releases that did not validate the tree.
UNVALIDATED_VERSION = 1
#: Maximum size in bytes of a document in `info/`, other than the list of paths.
_LARGEST_DOCUMENT = 1 << 20
#: Maximum size in bytes of the list of paths: a base plus an amount per path of the archive.
_PATHS_BASE, _PATHS_PER_ENTRY, _PATHS_LARGEST = 64 << 10, 4096, 64 << 20


def package_label(package: CondaPackage) -> str:
    """Return the name of the package's folder, in rattler's form."""
    label = f"{package.name.lower()}-{package.version}-{package.build}"
    if "/" in label or "\0" in label:
        raise LinkError(f"{label!r} is not a valid package name.", where=package.url)
    return label


def is_complete(folder: Path, contents: PackageContents) -> bool:
    """Return True if every file exists with its size; contents are not read (2 us per file)."""
    root = f"{folder}/"
    lstat = os.lstat
    try:
        for path, kind, size, *_ in contents.files:
            status = lstat(root + path)
            if kind == "file" and (status.st_size != size or not stat.S_ISREG(status.st_mode)):
                return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (folder / "info" / "index.json").exists()


def validate(
    package: CondaPackage, folder: Path, *, packed: int, limits: Limits
) -> PackageContents:
    """Validate the extracted archive in `folder`, and write its contents file beside it.

    Raises:
        LinkError: it holds what no package may, or its metadata differs from the record.
    """
    document = describe(package, folder, packed=packed, limits=limits)
    write_contents(document, folder.parent / CONTENTS)
    contents = contents_from(document)
    refuse_differences(package, contents)
    return contents


def write_contents(document: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, separators=(",", ":")))


def describe(
    package: CondaPackage,
    folder: Path,
    *,
    packed: int,
    limits: Limits,
    folders: tuple[PackageFile, ...] = (),
    linked_elsewhere: bool = False,
) -> dict[str, Any]:
    """Validate the tree in `folder`, and return the document for `contents.json`."""
    try:
        tree = read_tree(
            folder,
            name=package.file_name,
            packed=packed,
            limits=limits,
            linked_elsewhere=linked_elsewhere,
        )
        contents = _read_metadata(package, folder, tree, folders)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, IoError) as error:
        raise LinkError(
            f"The metadata of {package.file_name} is malformed: {error!r}.",
            where=package.url,
            hint="Use another build or version, and report it to the channel's owner.",
        ) from error
    except LinkError as error:
        error.where = error.where or package.url
        raise
    return {
        "version": _CONTENTS_VERSION,
        "name": contents.name,
        "label": contents.label,
        "noarch_python": contents.noarch_python,
        "entry_points": contents.entry_points,
        "link_scripts": contents.link_scripts,
        "files": contents.files,
        "index": contents.index,
    }


def read_contents(path: Path) -> PackageContents:
    """Read `contents.json` of a validated entry; ValueError if another release wrote it."""
    return contents_from(json.loads(path.read_bytes()))


def contents_from(document: Mapping[str, Any]) -> PackageContents:
    if document["version"] != _CONTENTS_VERSION:
        raise ValueError("written by another version of condastore")
    return PackageContents(
        name=document["name"],
        label=document["label"],
        noarch_python=document["noarch_python"],
        entry_points=tuple(document["entry_points"]),
        link_scripts=tuple(document["link_scripts"]),
        files=tuple(map(PackageFile._make, document["files"])),
        index=document["index"],
    )


def refuse_differences(package: CondaPackage, contents: PackageContents) -> None:
    """Raise LinkError if the package's own metadata differs from its record."""
    differences = record_differences(package, contents.index)
    if differences:
        raise LinkError(
            f"{package.file_name} is not the package that its record describes: "
            f"{'; '.join(differences)}.",
            where=package.url,
            hint="Do not use this package, and report it to the channel's owner.",
        )


def _read_metadata(
    package: CondaPackage,
    folder: Path,
    tree: Mapping[str, TreeEntry],
    folders: tuple[PackageFile, ...],
) -> PackageContents:
    """Return the contents that an archive's metadata lists, checked against its tree."""
    paths = _paths_document(package, folder, tree)
    link = _json(package, folder, "info/link.json", tree).get("noarch", {})
    index = _json(package, folder, "info/index.json", tree)
    noarch = index.get("noarch")
    if noarch != "python" and (link.get("type") if isinstance(link, dict) else link) == "python":
        raise LinkError(
            f"{package.file_name} is a noarch Python package in its info/link.json, but not in "
            "its info/index.json."
        )
    root = f"{folder}/"
    files = tuple(_file(package, root, entry, tree) for entry in paths["paths"])
    scripts = tuple(
        file.path
        for file in files
        if file.path.startswith(("bin/.", "Scripts/."))
        and file.path.endswith(tuple(f"-{when}{end}" for when in _LINK_MOMENTS for end in _ENDS))
    )
    if any(file.kind == "folder" for file in files):
        # rattler 0.28 fails on such an entry; linking creates these folders itself.
        paths["paths"] = [each for each in paths["paths"] if each.get("path_type") != "directory"]
        (folder / "info" / "paths.json").write_text(json.dumps(paths))
    listed = {file.path for file in files}
    files += tuple(
        file
        for file in folders
        if file.path not in listed and tree.get(file.path, _NOTHING).kind == "folder"
    )
    return PackageContents(
        name=package.name,
        label=package_label(package),
        noarch_python=noarch == "python",  # rattler decides by the same field
        files=files,
        entry_points=_entry_points(package, link),
        link_scripts=scripts,
        index={key: index[key] for key in _OF_INDEX if key in index},
    )


def _entry_points(package: CondaPackage, link: object) -> tuple[str, ...]:
    listed = link.get("entry_points") if isinstance(link, dict) else None
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise LinkError(f"{package.file_name}: entry_points in info/link.json must be texts.")
    return tuple(listed)


#: Keys of `info/index.json` that are compared with the record, or evaluated beside it.
_OF_INDEX = (
    *("name", "version", "build", "build_number", "subdir", "noarch"),
    *("license", "depends", "constrains"),
)
_NOTHING = TreeEntry("file", 0, "")
_LINK_MOMENTS = ("pre-link", "post-link", "pre-unlink")
_ENDS = (".sh", ".bat")


def _file(
    package: CondaPackage, root: str, entry: dict[str, Any], tree: Mapping[str, TreeEntry]
) -> PackageFile:
    """Return one entry of `info/paths.json`; without Path objects, which are slow."""
    path = str(entry["_path"])
    found = tree.get(path)
    if found is None:
        shown = printable(path)
        if path.startswith("/") or ".." in path.split("/"):
            raise LinkError(f"{package.file_name}: path {shown} leads out of the environment.")
        if link := folder_of_links(path, tree):
            raise LinkError(
                f"{package.file_name} lists {shown}, but {printable(link)} in its archive is not "
                "a folder."
            )
        raise LinkError(f"{package.file_name} lists {shown}, which is not in its archive.")
    if found.kind == "file" and entry.get("path_type") != "softlink":
        placeholder = str(entry.get("prefix_placeholder") or "")
        return PackageFile(
            path,
            "file",
            found.size,
            str(entry.get("sha256") or _sha256(root + path)),
            "",
            len(placeholder.encode()),
            binary=entry.get("file_mode") == "binary",
        )
    if found.kind == "file":
        raise LinkError(
            f"{package.file_name} lists {printable(path)} as a link, but it is a regular file."
        )
    return PackageFile(path, found.kind, 0, "", found.target, 0, binary=False)


def _paths_document(
    package: CondaPackage, folder: Path, tree: Mapping[str, TreeEntry]
) -> dict[str, Any]:
    """Return `info/paths.json`, or an equivalent of the older files that preceded it."""
    largest = min(_PATHS_BASE + _PATHS_PER_ENTRY * len(tree), _PATHS_LARGEST)
    if "info/paths.json" in tree:
        document = _json(package, folder, "info/paths.json", tree, largest=largest)
        if isinstance(document.get("paths"), list):
            return document
        raise LinkError(f"{package.file_name}: info/paths.json has no list of paths.")
    for name in ("files", "has_prefix", "no_link", "no_softlink"):
        _size_of(package, f"info/{name}", tree, largest=largest)
    old = PathsJson.from_deprecated_package_directory(folder)
    entries: list[dict[str, Any]] = []
    for each in old.paths:
        entry: dict[str, Any] = {"_path": os.fspath(each.relative_path)}
        if each.prefix_placeholder is not None:
            binary = each.prefix_placeholder.file_mode.binary
            entry["prefix_placeholder"] = each.prefix_placeholder.placeholder
            entry["file_mode"] = "binary" if binary else "text"
        entries.append(entry)
    return {"paths": entries, "paths_version": 1}


def _json(
    package: CondaPackage,
    folder: Path,
    path: str,
    tree: Mapping[str, TreeEntry],
    *,
    largest: int = _LARGEST_DOCUMENT,
) -> dict[str, Any]:
    """Return the JSON object in a file of the package; {} if there is no such file.

    Raises:
        LinkError: it is not a regular file, or longer than `largest` bytes.
    """
    if _size_of(package, path, tree, largest=largest) is None:
        return {}
    document = parse_json((folder / path).read_bytes())
    return document if isinstance(document, dict) else {}


def _size_of(
    package: CondaPackage, path: str, tree: Mapping[str, TreeEntry], *, largest: int
) -> int | None:
    entry = tree.get(path)
    if entry is None:
        return None
    if entry.kind != "file":
        raise LinkError(f"{package.file_name}: {path} is a {entry.kind}, but must be a file.")
    if entry.size > largest:
        raise LinkError(f"{package.file_name}: {path} is larger than {largest:,} bytes.")
    return entry.size


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
