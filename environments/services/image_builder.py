"""Make the container image of a lock: its packages' layers, where they are missing, and documents.

A layer is made once for all images that have its packages; with all of them there, an image is a
few kilobytes of JSON. Runs in a worker; what needs no layer to be made, anywhere.
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
from django.utils import timezone

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

#: Layers that are compressed at once.
PARALLEL = 2


class Attempt(Protocol):
    """What one attempt at an artifact gives: `environments.jobs.artifacts.Making`."""

    artifact: Artifact
    folder: Path

    def fetch(
        self, conda: Sequence[CondaPackage], pypi: Sequence[PypiPackage]
    ) -> tuple[list[CachedPackage], list[CachedWheel]]: ...
    def progress(self, progress: Progress) -> None: ...
    def cancelled(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An image that is to be: what it is made from, read once."""

    artifact: Artifact
    lock: Lock
    part: PlatformLock
    layers: tuple[PackageLayer, ...]
    base: BaseImage | None

    @classmethod
    def of(cls, artifact: Artifact) -> Wanted:
        lock = artifact.lock.value()
        part = lock.on(artifact.platform)
        assert part is not None, "asked for platforms of the lock only"
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

    def kept(self) -> dict[str, Layer]:
        """By key: the layers that are there, in this compression."""
        column = self.compression
        rows = Layer.objects.filter(key__in=[layer.key for layer in self.layers])
        blobs.want(Blob.objects.filter(pk__in=rows.values(column)))
        whole = rows.filter(**{f"{column}__isnull": False, f"{column}__damaged_at": None})
        return {row.key: row for row in whole.select_related(column)}


def make(attempt: Attempt) -> Blob:
    """The manifest of the image that `attempt.artifact` stands for, all of its parts kept.

    Raises:
        InvalidInputError: images cannot be of this platform, or there is no base for it.
        LinkError: a package cannot be linked.
    """
    artifact = attempt.artifact
    if artifact.platform not in ARCHITECTURES:
        raise InvalidInputError(
            f"There are no container images of {artifact.platform}.",
            hint=f"There are some of: {', '.join(ARCHITECTURES)}.",
        )
    attempt.folder.mkdir(parents=True, exist_ok=True)
    wanted = Wanted.of(artifact)
    if wanted.base is None and artifact.options.get("base"):
        raise InvalidInputError(
            "The base that this image was to lie on was replaced meanwhile.", hint="Pull it again."
        )
    if wanted.base is None:
        base = find_base(_base_name(artifact), artifact.platform, work=attempt.folder)
        wanted = replace(wanted, base=base)
    if not _known_to_stand(artifact):
        _refuse_clashes(attempt, wanted)
        wanted = replace(Wanted.of(artifact), base=wanted.base)
    _make_missing(attempt, wanted)
    return compose(wanted, work=attempt.folder)


def at_once(artifact: Artifact) -> Wanted | None:
    """What `compose` takes, where nothing is missing but documents."""
    if artifact.platform not in ARCHITECTURES or not _known_to_stand(artifact):
        return None
    wanted = Wanted.of(artifact)
    complete = wanted.base is not None and len(wanted.kept()) == len(
        {layer.key for layer in wanted.layers}
    )
    return wanted if complete else None


def _known_to_stand(artifact: Artifact) -> bool:
    """Whether the packages were found not to clash: linked by a build, or in a file together."""
    of_these = {"lock": artifact.lock_id, "platform": artifact.platform}
    return (
        Build.objects.filter(**of_these, state__in=SERVED).exists()
        or Artifact.objects.filter(**of_these, state=ArtifactState.READY).exists()
    )


def _conflicting(artifact: Artifact) -> set[str]:
    """Labels of the packages of which one replaces a file of another."""
    conflicts = LockConflicts.of(artifact.lock_id, artifact.platform)
    return {label for each in conflicts for label in (each.winner, *each.replaced)}


def _refuse_clashes(attempt: Attempt, wanted: Wanted) -> None:
    """For a platform that no build here has linked: a layer knows nothing of the others.

    Notes the files that packages replace of others.

    Raises:
        LinkError: packages that clash; all of them are named.
    """
    packages, wheels = attempt.fetch(wanted.part.conda, wanted.part.pypi)
    work = attempt.folder / "together"
    work.mkdir()
    platform = wanted.part.platform
    python = linking.python_of(wanted.part.conda, platform)
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
    LockConflicts.note(wanted.artifact.lock, platform, conflicts)
    refuse_paths_everywhere(wanted.artifact.lock, platform)


def finish_at_once(artifact: Artifact) -> None:
    """Make an image of layers that are all there, where one asks: no worker is waited for."""
    wanted = at_once(artifact)
    lease = artifact.claim("documents", life=settings.LEASE) if wanted else None
    if wanted is None or lease is None:
        return
    started = time.monotonic()
    work = blobs.blobs_folder() / f"documents-{artifact.pk}-{lease.token}"
    try:
        done: dict[str, Any] = {"blob": compose(wanted, work=work), "failure": None}
    except StoreError as error:
        attempts, backoff = settings.BUILD_ATTEMPTS, settings.BACKOFF
        artifact.give_up(error, lease=lease, attempts=attempts, backoff=backoff)
        return
    finally:
        shutil.rmtree(work, ignore_errors=True)
    done |= {"finished_at": timezone.now(), "seconds": time.monotonic() - started}
    artifact.move(ArtifactState.READY, lease=lease, **done)


def compose(wanted: Wanted, *, work: Path) -> Blob:
    """Keep the documents of an image whose layers are all there; its manifest's blob."""
    assert wanted.base is not None, "looked for before"
    kept, compression = wanted.kept(), wanted.compression
    parts: list[tuple[Blob, ImageLayer]] = [
        (
            row.blob,
            ImageLayer(
                descriptor=_descriptor(row.media_type, row.blob),
                diff_id=row.diff_id,
                label="base",
            ),
        )
        for row in wanted.base.layers.select_related("blob")
    ]
    told: dict[str, str] = {}
    for layer in wanted.layers:
        row = kept.get(layer.key)
        blob = row.blob_in(compression) if row else None
        if row is None or blob is None:
            raise DamagedError(f"The layer of {layer.label} is gone.")
        descriptor = _descriptor(LAYER[compression], blob)
        found = ImageLayer(descriptor=descriptor, diff_id=row.diff_id, label=layer.label)
        parts.append((blob, found))
        told |= row.variables
    parts.append(_last_layer(wanted, work))
    digest = wanted.lock.digest
    specification = str(wanted.artifact.options.get("specification", ""))
    sbom = blobs.keep_bytes(cyclonedx(wanted.lock, wanted.part.platform).encode(), folder=work)
    labels = {
        "org.opencontainers.image.title": "conda environment",
        "org.opencontainers.image.base.digest": f"sha256:{wanted.base.digest}",
        "io.condastore.lock": f"sha256:{digest}",
        "io.condastore.platform": wanted.part.platform,
        "io.condastore.sbom": f"sha256:{sbom.sha256}",
        **({"io.condastore.specification": f"sha256:{specification}"} if specification else {}),
    }
    moment = newest(wanted.part)
    layers = [layer for _, layer in parts]
    config = blobs.keep_bytes(
        config_json(
            platform=wanted.part.platform,
            base=wanted.base.config,
            layers=layers,
            variables=told | dict(wanted.variables),
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
    manifest = blobs.keep_bytes(document, folder=work)
    refers = {manifest: (MANIFEST, ""), config: (CONFIG, "")}
    refers |= {blob: (layer.descriptor.media_type, "") for blob, layer in parts}
    refers |= _told(sbom, manifest, annotations, work)
    with transaction.atomic():
        ImageBlob.objects.filter(artifact=wanted.artifact).delete()
        ImageBlob.objects.bulk_create(
            ImageBlob(
                artifact=wanted.artifact, blob=blob, media_type=media_type, artifact_type=kind
            )
            for blob, (media_type, kind) in refers.items()
        )
    return manifest


def _told(
    sbom: Blob, manifest: Blob, annotations: Mapping[str, str], work: Path
) -> dict[Blob, tuple[str, str]]:
    """What is said of the image: its SBOM, found by the image's digest."""
    empty = blobs.keep_bytes(EMPTY_CONTENT, folder=work)
    document = referrer_json(
        _descriptor(MANIFEST, manifest),
        _descriptor(EMPTY, empty),
        _descriptor(SBOM, sbom),
        annotations,
    )
    told = blobs.keep_bytes(document, folder=work)
    return {empty: (EMPTY, EMPTY), sbom: (SBOM, SBOM), told: (MANIFEST, SBOM)}


def _descriptor(media_type: str, blob: Blob) -> Descriptor:
    return Descriptor(media_type=media_type, sha256=blob.sha256, size=blob.size)


def _last_layer(wanted: Wanted, work: Path) -> tuple[Blob, ImageLayer]:
    """What is of this lock alone: conda's notes, and what activates the environment."""
    work.mkdir(parents=True, exist_ok=True)
    files = own_files(
        wanted.part,
        wanted.variables,
        moment=newest(wanted.part),
        note=f"condastore lock {wanted.lock.digest}",
    )
    entries = [
        Entry.file(path, content, FIXED_TIME, executable=program)
        for path, (content, program) in files.items()
    ]
    compression = wanted.compression
    path = work / f"last-{wanted.artifact.pk}"
    path.unlink(missing_ok=True)
    made = write_layer(entries, path, compression=compression)
    blob = blobs.keep(path, made.sha256)
    descriptor = _descriptor(LAYER[compression], blob)
    return blob, ImageLayer(descriptor=descriptor, diff_id=made.diff_id, label="activation")


# --- layers of packages ---------------------------------------------------------------------------


def _make_missing(attempt: Attempt, wanted: Wanted) -> None:
    kept = wanted.kept()
    missing = {layer.key: layer for layer in wanted.layers if layer.key not in kept}
    done = len(wanted.layers) - len(missing)

    def told(label: str) -> None:
        nonlocal done
        done += 1
        attempt.progress(
            Progress(stage="packing", done=done, total=len(wanted.layers), current=label[:100])
        )

    for key, row in _in_another_compression(missing, wanted.compression).items():
        _recompress(attempt, row, wanted.compression)
        told(missing.pop(key).label)
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
            platform=wanted.part.platform,
            compression=wanted.compression,
            work=work,
            cancelled=attempt.cancelled,
        )

    # The largest first, so that all end together; the rows are written by this thread alone.
    ordered = sorted(missing.values(), key=lambda one: -sum(each.size for each in one.conda))
    with ThreadPoolExecutor(PARALLEL) as pool:
        for layer, made in zip(ordered, pool.map(pack, ordered), strict=True):
            values = {
                "label": layer.label,
                "diff_id": made.diff_id,
                "size": made.unpacked_size,
                "variables": variables_of([by_url[one.url] for one in layer.conda]),
                wanted.compression: blobs.keep(made.path, made.sha256),
            }
            Layer.objects.update_or_create(key=layer.key, defaults=values)
            told(layer.label)


def _in_another_compression(
    missing: Mapping[str, PackageLayer], compression: Compression
) -> dict[str, Layer]:
    other: Compression = "gzip" if compression == "zstd" else "zstd"
    rows = Layer.objects.filter(key__in=list(missing), **{f"{other}__damaged_at": None})
    return {row.key: row for row in rows.select_related("gzip", "zstd") if row.blob_in(other)}


def _recompress(attempt: Attempt, row: Layer, compression: Compression) -> None:
    other: Compression = "gzip" if compression == "zstd" else "zstd"
    source = row.blob_in(other)
    assert source is not None, "chosen for it"
    work = attempt.folder / f"re-{row.key}"
    work.mkdir()
    blobs.fetch(source, work / "source")
    made = recompress(
        work / "source", other, work / "layer", compression, cancelled=attempt.cancelled
    )
    if made.diff_id != row.diff_id:
        raise blobs.damaged(source, "its archive is another")
    (work / "source").unlink()
    Layer.objects.filter(pk=row.pk).update(**{compression: blobs.keep(made.path, made.sha256)})


# --- bases ----------------------------------------------------------------------------------------


def _base_name(artifact: Artifact) -> str:
    """Of a base that was not here yet when the image was asked for."""
    return str(artifact.options.get("base_name") or settings.BASE_IMAGE or BaseImage.OWN)


def find_base(name: str, platform: str, *, work: Path) -> BaseImage:
    """The base of this name; made or pulled where it is not here yet.

    Raises:
        InvalidInputError: there is none, and it cannot be had from here.
        UnavailableError: its registry does not answer.
    """
    if found := BaseImage.objects.current(name, platform):
        return found
    if name == BaseImage.OWN:
        if platform != platforms.own_platform():
            raise InvalidInputError(
                f"There is no base image for {platform}: this machine makes its own for "
                f"{platforms.own_platform()} alone.",
                hint="Load one (manage.py base_image load), or name one of a registry "
                "(CONDASTORE_BASE_IMAGE).",
            )
        return keep_base(name, make_base(work / "base", platform=platform))
    if "/" not in name:
        raise InvalidInputError(
            f"There is no base image {name!r} for {platform}.",
            hint="Load it: manage.py base_image load FILE --name " + name,
        )
    return keep_base(name, pull_base(name, platform, work=work))


def pull_base(
    name: str,
    platform: str,
    *,
    work: Path,
    login: Login | None = None,
    within: Guard | None = None,
) -> LoadedImage:
    """From its registry; without a `login`, with that which is kept for the registry."""
    reference = Reference.parse(name)
    return pull(
        reference,
        platform=platform,
        folder=work / "base",
        login=login or _login_of_base(name) or login_for(None, reference),
        within=within,
        limits=settings.UNPACKING,
    )


def _login_of_base(name: str) -> Login | None:
    """The setting, for the registry of that base and for no other one."""
    if not settings.BASE_IMAGE_LOGIN or "/" not in settings.BASE_IMAGE:
        return None
    # The address, not the host: without TLS everybody on the way would read it.
    same = Reference.parse(settings.BASE_IMAGE).address == Reference.parse(name).address
    return Login.parse(settings.BASE_IMAGE_LOGIN) if same else None


def login_for(namespace: Namespace | None, reference: Reference) -> Login | None:
    """What a namespace, or the installation itself, shows to a registry."""
    row = ChannelCredential.objects.of_registry(namespace, f"{reference.host}/{reference.name}")
    if row is None:
        return None
    if not row.secret:
        raise ConflictError(
            f"The login for {row.url_prefix} cannot be read: the installation's key has changed.",
            hint="Enter it again.",
        )
    return Login.parse(row.secret)


def keep_base(name: str, image: LoadedImage) -> BaseImage:
    """Keep an image's layers, and use it as the base of this name from now on."""
    kept = [(layer, blobs.keep(layer.path)) for layer in image.layers]
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
            for position, (layer, blob) in enumerate(kept)
        )
    return base
