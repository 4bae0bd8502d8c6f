"""Target of wheels: the platform tags and markers of a lock's Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging import tags
from packaging.markers import default_environment
from packaging.utils import parse_wheel_filename

from condastore.errors import PypiError
from environments.domain.lock import PlatformLock

_GLIBC_MINORS = (*range(40, 30, -1), 28, 17)  # minor versions of glibc 2 that uv supports


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
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
        return next((location for location, tag in enumerate(accepted) if tag in wheel), None)


def target_of(part: PlatformLock, virtual: Sequence[str]) -> Target:
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
        requested = _numbers(versions.get("__glibc", "2.28"))
        minor = next((m for m in _GLIBC_MINORS if (2, m) <= requested), 17)
        uv_platform = f"{machine}-manylinux_2_{minor}"
        platforms = list(_manylinux(machine, minor))
    elif system == "osx":
        macos = versions.get("__osx", "11.0")
        uv_platform = f"{'aarch64' if machine == 'arm64' else machine}-apple-darwin"
        platforms = list(tags.mac_platforms(_numbers(macos), machine))
    else:
        uv_platform, platforms = "x86_64-pc-windows-msvc", ["win_amd64"]
    return Target(
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
