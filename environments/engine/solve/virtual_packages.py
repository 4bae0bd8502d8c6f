"""Virtual packages of each platform, the same on every worker."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

import rattler

from condastore.errors import InvalidInputError

_LINUX = ("__unix=0=0", "__linux=5.10=0", "__glibc=2.28=0")
_OSX = ("__unix=0=0", "__osx=11.0=0")
_WIN = ("__win=10.0.17763=0",)

#: `name=version=build` by platform. Versions are those of conda-lock (Linux 5.10, glibc 2.28: RHEL
#: 8 and later; macOS 11), so that both tools give the same solutions; names and build strings
#: follow CEP 30. What a worker's machine has is ignored: a solution must not depend on the worker.
#: There is no `__cuda` unless a specification declares it.
DEFAULTS = MappingProxyType(
    {
        "linux-64": (*_LINUX, "__archspec=1=x86_64"),
        "linux-aarch64": (*_LINUX, "__archspec=1=aarch64"),
        "linux-ppc64le": (*_LINUX, "__archspec=1=ppc64le"),
        "linux-s390x": (*_LINUX, "__archspec=1=s390x"),
        "linux-riscv64": (*_LINUX, "__archspec=1=riscv64"),
        "osx-64": (*_OSX, "__archspec=1=x86_64"),
        "osx-arm64": (*_OSX, "__archspec=1=m1"),
        "win-64": (*_WIN, "__archspec=1=x86_64"),
        "win-arm64": (*_WIN, "__archspec=1=aarch64"),
    }
)

#: Virtual packages that exist on some systems only; overrides are ignored on other systems, so that
#: one specification can serve several platforms.
_SYSTEMS = MappingProxyType(
    {
        "__linux": ("linux",),
        "__glibc": ("linux",),
        "__musl": ("linux",),
        "__osx": ("osx",),
        "__win": ("win",),
        "__cuda": ("linux", "win"),
    }
)


def virtual_packages(platform: str, overrides: Iterable[str] = ()) -> tuple[str, ...]:
    """Return `name=version=build` of each virtual package of `platform`, sorted.

    Args:
        overrides: `__cuda=12` or `__archspec=1=x86_64_v3` replaces or adds one; `__cuda` alone
            adds it with version 0; `__glibc=` removes it.
    Raises:
        InvalidInputError: an unknown platform, or an override that is not of this form.
    """
    if platform not in DEFAULTS:
        known = ", ".join(DEFAULTS)
        raise InvalidInputError(f"Unknown platform “{platform}”.", hint=f"Use one of: {known}.")
    packages = {entry.partition("=")[0]: entry for entry in DEFAULTS[platform]}
    system = platform.partition("-")[0]
    for override in overrides:
        name, equals, value = override.replace(" ", "").partition("=")
        if not name.startswith("__"):
            raise InvalidInputError(
                f"“{override}” is not the name of a virtual package.",
                where="virtual-packages",
                hint="Names of virtual packages start with two underscores: __cuda=12.",
            )
        if system not in _SYSTEMS.get(name, (system,)):
            continue
        if equals and not value:
            packages.pop(name, None)
            continue
        version, _, build = value.lstrip("=").partition("=")
        packages[name] = f"{name}={version or '0'}={build or '0'}"
    for entry in packages.values():
        to_rattler(entry)  # report a malformed version now
    return tuple(sorted(packages.values()))


def to_rattler(entry: str) -> rattler.GenericVirtualPackage:
    name, version, build = entry.split("=", 2)
    try:
        return rattler.GenericVirtualPackage(
            rattler.PackageName(name),
            rattler.Version(version),
            rattler.package.BuildString(build),
        )
    except Exception as error:  # rattler's errors have no common base
        raise InvalidInputError(
            f"“{entry}” is not a valid virtual package: {error}",
            where="virtual-packages",
            hint="Write a name and a version, such as __cuda=12.",
        ) from error
