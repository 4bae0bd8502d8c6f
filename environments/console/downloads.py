"""Downloads section of a page: files of a build, its container image and its channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.http import HttpRequest
from django.urls import reverse

from accounts.access import Actor, may
from accounts.roles import Perm
from condastore.errors import RecalledError
from environments.domain.artifacts import FORMS, ArtifactKind, ArtifactState, variant_of
from environments.domain.lifecycle import SERVED
from environments.domain.sizes import format_size
from environments.models import Artifact, Build
from environments.models.recalls import refuse_recalled
from environments.operations.artifacts import KIND_OF
from environments.operations.downloads import platform_of

#: Purpose of each file.
FILES = {
    "environment.yml": "pinned, for conda and mamba",
    "conda-lock.yml": "lock file, for conda-lock and micromamba",
    "explicit.txt": "exact URLs, for conda create --file",
    "pixi.lock": "for pixi",
    "sbom.cdx.json": "bill of materials",
    "provenance.intoto.json": "signed build provenance",
    "env.tar.zst": "archive that can be unpacked at any path",
    "env.tar.gz": "the same, for older tools",
    "install.sh": "installs without a network",
    "env.squashfs": "one file to mount",
    "env.sif": "for Apptainer",
    "bundle.tar": "all packages, for an isolated machine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    name: str
    url: str
    purpose: str
    state: str  # "" for a file that is rendered on request


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloads:
    """Files, image reference and channel URL; the last two are "" if they are not available."""

    files: tuple[File, ...]
    image: str = ""
    channel: str = ""


def downloads_of(
    request: HttpRequest, actor: Actor, build: Build, reference: str
) -> Downloads | None:
    """Return what the reader may download; None for nothing.

    Args:
        reference: of the build in URLs: its number or `current`.
    """
    if build.lock is None or not may(actor, Perm.DOWNLOAD, build):
        return None
    try:
        refuse_recalled(build)
    except RecalledError:
        return None
    environment = build.environment
    place = f"{environment.namespace.name}/{environment.name}"
    rendered = tuple(_files(build, f"{place}/{reference}", built=False))
    if build.state not in SERVED:  # the lock may be read, but built files are not served
        return Downloads(files=rendered)
    tag = "latest" if reference == "current" else reference
    return Downloads(
        files=(*rendered, *_files(build, f"{place}/{reference}", built=True)),
        image=f"{request.get_host()}/{place}:{tag}",
        channel=request.build_absolute_uri(f"/channel/{place}/{reference}"),
    )


def _files(build: Build, place: str, *, built: bool) -> Iterator[File]:
    """Yield the files that a worker builds, or those that are rendered on request."""
    known = _artifacts(build) if built else {}
    for name, purpose in FILES.items():
        if (name in KIND_OF) is not built:
            continue
        url = reverse("download", args=[*place.split("/"), name])
        state = _state(known.get(KIND_OF[name])) if built else ""
        yield File(name=name, url=url, purpose=purpose, state=state)


def _artifacts(build: Build) -> dict[str, Artifact]:
    """Return the artifacts of the build's platform, by kind."""
    variant = variant_of(dict(build.specification.value().variables))
    rows = Artifact.objects.filter(lock=build.lock_id, variant=variant).select_related("blob")
    platform = platform_of(build)
    recipes = {kind: form.recipe for kind, form in FORMS.items()}
    return {
        row.kind: row
        for row in rows
        if row.platform == platform and row.recipe == recipes[ArtifactKind(row.kind)]
    }


def _state(row: Artifact | None) -> str:
    if row is None:
        return "built on request"
    if row.blob is not None:
        return format_size(row.blob.size)
    return "failed" if row.state == ArtifactState.FAILED else "in progress"
