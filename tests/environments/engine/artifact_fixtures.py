"""Fixtures for artifact tests: locks of small-channel packages, and a wheel."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from environments.domain.lock import Lock, PlatformLock
from environments.domain.records import CondaPackage
from environments.engine.artifacts.staging import Material
from environments.engine.packages.cache import PackageCache
from environments.engine.pypi.install import WheelCache
from tests.channels.simple_index import make_wheel
from tests.environments.engine.package_fixtures import packages_of
from tests.environments.engine.pypi.test_install import stored

NAMES = ("libalpha", "libbeta", "apptool", "python", "hello-noarch")


def material_of(
    cache: PackageCache, *packages: CondaPackage, platform: str = "linux-64", **options: Any
) -> Material:
    """A lock of `packages`, fetched into `cache`, with a folder to work in."""
    work = cache.folder.parent / "work" / secrets.token_hex(4)
    work.mkdir(parents=True)
    wheels = options.pop("wheels", ())
    part = PlatformLock(platform=platform, conda=packages, pypi=tuple(wheels))
    chosen: dict[str, Any] = {"variables": {"GREETING": "it's $HOME"}}
    return Material(
        lock=Lock(channels=("https://channel.example",), platforms=(part,)),
        platform=platform,
        packages=cache.ensure(packages),
        wheels=WheelCache(cache.folder.with_name("wheels")).ensure(wheels),
        cache=cache,
        work=work,
        **(chosen | options),
    )


def stack(channel: Path, cache: PackageCache, index: Path, **options: Any) -> Material:
    """Programs that tell their prefix: of text and binary files, of entry points, of a wheel."""
    found = packages_of(channel)
    greeter = make_wheel(
        "greeter",
        "1.2",
        files={"greeter.py": "import sys\ndef main():\n    print('hi from', sys.prefix)\n"},
        scripts={"greet": "greeter:main"},
    )
    wheels = [stored(greeter, index)]
    return material_of(cache, *(found[name] for name in NAMES), wheels=wheels, **options)
