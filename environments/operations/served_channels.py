"""Channels of ours: the packages of a build, or of all that a namespace has, for conda clients."""

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
from environments.operations.usage import used

#: Part of each ETag: grows when the same packages are told in another way.
RENDERER = 1
#: Documents that a process keeps, so that a client's next question costs nothing.
KEPT = 16
#: What a channel gives beside packages: name, and how it is told.
REPODATA, ZSTD, SHARDS = "repodata.json", "repodata.json.zst", "repodata_shards.msgpack.zst"
CONTENT_TYPES = {
    REPODATA: "application/json",
    ZSTD: "application/zstd",
    SHARDS: "application/octet-stream",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedChannel:
    """A channel as one actor sees it: its records, and what changes when they do."""

    name: str
    records: QuerySet[CondaRecord]
    state: str
    #: Of a build's lock, beside it: conda's clients do not know of them.
    wheels: QuerySet[PypiRecord] | None = None

    def document(self, subdir: str, name: str) -> Document:
        """`repodata.json` in one of its forms, or one shard (`shards/<digest>.msgpack.zst`).

        Raises:
            NotFoundError: no such subdir, or no such file.
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
    """A file of one subdir of `channel`; `packages` are asked for once for each `state`.

    Raises:
        NotFoundError: no such file.
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
    made = render()
    with _guard:
        _documents[key] = made
        while len(_documents) > KEPT:
            _documents.popitem(last=False)
    return made


def channel_of_build(*, actor: Actor, build: Build) -> ServedChannel:
    """Every conda package of the build's lock, of all its platforms.

    Raises:
        NotFoundError: it has no lock.
        ConflictError: it is held, or was never READY.
        RecalledError: it holds a package that was called back.
    """
    require(actor, Perm.DOWNLOAD, build)
    if build.lock is None:
        raise NotFoundError(f"{build} has no lock: it is {build.state}.")
    require_served(build)
    refuse_recalled(build)
    used(build.environment)
    return ServedChannel(
        name=str(build),
        records=CondaRecord.objects.filter(locked__lock=build.lock).distinct(),
        state=f"{RENDERER} lock {build.lock.digest} {build.lock.pk}",
        wheels=PypiRecord.objects.filter(locked__lock=build.lock).distinct(),
    )


def channel_of_namespace(*, actor: Actor, namespace: Namespace) -> ServedChannel:
    """The conda packages of all builds of the namespace that were finished and not recalled."""
    require(actor, Perm.DOWNLOAD, namespace)
    recalled = RecalledLock.objects.active().values("lock")
    builds = Build.objects.with_perm(actor, Perm.DOWNLOAD).filter(
        environment__namespace=namespace, state__in=SERVED
    )
    locks: Any = builds.exclude(lock__in=recalled).order_by().values("lock").distinct()
    rows = builds.exclude(lock__in=recalled).order_by().values_list("lock__digest", "lock")
    told = "\n".join(f"{digest} {lock}" for digest, lock in sorted(rows))
    return ServedChannel(
        name=f"the channel of {namespace.name}",
        records=CondaRecord.objects.filter(locked__lock__in=locks).distinct(),
        state=f"{RENDERER} locks {hashlib.sha256(told.encode()).hexdigest()}",
    )


def kept_bytes(record: CondaRecord | PypiRecord) -> Blob | None:
    """The package itself, if it is kept here and whole as far as is known."""
    return Blob.objects.filter(sha256=record.sha256, damaged_at=None).first()
