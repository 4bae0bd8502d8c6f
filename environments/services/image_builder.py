"""Build the container image of a lock: make missing layers, then assemble config and manifest.

A layer is made once and shared by all images with the same packages; with all layers present an
image is a few kilobytes of JSON. Making layers needs a worker; assembling documents does not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from django.conf import settings
from django.db import transaction

from condastore.errors import ConflictError, DamagedError, InvalidInputError, StoreError
from environments.domain.artifacts import STANDARD_PREFIX, ArtifactState
from environments.domain.images import (
    ARCHITECTURES,
    CONFIG,
    EMPTY,
    EMPTY_CONTENT,
    LAYER,
    MANIFEST,
    SBOM,
    Compression,
    Descriptor,
    ImageLayer,
    PackageLayer,
    config_json,
    manifest_json,
    own_files,
    plan_layers,
    referrer_json,
)
from environments.domain.lifecycle import SERVED
from environments.domain.lock import Lock, PlatformLock
from environments.domain.progress import Progress
from environments.domain.records import CondaPackage, PypiPackage
from environments.domain.sbom import cyclonedx
from environments.domain.timestamps import newest
from environments.engine.artifacts.tar import Entry
from environments.engine.artifacts.tree import find_conflicts, package_parts
from environments.engine.artifacts.variables import variables_of
from environments.engine.images.archives import FIXED_TIME, recompress, write_layer
from environments.engine.images.base import make_base
from environments.engine.images.layers import make_layer
from environments.engine.images.loading import LoadedImage
from environments.engine.images.remote import Login, Reference, pull
from environments.engine.network.addresses import Guard
from environments.engine.packages.cache import CachedPackage
from environments.engine.prefix import linking
from environments.engine.pypi.install import CachedWheel
from environments.models import (
    Artifact,
    BaseImage,
    BaseLayer,
    Blob,
    Build,
    ChannelCredential,
    ImageBlob,
    Layer,
    LockConflicts,
    Namespace,
)
from environments.services import blobs, platforms
from environments.services.policies import refuse_paths_everywhere

#: Number of layers compressed at the same time.
PARALLEL_LAYERS = 2


class Attempt(Protocol):
    """What this module needs of one attempt at an artifact; implemented by `jobs.artifacts`."""

    artifact: Artifact
    folder: Path

    def fetch(
        self, conda: Sequence[CondaPackage], pypi: Sequence[PypiPackage]
    ) -> tuple[list[CachedPackage], list[CachedWheel]]: ...
    def progress(self, progress: Progress) -> None: ...
    def cancelled(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """Inputs of an image, read once: its packages' layers and its base."""

    artifact: Artifact
    lock: Lock
    part: PlatformLock
    layers: tuple[PackageLayer, ...]
    base: BaseImage | None

    @classmethod
    def of(cls, artifact: Artifact) -> ImagePlan:
        lock = artifact.lock.value()
        part = lock.on(artifact.platform)
        assert part is not None, "artifacts exist only for platforms of the lock"
        python = linking.python_of(part.conda, part.platform)
        digest = artifact.options.get("base", "")
        if digest:
            base = BaseImage.objects.of_digest(digest, artifact.platform)
        else:
            base = BaseImage.objects.current(_base_name(artifact), artifact.platform)
        return cls(
            artifact=artifact,
            lock=lock,
            part=part,
            layers=plan_layers(part, python, conflicting=_conflicting(artifact)),
            base=base,
        )

    @property
    def compression(self) -> Compression:
        return "zstd" if self.artifact.options.get("compression") == "zstd" else "gzip"

    @property
    def variables(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.artifact.options.get("variables", {})
        return found

    def stored_layers(self) -> dict[str, Layer]:
        """Return the stored layers in this compression by key, and mark their blobs as used."""
        column = self.compression
        rows = Layer.objects.filter(key__in=[layer.key for layer in self.layers])
        blobs.mark_used(Blob.objects.filter(pk__in=rows.values(column)))
        whole = rows.filter(**{f"{column}__isnull": False, f"{column}__damaged_at": None})
        return {row.key: row for row in whole.select_related(column)}


def build_image(attempt: Attempt) -> Blob:
    """Build the image of `attempt.artifact`, store its parts and return the manifest's blob.

    Raises:
        InvalidInputError: the platform has no container images, or there is no base image for it.
        LinkError: a package cannot be linked.
    """
    artifact = attempt.artifact
    if artifact.platform not in ARCHITECTURES:
        raise InvalidInputError(
            f"Container images are not available for {artifact.platform}.",
            hint=f"Choose one of: {', '.join(ARCHITECTURES)}.",
        )
    attempt.folder.mkdir(parents=True, exist_ok=True)
    plan = ImagePlan.of(artifact)
    if plan.base is None and artifact.options.get("base"):
        raise InvalidInputError(
            "The base image of this image was replaced in the meantime.", hint="Pull it again."
        )
    if plan.base is None:
        base = find_base(_base_name(artifact), artifact.platform, work=attempt.folder)
        plan = replace(plan, base=base)
    if not _is_linkable(artifact):
        _check_linkable(attempt, plan)
        plan = replace(ImagePlan.of(artifact), base=plan.base)
    _make_missing(attempt, plan)
    return assemble(plan, work=attempt.folder)


def plan_if_complete(artifact: Artifact) -> ImagePlan | None:
    """Return the plan if all layers and the base are stored and only documents are missing."""
    if artifact.platform not in ARCHITECTURES or not _is_linkable(artifact):
        return None
    plan = ImagePlan.of(artifact)
    complete = plan.base is not None and len(plan.stored_layers()) == len(
        {layer.key for layer in plan.layers}
    )
    return plan if complete else None


def _is_linkable(artifact: Artifact) -> bool:
    """Return whether the packages are known to link together, by a build or another artifact."""
    of_these = {"lock": artifact.lock_id, "platform": artifact.platform}
    return (
        Build.objects.filter(**of_these, state__in=SERVED).exists()
        or Artifact.objects.filter(**of_these, state=ArtifactState.READY).exists()
    )


def _conflicting(artifact: Artifact) -> set[str]:
    """Return labels of packages involved in path conflicts."""
    conflicts = LockConflicts.of(artifact.lock_id, artifact.platform)
    return {label for each in conflicts for label in (each.winner, *each.replaced)}


def _check_linkable(attempt: Attempt, plan: ImagePlan) -> None:
    """Link the packages of a platform without a build, as layers are made independently.

    Records the path conflicts that were found.

    Raises:
        LinkError: packages clash; names all of them.
    """
    packages, wheels = attempt.fetch(plan.part.conda, plan.part.pypi)
    work = attempt.folder / "together"
    work.mkdir()
    platform = plan.part.platform
    python = linking.python_of(plan.part.conda, platform)
    conflicts = find_conflicts(packages, python=python, platform=platform, prefix=STANDARD_PREFIX)
    package_parts(
        packages,
        wheels,
        python=python,
        platform=platform,
        prefix=STANDARD_PREFIX,
        work=work,
        cancelled=attempt.cancelled,
    )
    LockConflicts.note(plan.artifact.lock, platform, conflicts)
    refuse_paths_everywhere(plan.artifact.lock, platform)


def assemble_if_complete(artifact: Artifact) -> None:
    """Assemble an image within the request if all its layers are stored; no worker is needed."""
    plan = plan_if_complete(artifact)
    lease = artifact.claim("documents", life=settings.LEASE) if plan else None
    if plan is None or lease is None:
        return
    started = time.monotonic()
    work = blobs.blobs_folder() / f"documents-{artifact.pk}-{lease.token}"
    try:
        blob = assemble(plan, work=work)
    except StoreError as error:
        artifact.fail(error, lease=lease)
        return
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.monotonic() - started
    artifact.finish(lease, state=ArtifactState.READY, blob=blob, seconds=seconds, failure=None)


def assemble(plan: ImagePlan, *, work: Path) -> Blob:
    """Store config, SBOM and manifest of an image whose layers are all stored.

    Returns:
        The blob of the manifest.
    """
    assert plan.base is not None, "the caller has found the base"
    stored_layers, compression = plan.stored_layers(), plan.compression
    parts: list[tuple[Blob, ImageLayer]] = [
        (
            row.blob,
            ImageLayer(
                descriptor=_descriptor(row.media_type, row.blob),
                diff_id=row.diff_id,
                label="base",
            ),
        )
        for row in plan.base.layers.select_related("blob")
    ]
    variables: dict[str, str] = {}
    for layer in plan.layers:
        row = stored_layers.get(layer.key)
        blob = row.blob_in(compression) if row else None
        if row is None or blob is None:
            raise DamagedError(f"The layer of {layer.label} is missing from the blob store.")
        descriptor = _descriptor(LAYER[compression], blob)
        found = ImageLayer(descriptor=descriptor, diff_id=row.diff_id, label=layer.label)
        parts.append((blob, found))
        variables |= row.variables
    parts.append(_last_layer(plan, work))
    digest = plan.lock.digest
    specification = str(plan.artifact.options.get("specification", ""))
    sbom = blobs.add_bytes(cyclonedx(plan.lock, plan.part.platform).encode(), folder=work)
    labels = {
        "org.opencontainers.image.title": "conda environment",
        "org.opencontainers.image.base.digest": f"sha256:{plan.base.digest}",
        "io.condastore.lock": f"sha256:{digest}",
        "io.condastore.platform": plan.part.platform,
        "io.condastore.sbom": f"sha256:{sbom.sha256}",
        **({"io.condastore.specification": f"sha256:{specification}"} if specification else {}),
    }
    moment = newest(plan.part)
    layers = [layer for _, layer in parts]
    config = blobs.add_bytes(
        config_json(
            platform=plan.part.platform,
            base=plan.base.config,
            layers=layers,
            variables=variables | dict(plan.variables),
            labels=labels,
            moment=moment,
        ),
        folder=work,
    )
    annotations = {
        "org.opencontainers.image.created": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        "io.condastore.lock": f"sha256:{digest}",
        "io.condastore.sbom": f"sha256:{sbom.sha256}",
        **({"io.condastore.specification": f"sha256:{specification}"} if specification else {}),
    }
    document = manifest_json(_descriptor(CONFIG, config), layers, annotations)
    manifest = blobs.add_bytes(document, folder=work)
    refers = {manifest: (MANIFEST, ""), config: (CONFIG, "")}
    refers |= {blob: (layer.descriptor.media_type, "") for blob, layer in parts}
    refers |= _referrers(sbom, manifest, annotations, work)
    with transaction.atomic():
        ImageBlob.objects.filter(artifact=plan.artifact).delete()
        ImageBlob.objects.bulk_create(
            ImageBlob(artifact=plan.artifact, blob=blob, media_type=media_type, artifact_type=kind)
            for blob, (media_type, kind) in refers.items()
        )
    return manifest


def _referrers(
    sbom: Blob, manifest: Blob, annotations: Mapping[str, str], work: Path
) -> dict[Blob, tuple[str, str]]:
    """Store the documents that refer to the image: its SBOM, found by the image's digest."""
    empty = blobs.add_bytes(EMPTY_CONTENT, folder=work)
    document = referrer_json(
        _descriptor(MANIFEST, manifest),
        _descriptor(EMPTY, empty),
        _descriptor(SBOM, sbom),
        annotations,
    )
    referrer = blobs.add_bytes(document, folder=work)
    return {empty: (EMPTY, EMPTY), sbom: (SBOM, SBOM), referrer: (MANIFEST, SBOM)}


def _descriptor(media_type: str, blob: Blob) -> Descriptor:
    return Descriptor(media_type=media_type, sha256=blob.sha256, size=blob.size)


def _last_layer(plan: ImagePlan, work: Path) -> tuple[Blob, ImageLayer]:
    """Store the layer that only this lock has: conda-meta and the activation scripts."""
    work.mkdir(parents=True, exist_ok=True)
    files = own_files(
        plan.part,
        plan.variables,
        moment=newest(plan.part),
        note=f"condastore lock {plan.lock.digest}",
    )
    entries = [
        Entry.file(path, content, FIXED_TIME, executable=program)
        for path, (content, program) in files.items()
    ]
    compression = plan.compression
    path = work / f"last-{plan.artifact.pk}"
    path.unlink(missing_ok=True)
    layer_file = write_layer(entries, path, compression=compression)
    blob = blobs.add(path, layer_file.sha256)
    descriptor = _descriptor(LAYER[compression], blob)
    return blob, ImageLayer(descriptor=descriptor, diff_id=layer_file.diff_id, label="activation")


# --- layers of packages ---------------------------------------------------------------------------


def _make_missing(attempt: Attempt, plan: ImagePlan) -> None:
    stored_layers = plan.stored_layers()
    missing = {layer.key: layer for layer in plan.layers if layer.key not in stored_layers}
    done = len(plan.layers) - len(missing)

    def report(label: str) -> None:
        nonlocal done
        done += 1
        attempt.progress(
            Progress(stage="packing", done=done, total=len(plan.layers), current=label[:100])
        )

    for key, row in _in_another_compression(missing, plan.compression).items():
        _recompress(attempt, row, plan.compression)
        report(missing.pop(key).label)
    if not missing:
        return
    packages, wheels = attempt.fetch(
        [package for layer in missing.values() for package in layer.conda],
        [wheel for layer in missing.values() for wheel in layer.pypi],
    )
    by_url = {one.package.url: one for one in packages}
    wheel_by_url = {one.package.url: one for one in wheels}

    def pack(layer: PackageLayer) -> Any:
        work = attempt.folder / layer.key
        work.mkdir()
        return make_layer(
            layer,
            work / "layer",
            packages=[by_url[one.url] for one in layer.conda],
            wheels=[wheel_by_url[one.url] for one in layer.pypi],
            platform=plan.part.platform,
            compression=plan.compression,
            work=work,
            cancelled=attempt.cancelled,
        )

    # The largest first, so that all end together; the rows are written by this thread alone.
    ordered = sorted(missing.values(), key=lambda one: -sum(each.size for each in one.conda))
    with ThreadPoolExecutor(PARALLEL_LAYERS) as pool:
        for layer, layer_file in zip(ordered, pool.map(pack, ordered), strict=True):
            values = {
                "label": layer.label,
                "diff_id": layer_file.diff_id,
                "size": layer_file.unpacked_size,
                "variables": variables_of([by_url[one.url] for one in layer.conda]),
                plan.compression: blobs.add(layer_file.path, layer_file.sha256),
            }
            Layer.objects.update_or_create(key=layer.key, defaults=values)
            report(layer.label)


def _in_another_compression(
    missing: Mapping[str, PackageLayer], compression: Compression
) -> dict[str, Layer]:
    other: Compression = "gzip" if compression == "zstd" else "zstd"
    rows = Layer.objects.filter(key__in=list(missing), **{f"{other}__damaged_at": None})
    return {row.key: row for row in rows.select_related("gzip", "zstd") if row.blob_in(other)}


def _recompress(attempt: Attempt, row: Layer, compression: Compression) -> None:
    other: Compression = "gzip" if compression == "zstd" else "zstd"
    source = row.blob_in(other)
    assert source is not None, "selected because it has this compression"
    work = attempt.folder / f"re-{row.key}"
    work.mkdir()
    blobs.fetch(source, work / "source")
    layer_file = recompress(
        work / "source", other, work / "layer", compression, cancelled=attempt.cancelled
    )
    if layer_file.diff_id != row.diff_id:
        raise blobs.record_damage(source, "its uncompressed content differs")
    (work / "source").unlink()
    Layer.objects.filter(pk=row.pk).update(
        **{compression: blobs.add(layer_file.path, layer_file.sha256)}
    )


# --- bases ----------------------------------------------------------------------------------------


def _base_name(artifact: Artifact) -> str:
    """Return the name of the base image requested for the artifact, or the default."""
    return str(artifact.options.get("base_name") or settings.BASE_IMAGE or BaseImage.OWN)


def find_base(name: str, platform: str, *, work: Path) -> BaseImage:
    """Return the base image of this name; build or pull it if it is not stored yet.

    Raises:
        InvalidInputError: it is not stored, and cannot be built or pulled here.
        UnavailableError: its registry does not respond.
    """
    if found := BaseImage.objects.current(name, platform):
        return found
    if name == BaseImage.OWN:
        if platform != platforms.own_platform():
            raise InvalidInputError(
                f"There is no base image for {platform}: this machine can build one only for "
                f"{platforms.own_platform()}.",
                hint="Load one with `manage.py base_image load`, or name one of a registry "
                "(CONDASTORE_BASE_IMAGE).",
            )
        return store_base(name, make_base(work / "base", platform=platform))
    if "/" not in name:
        raise InvalidInputError(
            f"There is no base image {name!r} for {platform}.",
            hint=f"Load it with `manage.py base_image load FILE --name {name}`.",
        )
    return store_base(name, pull_base(name, platform, work=work))


def pull_base(
    name: str,
    platform: str,
    *,
    work: Path,
    login: Login | None = None,
    within: Guard | None = None,
) -> LoadedImage:
    """Pull a base image; without `login` the stored credentials of the registry are used."""
    reference = Reference.parse(name)
    return pull(
        reference,
        platform=platform,
        folder=work / "base",
        login=login or _login_of_base(name) or registry_login(None, reference),
        within=within,
        limits=settings.UNPACKING,
    )


def _login_of_base(name: str) -> Login | None:
    """Return the login of the settings, only for the registry of the configured base image."""
    if not settings.BASE_IMAGE_LOGIN or "/" not in settings.BASE_IMAGE:
        return None
    # Compare scheme and port too: over plain HTTP the login would be readable on the network.
    same = Reference.parse(settings.BASE_IMAGE).address == Reference.parse(name).address
    return Login.parse(settings.BASE_IMAGE_LOGIN) if same else None


def registry_login(namespace: Namespace | None, reference: Reference) -> Login | None:
    """Return the stored login of a namespace, or of the installation (None), for a registry."""
    row = ChannelCredential.objects.of_registry(namespace, f"{reference.host}/{reference.name}")
    if row is None:
        return None
    if not row.secret:
        raise ConflictError(
            f"Cannot decrypt the login for {row.url_prefix}: the installation key has changed.",
            hint="Enter the login again.",
        )
    return Login.parse(row.secret)


def store_base(name: str, image: LoadedImage) -> BaseImage:
    """Store an image's layers, and use it as the base image of this name from now on."""
    stored_layers = [(layer, blobs.add(layer.path)) for layer in image.layers]
    with transaction.atomic():
        found = BaseImage.objects.current(name, image.platform)
        if found is not None and found.digest == image.digest:
            return found
        base = BaseImage.objects.create(
            name=name, platform=image.platform, digest=image.digest, config=image.config
        )
        BaseLayer.objects.bulk_create(
            BaseLayer(
                base=base,
                position=position,
                diff_id=layer.diff_id,
                media_type=layer.media_type,
                blob=blob,
            )
            for position, (layer, blob) in enumerate(stored_layers)
        )
    return base
