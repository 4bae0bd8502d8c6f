"""Make one artifact: fetch the packages of its lock, write the file, put it into the blob store."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from django.conf import settings

from environments.domain.artifacts import STANDARD_PREFIX, ArtifactKind, ArtifactState
from environments.domain.lifecycle import SERVED
from environments.domain.linking import check_paths
from environments.domain.lock import PlatformLock
from environments.domain.progress import Progress
from environments.domain.records import CondaPackage, Package, PypiPackage
from environments.engine.artifacts import archives, bundle, file_systems, installer
from environments.engine.artifacts.staging import Material
from environments.engine.packages.cache import CachedPackage
from environments.engine.packages.downloads import fetch_originals
from environments.engine.prefix import linking
from environments.engine.pypi.install import CachedWheel
from environments.engine.system import disk
from environments.jobs.leased_run import LeasedRun, claim
from environments.models import Artifact, Build, LockConflicts
from environments.models.leased_work import Lease
from environments.services import blobs, folders, image_builder
from environments.services.engine_context import download_patience, get_engine, source_of
from environments.services.package_archive import package_archive
from environments.services.policies import refuse_paths_everywhere
from environments.services.solving import credentials_for

#: Makers by kind: each writes the file below the material's folder, and returns its path.
Maker = Callable[[Material], Path]
MAKERS: Mapping[ArtifactKind, Maker] = {
    ArtifactKind.TAR_GZ: archives.make_tar_gz,
    ArtifactKind.TAR_ZST: archives.make_tar_zst,
    ArtifactKind.SQUASHFS: file_systems.make_squashfs,
    ArtifactKind.SIF: file_systems.make_sif,
    ArtifactKind.INSTALLER: installer.make_installer,
    ArtifactKind.BUNDLE: bundle.make_bundle,
}


def make(artifact_id: int) -> None:
    """Run the next attempt of an artifact, if it is due and was not collected meanwhile."""
    artifact = Artifact.objects.select_related("lock").filter(pk=artifact_id).first()
    lease = claim(artifact) if artifact is not None else None
    if artifact is None or lease is None:
        return
    with (
        structlog.contextvars.bound_contextvars(artifact=artifact.pk, attempt=artifact.attempt),
        ArtifactRun(artifact, lease) as run,
    ):
        run.carry_out(run.make)


class ArtifactRun(LeasedRun[Artifact]):
    """One attempt: its folder, the packages it fetches, its progress."""

    def __init__(self, artifact: Artifact, lease: Lease) -> None:
        super().__init__(artifact, lease, time_limit=settings.ARTIFACT_TIME_LIMIT)
        self.artifact = artifact
        self.folder = blobs.blobs_folder() / f"{artifact.pk}-{lease.token}-{secrets.token_hex(4)}"
        self._progress: Progress | None = None

    def make(self) -> None:
        """Write the file, store it, and record it."""
        started = time.monotonic()
        disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
        kind = ArtifactKind(self.artifact.kind)
        if kind is ArtifactKind.IMAGE:
            blob = image_builder.build_image(self)  # of many blobs, most of which are there
        else:
            blob = blobs.add(MAKERS[kind](self.material()))
        seconds = time.monotonic() - started
        self.finish(ArtifactState.READY, blob=blob, seconds=seconds, failure=None)

    def material(self) -> Material:
        """Fetch what the lock has for the artifact's platform; every byte is verified."""
        artifact = self.artifact
        lock = artifact.lock.value()
        part = lock.on(artifact.platform)
        assert part is not None, "asked for platforms of the lock only"
        self.folder.mkdir(parents=True)
        packages, wheels = self.fetch(part.conda, part.pypi)
        self._judge_paths(part, packages)
        return Material(
            lock=lock,
            platform=artifact.platform,
            packages=packages,
            wheels=wheels,
            variables=artifact.options.get("variables", {}),
            cache=get_engine().packages,
            work=self.folder,
            progress=self.progress,
            cancelled=self.cancelled,
            originals=self.originals,
        )

    def _judge_paths(self, part: PlatformLock, packages: Sequence[CachedPackage]) -> None:
        """The rules on path conflicts, for a platform that no build was judged for.

        Raises:
            PolicyError: every namespace with the lock refuses them.
        """
        lock = self.artifact.lock
        if Build.objects.filter(lock=lock, platform=part.platform, state__in=SERVED).exists():
            return
        checked = check_paths(
            [package.contents for package in packages],
            python=linking.python_of(part.conda, part.platform),
            platform=part.platform,
            prefix=STANDARD_PREFIX,
        )
        LockConflicts.note(lock, part.platform, checked.conflicts)  # its maker reports faults
        refuse_paths_everywhere(lock, part.platform)

    def fetch(
        self, conda: Sequence[CondaPackage], pypi: Sequence[PypiPackage]
    ) -> tuple[list[CachedPackage], list[CachedWheel]]:
        """Fetch packages of the lock; every byte is verified."""
        packages = get_engine().packages.ensure(conda, **self._fetching)
        return packages, get_engine().wheels.ensure(pypi, **self._fetching)

    def originals(self, packages: Sequence[Package], folder: Path) -> dict[str, Path]:
        """Fetch the original packages: from the package archive, otherwise from the channels."""
        return fetch_originals(packages, folder, archive=package_archive(), **self._fetching)

    @cached_property
    def _fetching(self) -> dict[str, Any]:
        return {
            "credentials": source_of(self._credentials(tuple(self.artifact.lock.channels))),
            "parallel": settings.DOWNLOADS_PARALLEL,
            "patience": download_patience(),
            "progress": self.progress,
            "cancelled": self.cancelled,
        }

    def _credentials(self, channels: tuple[str, ...]) -> tuple[Any, ...]:
        """Those of a namespace that has the lock: what it may fetch is in the file already."""
        urls = (*channels, *settings.PYPI_INDEX_URLS)
        builds = Build.objects.filter(lock=self.artifact.lock_id, deleted_at=None)
        for build in builds.select_related("environment__namespace").order_by("-pk")[:20]:
            if found := credentials_for(build.environment.namespace, urls):
                return found
        return ()

    def progress(self, progress: Progress) -> None:
        self._progress = progress

    def flush(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            self.artifact.leased_under(self.lease).update(progress=asdict(progress))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        linking.move_to_trash(self.folder, folders.data() / folders.TRASH)
