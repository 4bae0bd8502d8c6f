"""What conda and micromamba read: explicit lists, lock files, requirements, environment files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: conda's own expression (conda.gateways.disk.read / misc.explicit).
_URL = re.compile(
    r"(?:(?P<url>.+)[/\\])?(?P<fn>[^/\\#]+(?:\.tar\.bz2|\.conda))"
    r"(?:#((?P<md5>[0-9a-f]{32})|((sha256:)?(?P<sha256>[0-9a-f]{64}))))?"
)
_LOCK_NAME = re.compile(r".*-lock\.ya?ml")


class ClientError(Exception):
    """What a client prints before it ends with another status than 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """One package of a list or lock."""

    url: str
    md5: str = ""
    sha256: str = ""

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A lock: conda packages in their order, and lines for pip."""

    conda: tuple[Pinned, ...]
    pip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentFile:
    channels: tuple[str, ...]
    specs: tuple[str, ...]
    pip: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def explicit(path: Path) -> tuple[Pinned, ...]:
    """An explicit list, by conda's rules."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    if "@EXPLICIT" not in lines:
        raise ClientError(f"{path.name} has no line @EXPLICIT.")
    return tuple(_pinned(line) for line in lines if line and line[0] not in "#@")


def _pinned(line: str) -> Pinned:
    found = _URL.fullmatch(line)
    if found is None:
        raise ClientError(f"Could not parse explicit URL: {line}")
    return Pinned(url=line.partition("#")[0], md5=found["md5"] or "", sha256=found["sha256"] or "")


def requirements(path: Path) -> tuple[str, ...]:
    """A file of `--file`: one spec in each line."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def micromamba_lock(path: Path, platform: str) -> Content:
    """A lock of conda-lock, by micromamba's rules."""
    if not _LOCK_NAME.fullmatch(path.name):
        raise ClientError(f"{path.name} is read as an environment file: it has no dependencies.")
    document = yaml.safe_load(path.read_text())
    if document.get("version") != 1:
        raise ClientError("Invalid lockfile version.")
    for key in ("content_hash", "channels", "platforms", "sources"):
        if key not in document["metadata"]:
            raise ClientError(f"No {key!r} in the lockfile metadata.")
    chosen = [
        package
        for package in document["package"]
        if package["platform"] == platform and package["category"] == "main"
    ]
    if not chosen:
        raise ClientError(f"No packages for platform {platform} and category main.")
    for package in chosen:
        for key in ("name", "version", "manager", "url", "hash", "dependencies", "optional"):
            if key not in package:
                raise ClientError(f"No {key!r} in the package {package}.")
        if not {"md5", "sha256"} & package["hash"].keys():
            raise ClientError(f"No hash of {package['name']}.")
    return Content(
        conda=tuple(
            Pinned(
                url=package["url"],
                md5=package["hash"].get("md5", ""),
                sha256=package["hash"].get("sha256", ""),
            )
            for package in chosen
            if package["manager"] == "conda"
        ),
        pip=tuple(
            f"{package['name']} @ {package['url']}#sha256={package['hash']['sha256']}"
            for package in chosen
            if package["manager"] == "pip"
        ),
    )


def environment_file(path: Path) -> EnvironmentFile:
    document = yaml.safe_load(path.read_text())
    specs = [each for each in document["dependencies"] if isinstance(each, str)]
    pip = list(_pip_parts(document["dependencies"]))
    if pip and not any(re.match(r"pip(?![\w.-])", spec) for spec in specs):
        specs.append("pip")  # conda warns, and adds it
    return EnvironmentFile(
        channels=tuple(document.get("channels", ())),
        specs=tuple(specs),
        pip=tuple(pip),
        variables=dict(document.get("variables", {})),
    )


def _pip_parts(dependencies: list[Any]) -> Iterator[str]:
    for each in dependencies:
        if isinstance(each, dict):
            yield from each["pip"]
