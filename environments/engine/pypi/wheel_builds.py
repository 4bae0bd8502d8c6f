"""Build of a wheel from a project's source, by its own build backend (PEP 517), in the sandbox.

A backend is untrusted code. It runs in bubblewrap without network, sees only the environment's
interpreter, its build requirements and the source, and can write to its own memory only. The wheel
comes back through a pipe with a size limit. Build requirements are resolved and fetched beforehand,
from the installation's indexes, as wheels: installing those runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from condastore.errors import LinkError, PypiError, SandboxUnavailableError, TimeLimitError
from environments.domain.json_text import parse_json
from environments.domain.lock import PlatformLock, required_name
from environments.domain.lockfiles import is_wheel_file_name
from environments.domain.names import printable
from environments.domain.progress import Cancelled
from environments.domain.records import PypiPackage
from environments.engine.packages.cache import PackageCache
from environments.engine.packages.download_types import PATIENCE, Patience
from environments.engine.prefix import linking
from environments.engine.pypi.install import WheelCache, install_wheels
from environments.engine.system.processes import ToolResult, run_piped
from environments.engine.system.sandbox import Sandbox, require_sandbox

Log = Callable[[str], None]
#: Resolves requirements (PEP 508) to wheels beside the conda packages of a platform.
Resolve = Callable[[Sequence[str], PlatformLock], Sequence[PypiPackage]]

_LEGACY_BACKEND = "setuptools.build_meta:__legacy__"
_LEGACY_REQUIRES = ("setuptools>=40.8.0",)
#: Build requirements that derive a version from tags.
SCM = frozenset(
    {
        *("setuptools-scm", "setuptools_scm", "hatch-vcs", "versioneer", "versioningit", "pbr"),
        *("poetry-dynamic-versioning", "setuptools-git-versioning", "uv-dynamic-versioning"),
    }
)
_MAX_REQUIREMENTS = 200
_LARGEST_WHEEL = 256 << 20
_LARGEST_ANSWER = 1 << 20
_TAIL_LINES = 15  # lines of output in an error message

#: Paths in the sandbox.
_PYTHON, _SOURCE = Path("/condastore/python"), Path("/condastore/source")

#: Runs in the sandbox. Writes to the pipe: `requires` as JSON, or the wheel's name, a line feed and
#: its bytes. The source is copied first, because backends write into it.
_FRONTEND = """
import importlib, json, os, shutil, sys
job = json.load(sys.stdin)
top = "/tmp/source"
shutil.copytree(job["source"], top, symlinks=True)
folder = os.path.join(top, job["subdirectory"])
os.chdir(folder)
for entry in reversed(job["backend_path"]):
    place = os.path.realpath(os.path.join(folder, entry))
    if place != os.path.realpath(folder) and not place.startswith(os.path.realpath(folder) + "/"):
        sys.exit("backend-path leads out of the project")
    sys.path.insert(0, place)
module, _, attribute = job["backend"].partition(":")
backend = importlib.import_module(module)
for name in filter(None, attribute.split(".")):
    backend = getattr(backend, name)
if job["task"] == "requires":
    hook = getattr(backend, "get_requires_for_build_wheel", None)
    answer = json.dumps(hook(None) if hook else []).encode()
    with open(job["pipe"], "wb") as pipe:
        pipe.write(answer)
else:
    os.mkdir("/tmp/wheel")
    name = backend.build_wheel("/tmp/wheel", None, None)
    with open(job["pipe"], "wb") as pipe, open(os.path.join("/tmp/wheel", name), "rb") as wheel:
        pipe.write(name.encode() + b"\\n")
        shutil.copyfileobj(wheel, pipe)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSystem:
    """`[build-system]` of a pyproject.toml, or the defaults of PEP 517."""

    requires: tuple[str, ...] = _LEGACY_REQUIRES
    backend: str = _LEGACY_BACKEND
    backend_path: tuple[str, ...] = ()

    @property
    def counts_tags(self) -> bool:
        """True if the version may be derived from the repository's tags."""
        names = {required_name(text).lower() for text in self.requires}
        return any(name.partition("[")[0] in SCM for name in names)


def read_build_system(pyproject: str | None, *, where: str) -> BuildSystem:
    """Parse a pyproject.toml; None stands for a project with a setup.py only.

    Raises:
        PypiError: it cannot be parsed, or has an invalid requirement.
    """
    if pyproject is None:
        return BuildSystem()
    try:
        table: Any = tomllib.loads(pyproject).get("build-system")
        if table is None:
            return BuildSystem()
        requires = tuple(map(str, table["requires"]))
        backend = str(table.get("build-backend", _LEGACY_BACKEND))
        backend_path = tuple(map(str, table.get("backend-path", ())))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PypiError(
            f"The pyproject.toml of {where} is invalid.",
            where="dependencies.pip",
            hint="Use another commit, or report it to the project.",
        ) from error
    return BuildSystem(
        requires=_requirements(requires, where), backend=backend, backend_path=backend_path
    )


def _requirements(texts: Sequence[Any], where: str) -> tuple[str, ...]:
    """Return normalized build requirements; refuse those that name a URL."""
    if len(texts) > _MAX_REQUIREMENTS:
        raise PypiError(
            f"{where} has more than {_MAX_REQUIREMENTS} build requirements.",
            where="dependencies.pip",
            hint="Publish a wheel of the project, and name the wheel.",
        )
    found = []
    for text in texts:
        try:
            if not str(text).isprintable():  # it becomes a line of uv's input file
                raise InvalidRequirement("control characters")
            requirement = Requirement(str(text))
        except (InvalidRequirement, RecursionError) as error:
            raise PypiError(
                f"{where} has an invalid build requirement: {printable(str(text))}.",
                where="dependencies.pip",
                hint="Use another commit, or report it to the project.",
            ) from error
        if requirement.url:
            raise PypiError(
                f"{where} requires {printable(str(text))} for its build; build requirements may "
                "come from the installation's indexes only.",
                where="dependencies.pip",
                hint="Publish a wheel of the project, and name the wheel.",
            )
        found.append(str(requirement))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltWheel:
    """A wheel in a temporary file; its contents are untrusted."""

    path: Path
    file_name: str
    sha256: str
    size: int


class WheelBuilder:
    """Builds wheels for the platform of this machine."""

    def __init__(
        self,
        *,
        packages: PackageCache,
        wheels: WheelCache,
        work: Path,
        platform: str,
        sandboxed: bool,
        time_limit: timedelta = timedelta(minutes=15),
    ) -> None:
        """
        Args:
            work: folder for the interpreters of builds, on the file system of the caches.
            platform: conda's name of this machine's platform.
            sandboxed: False if this installation has no sandbox; then nothing is built.
            time_limit: time limit of one build.
        """
        self.platform = platform
        self._packages, self._wheels = packages, wheels
        self._work = work
        self._sandboxed = sandboxed
        self._time_limit = time_limit

    def require(self) -> None:
        """Raise SandboxUnavailableError if nothing can be built."""
        if not self._sandboxed:
            raise SandboxUnavailableError(
                "Wheels are built from source in a sandbox only, but this installation runs "
                "without one (CONDASTORE_SANDBOX is off).",
                hint="Name a wheel by its URL with #sha256=..., or ask an administrator to "
                "enable the sandbox.",
            )
        require_sandbox()

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """Create a temporary folder for one build."""
        self._work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".building-", dir=self._work, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)

    def remove_leftovers(self, *, older_than: timedelta) -> None:
        """Remove old temporary folders of killed workers."""
        limit = datetime.now(UTC).timestamp() - older_than.total_seconds()
        for path in self._work.glob(".building-*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < limit:
                    shutil.rmtree(path, ignore_errors=True)

    def build(
        self,
        source: Path,
        system: BuildSystem,
        *,
        label: str,
        subdirectory: str,
        moment: int,
        part: PlatformLock,
        folder: Path,
        resolve: Resolve,
        cancelled: Cancelled,
        log: Log,
        fetching: Mapping[str, Any] | None = None,
        patience: Patience = PATIENCE,
    ) -> BuiltWheel:
        """Build the wheel of a project.

        Args:
            source: the repository's files; read only.
            label: name of the project, for messages.
            moment: seconds since the epoch, for SOURCE_DATE_EPOCH.
            part: lock for this machine, whose Python builds.
            folder: temporary folder of this build; the wheel is left in it.
            fetching: options of the caches, such as credentials.
        Raises:
            PypiError: the build failed; the message has the last lines of its output.
            SandboxUnavailableError, TimeLimitError, DownloadError, LeaseLostError.
        """
        self.require()
        options = {"cancelled": cancelled, "patience": patience, **(fetching or {})}
        closure = python_closure(part)
        prefix = folder / "python"
        linking.link(
            closure,
            target=prefix,
            final_prefix=_PYTHON,
            cache=self._packages,
            packages=self._packages.ensure(closure.conda, **options),
            requested=(),
            variables={},
            moment=datetime.fromtimestamp(moment, UTC),
            note=f"condastore: builds {label}",
            cancelled=cancelled,
        )
        chosen: dict[str, str] = {}

        def install(requirements: Sequence[str]) -> None:
            if not requirements:
                return
            pins = [f"{name}=={version}" for name, version in chosen.items()]
            found = resolve([*requirements, *pins], closure)
            new = [wheel for wheel in found if wheel.name not in chosen]
            self._install(new, closure, prefix, options)
            chosen.update((wheel.name, wheel.version) for wheel in new)

        install(system.requires)
        requires = ", ".join(system.requires) or "no requirements"
        log(f"{label}: building in the sandbox with {requires}")
        job = {
            "source": os.fspath(_SOURCE),
            "subdirectory": subdirectory,
            "backend": system.backend,
            "backend_path": list(system.backend_path),
        }
        run = _Frontend(
            job=job,
            prefix=prefix,
            source=source,
            label=label,
            moment=moment,
            time_limit=self._time_limit,
            cancelled=cancelled,
        )
        more = run.requires()
        install(_requirements(more, label))
        return run.wheel(folder)

    def _install(
        self,
        wheels: Sequence[PypiPackage],
        closure: PlatformLock,
        prefix: Path,
        options: Mapping[str, Any],
    ) -> None:
        python = linking.python_of(closure.conda, closure.platform)
        assert python is not None, "the closure contains python"
        cached = self._wheels.ensure(wheels, **options)
        install_wheels(cached, target=prefix, final_prefix=_PYTHON, python=python)


def python_closure(part: PlatformLock) -> PlatformLock:
    """Return the Python of a lock with all its dependencies.

    Raises:
        PypiError: the lock has no Python.
    """
    by_name = {package.name: package for package in part.conda}
    if "python" not in by_name:
        raise PypiError(
            f"The pip part needs Python, but there is none for {part.platform}.",
            where="dependencies",
            hint="Add python to the conda dependencies.",
        )
    found: set[str] = set()
    open_names = ["python"]
    while open_names:
        name = open_names.pop()
        if name in by_name and name not in found:
            found.add(name)
            open_names += map(required_name, by_name[name].depends)
    return PlatformLock(
        platform=part.platform,
        conda=tuple(package for package in part.conda if package.name in found),
    )


class _Answer:
    """Receiver of a pipe's bytes, into a file, up to a size limit."""

    def __init__(self, file: BinaryIO, largest: int) -> None:
        self._file, self._left = file, largest
        self.whole = False
        self.too_large = False

    def add(self, data: bytes) -> bool:
        self._left -= len(data)
        if self._left < 0:
            self.too_large = True
            return False
        self._file.write(data)
        return True

    def end(self) -> None:
        self.whole = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frontend:
    """Calls the hooks of one backend, each in its own sandbox."""

    job: Mapping[str, Any]
    prefix: Path
    source: Path
    label: str
    moment: int
    time_limit: timedelta
    cancelled: Cancelled

    def requires(self) -> list[str]:
        """Return the build requirements that the backend adds to those of pyproject.toml."""
        with tempfile.TemporaryFile() as file:
            result = self._call("requires", file, _LARGEST_ANSWER)
            file.seek(0)
            try:
                found: Any = parse_json(file.read())
            except (ValueError, RecursionError):
                found = None
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self._failure(result, "returned no list of build requirements")
        return found

    def wheel(self, folder: Path) -> BuiltWheel:
        path = folder / "wheel"
        with path.open("xb+") as file:
            result = self._call("wheel", file, _LARGEST_WHEEL)
            file.seek(0)
            name = file.readline(400).decode(errors="replace").rstrip("\n")
            start, hasher = file.tell(), hashlib.sha256()
            whole = folder / "whole"
            with whole.open("xb") as output:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
                    output.write(chunk)
            size = file.tell() - start
        path.unlink()
        try:
            if not is_wheel_file_name(name):  # a build tag may contain slashes
                raise InvalidWheelFilename
            parse_wheel_filename(name)
        except InvalidWheelFilename as error:
            raise self._failure(result, f"created {printable(name)}, not a wheel") from error
        return BuiltWheel(path=whole, file_name=name, sha256=hasher.hexdigest(), size=size)

    def _call(self, task: str, file: BinaryIO, largest: int) -> ToolResult:
        answer = _Answer(file, largest)
        result = run_piped(
            [f"{_PYTHON}/bin/python", "-I", "-B", "-c", _FRONTEND],
            cwd=Path("/tmp"),  # noqa: S108  # in the sandbox
            env={
                "PATH": f"{_PYTHON}/bin:/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "SOURCE_DATE_EPOCH": str(max(self.moment, 315532800)),  # zip begins in 1980
                "PYTHONHASHSEED": "0",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
            },
            stdin=lambda ends: json.dumps({**self.job, "task": task, "pipe": ends[0]}).encode(),
            outputs=[answer],
            time_limit=self.time_limit,
            cancelled=self.cancelled,
            limits={"RLIMIT_FSIZE": _LARGEST_WHEEL},
            sandbox=Sandbox(readable={_PYTHON: self.prefix, _SOURCE: self.source}),
        )
        if result.timed_out:
            raise TimeLimitError(
                f"{self.label} was not built within {self.time_limit.total_seconds():g} seconds.",
                hint="Publish a wheel of the project, and name the wheel.",
            )
        if answer.too_large:
            raise self._failure(result, f"wrote more than {largest >> 20:,} MiB")
        result.require_not_killed(f"The build of {self.label}")
        if not result.succeeded or not answer.whole:
            raise self._failure(result, f"failed (status {result.status})")
        return result

    def _failure(self, result: ToolResult, why: str) -> PypiError:
        lines = [line for line in result.tail if line.strip()]
        said = "\n".join(lines[-_TAIL_LINES:])
        return PypiError(
            f"The build of {self.label} {why}." + (f" Its output:\n{said}" if said else ""),
            where="dependencies.pip",
            hint="Builds run without network and without the environment's packages. Publish a "
            "wheel of the project and name the wheel, or use the conda package.",
            details={"status": result.status, "tail": lines},
        )


def refuse_other_name(wanted: str, found: str, location: str) -> None:
    """Raise LinkError if a source contains a different project than its line names."""
    if wanted != found:
        raise LinkError(
            f"{location} is the project {found}, not {wanted}.",
            where="dependencies.pip",
            hint=f"Write the line as `{found} @ ...`.",
        )
