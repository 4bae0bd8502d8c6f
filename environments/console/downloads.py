"""How can the reader of a page take a build with them? Its files, its image, its channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse

from accounts.access import Actor, may
from accounts.roles import Perm
from condastore.errors import RecalledError
from environments.domain.artifacts import FORMS, ArtifactKind, ArtifactState, variant_of
from environments.domain.lifecycle import SERVED
from environments.models import Artifact, Build
from environments.models.recalls import refuse_recalled
from environments.operations.artifacts import KIND_OF
from environments.operations.downloads import platform_of

#: What each file is for, in the words of those who take it.
FILES = {
    "environment.yml": "pinned, for conda and mamba",
    "conda-lock.yml": "lock file, for conda-lock and micromamba",
    "explicit.txt": "exact addresses, for conda create --file",
    "pixi.lock": "for pixi",
    "sbom.cdx.json": "bill of materials",
    "provenance.intoto.json": "signed: how it was built",
    "env.tar.zst": "archive that unpacks anywhere",
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
    state: str  # "" where it is rendered at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Taking:
    """`image`: what a container tool pulls, `channel`: a URL for conda's clients; "" where none."""

    files: tuple[File, ...]
    image: str = ""
    channel: str = ""


def taking(request: HttpRequest, actor: Actor, build: Build, reference: str) -> Taking | None:
    """None where there is nothing for this reader. `reference`: how URLs name the build."""
    if build.lock is None or not may(actor, Perm.DOWNLOAD, build):
        return None
    try:
        refuse_recalled(build)
    except RecalledError:
        return None
    environment = build.environment
    place = f"{environment.namespace.name}/{environment.name}"
    rendered = tuple(_files(build, f"{place}/{reference}", made=False))
    if build.state not in SERVED:  # what it holds may be read, and is not given away
        return Taking(files=rendered)
    tag = "latest" if reference == "current" else reference
    return Taking(
        files=(*rendered, *_files(build, f"{place}/{reference}", made=True)),
        image=f"{request.get_host()}/{place}:{tag}",
        channel=request.build_absolute_uri(f"/channel/{place}/{reference}"),
    )


def _files(build: Build, place: str, *, made: bool) -> Iterator[File]:
    """Those that a worker makes, or those that are rendered at once."""
    known = _artifacts(build) if made else {}
    for name, purpose in FILES.items():
        if (name in KIND_OF) is not made:
            continue
        url = reverse("download", args=[*place.split("/"), name])
        state = _state(known.get(KIND_OF[name])) if made else ""
        yield File(name=name, url=url, purpose=purpose, state=state)


def _artifacts(build: Build) -> dict[str, Artifact]:
    """By kind: those of the platform that the links mean."""
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
        return "made when it is asked for"
    if row.blob is not None:
        return filesizeformat(row.blob.size)
    return "could not be made" if row.state == ArtifactState.FAILED else "being made"
