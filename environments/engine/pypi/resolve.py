"""Resolution of the PyPI part with uv, beside the Python distributions that conda packages hold."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.parser import HeaderParser
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import uv
from packaging import tags
from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from rattler.package_streaming import PackageArchive

from condastore.errors import (
    ChannelUnavailableError,
    FaultError,
    LinkError,
    PypiError,
    SpecificationError,
    StoreError,
    TimeLimitError,
)
from environments.domain.json_text import parse_json
from environments.domain.lock import PlatformLock
from environments.domain.names import Credential, printable, without_credentials
from environments.domain.pip_requirements import NO_OPTIONS, PipOptions, direct_reference
from environments.domain.progress import Cancelled, obey
from environments.domain.records import CondaPackage, PypiPackage
from environments.domain.urls import canonical_or_same
from environments.engine.channels.credentials import (
    CredentialSource,
    no_credentials,
    redact,
    request_url,
)
from environments.engine.channels.repodata import Channels
from environments.engine.network import forward_proxy
from environments.engine.network.addresses import guard
from environments.engine.pypi.direct_wheels import DirectWheel, DirectWheels
from environments.engine.solve.virtual_packages import virtual_packages as of_platform
from environments.engine.system.confinement import child_environment
from environments.engine.system.processes import Confinement, run_tool

Log = Callable[[str], None]
Answer = TypeVar("Answer")
NO_NAMES: Mapping[str, Any] = MappingProxyType({})

#: In site-packages itself; deeper ones are vendored and not importable by others.
_DIST_INFO = re.compile(
    r"(?:lib/python[\d.]+t?/|Lib/)?site-packages/(?P<stem>[^/]+)"
    r"\.(?:dist-info/METADATA|egg-info/PKG-INFO|egg-info)"
)
#: Maximum bytes that are read of a package: of METADATA, of the list of paths, and of a package of
#: unknown size whose server does not support ranges.
_LARGEST_METADATA, _LARGEST_PATHS, _LARGEST_SPOOL = 4 << 20, 64 << 20, 4 << 30
#: Minimum time of uv, even if reading conda packages took all of the time.
_MIN_UV_SECONDS = 1.0
_STEM = re.compile(r"(?P<name>.+?)-(?P<version>\d[^-]*)(?:-py[\d.]+)?")
_NO_EXTRA = re.compile(r"`(?P<name>[\w.-]+) @ \S+` does not have an extra named")
#: Prefix of the temporary folders in which uv runs.
WORK_FOLDER = "condastore-uv-"
_GLIBC_MINORS = (*range(40, 30, -1), 28, 17)  # minor versions of glibc 2 that uv supports


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """A Python distribution that a conda package holds."""

    name: str  # normalized (PEP 503)
    version: str
    path: str  # path of its metadata in the package
    package: CondaPackage

    def __str__(self) -> str:
        return f"{self.name} {self.version} of the conda package {self.package.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The platform and the Python version that wheels must support."""

    python: str  # 3.11.7
    uv_platform: str
    tags: tuple[str, ...]  # platform tags, the most specific first
    markers: Mapping[str, str]
    macos: str = ""  # 11.0

    @property
    def minor(self) -> tuple[int, int]:
        major, minor = self.python.split(".")[:2]
        return int(major), int(minor)

    def rank(self, file_name: str) -> int | None:
        """Return how well a wheel fits, 0 is the best; None if it is not compatible."""
        wheel = parse_wheel_filename(file_name)[3]
        interpreter = "cp{}{}".format(*self.minor)
        accepted = [
            *tags.cpython_tags(self.minor, platforms=self.tags),
            *tags.compatible_tags(self.minor, interpreter=interpreter, platforms=self.tags),
        ]
        return next((place for place, tag in enumerate(accepted) if tag in wheel), None)


class PypiResolver:
    """Resolves the PyPI part with uv; distributions of conda packages are fixed."""

    def __init__(
        self,
        *,
        index_urls: Sequence[str],
        cache: Path,
        channels: Channels,
        credentials: CredentialSource = no_credentials,
        extracted: Callable[[CondaPackage], Path | None] = lambda package: None,
        uv_program: str = "",
        uv_cache: Path | None = None,
        direct: DirectWheels | None = None,
    ) -> None:
        """
        Args:
            index_urls: simple indexes in the order of priority, without credentials; a project is
                taken from the first index that has it.
            cache: folder for uv's downloads and for the lists of distributions in conda packages.
            channels: reads conda packages that are not extracted.
            extracted: returns the folder of an extracted conda package, or None.
            uv_cache: uv's cache, by default below `cache`. It must contain nothing else.
            direct: provider of wheels of direct references; None: there are none.
        """
        self._direct = direct
        self._indexes = tuple(index_urls)
        self._cache = cache
        self._channels = channels
        self._credentials = credentials
        self._extracted = extracted
        self._uv_cache = (uv_cache or cache / "uv").absolute()
        self._uv = uv_program or os.fsdecode(uv.find_uv_bin())

    def lock(
        self,
        requirements: Sequence[str],
        platform_lock: PlatformLock,
        *,
        virtual_packages: Sequence[str],
        exclude_newer: datetime | None,
        cancelled: Cancelled,
        log: Log,
        time_limit: timedelta,
        constraints: Sequence[str] = (),
        exclude_newer_of: Mapping[str, datetime | None] = NO_NAMES,
        options: PipOptions = NO_OPTIONS,
        direct: Mapping[str, DirectWheel] = NO_NAMES,
    ) -> tuple[PypiPackage, ...]:
        """Resolve `requirements` (PEP 508); return the wheels by name, without what conda has.

        Args:
            options: options of the pip part: additional indexes and pages.
            direct: result of `provide` for the same requirements.
            virtual_packages: `name=version=build`; glibc and macOS determine the wheels.
            constraints: PEP 508; not applied to distributions of conda packages.
            exclude_newer_of: different limits by name; None means no limit.
            time_limit: time limit of all reading and resolving.
        Raises:
            PypiError: there is no solution, or only one that contradicts a conda package.
            ChannelUnavailableError: an index or a conda package cannot be read now.
            TimeLimitError: there is no solution within `time_limit`.
            LeaseLostError: `cancelled` returned True.
        """
        deadline = time.monotonic() + time_limit.total_seconds()
        parsed = _parse(requirements, direct)
        target = _target(platform_lock, virtual_packages)
        provided = self.provided(platform_lock, cancelled=cancelled, deadline=deadline)
        wanted = _applying(parsed, target)
        _refuse_contradictions(wanted, provided, platform_lock.platform)
        with_extras: set[str] = {
            canonicalize_name(requirement.name) for requirement in wanted if requirement.extras
        }
        log(f"{platform_lock.platform}: resolving {len(wanted)} requirements of PyPI.")
        for _ in range(3):  # repeat if an extra of a conda package turns out to be required
            run = _Run(
                resolver=self,
                requirements=wanted,
                platform=platform_lock.platform,
                provided=provided,
                metadata=self._metadata(
                    [item for item in provided.values() if item.name in with_extras],
                    cancelled=cancelled,
                    deadline=deadline,
                ),
                target=target,
                options=options,
                direct=direct,
                exclude_newer=exclude_newer,
                exclude_newer_of=exclude_newer_of,
                constraints=[
                    text
                    for text in constraints
                    if canonicalize_name(Requirement(text).name) not in provided
                ],
            )
            # Beside the caches, where the cleanup job finds folders of killed workers.
            self._uv_cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=WORK_FOLDER, dir=self._uv_cache.parent
            ) as folder:
                packages, missing = run.resolve(
                    Path(folder), cancelled=cancelled, deadline=deadline
                )
            if missing <= with_extras:
                break
            with_extras |= missing
        log(f"{platform_lock.platform}: {len(packages)} packages of PyPI.")
        return packages

    def provide(
        self,
        requirements: Sequence[str],
        platform_lock: PlatformLock,
        *,
        host: PlatformLock | None,
        virtual_packages: Sequence[str],
        exclude_newer: datetime | None,
        cancelled: Cancelled,
        log: Log,
        time_limit: timedelta,
    ) -> dict[str, DirectWheel]:
        """Fetch or build the wheels of direct references; return them by name.

        Args:
            host: lock for the platform of this machine, whose Python builds from source.
            exclude_newer, time_limit: limits of the solves for build requirements.
        Raises:
            PypiError: a wheel is not compatible with the platform.
            StoreError: other errors of `DirectWheels.provide`.
        """
        target = _target(platform_lock, virtual_packages)
        found: dict[str, DirectWheel] = {}
        # Rounded to a day: a limit that moves with the clock would rebuild for every solve.
        limit = None if exclude_newer is None else _day(exclude_newer)

        def resolve(texts: Sequence[str], part: PlatformLock) -> tuple[PypiPackage, ...]:
            return self.lock(
                texts,
                part,
                virtual_packages=of_platform(part.platform, ()),
                exclude_newer=limit,
                cancelled=cancelled,
                log=lambda line: None,
                time_limit=time_limit,
            )

        for requirement in _applying(_parse(requirements, None), target):
            reference = direct_reference(f"{requirement.name} @ {requirement.url}")
            if not requirement.url or reference is None:
                continue
            name = canonicalize_name(requirement.name)
            if self._direct is None:
                raise PypiError(
                    f"“{without_credentials(str(requirement))}” names its own source, but this "
                    "installation uses indexes only.",
                    where="dependencies.pip",
                    hint="Name a version from an index, or use the conda package.",
                )
            wheel = self._direct.provide(
                name,
                reference,
                host=host,
                resolve=resolve,
                inputs=self._inputs(limit),
                cancelled=cancelled,
                log=log,
            )
            if target.rank(wheel.package.file_name) is None:
                raise PypiError(
                    f"On {platform_lock.platform}: {wheel.package.file_name} from "
                    f"{reference.location} does not support Python {target.python} on "
                    f"{target.uv_platform}.",
                    where="dependencies.pip",
                    hint="Name a wheel for this platform, with a marker such as "
                    "; platform_machine == 'x86_64'.",
                )
            found[name] = wheel
        return found

    def _inputs(self, limit: datetime | None) -> tuple[str, ...]:
        """Return what the choice of build requirements depends on, beside conda packages."""
        found = [f"until {limit.isoformat() if limit else 'now'}"]
        for url in self._indexes:
            credential = self._credentials(url)
            found.append(f"{url} {credential.secret if credential else ''}")
        return tuple(found)

    def provided(
        self,
        platform_lock: PlatformLock,
        *,
        cancelled: Cancelled,
        deadline: float | None = None,
    ) -> dict[str, Provided]:
        """Return the distributions that the conda packages hold, by name, from their files.

        Args:
            deadline: a value of `time.monotonic()`.
        Raises:
            ChannelUnavailableError: a package cannot be read.
            TimeLimitError: `deadline` passed.
            LeaseLostError: `cancelled` returned True.
        """
        found: dict[str, Provided] = {}
        unread: list[CondaPackage] = []
        for package in platform_lock.conda:
            if not _is_python(package):
                continue
            listed = self._known(package)
            if listed is None:
                unread.append(package)
                continue
            found |= _distributions(package, listed)
        for package in unread:
            obey(cancelled)
            listed = self._look(package, cancelled, deadline)
            self._remember(package, listed)
            found |= _distributions(package, listed)
        return found

    def _known(self, package: CondaPackage) -> list[str] | None:
        try:
            return list(json.loads(self._note(package).read_bytes()))
        except (OSError, ValueError):
            return None

    def _remember(self, package: CondaPackage, listed: Sequence[str]) -> None:
        note = self._note(package)
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}.{id(package)}")
        temporary.write_text(json.dumps(list(listed)))
        temporary.replace(note)

    def _note(self, package: CondaPackage) -> Path:
        # The key has the URL too: its server may serve other bytes than the digest says.
        known_as = f"{package.sha256 or package.md5} {package.url}"
        digest = hashlib.sha256(known_as.encode()).hexdigest()
        return self._cache / "provided" / digest[:2] / f"{digest}.json"

    def _look(
        self, package: CondaPackage, cancelled: Cancelled, deadline: float | None
    ) -> list[str]:
        """Return the paths of the package's metadata files, from its list of paths."""
        folder = self._extracted(package)
        if folder is None:
            paths = self._fetch(
                self._remote_paths(package), package, cancelled=cancelled, deadline=deadline
            )
        elif (listed := _bounded(folder / "info" / "paths.json", _LARGEST_PATHS)) is not None:
            paths = _listed(listed)
        else:  # packages without info/paths.json
            lines = _bounded(folder / "info" / "files", _LARGEST_PATHS) or b""
            paths = lines.decode(errors="replace").splitlines()
        return sorted(path for path in paths if _DIST_INFO.fullmatch(path))

    def _fetch(
        self,
        work: Coroutine[Any, Any, Answer],
        package: CondaPackage,
        *,
        cancelled: Cancelled,
        deadline: float | None,
    ) -> Answer:
        """Read parts of a package that is not extracted.

        rattler reads through the forward proxy, which enforces the minimum rate.
        """
        try:
            return self._channels.run(work, cancelled=cancelled, deadline=deadline)
        except TimeLimitError as error:
            raise TimeLimitError(
                f"{package.file_name} was not read within the time limit.", where=package.url
            ) from error

    async def _open(self, package: CondaPackage) -> PackageArchive:
        if package.url.startswith("file:"):
            return await PackageArchive.from_path(guard().path(package.url))
        return await PackageArchive.from_url(
            self._channels.client,
            request_url(self._channels.credential(package.url), package.url),
            # If the server supports no ranges, the whole package is fetched.
            max_spool_size=package.size or _LARGEST_SPOOL,
        )

    async def _remote_paths(self, package: CondaPackage) -> list[str]:
        try:
            archive = await self._open(package)
            listed = await _read_bounded(archive, "info", "info/paths.json", _LARGEST_PATHS)
            if listed is not None:
                return _listed(listed)
            lines = await _read_bounded(archive, "info", "info/files", _LARGEST_PATHS)
            return (lines or b"").decode(errors="replace").splitlines()
        except Exception as error:  # rattler's errors have no common base
            raise await self._unreadable(package, error) from error

    async def _unreadable(self, package: CondaPackage, error: Exception) -> StoreError:
        message = self._channels.clean(str(error))
        if isinstance(error, StoreError):
            return error
        if refused := await asyncio.to_thread(forward_proxy.refusal_in, message):
            return refused
        return ChannelUnavailableError(
            f"{package.file_name} could not be read: {message}", where=package.url
        )

    def _metadata(
        self, items: Iterable[Provided], *, cancelled: Cancelled, deadline: float
    ) -> dict[str, bytes]:
        """Return the metadata files of `items`, by name of the distribution."""
        found: dict[str, bytes] = {}
        for item in items:
            folder = self._extracted(item.package)
            content = (
                _bounded(folder / item.path, _LARGEST_METADATA)
                if folder is not None
                else self._fetch(
                    self._read(item), item.package, cancelled=cancelled, deadline=deadline
                )
            )
            if content is not None:
                found[item.name] = content
        return found

    async def _read(self, item: Provided) -> bytes | None:
        try:
            archive = await self._open(item.package)
            return await _read_bounded(archive, "pkg", item.path, _LARGEST_METADATA)
        except Exception as error:  # rattler's errors have no common base
            raise await self._unreadable(item.package, error) from error


def _listed(content: bytes) -> list[str]:
    """Return the paths of `info/paths.json`."""
    return [str(entry["_path"]) for entry in parse_json(content)["paths"]]


def _bounded(path: Path, largest: int) -> bytes | None:
    """Read a file of an extracted package; return None if it does not exist.

    Raises:
        LinkError: it is larger than `largest` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        return None
    if len(content) > largest:
        raise LinkError(f"{path.name} of a package is larger than {largest:,} bytes.")
    return content


async def _read_bounded(
    archive: PackageArchive, section: Literal["info", "pkg"], path: str, largest: int
) -> bytes | None:
    """Read a file of a package that is not extracted; return None if it does not exist.

    Raises:
        LinkError: it is larger than `largest` bytes.
    """
    async for entry in archive.stream(section):
        if entry.name == path:
            if entry.size > largest:
                raise LinkError(f"{path} of a package is larger than {largest:,} bytes.")
            return await entry.read()
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One resolution with uv, in its own temporary folder."""

    resolver: PypiResolver
    requirements: Sequence[Requirement]
    platform: str
    provided: Mapping[str, Provided]
    metadata: Mapping[str, bytes]
    target: _Target
    options: PipOptions
    direct: Mapping[str, DirectWheel]
    exclude_newer: datetime | None
    exclude_newer_of: Mapping[str, datetime | None]
    constraints: Sequence[str]

    def resolve(
        self, folder: Path, *, cancelled: Cancelled, deadline: float
    ) -> tuple[tuple[PypiPackage, ...], set[str]]:
        """Return the wheels, and the conda distributions whose extras uv did not find."""
        environment, credentials = self._write_settings(folder)
        named = dict(self._write_direct(folder))
        lines_in = [self._line(requirement, named) for requirement in self.requirements]
        (folder / "requirements.in").write_text("\n".join(lines_in))
        fixed = (*self._write_stand_ins(folder), *self.constraints)
        (folder / "constraints.txt").write_text("\n".join(fixed))
        lines: list[str] = []
        self.resolver._uv_cache.mkdir(parents=True, exist_ok=True)
        confinement = Confinement(
            readable=[guard().path(url) for url in self._indexes if url.startswith("file:")],
            writable=[folder, self.resolver._uv_cache],
            connect=[forward_proxy.of(guard()).port],
        )

        def run(*arguments: str) -> None:
            lines.clear()
            left = timedelta(seconds=max(deadline - time.monotonic(), _MIN_UV_SECONDS))
            result = run_tool(
                [
                    *(self.resolver._uv, "pip", "compile", "requirements.in"),
                    *("--constraint", "constraints.txt", "--config-file", "uv.toml"),
                    *("--python", sys.executable, "--python-version", self.target.python),
                    *("--python-platform", self.target.uv_platform),
                    *("--no-header", "--color", "never", "--no-progress"),
                    *("--only-binary", ":all:"),  # reading a source distribution runs its code
                    *(("--prerelease", "allow") if self.options.prereleases else ()),
                    *self._cutoff(),
                    *arguments,
                ],
                cwd=folder,
                env=environment,
                time_limit=left,
                cancelled=cancelled,
                on_line=lines.append,
                confinement=confinement,
            )
            if result.timed_out:
                raise TimeLimitError("The PyPI part was not resolved within the time limit.")
            result.require_not_killed("uv")
            if not result.succeeded:
                raise self._error(redact("\n".join(lines), credentials), folder)

        run("--format", "pylock.toml", "--output-file", "pylock.toml")
        missing: set[str] = {
            canonicalize_name(match["name"]) for line in lines for match in _NO_EXTRA.finditer(line)
        }
        # pylock.toml has the wheels; only this format has the dependencies between them.
        run("--annotation-style", "line", "--output-file", "requirements.txt")
        content = tomllib.loads((folder / "pylock.toml").read_text())
        needed = self._needed((folder / "requirements.txt").read_text())
        packages = [
            self._package(entry, needed)
            for entry in content.get("packages", ())
            if canonicalize_name(entry["name"]) not in self.provided
        ]
        return tuple(sorted(packages, key=lambda package: package.name)), missing

    def _write_settings(self, folder: Path) -> tuple[dict[str, str], list[Credential | None]]:
        """Write uv's settings to a file; secrets go to the environment, not to a command line."""
        environment = child_environment(forward_proxy.of(guard()).environment())
        environment |= {
            "HOME": os.fspath(folder),
            "TMPDIR": os.fspath(folder),
            "UV_CACHE_DIR": os.fspath(self.resolver._uv_cache),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_HTTP_RETRIES": "1",  # the job retries, and can be cancelled in between
        }
        if self.target.macos:
            environment["MACOSX_DEPLOYMENT_TARGET"] = self.target.macos
        credentials: list[Credential | None] = []
        sections = []
        indexes, pages = self._indexes, self.options.find_links
        for number, url in enumerate((*indexes, *pages)):
            credential = self.resolver._credentials(url)
            credentials.append(credential)
            if credential is not None and credential.kind == "basic":
                user, _, password = credential.secret.partition(":")
                environment[f"UV_INDEX_I{number}_USERNAME"] = user
                environment[f"UV_INDEX_I{number}_PASSWORD"] = password
            kind = "default = true\n" if number == len(indexes) - 1 else ""
            kind = 'format = "flat"\n' if number >= len(indexes) else kind
            sections.append(
                f'[[index]]\nname = "i{number}"\nurl = {json.dumps(request_url(credential, url))}\n'
                f"{kind}"
            )
        text = "\n".join(sections)
        if not indexes:  # without this, uv would use pypi.org
            urls = [request_url(self.resolver._credentials(url), url) for url in pages]
            text = f"no-index = true\nfind-links = {json.dumps(urls)}\n"
        (folder / "uv.toml").write_text(text)
        return environment, credentials

    @property
    def _indexes(self) -> tuple[str, ...]:
        """Simple indexes in the order of priority; the first that has a project is used."""
        usual = (self.options.index,) if self.options.index else self.resolver._indexes
        return tuple(dict.fromkeys((*self.options.extra_indexes, *usual)))

    def _line(self, requirement: Requirement, named: Mapping[str, str]) -> str:
        """Return a requirement for uv, which never sees a URL of a pip part."""
        place = named.get(canonicalize_name(requirement.name))
        if not requirement.url or place is None:
            return str(requirement)
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        return f"{requirement.name}{extras} @ {place}"

    def _write_direct(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Yield (name, URL) of a placeholder for each direct wheel: empty, with its METADATA.

        Its dependencies are resolved with all others. A dependency that names its own source must
        be a direct reference of the specification: only those were checked.
        """
        below = folder / "direct"
        below.mkdir()
        for name, wheel in self.direct.items():
            stem = wheel.package.file_name.split("-")[0]
            version = Version(wheel.package.version)
            path = below / f"{stem}-{version}-py3-none-any.whl"
            _write_empty_wheel(path, stem, version, self._direct_metadata(wheel))
            yield name, path.as_uri()

    def _direct_metadata(self, wheel: DirectWheel) -> str:
        """Return the metadata fields that uv needs, one line each."""
        headers = HeaderParser().parsestr(wheel.metadata.decode(errors="replace"))
        lines = ["Metadata-Version: 2.1"]
        for field in ("Name", "Version", "Requires-Python", "Provides-Extra"):
            lines += [f"{field}: {_unfolded(value)}" for value in headers.get_all(field, [])]
        for value in headers.get_all("Requires-Dist", []):
            lines.append(f"Requires-Dist: {self._without_source(wheel.package, _unfolded(value))}")
        return "\n".join(lines) + "\n"

    def _without_source(self, package: PypiPackage, text: str) -> str:
        """Return a dependency of a direct wheel without its source, if a line names the source."""
        try:
            need = Requirement(text)
        except (InvalidRequirement, RecursionError) as error:
            raise PypiError(
                f"{package.name} {package.version} depends on {printable(text)}, which is not a "
                "valid requirement.",
                where="dependencies.pip",
                hint="Use another version, or report it to the project.",
            ) from error
        if not need.url:
            return text
        need_url, need.url = need.url, None
        if canonicalize_name(need.name) in self.direct:
            return str(need)
        if need.marker is not None and "extra" in str(need.marker):
            # No index may replace the source if the extra is requested.
            need.specifier = SpecifierSet("<0")
            return str(need)
        raise PypiError(
            f"{package.name} {package.version} depends on {need.name} from "
            f"{without_credentials(need_url)}, which the specification does not name.",
            where="dependencies.pip",
            hint=f"Add a line for {need.name} under pip: a wheel by its URL with #sha256=..., or "
            "a Git URL with a full commit.",
        )

    def _write_stand_ins(self, folder: Path) -> Iterator[str]:
        """Yield a constraint for each distribution of conda packages: exactly that version.

        An empty wheel represents it, without dependencies, since conda installs those. Only if
        extras are requested, it lists what the extras depend on.
        """
        for item in self.provided.values():
            stem = re.sub(r"[-_.]+", "_", item.name)
            version = Version(item.version)
            path = folder / f"{stem}-{version}-py3-none-any.whl"
            _write_empty_wheel(path, stem, version, self._stand_in_metadata(item))
            yield f"{item.name} @ {path.as_uri()}"

    def _stand_in_metadata(self, item: Provided) -> str:
        lines = ["Metadata-Version: 2.1", f"Name: {item.name}", f"Version: {item.version}"]
        for line in self.metadata.get(item.name, b"").decode(errors="replace").splitlines():
            if not line:
                break
            of_extra = line.startswith("Requires-Dist:") and re.search(r"\bextra\s*==", line)
            if line.startswith("Provides-Extra:") or of_extra:
                lines.append(line)
        return "\n".join(lines) + "\n"

    def _cutoff(self) -> list[str]:
        if self.exclude_newer is None:
            return []
        options = ["--exclude-newer", self.exclude_newer.astimezone(UTC).isoformat()]
        for name, moment in self.exclude_newer_of.items():
            limit = "false" if moment is None else moment.astimezone(UTC).isoformat()
            options += ["--exclude-newer-package", f"{name}={limit}"]
        return options

    def _needed(self, requirements: str) -> dict[str, set[str]]:
        """Return name -> names of its dependencies, from `plain==1.0  # via app, other`."""
        needed: dict[str, set[str]] = {}
        for line in requirements.splitlines():
            requirement, _, via = line.partition("# via ")
            name = re.match(r"[\w.-]+", requirement)
            if name is None:
                continue
            held = self.provided.get(canonicalize_name(name[0]))
            target = held.package.name if held else canonicalize_name(name[0])
            for asker in via.split(","):
                asker = asker.strip()
                if asker and not asker.startswith("-"):
                    needed.setdefault(canonicalize_name(asker), set()).add(target)
        return needed

    def _package(self, entry: Mapping[str, Any], needed: Mapping[str, set[str]]) -> PypiPackage:
        name = canonicalize_name(entry["name"])
        if name in self.direct:
            return replace(self.direct[name].package, requires=tuple(sorted(needed.get(name, ()))))
        file = self._file(name, entry)
        url = canonical_or_same(without_credentials(file["url"]))
        return PypiPackage(
            name=name,
            version=str(entry.get("version", "")),
            file_name=_file_name(url),
            url=url,
            sha256=file["hashes"]["sha256"],
            size=int(file.get("size", 0)),
            requires=tuple(sorted(needed.get(name, ()))),
            requires_python=str(entry.get("requires-python", "")),
            license="",
            uploaded=_moment(file.get("upload-time")),
        )

    def _file(self, name: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the best compatible wheel; it must have a sha256 and an HTTP URL."""
        files = [file for file in entry.get("wheels", ()) if _is_taken(file)]
        hashes = self.options.hashes.get(name)
        if hashes:
            files = [file for file in files if file["hashes"]["sha256"] in hashes]
        ranked = [
            (rank, file)
            for file in files
            if (rank := self.target.rank(_file_name(file["url"]))) is not None
        ]
        if ranked:
            return min(ranked, key=lambda pair: pair[0])[1]  # type: ignore[no-any-return]
        if hashes:
            raise PypiError(
                f"On {self.platform}: no wheel of {name} {entry.get('version', '')} for "
                f"{self.target.uv_platform} has a hash that the specification names.",
                where="dependencies.pip",
                hint="Add the --hash of the wheel for this platform, or remove the hashes: "
                "the lock holds the sha256 of every wheel.",
            )
        raise PypiError(
            f"On {self.platform}: the index has no wheel of {name} {entry.get('version', '')} for "
            f"{self.target.uv_platform} with a sha256.",
            where="dependencies.pip",
            hint="Choose another version, or the conda package.",
        )

    def _error(self, said: str, folder: Path) -> StoreError:
        """Convert uv's output to an error."""
        if refused := forward_proxy.refusal_in(said):
            return refused
        text = " ".join(said.replace(folder.as_uri(), "").replace(os.fspath(folder), "").split())
        text = re.sub(r"^.*?(?:cause|error): (?:No solution found[^:]*?cause: )?", "", text)
        text = re.sub(r" @ \S*\.whl", "", text)
        beginning = f"On {self.platform}, the PyPI part has no solution."
        if re.search(
            r"(?i)could not connect|connection|timed out|status server error|\b50\d\b|"
            r"Failed to fetch|error sending request|dns error",
            said,
        ) and not re.search(r"(?i)No solution found|\b40[13]\b", said):
            return ChannelUnavailableError(f"The Python index cannot be read: {text}")
        sdist = re.findall(r"(?:because|Because) ([\w.-]+)(?:\S*)? has no (?:usable )?wheels", said)
        sdist += re.findall(r"building from source is disabled for `([\w.-]+)`", said)
        if sdist:
            names = ", ".join(sorted(set(sdist)))
            return PypiError(
                f"On {self.platform}: {names} has no wheel for Python {self.target.python} and "
                f"{self.target.uv_platform}, only source, which is not built here.",
                where="dependencies.pip",
                hint="Choose a version with a wheel, or the conda package.",
                details={"explanation": text, "sdist_only": sorted(set(sdist))},
            )
        named = {canonicalize_name(word) for word in re.findall(r"[\w.-]+", said)}
        from_conda = [item for item in self.provided.values() if item.name in named]
        if from_conda:
            return PypiError(
                f"{beginning} {text} (The environment already has"
                f" {'; '.join(map(str, from_conda))}.)",
                where="dependencies.pip",
                hint="Change the version of the conda package, or the pip requirement.",
                details={
                    "explanation": text,
                    "conda": [
                        {"name": item.name, "version": item.version, "package": item.package.name}
                        for item in from_conda
                    ],
                },
            )
        return PypiError(
            f"{beginning} {text}",
            where="dependencies.pip",
            hint="Correct the requirement, or use the conda package instead.",
            details={"explanation": text},
        )


def _day(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _unfolded(value: object) -> str:
    return " ".join(str(value).split())


def _write_empty_wheel(path: Path, stem: str, version: Version, metadata: str) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{stem}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _parse(
    requirements: Sequence[str], direct: Mapping[str, DirectWheel] | None
) -> list[Requirement]:
    """Parse PEP 508 requirements; refuse URLs without a wheel in `direct`, if it is given."""
    parsed: list[Requirement] = []
    faults: list[StoreError] = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            message = f"“{text}” is not a valid requirement: {error}"
            faults.append(FaultError(message, where="dependencies.pip"))
            continue
        known = direct is None or canonicalize_name(requirement.name) in direct
        if requirement.url and not known:
            faults.append(
                FaultError(
                    f"“{without_credentials(text)}” names a URL, but only indexes are used here.",
                    where="dependencies.pip",
                )
            )
        parsed.append(requirement)
    if faults:
        raise SpecificationError(faults)
    return parsed


def _applying(requirements: Sequence[Requirement], target: _Target) -> list[Requirement]:
    """Return the requirements whose markers hold for the target."""
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(dict(target.markers))
    ]


def _refuse_contradictions(
    wanted: Sequence[Requirement], provided: Mapping[str, Provided], platform: str
) -> None:
    clashes = [
        (requirement, held)
        for requirement in wanted
        if (held := provided.get(canonicalize_name(requirement.name))) is not None
        and (requirement.url or not requirement.specifier.contains(held.version, prereleases=True))
    ]
    if clashes:
        raise PypiError(
            f"On {platform}: "
            + "; ".join(f"pip requires {requirement}, but the environment has {held}"
                        for requirement, held in clashes)
            + ".",
            where="dependencies.pip",
            hint="Put the version among the conda dependencies, and remove it under pip.",
            details={
                "conda": [
                    {"name": held.name, "version": held.version, "package": held.package.name}
                    for _, held in clashes
                ]
            },
        )  # fmt: skip


def _is_python(package: CondaPackage) -> bool:
    return package.noarch == "python" or any(
        re.match(r"(python|python_abi)(?![\w.-])", entry) for entry in package.depends
    )


def _distributions(package: CondaPackage, paths: Iterable[str]) -> dict[str, Provided]:
    found: dict[str, Provided] = {}
    for path in paths:
        match = _DIST_INFO.fullmatch(path)
        stem = _STEM.fullmatch(match["stem"]) if match else None
        if stem is None:
            continue
        try:
            version = str(Version(stem["version"]))
        except InvalidVersion:
            continue  # not a version that uv accepts
        name = canonicalize_name(stem["name"])
        found[name] = Provided(name=name, version=version, path=path, package=package)
    return found


def _target(part: PlatformLock, virtual: Sequence[str]) -> _Target:
    python = next((package for package in part.conda if package.name == "python"), None)
    if python is None:
        raise PypiError(
            f"The pip part needs Python, but there is none for {part.platform}.",
            where="dependencies",
            hint="Add python to the conda dependencies.",
        )
    if "pypy" in python.build:
        raise PypiError(
            f"The pip part supports CPython only, but {python.file_name} is PyPy.",
            where="dependencies",
            hint="Require CPython: python=*=*_cpython.",
        )
    system, _, architecture = part.platform.partition("-")
    versions = dict(entry.split("=")[:2] for entry in virtual)
    machine = {"64": "x86_64", "arm64": "arm64" if system == "osx" else "aarch64"}.get(
        architecture, architecture
    )
    supported = {"linux": ("x86_64", "aarch64"), "osx": ("x86_64", "arm64"), "win": ("x86_64",)}
    if machine not in supported.get(system, ()):
        raise PypiError(
            f"The pip part does not support the platform {part.platform}.",
            where="dependencies.pip",
            hint="Use conda packages on this platform.",
        )
    macos = ""
    if system == "linux":
        wanted = _numbers(versions.get("__glibc", "2.28"))
        minor = next((m for m in _GLIBC_MINORS if (2, m) <= wanted), 17)
        uv_platform = f"{machine}-manylinux_2_{minor}"
        platforms = list(_manylinux(machine, minor))
    elif system == "osx":
        macos = versions.get("__osx", "11.0")
        uv_platform = f"{'aarch64' if machine == 'arm64' else machine}-apple-darwin"
        platforms = list(tags.mac_platforms(_numbers(macos), machine))
    else:
        uv_platform, platforms = "x86_64-pc-windows-msvc", ["win_amd64"]
    return _Target(
        python=python.version,
        uv_platform=uv_platform,
        tags=tuple(platforms),
        markers=_markers(python.version, system, machine),
        macos=macos,
    )


def _manylinux(machine: str, newest: int) -> Iterator[str]:
    aliases = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    for minor in range(newest, 4 if machine == "x86_64" else 16, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if minor in aliases:
            yield f"{aliases[minor]}_{machine}"
    yield f"linux_{machine}"


def _markers(python: str, system: str, machine: str) -> dict[str, str]:
    names = {
        "linux": ("linux", "Linux", "posix"),
        "osx": ("darwin", "Darwin", "posix"),
        "win": ("win32", "Windows", "nt"),
    }
    sys_platform, platform_system, os_name = names[system]
    own: dict[str, str] = {key: str(value) for key, value in default_environment().items()}
    return own | {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        "implementation_version": python,
        "sys_platform": sys_platform,
        "platform_system": platform_system,
        "os_name": os_name,
        "platform_machine": "AMD64" if system == "win" else machine,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_version": "",
        "extra": "",
    }


def _numbers(version: str) -> tuple[int, int]:
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return int(major), int(minor)


def _is_taken(file: Mapping[str, Any]) -> bool:
    """Return False for a file without a sha256, or with a URL that is not HTTP."""
    on_server = str(file.get("url", "")).startswith(("https://", "http://"))
    return on_server and "sha256" in file.get("hashes", {})


def _moment(uploaded: object) -> int | None:
    """Return milliseconds since the epoch; None if the index does not say."""
    return int(uploaded.timestamp() * 1000) if isinstance(uploaded, datetime) else None


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1])
