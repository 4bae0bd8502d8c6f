"""Rendering of a lock as files of other tools. The same lock gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import yaml

from condastore.errors import ConflictError, NotFoundError
from environments.domain.lock import Lock, PlatformLock, lacks_pip, required_name
from environments.domain.lockfiles import conda_file_parts, unhashed
from environments.domain.pip_requirements import DirectReference
from environments.domain.records import CondaPackage, PypiPackage
from environments.domain.specification import Specification

_CONDA_LOCK_HEADER = """\
# A lock file in the format of conda-lock, version 1: exact packages with their hashes.
#
#     conda-lock install --name NAME conda-lock.yml
#     micromamba create --name NAME --file conda-lock.yml
"""
#: Options of conda and mamba, without which they require a pip that is not in the lock.
WITHOUT_PIP = "CONDA_ADD_PIP_AS_PYTHON_DEPENDENCY=false MAMBA_ADD_PIP_AS_PYTHON_DEPENDENCY=false"
_CONDA_LOCK_WITHOUT_PIP = """\
#
# It has PyPI packages and no pip ({platforms}). Both commands would call the pip of
# the environment: micromamba fails, and conda-lock may install into another environment. Build the
# environment again, which adds pip, or take the archive, the installer or the image.
"""


def conda_lock_yml(lock: Lock, specification: Specification | None = None) -> str:
    """Render all platforms as `conda-lock.yml`, version 1.

    Raises:
        ConflictError: a conda package has no md5, which this format requires.
    """
    without = sorted({p.file_name for part in lock for p in part.conda if not p.md5})
    if without:
        raise ConflictError(
            f"conda-lock.yml needs an md5 of every package; {', '.join(without[:5])} has none.",
            hint="Take the explicit list or pixi.lock, which carry sha256.",
            details={"packages": without},
        )
    packages = [
        *(
            _conda_lock_entry(package, part.platform)
            for part in lock
            for package in part.conda
            if not package.name.startswith("__")
        ),
        *(_conda_lock_pip(package, part.platform) for part in lock for package in part.pypi),
    ]
    # conda-lock's own order.
    packages.sort(key=lambda entry: (entry["manager"], entry["name"], entry["platform"]))
    content = {
        "version": 1,
        "metadata": {
            "content_hash": {part.platform: _content_hash(part, specification) for part in lock},
            "channels": [{"url": url, "used_env_vars": []} for url in lock.channels],
            "platforms": sorted(part.platform for part in lock),
            "sources": ["environment.yml"],
        },
        "package": packages,
    }
    without_pip = sorted(part.platform for part in lock if part.pypi and lacks_pip(part))
    header = _CONDA_LOCK_HEADER
    if without_pip:
        header += _CONDA_LOCK_WITHOUT_PIP.format(platforms=", ".join(without_pip))
    for part in lock:
        header += "".join(f"{line}\n" for line in _hash_notes(specification, part.platform))
    return header + _yaml(content)


def _hash_notes(specification: Specification | None, platform: str) -> list[str]:
    """Return comments that say which hashes are not those of the list that was submitted."""
    names = _hashes_from_channel(specification, platform)
    if not names:
        return []
    return [
        f"# The submitted list for {platform} had no hash of these packages.",
        "# The hash of each is that of its channel's record:",
        *(f"#   {name}" for name in names),
    ]


def _hashes_from_channel(specification: Specification | None, platform: str) -> tuple[str, ...]:
    """Return the files whose hash the channel gave, because the submitted list had none."""
    if specification is None or specification.lock is None:
        return ()
    return unhashed(specification.lock, platform)


def _content_hash(part: PlatformLock, specification: Specification | None) -> str:
    """Return the digest that conda-lock compares before it locks again; it never equals its own."""
    if specification is not None:
        return hashlib.sha256(f"{specification.digest} {part.platform}".encode()).hexdigest()
    return Lock(channels=(), platforms=(part,)).digest


def _conda_lock_entry(package: CondaPackage, platform: str) -> dict[str, Any]:
    return {
        "name": package.name,
        "version": package.version,
        "manager": "conda",
        "platform": platform,
        "dependencies": _dependencies(package.depends),
        "url": _url_for_conda(package),
        "hash": {
            "md5": package.md5,
            **({"sha256": package.sha256} if package.sha256 else {}),
        },
        "build": package.build,
        "category": "main",
        "optional": False,
    }


def _conda_lock_pip(package: PypiPackage, platform: str) -> dict[str, Any]:
    digest, source = package.sha256, {}
    if package.built:  # as conda-lock writes it: pip builds the commit
        digest = DirectReference.of_location(package.url, sha256="").commit
    if package.direct:
        source = {"source": {"type": "url", "url": package.url}}
    return {
        "name": package.name,
        "version": package.version,
        "manager": "pip",
        "platform": platform,
        "dependencies": {required_name(text): "" for text in sorted(package.requires)},
        "url": package.url,
        "hash": {"sha256": digest},
        **source,
        "category": "main",
        "optional": False,
    }


def _dependencies(depends: Iterable[str]) -> dict[str, str]:
    """Return sorted requirements by name; several of one name are joined if possible."""
    found: dict[str, str] = {}
    for text in depends:
        name = required_name(text)
        if not name or name.startswith("__"):
            continue  # virtual packages belong to the machine: conda-lock omits them
        requirement = text.partition("::")[2] or text
        requirement = requirement.strip()[len(name) :].strip()
        held = found.get(name, "")
        if held and requirement and " " not in held + requirement and "[" not in held + requirement:
            requirement = f"{held},{requirement}"
        found[name] = requirement or held
    return dict(sorted(found.items()))


def _url_for_conda(package: CondaPackage) -> str:
    """Return the URL of a package without escaping `+` and `!` in the file name.

    conda takes the version from the file name without decoding it, and refuses `1.0%2Bcu118`
    (conda/conda-lock#764). rattler writes `+` as `%2B`.
    """
    folder, _, name = package.url.rpartition("/")
    for escape, character in (("%2B", "+"), ("%21", "!")):
        name = name.replace(escape, character)
    return f"{folder}/{name}"


def explicit_txt(lock: Lock, platform: str, specification: Specification | None = None) -> str:
    """Render one platform as an explicit list for `conda create --file`, dependencies first.

    Each URL ends in the md5, which every reader accepts; the sha256 is in a comment before it.
    If a channel has no md5, the URL ends in `#sha256:`, which conda 23.11 and rattler read.
    Packages of PyPI are comments, as conda-lock writes them.

    Raises:
        NotFoundError: the lock is not for `platform`.
    """
    part = _part(lock, platform)
    lines = [
        "# An explicit list: conda create --name NAME --file explicit.txt",
        f"# platform: {platform}",
        *_hash_notes(specification, platform),
        "@EXPLICIT",
    ]
    for package in part.conda:
        url = _url_for_conda(package)
        if package.md5:
            if package.sha256:
                lines.append(f"# sha256:{package.sha256} {url.rsplit('/', 1)[-1]}")
            lines.append(f"{url}#{package.md5}")
        else:
            lines.append(f"{url}#sha256:{package.sha256}")
    lines += [f"# pip {item.name} @ {_source(item)}" for item in part.pypi]
    return "\n".join(lines) + "\n"


def lock_json(lock: Lock, specification: Specification, platform: str) -> str:
    """Render one platform with complete records, for programs that link it.

    `Lock.from_json` reads `lock`; the other keys describe the prefix beyond its packages.

    Raises:
        NotFoundError: the lock is not for `platform`.
    """
    part = replace(lock, platforms=(_part(lock, platform),))
    document = {
        "version": 1,
        "digest": lock.digest,
        "specification": specification.digest,
        "platform": platform,
        "requested": list(specification.dependencies.get(platform, ())),
        "variables": dict(specification.variables),
        "lock": part.to_json(),
    }
    if names := _hashes_from_channel(specification, platform):
        document["hashes_from_channel"] = list(names)
    return json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n"


def environment_yml(lock: Lock, platform: str, specification: Specification | None = None) -> str:
    """Render one platform as an `environment.yml` that pins every package, for people.

    Raises:
        NotFoundError: the lock is not for `platform`.
    """
    part = _part(lock, platform)
    first = lock.channels[0] if lock.channels else ""
    # conda would search the first channel that has the name only.
    dependencies: list[Any] = [
        ("" if package.channel == first else f"{package.channel}::")
        + f"{package.name}={package.version}={package.build}"
        for package in sorted(part.conda, key=lambda package: package.name)
    ]
    if part.pypi:
        if all(package.name != "pip" for package in part.conda):
            # conda installs the `pip:` part with the pip of the environment.
            dependencies.append("pip")
        options = specification.pip_options.get(platform) if specification is not None else None
        dependencies.append(
            {
                "pip": [
                    *(options.lines if options is not None else ()),
                    *(
                        f"{item.name} @ {_source(item)}"
                        if item.direct
                        else f"{item.name}=={item.version}"
                        for item in part.pypi
                    ),
                ]
            }
        )
    content: dict[str, Any] = {}
    if specification is not None and specification.name:
        content["name"] = specification.name
    # No `nodefaults`: conda with the rattler solver asks for a channel of that name, and fails
    # offline. Channels of a file come before those of conda's own configuration.
    content["channels"] = [*lock.channels]
    content["dependencies"] = dependencies
    if specification is not None and specification.variables:
        content["variables"] = dict(sorted(specification.variables.items()))
    notes = [f"# platform: {platform}"]
    if lacks_pip(part) and not part.pypi:
        notes.append(
            "# conda and mamba add pip to these packages, unless these variables are set:\n"
            f"# {WITHOUT_PIP}"
        )
    return "\n".join(notes) + f"\n{_yaml(content)}"


def pixi_lock(lock: Lock, *, indexes: Sequence[str] = ()) -> str:
    """Render all platforms as `pixi.lock`, version 6.

    Not written by rattler, whose writer takes no hash of a PyPI package. A test reads it with
    rattler.

    Args:
        indexes: URLs of the Python indexes, without credentials.
    """
    entries: dict[str, dict[str, Any]] = {}
    platforms: dict[str, list[dict[str, str]]] = {}
    for part in sorted(lock, key=lambda part: part.platform):
        listed = platforms.setdefault(part.platform, [])
        for package in sorted(part.conda, key=lambda package: package.url):
            listed.append({"conda": package.url})
            entries[package.url] = dict(_pixi_conda(package))
        for wheel in sorted(part.pypi, key=lambda wheel: wheel.url):
            entry = _pixi_pypi(wheel)
            listed.append({"pypi": entry["pypi"]})
            entries[entry["pypi"]] = entry
    environment: dict[str, Any] = {"channels": [{"url": f"{url}/"} for url in lock.channels]}
    if indexes and any(part.pypi for part in lock):
        environment["indexes"] = list(indexes)
    environment["packages"] = platforms
    content = {
        "version": 6,
        "environments": {"default": environment},
        "packages": [entries[url] for url in sorted(entries)],
    }
    return _yaml(content)


def _pixi_conda(package: CondaPackage) -> Iterator[tuple[str, Any]]:
    record = package.record
    yield "conda", package.url
    # Readers take name, version, build and subdir from the URL; differences are written.
    parts = conda_file_parts(package.file_name)
    for key, value in (
        ("name", package.name),
        ("version", package.version),
        ("build", package.build),
    ):
        if parts.get(key) != value:
            yield key, value
    number = package.build.rpartition("_")[2]
    if not number.isdigit() or int(number) != package.build_number:
        yield "build_number", package.build_number
    derived = "python" if any(required_name(d) == "python" for d in package.depends) else "generic"
    if package.noarch and package.noarch != derived:
        yield "noarch", package.noarch
    for key, digest in (("sha256", package.sha256), ("md5", package.md5)):
        if digest:
            yield key, digest
    for key, texts in (("depends", package.depends), ("constrains", package.constrains)):
        if texts:
            yield key, list(texts)
    features = record.get("track_features") or ()
    if isinstance(features, str):  # as old records write it
        features = features.replace(",", " ").split()
    if features:
        yield "track_features", list(features)
    for key in ("license", "license_family", "purls"):
        if written := record.get(key):
            yield key, written
    if package.size:
        yield "size", package.size
    if package.timestamp is not None:
        yield "timestamp", package.timestamp
    if minor := record.get("python_site_packages_path"):
        yield "python_site_packages_path", minor


def _source(package: PypiPackage) -> str:
    """Return the URL of a wheel with its sha256, or the Git commit that it was built from."""
    reference = DirectReference.of_location(package.url, sha256=package.sha256)
    return reference.text


def _pixi_pypi(package: PypiPackage) -> dict[str, Any]:
    url, digest = package.url, {"sha256": package.sha256}
    if package.built:  # pixi builds it again and has no digest of the wheel
        source = DirectReference.of_location(package.url, sha256="")
        below = f"&subdirectory={source.subdirectory}" if source.subdirectory else ""
        url = f"git+{source.url}?rev={source.commit}{below}#{source.commit}"
        digest = {}
    return {
        "pypi": url,
        "name": package.name,
        "version": package.version,
        **digest,
        **({"requires_dist": sorted(package.requires)} if package.requires else {}),
        **({"requires_python": package.requires_python} if package.requires_python else {}),
    }


def _part(lock: Lock, platform: str) -> PlatformLock:
    part = lock.on(platform)
    if part is None:
        known = ", ".join(sorted(each.platform for each in lock)) or "none"
        raise NotFoundError(
            f"The lock has no packages for {platform}.", hint=f"It is for: {known}."
        )
    return part


def _yaml(content: dict[str, Any]) -> str:
    text: str = yaml.dump(
        content,
        Dumper=yaml.CSafeDumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=2**20,
    )
    return text
