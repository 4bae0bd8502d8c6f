"""Process-wide caches and solvers, created lazily."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import OrderedDict
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from django.conf import settings

from environments.domain.names import Credential
from environments.domain.records import CondaPackage
from environments.engine.artifacts.parts import PartFolder
from environments.engine.channels.credentials import CredentialSource
from environments.engine.channels.repodata import Channels
from environments.engine.network import forward_proxy
from environments.engine.network.bounded_reading import ReadLimits
from environments.engine.packages.cache import PackageCache
from environments.engine.packages.download_types import Patience
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.pypi.direct_wheels import DirectWheels, remove_leftover_downloads
from environments.engine.pypi.indexes import PythonIndexes
from environments.engine.pypi.install import WheelCache
from environments.engine.pypi.resolve import PypiResolver
from environments.engine.pypi.wheel_builds import WheelBuilder
from environments.engine.solve.client import RattlerSolver
from environments.services import hosted_channels
from environments.services.folders import SEEN
from environments.services.isolation import sandboxed
from environments.services.package_archive import PackageArchive, package_archive
from environments.services.platforms import own_platform

#: Folder below the caches of repodata and uv for content that needs no credentials.
SHARED = "shared"
#: Number of cached solvers with credentials; each has a repodata cache of its own.
MAX_PRIVATE_SOLVERS = 4


def source_of(credentials: tuple[Credential, ...]) -> CredentialSource:
    """Return a lookup of the credential that covers a URL; the longest prefix wins."""
    ordered = sorted(credentials, key=lambda credential: -len(credential.url_prefix))

    def find(url: str) -> Credential | None:
        return next((credential for credential in ordered if credential.covers(url)), None)

    return find


def download_patience() -> Patience:
    """Return timeouts and limits for package downloads, from the settings."""
    return Patience(
        read=settings.DOWNLOAD_TIMEOUT,
        rate=settings.DOWNLOAD_MIN_RATE,
        total=settings.BUILD_TIME_LIMIT,
        largest=settings.MAX_DOWNLOAD_BYTES,
        reserve=settings.DISK_RESERVE,
    )


def read_limits() -> ReadLimits:
    """Return limits for reading channels and indexes, from the settings."""
    return ReadLimits(
        silence=settings.DOWNLOAD_TIMEOUT,
        rate=settings.DOWNLOAD_MIN_RATE,
        size=settings.MAX_REPODATA_BYTES,
        ratio=settings.UNPACKING.ratio,
    )


def pace() -> forward_proxy.Pace:
    """Return the minimum transfer rate of rattler and uv, from the settings."""
    return forward_proxy.Pace(
        silence=settings.DOWNLOAD_TIMEOUT.total_seconds(), rate=settings.DOWNLOAD_MIN_RATE
    )


class Engine:
    """Caches and solvers; every member is safe to use from several threads."""

    def __init__(self, data: Path) -> None:
        self.cache = data / "cache"
        self._solvers: OrderedDict[tuple[Credential, ...], RattlerSolver] = OrderedDict()
        self._guard = threading.Lock()
        forward_proxy.use_pace(pace)

    @cached_property
    def packages(self) -> PackageCache:
        return PackageCache(
            self.cache / "packages",
            archive=package_archive(),
            limits=settings.UNPACKING,
            allow_md5=settings.ALLOW_MD5,
        )

    @cached_property
    def wheels(self) -> WheelCache:
        return WheelCache(
            self.cache / "wheels", archive=package_archive(), limits=settings.UNPACKING
        )

    @cached_property
    def builder(self) -> WheelBuilder:
        return WheelBuilder(
            packages=self.packages,
            wheels=self.wheels,
            work=self.cache / "wheel-builds",
            platform=own_platform(),
            sandboxed=sandboxed(),
            time_limit=settings.SOURCE_BUILD_TIME_LIMIT,
        )

    @cached_property
    def parts(self) -> PartFolder:
        return PartFolder(self.cache / "parts")

    @cached_property
    def bytecode(self) -> BytecodeCache:
        return BytecodeCache(self.cache / "bytecode")

    def solver(self, credentials: tuple[Credential, ...] = ()) -> RattlerSolver:
        """Return the solver for exactly these credentials.

        Repodata read with a secret stays in that solver and its folder: a namespace without the
        secret never sees it.
        """
        with self._guard:
            found = self._solvers.pop(credentials, None) or self._make_solver(credentials)
            self._solvers[credentials] = found
            private = [key for key in self._solvers if key]
            for old in private[: max(0, len(private) - MAX_PRIVATE_SOLVERS)]:
                self._solvers.pop(old).close()
        return found

    def _make_solver(self, credentials: tuple[Credential, ...]) -> RattlerSolver:
        # A process that may write to one of these folders must not read the others.
        name = SHARED
        if credentials:
            names = "\n".join(f"{each.url_prefix} {each.secret}" for each in credentials)
            name = f"private-{hashlib.sha256(names.encode()).hexdigest()[:16]}"
        folder = self.cache / "repodata" / name
        channels = Channels(
            cache=folder,
            credentials=source_of(credentials),
            hosted=hosted_channels.files_of,
            memo=settings.CHANNEL_STATE_TTL,
            limits=read_limits(),
        )
        pypi = PypiResolver(
            index_urls=tuple(settings.PYPI_INDEX_URLS),
            credentials=source_of(credentials),
            cache=self.cache / "wheels",
            channels=channels,
            extracted=self._extracted,
            uv_cache=self.cache / "uv" / name,
            direct=DirectWheels(
                folder=self.cache / "direct",
                wheels=self.wheels,
                archive=PackageArchive(),
                builder=self.builder,
                credentials=source_of(credentials),
                patience=download_patience(),
            ),
        )
        indexes = PythonIndexes(
            settings.PYPI_INDEX_URLS, credentials=source_of(credentials), limits=read_limits()
        )
        return RattlerSolver(
            cache=folder,
            channels=channels,
            pypi=pypi,
            indexes=indexes,
            readable=[self.cache.parent / SEEN],
            platform=own_platform(),
        )

    def remove_leftover_builds(self, *, older_than: timedelta) -> None:
        """Delete wheels that killed workers have fetched or built."""
        self.builder.remove_leftovers(older_than=older_than)
        remove_leftover_downloads(self.cache / "direct", older_than=older_than)

    def _extracted(self, package: CondaPackage) -> Path | None:
        """Return the extracted package; a hosted package is extracted now, as no server has it."""
        found = self.packages.extracted(package)
        if found is None and hosted_channels.is_hosted(package.url) and not package.is_foreign:
            [cached] = self.packages.ensure([package])
            return cached.folder
        return found

    def remove_former_caches(self) -> None:
        """Delete caches of earlier versions that processes of other tenants could read."""
        former = [self.cache / "wheels" / "uv"]
        former += [
            path
            for path in (self.cache / "repodata").glob("*")
            if path.name != SHARED and not path.name.startswith("private-")
        ]
        for path in former:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        for solver in self._solvers.values():
            solver.close()
            solver.channels.close()
        self._solvers.clear()


_engine: Engine | None = None
_guard = threading.Lock()


def get_engine() -> Engine:
    global _engine
    with _guard:
        if _engine is None:
            _engine = Engine(Path(settings.DATA))
        return _engine


def set_engine(engine: Engine | None) -> None:
    """Replace the engine of this process; after None the next `get_engine` creates one."""
    global _engine
    with _guard:
        _engine = engine
