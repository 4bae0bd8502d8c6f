"""What does a platform promise to packages: its virtual packages, the same on every worker?"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

import rattler

from condastore.errors import InvalidInputError

_LINUX = ("__unix=0=0", "__linux=5.10=0", "__glibc=2.28=0")
_OSX = ("__unix=0=0", "__osx=11.0=0")
_WIN = ("__win=10.0.17763=0",)

#: `name=version=build` by platform. The versions are those of conda-lock (Linux 5.10, glibc 2.28:
#: RHEL 8 and whatever is newer; macOS 11), so that both tools solve alike; names and build strings
#: follow CEP 30. What a worker's own machine has never counts: an answer must not depend on where
#: it was found. There is no `__cuda` unless a specification asks for it.
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

#: Virtual packages that exist on some systems only: an override is ignored elsewhere, so that one
#: specification can name several platforms.
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
    """`name=version=build` of each virtual package of `platform`, sorted.

    Args:
        overrides: `__cuda=12`, `__archspec=1=x86_64_v3` replace or add by name; `__cuda` alone
            adds it with version 0; `__glibc=` takes it away.
    Raises:
        InvalidInputError: an unknown platform, or an override that is not of this form.
    """
    if platform not in DEFAULTS:
        known = ", ".join(DEFAULTS)
        raise InvalidInputError(f"Unknown platform “{platform}”.", hint=f"Known are: {known}.")
    packages = {entry.partition("=")[0]: entry for entry in DEFAULTS[platform]}
    system = platform.partition("-")[0]
    for override in overrides:
        name, equals, value = override.replace(" ", "").partition("=")
        if not name.startswith("__"):
            raise InvalidInputError(
                f"“{override}” does not name a virtual package.",
                where="virtual-packages",
                hint="The names of virtual packages start with two underscores: __cuda=12.",
            )
        if system not in _SYSTEMS.get(name, (system,)):
            continue
        if equals and not value:
            packages.pop(name, None)
            continue
        version, _, build = value.lstrip("=").partition("=")
        packages[name] = f"{name}={version or '0'}={build or '0'}"
    for entry in packages.values():
        to_rattler(entry)  # a malformed version is the person's fault, and is said at once
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
            f"“{entry}” is not a virtual package: {error}",
            where="virtual-packages",
            hint="Write a name and a version: __cuda=12.",
        ) from error
