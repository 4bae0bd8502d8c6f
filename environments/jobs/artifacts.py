"""Make one artifact: its lock's packages -> a file -> the blob store. Runs in a worker.

The row is the truth, as for builds: a lease with a token says who makes it, and every write
carries the token. What was asked for by many is made once.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db import Error, connection
from django.utils import timezone
from dramatiq.middleware import Shutdown

from condastore.errors import (
    LeaseLostError,
    StoreError,
    TimeLimitError,
    TransitionError,
    UnavailableError,
)
from condastore.outages import DATABASE_ERRORS, failure, is_outage, persist
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
from environments.models import Artifact, Blob, Build, LockConflicts
from environments.models.artifacts import MakingLease
from environments.services import blobs, claiming, folders, image_builder
from environments.services.engine_context import download_patience, get_engine, source_of
from environments.services.package_archive import package_archive
from environments.services.policies import refuse_paths_everywhere
from environments.services.solving import credentials_for

logger = structlog.get_logger(__name__)
#: A lost lease is seen, and progress is written, at least so often.
BEAT = 0.5

#: What makes each kind: writes the file and leaves its path below the material's folder.
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
    """Take an artifact from queued to its outcome, or to its next attempt.

    Nothing is done for one that is not due, that another worker has, that is there, or that was
    collected before its turn came.
    """
    artifact = Artifact.objects.select_related("lock").filter(pk=artifact_id).first()
    lease = claiming.claim(artifact) if artifact is not None else None
    if artifact is None or lease is None:
        return
    with (
        structlog.contextvars.bound_contextvars(artifact=artifact.pk, attempt=artifact.attempt),
        Making(artifact, lease) as making,
    ):
        _attempt(making)


def _attempt(making: Making) -> None:
    artifact, lease = making.artifact, making.lease
    started = time.monotonic()
    try:
        blob = _made(making)
        making.check()
        done = {
            "blob": blob,
            "finished_at": timezone.now(),
            "seconds": time.monotonic() - started,
            "failure": None,
        }
        persist(lambda: artifact.move(ArtifactState.READY, lease=lease, **done))
    except (LeaseLostError, TransitionError):
        if making.timed_out and not making.lost:
            limit = settings.ARTIFACT_TIME_LIMIT.total_seconds()
            making.give_up(TimeLimitError(f"Making the file took longer than {limit:.0f} s."))
        logger.warning("lease lost", artifact=artifact.pk)
    except StoreError as error:
        making.give_up(error)
    except Exception as error:
        if is_outage(error):
            making.give_back()  # an outage is no attempt
        else:
            making.give_up(failure(error, what=f"Artifact {artifact.pk}"))
    except Shutdown:
        making.give_back()
        raise
    except BaseException:  # Dramatiq's own time limit
        making.give_up(UnavailableError("Its worker was stopped."))
        raise


def _made(making: Making) -> Blob:
    """The packages of the lock -> the file, kept."""
    disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
    if making.artifact.kind == ArtifactKind.IMAGE:
        return image_builder.build_image(making)  # of many blobs, most of which are there
    material = making.material()
    path = MAKERS[ArtifactKind(making.artifact.kind)](material)
    return blobs.add(path)


class Making:
    """One attempt: its lease, its folder, what it tells of its progress. A context manager."""

    def __init__(self, artifact: Artifact, lease: MakingLease) -> None:
        self.artifact, self.lease = artifact, lease
        self.lost = False
        self.folder = blobs.blobs_folder() / f"{artifact.pk}-{lease.token}-{secrets.token_hex(4)}"
        self._deadline = time.monotonic() + settings.ARTIFACT_TIME_LIMIT.total_seconds()
        self._renewed = time.monotonic()
        self._progress: Progress | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name=f"artifact-{artifact.pk}", daemon=True
        )

    @property
    def timed_out(self) -> bool:
        return time.monotonic() > self._deadline

    def cancelled(self) -> bool:
        return self.lost or self.timed_out

    def check(self) -> None:
        if self.cancelled():
            raise LeaseLostError(f"{self.artifact} is not to go on.")

    def material(self) -> Material:
        """Everything of the lock for the artifact's platform, each byte checked on its way in."""
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
        LockConflicts.note(lock, part.platform, checked.conflicts)  # faults are told by its maker
        refuse_paths_everywhere(lock, part.platform)

    def fetch(
        self, conda: Sequence[CondaPackage], pypi: Sequence[PypiPackage]
    ) -> tuple[list[CachedPackage], list[CachedWheel]]:
        """Packages of the lock, each byte checked on its way in."""
        packages = get_engine().packages.ensure(conda, **self._fetching)
        return packages, get_engine().wheels.ensure(pypi, **self._fetching)

    def originals(self, packages: Sequence[Package], folder: Path) -> dict[str, Path]:
        """Packages as they came: those that are kept, and else from the channels."""
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

    def give_up(self, error: StoreError) -> None:
        with contextlib.suppress(LeaseLostError, TransitionError, Error):
            persist(
                lambda: self.artifact.give_up(
                    error,
                    lease=self.lease,
                    attempts=settings.BUILD_ATTEMPTS,
                    backoff=settings.BACKOFF,
                )
            )

    def give_back(self) -> None:
        with contextlib.suppress(LeaseLostError, TransitionError, Error):
            persist(lambda: self.artifact.give_back(self.lease))

    def __enter__(self) -> Making:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        linking.move_to_trash(self.folder, folders.data() / folders.TRASH)

    # --- the watching thread -------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while not self._end.wait(BEAT):
                self._beat()
        finally:
            connection.close()

    def _beat(self) -> None:
        life = settings.LEASE.total_seconds()
        progress, self._progress = self._progress, None
        try:
            if progress is not None or time.monotonic() - self._renewed > life / 3:
                started = time.monotonic()
                told = asdict(progress) if progress else self.artifact.progress
                self.artifact.renew(self.lease, life=settings.LEASE, progress=told)
                self._renewed = started
        except LeaseLostError:
            self.lost = True
        except DATABASE_ERRORS as error:
            connection.close()
            logger.warning("database unreachable", artifact=self.artifact.pk, error=str(error))
