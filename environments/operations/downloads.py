"""Text files of a build: its lock in the formats of other tools, its log and provenance."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from django.conf import settings

from accounts.access import Actor, may, require
from accounts.roles import Perm
from condastore.errors import ConflictError, NotFoundError
from environments.domain import artifacts, rendering, sbom
from environments.domain.lifecycle import SERVED
from environments.domain.lock import Lock
from environments.domain.specification import Specification
from environments.models import Build
from environments.models.recalls import refuse_recalled
from environments.services.platforms import own_platform

#: Part of each ETag. Increase it when the same lock is rendered differently.
RENDERING_VERSION = 2
LOG = "log"
#: Size of the cache of rendered files in each process, in characters.
MAX_CACHED_CHARACTERS = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One file format of a lock."""

    render: Callable[[Lock, Specification, str], str]
    content_type: str
    #: Name of the saved file; some tools recognize a format only by it.
    suffix: str
    one_platform: bool


FORMS: Mapping[str, Form] = {
    "conda-lock.yml": Form(
        render=lambda lock, asked, platform: rendering.conda_lock_yml(lock, asked),
        content_type="application/yaml",
        suffix="conda-lock.yml",
        one_platform=False,
    ),
    "environment.yml": Form(
        render=lambda lock, asked, platform: rendering.environment_yml(lock, platform, asked),
        content_type="application/yaml",
        suffix="environment.yml",
        one_platform=True,
    ),
    "explicit.txt": Form(
        render=lambda lock, asked, platform: rendering.explicit_txt(lock, platform, asked),
        content_type="text/plain",
        suffix="explicit.txt",
        one_platform=True,
    ),
    "pixi.lock": Form(
        render=lambda lock, asked, platform: rendering.pixi_lock(
            lock, indexes=tuple(settings.PYPI_INDEX_URLS)
        ),
        content_type="application/yaml",
        suffix="pixi.lock",
        one_platform=False,
    ),
    "lock.json": Form(
        render=lambda lock, asked, platform: rendering.lock_json(lock, asked, platform),
        content_type="application/json",
        suffix="lock.json",
        one_platform=True,
    ),
    "sbom.cdx.json": Form(
        render=lambda lock, asked, platform: sbom.cyclonedx(lock, platform),
        content_type="application/vnd.cyclonedx+json",
        suffix="sbom.cdx.json",
        one_platform=True,
    ),
}
#: Belongs to one build instead of its lock; see operations/provenance.py.
PROVENANCE = "provenance.intoto.json"
FILES = (*FORMS, PROVENANCE, LOG, *(form.file_name for form in artifacts.FORMS.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFile:
    """A file of a build that `text` renders on demand."""

    build: Build
    name: str
    platform: str

    @property
    def form(self) -> Form:
        return FORMS[self.name]

    @property
    def file_name(self) -> str:
        """Return `research-ml-12-conda-lock.yml`: micromamba recognizes locks by `-lock.yml`."""
        environment = self.build.environment
        stem = f"{environment.namespace.name}-{environment.name}-{self.build.number}"
        if self.form.one_platform:
            stem += f"-{self.platform}"
        return f"{stem}-{self.form.suffix}"

    @property
    def etag(self) -> str:
        """Return the ETag of the inputs, without rendering the file."""
        assert self.build.lock is not None
        made_from = (
            self.build.lock.digest,
            self.build.specification.digest,
            self.name,
            self.platform if self.form.one_platform else "",
            str(RENDERING_VERSION),
            *settings.PYPI_INDEX_URLS,
        )
        return f'"{hashlib.sha256(" ".join(made_from).encode()).hexdigest()[:32]}"'

    def text(self) -> str:
        """Return the rendered file, from the cache of this process if possible."""
        row = self.build.lock
        assert row is not None
        key = (row.pk, row.claims, self.etag)
        if (known := _rendered.get(key)) is not None:
            return known
        text = self.form.render(row.value(), self.build.specification.value(), self.platform)
        _rendered.put(key, text)
        return text


class TextCache:
    """Cache of rendered texts, bounded by size. A key covers all inputs of a text."""

    def __init__(self, size: int) -> None:
        self._left, self._guard = size, threading.Lock()
        self._texts: OrderedDict[Hashable, str] = OrderedDict()

    def get(self, key: Hashable) -> str | None:
        with self._guard:
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def put(self, key: Hashable, text: str) -> None:
        with self._guard:
            if key in self._texts:
                return
            self._texts[key] = text
            self._left -= len(text)
            while self._left < 0:
                _, oldest = self._texts.popitem(last=False)
                self._left += len(oldest)


_rendered = TextCache(MAX_CACHED_CHARACTERS)


def lock_file(*, actor: Actor, build: Build, name: str, platform: str = "") -> LockFile:
    """Return one of FORMS. `platform` "" means the platform of the build's folder."""
    require(actor, Perm.DOWNLOAD, build)
    _require_form(name)
    chosen = platform_of(build, platform)
    if build.state not in SERVED and not may(actor, Perm.APPROVE, build.environment.namespace):
        require_served(build)  # approvers may read it before
    refuse_recalled(build)
    return LockFile(build=build, name=name, platform=chosen)


def served_file(*, build: Build, name: str, platform: str = "") -> LockFile:
    """Return one of FORMS of a build from `served_builds`, which checked the permissions."""
    _require_form(name)
    return LockFile(build=build, name=name, platform=platform_of(build, platform))


def _require_form(name: str) -> None:
    if name not in FORMS:
        raise NotFoundError(
            f"A build has no file {name!r}.", hint=f"Available files: {', '.join(FILES)}."
        )


def platform_of(build: Build, platform: str = "") -> str:
    """Return the requested platform, or that of the build's folder.

    Raises:
        NotFoundError: the build has no lock, or none for this platform.
    """
    if build.lock is None:
        raise NotFoundError(
            f"{build} is {build.state} and has no lock.",
            hint="" if build.finished else "Wait until it is solved.",
        )
    known = list(build.lock.platforms)
    chosen = platform or next(
        (one for one in (build.platform, own_platform(), *known) if one in known), ""
    )
    if chosen not in known:
        raise NotFoundError(
            f"{build} has no lock for {platform}.",
            where="platform",
            hint=f"Available platforms: {', '.join(known)}.",
        )
    return chosen


def require_served(build: Build) -> None:
    """Raises ConflictError for a build whose packages are not served (yet)."""
    if build.state not in SERVED:
        raise ConflictError(
            f"{build} is {build.state}; its files are available once it is READY.",
            hint="" if build.finished else "Wait until it is READY.",
        )


def readable_log(*, actor: Actor, build: Build) -> Build:
    """Return the build if the actor may read its log."""
    require(actor, Perm.DOWNLOAD, build)
    return build
