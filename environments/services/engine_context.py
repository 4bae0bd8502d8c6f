"""The engine of this process: its caches and its solvers, made at the first need."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
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
from environments.engine.packages.downloads import Patience
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

#: What no secret opened, below the caches of repodata and of uv.
SHARED = "shared"
#: Solvers with credentials that are kept; each has repodata of its own.
SOLVERS = 4


def source_of(credentials: tuple[Credential, ...]) -> CredentialSource:
    """The credential that covers a URL, the longest prefix first."""
    ordered = sorted(credentials, key=lambda credential: -len(credential.url_prefix))

    def find(url: str) -> Credential | None:
        return next((credential for credential in ordered if credential.covers(url)), None)

    return find


def download_patience() -> Patience:
    """How packages are fetched here, by the installation's settings."""
    return Patience(
        read=settings.DOWNLOAD_TIMEOUT,
        rate=settings.DOWNLOAD_MIN_RATE,
        total=settings.BUILD_TIME_LIMIT,
        largest=settings.MAX_DOWNLOAD_BYTES,
        reserve=settings.DISK_RESERVE,
    )


def read_limits() -> ReadLimits:
    """Return what is read of a channel's or an index's answer, by the installation's settings."""
    return ReadLimits(
        silence=settings.DOWNLOAD_TIMEOUT,
        rate=settings.DOWNLOAD_MIN_RATE,
        size=settings.MAX_REPODATA_BYTES,
        ratio=settings.UNPACKING.ratio,
    )


def pace() -> forward_proxy.Pace:
    """Return how slow servers may be that rattler and uv ask, by the installation's settings."""
    return forward_proxy.Pace(
        silence=settings.DOWNLOAD_TIMEOUT.total_seconds(), rate=settings.DOWNLOAD_MIN_RATE
    )


class Engine:
    """Everything here is safe to use from several threads at once."""

    def __init__(self, data: Path) -> None:
        self.cache = data / "cache"
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
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
        """The solver of whoever holds exactly these credentials.

        Repodata that a secret opened stays in that solver and its folder: a namespace without
        the secret never sees it.
        """
        with self._guard:
            found = self._solvers.pop(credentials, None) or self._make_solver(credentials)
            self._solvers[credentials] = found
            private = [key for key in self._solvers if key]
            for old in private[: max(0, len(private) - SOLVERS)]:
                self._solvers.pop(old).close()
        return found

    def _make_solver(self, credentials: tuple[Credential, ...]) -> RattlerSolver:
        # Processes that may write in one of these folders may not read the others.
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
        """Remove what killed workers left of wheels that they fetched or built."""
        self.builder.remove_leftovers(older_than=older_than)
        remove_leftover_downloads(self.cache / "direct", older_than=older_than)

    def _extracted(self, package: CondaPackage) -> Path | None:
        """Where it lies unpacked. One of a hosted channel is unpacked now: it is on no server."""
        found = self.packages.extracted(package)
        if found is None and hosted_channels.is_hosted(package.url) and not package.is_foreign:
            [cached] = self.packages.ensure([package])
            return cached.folder
        return found

    def remove_former_caches(self) -> None:
        """Remove what earlier versions cached where processes of other tenants could read it."""
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
