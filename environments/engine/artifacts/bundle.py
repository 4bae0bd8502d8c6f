"""Bundle of a lock for machines without network: a channel of its packages, and other formats.

bundle-<lock>-<platform>/
    README.txt        how to use it
    channel/          a conda channel: every original package, and its index
    wheels/           the packages of PyPI
    packages.txt      exact specs of the lock's packages in the channel
    conda-lock.yml explicit.txt sbom.cdx.json install.sh
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from condastore.errors import ConflictError, LinkError
from environments.domain import rendering
from environments.domain.artifacts import FORMS, ArtifactKind
from environments.domain.lock import lacks_pip
from environments.domain.names import printable
from environments.domain.progress import obey
from environments.domain.records import CondaPackage, Package
from environments.domain.sbom import cyclonedx
from environments.domain.unpacking import path_fault
from environments.engine.artifacts.archives import disk_full_as_error
from environments.engine.artifacts.installer import SYSTEMS, make_installer
from environments.engine.artifacts.staging import Material
from environments.engine.artifacts.tar import END, Entry, chunks, tar_stream, with_folders

_README = """\
The packages of the lock {digest}
for {platform}, for machines without a network.

With the installer, which needs nothing else:

    sh install.sh -p PREFIX

With micromamba, mamba or conda, from the channel in this folder:

    {variables}micromamba create -p PREFIX --offline --override-channels \\
        -c "file://$PWD/channel" --file packages.txt
"""
_README_WITHOUT_PIP = """
The variables before the command stop conda and mamba from adding pip, which is not in the channel.
"""
_README_WHEELS = """
and the packages of the Python index:

    PREFIX/bin/python -m pip install --no-index --no-deps wheels/*.whl
"""
#: Keys that are not part of the bundle's index: the original location of a package.
_ELSEWHERE = frozenset({"url", "channel", "fn"})


def make_bundle(material: Material) -> Path:
    folder = material.work / "originals"
    folder.mkdir()
    with disk_full_as_error():
        originals = material.originals([*material.part.conda, *material.part.pypi], folder)
        top = f"bundle-{material.lock.digest[:12]}-{material.platform}"
        moment = int(material.moment.timestamp())
        entries = [
            *_texts(material, top, moment),
            *_packages(material, originals, top, moment),
            *_installer(material, top, moment),
        ]
        path = material.work / FORMS[ArtifactKind.BUNDLE].file_name
        with path.open("xb") as out:
            members = tar_stream(with_folders(entries, moment))
            for piece in chunks(chain(members, [END]), 1 << 20, reuse=True):
                obey(material.cancelled)
                out.write(piece)
    return path


def _texts(material: Material, top: str, moment: int) -> Iterator[Entry]:
    lock, platform = material.lock, material.platform
    texts = {
        "README.txt": _readme(material),
        "explicit.txt": rendering.explicit_txt(lock, platform),
        "sbom.cdx.json": cyclonedx(lock, platform),
        "packages.txt": "".join(
            f"{package.name}={package.version}={package.build}\n"
            for package in sorted(_real(material), key=lambda each: each.name)
        ),
        **{f"channel/{subdir}/repodata.json": text for subdir, text in _indexes(material)},
    }
    with contextlib.suppress(ConflictError):  # packages without md5
        texts["conda-lock.yml"] = rendering.conda_lock_yml(lock)
    for name, text in texts.items():
        yield Entry.file(f"{top}/{name}", text.encode(), moment)


def _readme(material: Material) -> str:
    """Return the README; conda and mamba add pip beside Python, which not every lock has."""
    without_pip = lacks_pip(material.part)
    text = _README.format(
        digest=material.lock.digest,
        platform=material.platform,
        variables=f"{rendering.WITHOUT_PIP} \\\n        " if without_pip else "",
    )
    if without_pip:
        return text + _README_WITHOUT_PIP
    return text + (_README_WHEELS if material.part.pypi else "")


def _real(material: Material) -> list[CondaPackage]:
    return [package for package in material.part.conda if not package.name.startswith("__")]


def _indexes(material: Material) -> Iterator[tuple[str, str]]:
    """Yield the index of the platform's subdir and of noarch; clients require both."""
    for subdir in sorted({material.platform, "noarch"}):
        index: dict[str, Any] = {
            "info": {"subdir": subdir},
            "packages": {},
            "packages.conda": {},
            "removed": [],
            "repodata_version": 1,
        }
        for package in _real(material):
            if package.subdir == subdir:
                kind = "packages.conda" if package.file_name.endswith(".conda") else "packages"
                record = {
                    key: value for key, value in package.record.items() if key not in _ELSEWHERE
                }
                index[kind][package.file_name] = record
        yield subdir, json.dumps(index, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _packages(
    material: Material, originals: dict[str, Path], top: str, moment: int
) -> Iterator[Entry]:
    packages: list[Package] = [*_real(material), *material.part.pypi]
    for package in packages:
        folder = f"channel/{package.subdir}" if isinstance(package, CondaPackage) else "wheels"
        if path_fault(package.file_name) or "/" in package.file_name:
            raise LinkError(
                f"{printable(package.file_name)} is not a valid file name.", where=package.url
            )
        source = originals[package.url]
        size = source.stat().st_size
        yield Entry(f"{top}/{folder}/{package.file_name}", str(source), size, moment)


def _installer(material: Material, top: str, moment: int) -> Iterator[Entry]:
    if material.platform in SYSTEMS:
        created = make_installer(material)
        yield Entry(f"{top}/{created.name}", str(created), created.stat().st_size, moment, 0o755)
