"""Locks to test with: from the records of the small channel, and made by hypothesis."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from environments.domain.lock import Lock, PlatformLock, dependency_order
from environments.domain.records import CondaPackage, PypiPackage

CHANNEL = "https://conda.anaconda.org/conda-forge"


def conda(
    name: str,
    version: str = "1.0",
    *,
    build: str = "h0_0",
    subdir: str = "linux-64",
    channel: str = CHANNEL,
    depends: tuple[str, ...] = (),
    **more: Any,
) -> CondaPackage:
    file_name = f"{name}-{version}-{build}.conda"
    url = f"{channel}/{subdir}/{file_name}"
    record = {
        "name": name,
        "version": version,
        "build": build,
        "build_number": 0,
        "subdir": subdir,
        "depends": list(depends),
        "sha256": hashlib.sha256(url.encode()).hexdigest(),
        "md5": hashlib.md5(url.encode()).hexdigest(),
        "size": 1000,
        "license": "MIT",
        **more,
    }
    return CondaPackage.from_record(record, url=url, channel=channel, file_name=file_name)


def pypi(name: str, version: str = "1.0", *, requires: tuple[str, ...] = ()) -> PypiPackage:
    file_name = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return PypiPackage(
        name=name,
        version=version,
        file_name=file_name,
        url=f"https://files.example.org/{file_name}",
        sha256=hashlib.sha256(file_name.encode()).hexdigest(),
        size=100,
        requires=requires,
        requires_python=">=3.9",
        license="MIT",
    )


def platform_lock(
    *packages: CondaPackage | PypiPackage, platform: str = "linux-64"
) -> PlatformLock:
    return PlatformLock(
        platform=platform,
        conda=dependency_order(p for p in packages if isinstance(p, CondaPackage)),
        pypi=tuple(p for p in packages if isinstance(p, PypiPackage)),
    )


def small_lock(channel: Path, base_url: str = CHANNEL) -> Lock:
    """The newest of every package of the small channel, for each platform it has."""
    parts = []
    for platform in ("linux-64", "osx-arm64"):
        newest: dict[str, CondaPackage] = {}
        for subdir in ("noarch", platform):
            content = json.loads((channel / subdir / "repodata.json").read_text())
            for key in ("packages", "packages.conda"):
                for file_name, record in sorted(content[key].items()):
                    newest[record["name"]] = CondaPackage.from_record(
                        record | {"subdir": subdir},
                        url=f"{base_url}/{subdir}/{file_name}",
                        channel=base_url,
                        file_name=file_name,
                    )
        parts.append(platform_lock(*newest.values(), pypi("six"), platform=platform))
    return Lock(channels=(base_url,), platforms=tuple(parts))


_names = st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,4})?", fullmatch=True)
_versions = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,2}", fullmatch=True)


@st.composite
def locks(draw: st.DrawFn) -> Lock:
    """Locks of one to three platforms, in which packages need earlier ones, and some cycles."""
    platforms = draw(
        st.lists(st.sampled_from(["linux-64", "osx-arm64", "win-64"]), unique=True, min_size=1)
    )
    parts = []
    for platform in sorted(platforms):
        names = draw(st.lists(_names, unique=True, max_size=8))
        packages = [
            conda(
                name,
                draw(_versions),
                build=draw(st.sampled_from(["0", "h1234_0", "py311_1"])),
                subdir=draw(st.sampled_from([platform, "noarch"])),
                depends=tuple(
                    f"{other}{draw(st.sampled_from(['', ' >=1', ' 1.* *_0', ' >=1,<3']))}"
                    for other in draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
                ),
                license=draw(st.sampled_from(["MIT", "", "GPL-3.0-or-later"])),
            )
            for name in names
        ]
        wheels = [
            pypi(name, draw(_versions), requires=tuple(names[:2]))
            for name in draw(st.lists(_names, unique=True, max_size=3))
        ]
        parts.append(platform_lock(*packages, *wheels, platform=platform))
    return Lock(channels=(CHANNEL,), platforms=tuple(parts))
