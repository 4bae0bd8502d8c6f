"""Stand-ins for conda, micromamba and conda-lock; `tests.clients` says what they imitate."""

from __future__ import annotations

import asyncio
import atexit
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

import httpx
import rattler
import zstandard
from rattler.exceptions import SolverError
from rattler.package_streaming import extract

from tests.clients import reading
from tests.clients.reading import ClientError, Pinned

PLATFORM = "linux-64"


@functools.cache
def shared_cache() -> Path:
    """Return the folder of packages, fetched and extracted, of all clients of this process."""
    folder = Path(tempfile.mkdtemp(prefix="condastore-clients-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass(slots=True)
class Network:
    """The requests of one client: its user agent, its credentials, its cache of repodata."""

    user_agent: str
    folder: Path
    bearer: str = ""
    offline: bool = False
    #: (method and path, status) of everything that was asked for.
    asked: list[tuple[str, int]] = field(default_factory=list)
    _validators: dict[str, dict[str, str]] = field(default_factory=dict)

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        parts = urlsplit(url)
        if self.offline:
            raise ClientError(f"Offline: {url} is not asked for.")
        sent = {"User-Agent": self.user_agent, **(headers or {})}
        if self.bearer:
            sent["Authorization"] = f"Bearer {self.bearer}"
        login = (parts.username, parts.password or "") if parts.username else None
        host = parts.netloc.rpartition("@")[2]
        bare = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        answer = httpx.get(bare, headers=sent, auth=login, follow_redirects=True, timeout=60)
        self.asked.append((parts.path, answer.status_code))
        return answer

    def repodata(self, channel: str, subdir: str) -> Path | None:
        """`repodata.json.zst`, then `repodata.json`; None where the channel has no such subdir."""
        base = f"{channel.rstrip('/')}/{subdir}"
        if base.startswith("file://"):
            path = Path(base.removeprefix("file://")) / "repodata.json"
            return path if path.exists() else None
        kept = self.folder / f"{hashlib.sha256(base.encode()).hexdigest()[:16]}.json"
        for name in ("repodata.json.zst", "repodata.json"):
            answer = self.get(f"{base}/{name}", self._validators.get(f"{base}/{name}"))
            if answer.status_code == 304:
                return kept
            if answer.status_code == 404:
                continue
            if answer.status_code != 200:
                raise ClientError(f"{answer.status_code} {answer.text} for {base}/{name}")
            content = answer.content
            if name.endswith(".zst"):
                content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
            kept.write_bytes(content)
            self._validators[f"{base}/{name}"] = {
                key: answer.headers[value]
                for key, value in (
                    ("If-None-Match", "ETag"),
                    ("If-Modified-Since", "Last-Modified"),
                )
                if value in answer.headers
            }
            return kept
        return None

    def fetch(self, package: Pinned) -> Path:
        """Request the package and check each hash that is known of it.

        Returns:
            Its file in the cache that all clients share: each fetches, none extracts it again.
        """
        if package.url.startswith("file://"):
            content = Path(package.url.removeprefix("file://")).read_bytes()
        else:
            answer = self.get(package.url)
            if answer.status_code != 200:
                raise ClientError(f"{answer.status_code} for {package.url}")
            content = answer.content
        for name, expected in (("md5", package.md5), ("sha256", package.sha256)):
            if expected and hashlib.new(name, content).hexdigest() != expected:
                raise ClientError(f"ChecksumMismatchError: {name} of {package.url}")
        path = shared_cache() / hashlib.sha256(content).hexdigest() / package.file_name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return path


class Client:
    """What the stand-ins have in common."""

    name: ClassVar[str]
    user_agent: ClassVar[str]
    priority: ClassVar[rattler.ChannelPriority]

    def __init__(
        self, folder: Path, *, bearer: str = "", environ: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            folder: for caches.
            bearer: a token that goes into the header of each request.
            environ: variables beside those of the tests.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.network = Network(user_agent=self.user_agent, folder=folder, bearer=bearer)
        self.environ = {**os.environ, **(environ or {})}
        self.folder = folder

    @property
    def adds_pip(self) -> bool:
        variable = f"{self.name.upper()}_ADD_PIP_AS_PYTHON_DEPENDENCY"
        return self.environ.get(variable, "true").lower() not in ("false", "0", "no", "off")

    def create(
        self,
        prefix: Path,
        *specs: str,
        channels: Sequence[str],
        offline: bool = False,
    ) -> None:
        """`create -p PREFIX --override-channels -c CHANNEL... SPEC...`."""
        self.network.offline = offline
        records = asyncio.run(self._solved(specs, channels))
        pinned = [
            Pinned(
                url=record.url,
                md5=record.md5.hex() if record.md5 else "",
                sha256=record.sha256.hex() if record.sha256 else "",
            )
            for record in records
        ]
        self._install(prefix, pinned, {record.url: record for record in records})

    def create_from_list(self, prefix: Path, path: Path) -> None:
        """`create -p PREFIX --file explicit.txt`: nothing is solved."""
        self._install(prefix, reading.explicit(path))

    async def _solved(self, specs: Sequence[str], channels: Sequence[str]) -> list[Any]:
        data = []
        for channel in channels:
            for subdir in (PLATFORM, "noarch"):
                path = self.network.repodata(channel, subdir)
                if path is not None:
                    data.append(rattler.SparseRepoData(rattler.Channel(channel), subdir, path))
        if not data:
            raise ClientError(f"UnavailableInvalidChannel: {', '.join(channels)}")
        try:
            return await rattler.solve_with_sparse_repodata(
                [rattler.MatchSpec(_spec(spec), strict=False) for spec in specs],
                data,
                virtual_packages=[one.into_generic() for one in rattler.VirtualPackage.detect()],
                channel_priority=self.priority,
                add_pip_as_python_dependency=self.adds_pip,
            )
        except SolverError as error:
            raise ClientError(f"LibMambaUnsatisfiableError: {error}") from error

    def _install(
        self,
        prefix: Path,
        packages: Iterable[Pinned],
        records: Mapping[str, Any] | None = None,
    ) -> None:
        """Fetch with this client's own requests, then link."""
        ready = []
        for package in packages:
            path = self.network.fetch(package)
            record = (records or {}).get(package.url)
            if record is None:
                index = rattler.package.IndexJson.from_package_archive(path)
                record = rattler.RepoDataRecord(
                    rattler.PackageRecord.from_index_json(
                        _extracted(path) / "info/index.json",
                        size=path.stat().st_size,
                    ),
                    package.file_name,
                    path.as_uri(),
                    package.url.rsplit("/", 2)[0],
                )
                assert index.name.normalized == record.name.normalized
            record.url = path.as_uri()
            ready.append(record)
        asyncio.run(
            rattler.install(
                ready,
                target_prefix=prefix,
                cache_dir=shared_cache() / "linked",
                execute_link_scripts=False,
                show_progress=False,
            )
        )

    def _pip(self, prefix: Path, lines: Sequence[str], *options: str) -> None:
        """The prefix's own pip, which has to be there."""
        path = prefix / "mambafile.txt"
        path.write_text("".join(f"{line}\n" for line in lines))
        command = [prefix / "bin/python", "-m", "pip", "install", *options, "-r", path]
        done = subprocess.run(
            [str(part) for part in command],
            env=self.environ
            | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.devnull},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        path.unlink()
        if done.returncode:
            raise ClientError(f"critical pip failed to install packages: {done.stderr}")


class Conda(Client):
    name = "conda"
    user_agent = (
        "conda/26.7.1 requests/2.32.5 CPython/3.13.9 Linux/6.8.0 debian/12 glibc/2.36 "
        "solver/rattler conda-rattler-solver/0.1.0"
    )
    #: conda's default is flexible: the highest channel that leaves a solution.
    priority = rattler.ChannelPriority.Disabled

    def create_from_yaml(self, prefix: Path, path: Path, *, offline: bool = False) -> None:
        """`env create -p PREFIX -f environment.yml`."""
        self.network.offline = offline
        wanted = reading.environment_file(path)
        bare = [each for each in wanted.channels if "://" not in each]
        if bare:  # `nodefaults` too, with the rattler solver
            raise ClientError(
                f"HTTP 000 CONNECTION FAILED for https://conda.anaconda.org/{bare[0]}"
            )
        self.create(prefix, *wanted.specs, channels=wanted.channels, offline=offline)
        if wanted.pip:
            self._pip(prefix, wanted.pip, "-U")


class Micromamba(Client):
    name = "mamba"
    user_agent = "micromamba/2.8.1"
    priority = rattler.ChannelPriority.Strict

    def create_from_lock(self, prefix: Path, path: Path, *, platform: str = PLATFORM) -> None:
        """`create -p PREFIX --file conda-lock.yml`."""
        content = reading.micromamba_lock(path, platform)
        self._install(prefix, content.conda)
        if content.pip:
            self._pip(prefix, content.pip, "--no-deps", "--no-input", "--quiet")

    def create_from_yaml(self, prefix: Path, path: Path, *, offline: bool = False) -> None:
        """`create -p PREFIX --file environment.yml`."""
        self.network.offline = offline
        wanted = reading.environment_file(path)
        channels = [each for each in wanted.channels if each != "nodefaults"]
        self.create(prefix, *wanted.specs, channels=channels, offline=offline)
        if wanted.pip:
            self._pip(prefix, wanted.pip, "-U", "--no-input", "--quiet")


class CondaLock:
    """`conda-lock install`: its own library reads, conda creates, the first `pip` installs."""

    name = "conda-lock"

    def __init__(self, conda: Conda) -> None:
        self.conda = conda

    def create_from_lock(self, prefix: Path, path: Path) -> None:
        from conda_lock.conda_lock import render_lockfile_for_platform
        from conda_lock.lockfile import parse_conda_lock_file

        lines = render_lockfile_for_platform(
            lockfile=parse_conda_lock_file(path),
            include_dev_dependencies=False,
            extras=set(),
            kind="explicit",
            platform=PLATFORM,
        )
        pip = [line.removeprefix("# pip ") for line in lines if line.startswith("# pip ")]
        explicit = self.conda.folder / "conda-lock-explicit.txt"
        explicit.write_text("\n".join(line for line in lines if not line.startswith("# pip")))
        self.conda.create_from_list(prefix, explicit)
        if pip and not (prefix / "bin/pip").exists():
            raise ClientError("pip of another environment would install these packages")
        if pip:
            self.conda._pip(prefix, pip, "--no-deps")


def _spec(text: str) -> str:
    """`name=version=build`, as conda reads it at the command line and in files."""
    channel, found, rest = text.rpartition("::")
    parts = rest.split("=")
    if len(parts) == 3 and all(parts):
        rest = f"{parts[0]} =={parts[1]} {parts[2]}"
    return f"{channel}{found}{rest}"


def _extracted(path: Path) -> Path:
    """The package unpacked, for its `info/index.json`."""
    target = path.with_name("unpacked")
    if not target.exists():
        extract(path, target)
    return target
