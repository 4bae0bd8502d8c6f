"""Artifacts: kinds of files that are built from a lock, and their states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: Prefix of artifacts that are not unpacked to a path of the user's choice.
STANDARD_PREFIX = "/opt/env"


class ArtifactKind(StrEnum):
    TAR_GZ = "TAR_GZ"  # conda-pack's format
    TAR_ZST = "TAR_ZST"
    SQUASHFS = "SQUASHFS"
    SIF = "SIF"  # an Apptainer image around the squashfs
    INSTALLER = "INSTALLER"
    BUNDLE = "BUNDLE"  # a channel of all packages, the lock and the installer
    IMAGE = "IMAGE"  # the manifest of a container image; the registry serves it


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """File name and content type of one kind of artifact."""

    file_name: str  # below `/api/envs/<namespace>/<environment>/<build>/`
    content_type: str
    #: Part of the key of an artifact; incremented when the same lock gives different bytes.
    recipe: int


FORMS: Mapping[ArtifactKind, Form] = {
    ArtifactKind.TAR_GZ: Form(file_name="env.tar.gz", content_type="application/gzip", recipe=3),
    ArtifactKind.TAR_ZST: Form(file_name="env.tar.zst", content_type="application/zstd", recipe=3),
    ArtifactKind.SQUASHFS: Form(
        file_name="env.squashfs", content_type="application/vnd.squashfs", recipe=3
    ),
    ArtifactKind.SIF: Form(
        file_name="env.sif", content_type="application/vnd.sylabs.sif", recipe=3
    ),
    ArtifactKind.INSTALLER: Form(
        file_name="install.sh", content_type="application/x-shellscript", recipe=4
    ),
    ArtifactKind.BUNDLE: Form(file_name="bundle.tar", content_type="application/x-tar", recipe=4),
    ArtifactKind.IMAGE: Form(
        file_name="image.json",
        content_type="application/vnd.oci.image.manifest.v1+json",
        recipe=3,
    ),
}


class ArtifactState(StrEnum):
    QUEUED = "QUEUED"
    MAKING = "MAKING"
    READY = "READY"
    FAILED = "FAILED"


#: A collected file is built again; a failed one is retried on demand.
MOVES: Mapping[ArtifactState, frozenset[ArtifactState]] = {
    ArtifactState.QUEUED: frozenset({ArtifactState.MAKING}),
    ArtifactState.MAKING: frozenset(
        {ArtifactState.READY, ArtifactState.FAILED, ArtifactState.QUEUED}
    ),
    ArtifactState.READY: frozenset({ArtifactState.QUEUED}),
    ArtifactState.FAILED: frozenset({ArtifactState.QUEUED}),
}


def sources(target: ArtifactState) -> frozenset[ArtifactState]:
    return frozenset(state for state, moves in MOVES.items() if target in moves)


def variant_of(variables: Mapping[str, Any]) -> str:
    """Return a digest of the variables of a specification; empty if none are set.

    Specifications with one lock may set different variables, and then their files differ.
    """
    if not variables:
        return ""
    text = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
