"""Layers and documents of the container image of a lock.

**Layers.** Each package is a layer of its own, a function of the package alone, so that every image
with the package shares it. A file system of layers takes about a hundred, so a large environment
has its `ALONE` largest packages, which are nearly all of its bytes, in layers of their own, and the
many small ones in groups. The group of a package depends only on its name and on whether it needs
Python: a package that changes, is added or is removed changes one group, and two environments with
the same small packages share most groups. Other images and their popularity have no influence: the
same lock has the same image wherever and whenever it is built.

Source: the limit and the order by what is needed most are those of Graham Christensen's layers in
Nix (`dockerTools.buildLayeredImage`); there, too, popularity is computed from the dependency graph
of the image itself. Groups by a hash of the name, not by rank, are consistent hashing: ranks shift
all groups when one package comes.

**Documents.** The OCI image specification 1.1: config, manifest, index. JSON with sorted keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from environments.domain.artifacts import STANDARD_PREFIX
from environments.domain.linking import PythonInfo
from environments.domain.lock import PlatformLock, required_name
from environments.domain.records import CondaPackage, Package, PypiPackage

#: Part of each layer's key; incremented when the same package gives different bytes.
LAYER_RECIPE = 3
#: 88 layers of packages; with the last one and a base of up to ten, an image has under 100.
ALONE, GROUPS = 64, 24

Compression = Literal["gzip", "zstd"]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
SBOM = "application/vnd.cyclonedx+json"
#: Provenance of an image: an in-toto statement in a DSSE envelope.
STATEMENT, ENVELOPE = "application/vnd.in-toto+json", "application/vnd.dsse.envelope.v1+json"
#: Config of manifests that are not images.
EMPTY, EMPTY_CONTENT = "application/vnd.oci.empty.v1+json", b"{}"
LAYER: Mapping[Compression, str] = {
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
#: OCI architecture and variant by conda platform.
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "linux-64": ("amd64", ""),
    "linux-aarch64": ("arm64", ""),
    "linux-armv7l": ("arm", "v7"),
    "linux-ppc64le": ("ppc64le", ""),
    "linux-riscv64": ("riscv64", ""),
    "linux-s390x": ("s390x", ""),
}
#: Not root: the image is read-only, and user files are in HOME.
USER, HOME = 1000, "/home/user"
ENTRY_POINT = f"{STANDARD_PREFIX}/etc/condastore/entrypoint"
ACTIVATE = f"{STANDARD_PREFIX}/etc/condastore/activate.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageLayer:
    """One or several packages that share a layer; `python` if paths in it depend on it."""

    conda: tuple[CondaPackage, ...] = ()
    pypi: tuple[PypiPackage, ...] = ()
    python: PythonInfo | None = None

    @property
    def key(self) -> str:
        """sha256 (hex) of everything that the bytes depend on."""
        made_from = {
            "recipe": LAYER_RECIPE,
            "prefix": STANDARD_PREFIX,
            "python": self.python and [self.python.version, self.python.site_packages],
            # conda-meta of a package repeats the channel's record.
            "conda": [[one.url, one.sha256 or one.md5, _digest(one.record)] for one in self.conda],
            "pypi": [[one.url, one.sha256] for one in self.pypi],
        }
        return _digest(made_from)

    @property
    def label(self) -> str:
        packages: tuple[Package, ...] = (*self.conda, *self.pypi)
        names = [f"{one.name}-{one.version}" for one in packages]
        return " ".join(names)


def plan_layers(
    part: PlatformLock, python: PythonInfo | None, *, conflicting: Collection[str] = ()
) -> tuple[PackageLayer, ...]:
    """Return the layers of the packages of a platform, dependencies first.

    Args:
        conflicting: labels (name-version-build) of conda packages with a path of which another one
            has a different file. They share the last layer, in which the package that is linked
            last keeps its file.
    """
    together = [one for one in part.conda if _label(one) in conflicting]
    if together:
        rest = tuple(one for one in part.conda if _label(one) not in conflicting)
        return (*plan_layers(replace(part, conda=rest), python), _layer(together, python))
    everything: tuple[Package, ...] = (*part.conda, *part.pypi)
    if len(everything) <= ALONE + GROUPS:
        return tuple(_layer([package], python) for package in everything)
    by_size = sorted(everything, key=lambda one: (-one.size, one.name, one.url))
    alone = {one.url for one in by_size[:ALONE]}
    on_python = _needing_python(part.conda)
    layers: dict[object, list[Package]] = {}
    for package in everything:
        needs = isinstance(package, PypiPackage) or package.name in on_python
        location = package.url if package.url in alone else (needs, _bucket(package.name))
        layers.setdefault(location, []).append(package)
    return tuple(_layer(packages, python) for packages in layers.values())


def _label(package: CondaPackage) -> str:
    return f"{package.name}-{package.version}-{package.build}"


def _layer(packages: Sequence[Package], python: PythonInfo | None) -> PackageLayer:
    conda = tuple(one for one in packages if isinstance(one, CondaPackage))
    pypi = tuple(one for one in packages if isinstance(one, PypiPackage))
    placed = bool(pypi) or any(one.noarch == "python" for one in conda)
    return PackageLayer(conda=conda, pypi=pypi, python=python if placed else None)


def _needing_python(packages: Iterable[CondaPackage]) -> set[str]:
    """Return the names of packages that need Python, directly or indirectly."""
    found = {"python"}
    for package in packages:
        if any(required_name(text) in found for text in package.depends):
            found.add(package.name)
    return found


def _bucket(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % (GROUPS // 2)


# --- the last layer --------------------------------------------------------------------


def own_files(
    part: PlatformLock, variables: Mapping[str, str], *, moment: datetime, note: str
) -> dict[str, tuple[bytes, bool]]:
    """Return (content, whether it is executable) by path from the root."""
    prefix = STANDARD_PREFIX.lstrip("/")
    history = [
        f"==> {moment:%Y-%m-%d %H:%M:%S} <==",
        f"# cmd: {note}",
        *(
            f"+{one.channel}/{one.subdir}::{one.name}-{one.version}-{one.build}"
            for one in sorted(part.conda, key=lambda one: one.name)
        ),
        "# update specs: []",
    ]
    state = json.dumps({"version": 1, "env_vars": dict(sorted(variables.items()))}, indent=2)
    return {
        f"{prefix}/conda-meta/history": (("\n".join(history) + "\n").encode(), False),
        f"{prefix}/conda-meta/state": ((state + "\n").encode(), False),
        ACTIVATE.lstrip("/"): (_ACTIVATE.encode(), False),
        ENTRY_POINT.lstrip("/"): (_ENTRY_POINT.encode(), True),
        "etc/profile.d/condastore.sh": (f". {ACTIVATE}\n".encode(), False),
    }


#: Activation: runs the activation scripts of packages; also for login shells.
_ACTIVATE = f"""\
case ":$PATH:" in
    *:{STANDARD_PREFIX}/bin:*) ;;
    *) export PATH="{STANDARD_PREFIX}/bin:$PATH" ;;
esac
export CONDA_PREFIX="{STANDARD_PREFIX}"
for condastore_script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
    if [ -r "$condastore_script" ]; then . "$condastore_script"; fi
done
unset condastore_script
"""
#: Scripts of packages are written for bash, which runs them if the image has it.
_ENTRY_POINT = f"""\
#!/bin/sh
if [ -z "$BASH_VERSION" ] && command -v bash >/dev/null 2>&1; then
    exec bash "$0" "$@"
fi
. {ACTIVATE}
if [ "$#" -eq 0 ]; then
    if [ -n "$BASH_VERSION" ]; then set -- bash; else set -- /bin/sh; fi
fi
exec "$@"
"""


# --- documents ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Descriptor of a blob in a manifest."""

    media_type: str
    sha256: str
    size: int

    def to_json(self, **more: Any) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": f"sha256:{self.sha256}",
            "size": self.size,
            **more,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLayer:
    """A stored layer: `diff_id` is the digest of the archive, the descriptor that of the blob."""

    descriptor: Descriptor
    diff_id: str  # sha256, hex
    label: str


def config_json(
    *,
    platform: str,
    base: Mapping[str, Any],
    layers: Sequence[ImageLayer],
    variables: Mapping[str, str],
    labels: Mapping[str, str],
    moment: datetime,
) -> bytes:
    """Return the config; `base` is that of the base image, whose layers are first in `layers`."""
    architecture, variant = ARCHITECTURES[platform]
    inherited: Mapping[str, Any] = base.get("config") or {}
    environment = dict(text.partition("=")[::2] for text in inherited.get("Env") or ())
    path = environment.get("PATH") or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment |= {
        "PATH": f"{STANDARD_PREFIX}/bin:{path}",
        "CONDA_PREFIX": STANDARD_PREFIX,
        "CONDA_DEFAULT_ENV": STANDARD_PREFIX,
        "HOME": HOME,
        **variables,
    }
    created = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
    history = [
        {"created": created, "created_by": "condastore", "comment": layer.label[:500]}
        for layer in layers
    ]
    document: dict[str, Any] = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": {
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Entrypoint": [ENTRY_POINT],
            "WorkingDir": HOME,
            "User": f"{USER}:{USER}",
            "Labels": dict(inherited.get("Labels") or {}) | dict(labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one.diff_id}" for one in layers]},
        "history": history,
    }
    if variant:
        document["variant"] = variant
    return canonical(document)


def manifest_json(
    config: Descriptor, layers: Sequence[ImageLayer], annotations: Mapping[str, str]
) -> bytes:
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_json(),
            "layers": [layer.descriptor.to_json() for layer in layers],
            "annotations": dict(annotations),
        }
    )


def referrer_json(
    subject: Descriptor,
    empty: Descriptor,
    told: Descriptor,
    annotations: Mapping[str, str],
    *,
    artifact_type: str = "",
) -> bytes:
    """Return a manifest that refers to the image `subject` and contains `document`.

    Args:
        artifact_type: needed if the media type of the document does not say what it is.
    """
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type or told.media_type,
            "config": empty.to_json(),
            "layers": [told.to_json()],
            "subject": subject.to_json(),
            "annotations": dict(annotations),
        }
    )


def index_json(manifests: Mapping[str, Descriptor], annotations: Mapping[str, str]) -> bytes:
    """Return the index of images; `manifests` are by conda platform."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                found.to_json(platform=oci_platform(platform))
                for platform, found in manifests.items()
            ],
            "annotations": dict(annotations),
        }
    )


def oci_platform(platform: str) -> dict[str, str]:
    architecture, variant = ARCHITECTURES[platform]
    found = {"architecture": architecture, "os": "linux"}
    return found | ({"variant": variant} if variant else {})


def conda_platform(architecture: str, variant: str = "") -> str:
    """Return conda's name of an OCI platform, or "" if it has none."""
    exact = (name for name, pair in ARCHITECTURES.items() if pair == (architecture, variant))
    same = (name for name, pair in ARCHITECTURES.items() if pair[0] == architecture)
    return next(exact, next(same, ""))


def canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(document)).hexdigest()
