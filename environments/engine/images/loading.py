"""Loading of images from a folder or archive of other tools (OCI layout, docker archive)."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from condastore.errors import InvalidInputError, LinkError
from environments.domain.images import LAYER, Compression, conda_platform
from environments.domain.json_text import parse_json
from environments.domain.names import printable
from environments.domain.unpacking import DEFAULT_LIMITS, Limits, name_fault, path_fault
from environments.engine.images.archives import compress, unpacked
from environments.engine.packages.extracted_tree import read_tree
from environments.engine.packages.tar_files import (
    Budget,
    ForwardReader,
    StopReadingError,
    read_entries,
)

LARGEST_DOCUMENT = 4 * 1024**2  # bytes; the limit of registries
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_COMPRESSION: Mapping[str, Compression | None] = {
    "application/vnd.oci.image.layer.v1.tar": None,
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": None,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedLayer:
    """A compressed layer; `diff_id` is the sha256 of the archive in it, in hex."""

    path: Path
    diff_id: str
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """An image whose layers are files."""

    platform: str  # conda's name
    digest: str  # sha256 of its config, in hex
    config: Mapping[str, Any]
    layers: tuple[LoadedLayer, ...]


def digest_of(descriptor: Mapping[str, Any]) -> str:
    """Return the sha256 of a descriptor; anything else is refused, and so never used as a path."""
    found = _DIGEST.fullmatch(str(descriptor.get("digest", "")))
    if found is None:
        raise InvalidInputError("A descriptor of the image has no sha256 digest.")
    return found[1]


def image_of(
    config: bytes,
    layers: Sequence[tuple[Path, str]],
    *,
    folder: Path,
    limits: Limits = DEFAULT_LIMITS,
) -> LoadedImage:
    """Build an image from a config and layers (file, media type), checked against `diff_ids`.

    Uncompressed layers are compressed into `folder`.

    Raises:
        InvalidInputError: it is not an image for Linux, its bytes differ from its digests, or a
            layer unpacks to more than `limits` or holds what no layer may.
    """
    document = read_json(config, "the config")
    try:
        named = [text.removeprefix("sha256:") for text in document["rootfs"]["diff_ids"]]
        platform = conda_platform(document["architecture"], document.get("variant", ""))
        system = document["os"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError("The config of the image is incomplete.") from error
    if system != "linux" or not platform:
        raise InvalidInputError(
            f"The image is for {system} on {document['architecture']}, which is not supported.",
            hint="Use an image for Linux on a platform of the lock.",
        )
    if len(named) != len(layers):
        raise InvalidInputError(
            f"The image has {len(layers)} layers, but its config lists {len(named)}."
        )
    return LoadedImage(
        platform=platform,
        digest=hashlib.sha256(config).hexdigest(),
        config=document,
        layers=tuple(
            _checked(path, media_type, diff_id, folder / f"layer-{position}", limits)
            for position, ((path, media_type), diff_id) in enumerate(
                zip(layers, named, strict=True)
            )
        ),
    )


def _checked(path: Path, media_type: str, diff_id: str, to: Path, limits: Limits) -> LoadedLayer:
    if media_type not in _COMPRESSION:
        raise InvalidInputError(f"A layer has the unsupported media type {media_type!r}.")
    compression = _COMPRESSION[media_type]
    try:
        found = _diff_id(path, compression, limits)
        if compression is None:
            compress(unpacked(path, None), to, "gzip")
            path, compression = to, "gzip"
    except StopReadingError as stop:
        raise InvalidInputError(f"A layer is refused. {stop}") from stop
    except (ValueError, tarfile.TarError, OverflowError, zstandard.ZstdError) as error:
        raise InvalidInputError(f"A layer is damaged: {error}.") from error
    if found != diff_id:
        raise InvalidInputError("A layer's bytes differ from the digest in the image's config.")
    return LoadedLayer(path=path, diff_id=diff_id, media_type=LAYER[compression])


def _diff_id(path: Path, compression: Compression | None, limits: Limits) -> str:
    """Return the sha256 of the archive in a layer, in hex, and check its entries.

    Layers are passed on and never unpacked here, and belong to a root file system, so absolute
    links and character devices are allowed.
    """
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for part in unpacked(path, compression):
            digest.update(part)
            yield part

    budget = Budget(path.stat().st_size, limits)
    source = ForwardReader(_Joined(hashed()), budget)
    for _, entry in read_entries(source, budget, strict=False):
        location = entry.name.lstrip("/")
        fault = name_fault(location, longest=limits.path_bytes) if location else ""
        if fault or ".." in location.split("/"):
            raise StopReadingError(
                f"Its path {printable(entry.name)} {fault or 'leads out of the layer'}."
            )
        if entry.islnk() and ".." in entry.linkname.split("/"):
            raise StopReadingError(f"Its hard link {printable(entry.name)} leads out of the layer.")
        if entry.isblk():
            raise StopReadingError(f"{printable(entry.name)} is a block device.")
    return digest.hexdigest()


class _Joined:
    """File object that reads from an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        found, self._rest = self._rest[:size], self._rest[size:]
        return bytes(found)


def read_json(content: bytes, what: str) -> dict[str, Any]:
    try:
        document = parse_json(content)
    except ValueError as error:
        raise InvalidInputError(f"The file is not an image: {what} is not JSON.") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"The file is not an image: {what} is not a JSON object.")
    return document


def load(source: Path, *, folder: Path, limits: Limits = DEFAULT_LIMITS) -> list[LoadedImage]:
    """Load the Linux images of an OCI layout (folder or archive) or a docker archive.

    Args:
        folder: an empty folder for the layers.
        limits: limits of what the archive, and each layer, may unpack to.
    Raises:
        InvalidInputError: says what is wrong with it.
    """
    if not source.exists():
        raise InvalidInputError(f"The file {source} does not exist.")
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        root = source
    else:
        root = folder / "unpacked"
        _unpack(source, root, limits)
    if (root / "index.json").is_file():
        return _oci(root, folder, limits)
    if (root / "manifest.json").is_file():
        return _docker(root, folder, limits)
    raise InvalidInputError(
        f"{source.name} is neither an OCI layout nor a docker archive.",
        hint="Create one: skopeo copy docker://... oci-archive:FILE, or docker save -o FILE IMAGE.",
    )


def _unpack(source: Path, root: Path, limits: Limits) -> None:
    """Unpack an archive; its links are how docker shares a layer between images."""
    root.mkdir()
    budget = Budget(source.stat().st_size, limits)
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                budget.spend_entry()
                budget.spend_bytes(member.size)
                if fault := path_fault(member.name, longest=limits.path_bytes):
                    raise StopReadingError(f"The path {printable(member.name)} {fault}.")
                archive.extract(member, root, filter="data")
        read_tree(root, name=source.name, packed=source.stat().st_size, limits=limits)
    except StopReadingError as stop:
        raise InvalidInputError(f"{source.name} is refused. {stop}") from stop
    except LinkError as error:
        raise InvalidInputError(error.message) from error
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":.")
        raise InvalidInputError(f"{source.name} cannot be unpacked: {reason}.") from error


def _oci(root: Path, folder: Path, limits: Limits) -> list[LoadedImage]:
    found: list[LoadedImage] = []
    waiting = list(_manifests(read_json(_document(root / "index.json"), "index.json")))
    while waiting:
        document = read_json(_blob(root, waiting.pop(0)).read_bytes(), "a manifest")
        if "manifests" in document:
            waiting += _manifests(document)
            continue
        config = _blob(root, document.get("config") or {})
        layers = [
            (_copy(_blob(root, one), folder), str(one.get("mediaType")))
            for one in document.get("layers") or ()
        ]
        location = folder / f"image-{len(found)}"
        location.mkdir()
        try:
            found.append(image_of(_document(config), layers, folder=location, limits=limits))
        except InvalidInputError:
            if len(waiting) + len(found) == 0:
                raise
            # An index may list attestations and other systems beside images for Linux.
    if not found:
        raise InvalidInputError("The file contains no image for Linux.")
    return found


def _manifests(index: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = index.get("manifests")
    if not isinstance(listed, list) or len(listed) > 200:
        raise InvalidInputError("The file is not an image: its index has no list of manifests.")
    return [one for one in listed if isinstance(one, dict)]


def _blob(root: Path, descriptor: Mapping[str, Any]) -> Path:
    digest = digest_of(descriptor)
    path = root / "blobs" / "sha256" / digest
    if not path.is_file() or path.is_symlink():
        raise InvalidInputError(f"The blob sha256:{digest[:12]} is missing in the layout.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise InvalidInputError(f"The blob sha256:{digest[:12]} of the layout is damaged.")
    return path


def _document(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_DOCUMENT:
        raise InvalidInputError(
            f"{path.name} is larger than {LARGEST_DOCUMENT:,} bytes, the limit of a document."
        )
    return path.read_bytes()


def _docker(root: Path, folder: Path, limits: Limits) -> list[LoadedImage]:
    try:
        listed = parse_json(_document(root / "manifest.json"))
        images = [(one["Config"], list(one["Layers"])) for one in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError("The docker archive's manifest.json is malformed.") from error
    found = []
    for number, (config, layers) in enumerate(images):
        location = folder / f"image-{number}"
        location.mkdir()
        files = [(_copy(_inside(root, name), folder), "") for name in layers]
        typed = [(path, _sniffed(path)) for path, _ in files]
        found.append(
            image_of(_document(_inside(root, config)), typed, folder=location, limits=limits)
        )
    return found


def _inside(root: Path, name: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        raise InvalidInputError(f"The file {name!r} is missing in the docker archive.")
    return path


def _sniffed(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"\x1f\x8b"):
        return LAYER["gzip"]
    if start == b"\x28\xb5\x2f\xfd":
        return LAYER["zstd"]
    return "application/vnd.oci.image.layer.v1.tar"


def _copy(path: Path, folder: Path) -> Path:
    """Copy a file into `folder`: files there are moved later, the user's own must stay."""
    copy = folder / f"copy-{path.parent.name}-{path.name}"
    number = 0
    while copy.exists():
        number += 1
        copy = folder / f"copy-{number}-{path.name}"
    shutil.copyfile(path, copy)
    return copy
