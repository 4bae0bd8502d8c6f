"""Packages of a build, or of all builds of a namespace, served as a conda channel."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock as ThreadLock
from typing import Any

from django.db.models import QuerySet

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.errors import NotFoundError
from environments.domain import repodata
from environments.domain.lifecycle import SERVED
from environments.domain.names import SUBDIRS
from environments.domain.records import CondaPackage
from environments.models import Blob, Build, CondaRecord, Namespace, PypiRecord, RecalledLock
from environments.models.recalls import refuse_recalled
from environments.operations.downloads import require_served
from environments.operations.usage import record_use

#: Part of each ETag. Increase it when the same packages are rendered differently.
RENDERING_VERSION = 1
#: Number of documents cached in each process, for repeated requests of a client.
CACHED_DOCUMENTS = 16
#: Documents of a channel besides packages, by file name.
REPODATA, ZSTD, SHARDS = "repodata.json", "repodata.json.zst", "repodata_shards.msgpack.zst"
CONTENT_TYPES = {
    REPODATA: "application/json",
    ZSTD: "application/zstd",
    SHARDS: "application/octet-stream",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedChannel:
    """A channel as one actor sees it: its records, and a state that changes with them."""

    name: str
    records: QuerySet[CondaRecord]
    state: str
    #: Wheels of a build's lock; conda clients do not know of them.
    wheels: QuerySet[PypiRecord] | None = None

    def document(self, subdir: str, name: str) -> Document:
        """Return `repodata.json` in one of its formats, or a shard (`shards/<digest>.msgpack.zst`).

        Raises:
            NotFoundError: there is no such subdir or file.
        """
        if subdir not in SUBDIRS:
            raise NotFoundError(f"{self.name} has no {subdir!r}.")
        return document(self.name, self.state, subdir, name, lambda: self._packages(subdir))

    def package(self, subdir: str, file_name: str) -> CondaRecord:
        """Raises NotFoundError."""
        rows = self.records.filter(subdir=subdir, file_name=file_name)
        found = rows.order_by("pk").first()
        if found is None:
            raise NotFoundError(f"{self.name} has no package {subdir}/{file_name}.")
        return found

    def wheel(self, file_name: str) -> PypiRecord:
        """Raises NotFoundError."""
        rows = self.wheels.filter(file_name=file_name) if self.wheels is not None else None
        found = rows.order_by("pk").first() if rows is not None else None
        if found is None:
            raise NotFoundError(f"{self.name} has no wheel {file_name}.")
        return found

    def _packages(self, subdir: str) -> Iterator[CondaPackage]:
        rows = self.records.filter(subdir=subdir).order_by("pk")
        return (row.value() for row in rows.iterator())


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    content: bytes
    content_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def document(
    channel: str,
    state: str,
    subdir: str,
    name: str,
    packages: Callable[[], Iterable[CondaPackage]],
) -> Document:
    """Return a file of one subdir of `channel`; `packages` is called once for each `state`.

    Raises:
        NotFoundError: there is no such file.
    """
    content = _rendered((state, subdir), lambda: _render(packages(), subdir)).get(name)
    if content is None:
        raise NotFoundError(f"{channel} has no file {subdir}/{name}.")
    return Document(content=content, content_type=CONTENT_TYPES.get(name, CONTENT_TYPES[SHARDS]))


def _render(packages: Iterable[CondaPackage], subdir: str) -> dict[str, bytes]:
    records = repodata.records_of(packages, subdir)
    plain = repodata.repodata_json(records, subdir)
    index = repodata.sharded(records, subdir)
    shards = {f"shards/{digest}.msgpack.zst": data for digest, data in index.shards.items()}
    return {
        REPODATA: plain,
        ZSTD: repodata.compressed(plain),
        SHARDS: index.index,
        **shards,
    }


_documents: OrderedDict[tuple[str, str], dict[str, bytes]] = OrderedDict()
_guard = ThreadLock()


def _rendered(key: tuple[str, str], render: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    with _guard:
        if (known := _documents.get(key)) is not None:
            _documents.move_to_end(key)
            return known
    created = render()
    with _guard:
        _documents[key] = created
        while len(_documents) > CACHED_DOCUMENTS:
            _documents.popitem(last=False)
    return created


def channel_of_build(*, actor: Actor, build: Build) -> ServedChannel:
    """Return a channel of every conda package in the build's lock, for all platforms.

    Raises:
        NotFoundError: the build has no lock.
        ConflictError: the build is held, or was never READY.
        RecalledError: it holds a recalled package.
    """
    require(actor, Perm.DOWNLOAD, build)
    if build.lock is None:
        raise NotFoundError(f"{build} is {build.state} and has no lock.")
    require_served(build)
    refuse_recalled(build)
    record_use(build.environment)
    return ServedChannel(
        name=str(build),
        records=CondaRecord.objects.filter(locked__lock=build.lock).distinct(),
        state=f"{RENDERING_VERSION} lock {build.lock.digest} {build.lock.pk}",
        wheels=PypiRecord.objects.filter(locked__lock=build.lock).distinct(),
    )


def channel_of_namespace(*, actor: Actor, namespace: Namespace) -> ServedChannel:
    """Return a channel of the conda packages in all served, not recalled builds of the
    namespace."""
    require(actor, Perm.DOWNLOAD, namespace)
    recalled = RecalledLock.objects.active().values("lock")
    builds = Build.objects.with_perm(actor, Perm.DOWNLOAD).filter(
        environment__namespace=namespace, state__in=SERVED
    )
    locks: Any = builds.exclude(lock__in=recalled).order_by().values("lock").distinct()
    rows = builds.exclude(lock__in=recalled).order_by().values_list("lock__digest", "lock")
    state = "\n".join(f"{digest} {lock}" for digest, lock in sorted(rows))
    return ServedChannel(
        name=f"the channel of {namespace.name}",
        records=CondaRecord.objects.filter(locked__lock__in=locks).distinct(),
        state=f"{RENDERING_VERSION} locks {hashlib.sha256(state.encode()).hexdigest()}",
    )


def stored_blob(record: CondaRecord | PypiRecord) -> Blob | None:
    """Return the package's blob, if it is stored and not known to be damaged."""
    return Blob.objects.filter(sha256=record.sha256, damaged_at=None).first()
