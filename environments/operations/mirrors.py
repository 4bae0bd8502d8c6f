"""Operations on mirrors: create and change them; read their listings and packages.

A view judged by an outdated policy is never served: rules, decisions and recalls must be those in
force. A view of an older state of the channel is served until a newer one is rendered.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from threading import Lock as ThreadLock
from typing import Any

import msgpack
import zstandard
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.access import Actor, require, require_superuser
from accounts.roles import Perm
from condastore.errors import (
    ChannelNotFoundError,
    ChannelUnavailableError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    SpecificationError,
    UnavailableError,
)
from environments.domain.mirrors import parse_day
from environments.domain.names import SUBDIRS, canonical_channel, parse_name, printable
from environments.domain.policy import Policy
from environments.domain.shard_pack import find, read_table
from environments.engine.channels.mirror_views import refused_key
from environments.engine.packages.download_types import Download
from environments.models import (
    AuditEvent,
    Blob,
    Mirror,
    MirrorIndex,
    MirrorView,
    Namespace,
    audited,
)
from environments.models.mirrors import ViewState
from environments.operations import credentials, queueing
from environments.services import blobs, mirrors

#: Subdirs mirrored by default.
DEFAULT_SUBDIRS = ("linux-64", "noarch")
#: Number of parsed shard tables and shard indexes cached in each process.
CACHED_TABLES = 16
#: How often the use of a view is recorded at most.
USE_INTERVAL = timedelta(minutes=10)


# --- configuration --------------------------------------------------------------------------------


def find_mirror(actor: Actor, name: str) -> Mirror:
    """Raises NotFoundError, also for mirrors the actor may not see."""
    rows = Mirror.objects.visible_to(actor).select_related("namespace")
    found = rows.filter(name=name).first()
    if found is None:
        raise NotFoundError(f"There is no mirror {name!r}.")
    return found


@audited()
def create_mirror(
    *,
    actor: Actor,
    name: str,
    upstream: str,
    namespace: Namespace | None = None,
    public: bool = False,
    subdirs: Sequence[str] = (),
) -> Mirror:
    """Create a mirror of a remote channel; credentials in the URL are stored encrypted."""
    require_superuser(actor)
    name = parse_name(name, what="channel")
    channel = canonical_channel(upstream, alias=settings.CHANNEL_ALIAS)
    own = str(settings.PUBLIC_URL or "").rstrip("/")
    if own and f"{channel.url}/".startswith(f"{own}/channel/mirror/"):
        raise InvalidInputError("The URL is a mirror of this server.", where="upstream")
    mirror = Mirror(
        name=name,
        upstream=channel.url,
        namespace=namespace,
        public=public,
        subdirs=_subdirs(subdirs or DEFAULT_SUBDIRS),
        created_by=actor.account,
    )
    mirrors.policy_for(mirror)
    credentials.store_for_mirror(actor=actor, namespace=namespace, credentials=channel.credentials)
    try:
        with transaction.atomic():
            mirror.save()
    except IntegrityError:
        raise ConflictError(
            f"A mirror named {name!r} already exists.", hint="Choose another name."
        ) from None
    _add_indexes(mirror)
    AuditEvent.record(actor, "mirror.create", mirror, _as_json(mirror), namespace=namespace)
    return mirror


@audited()
def change_mirror(
    *,
    actor: Actor,
    mirror: Mirror,
    namespace: Namespace | None,
    public: bool | None = None,
    subdirs: Sequence[str] | None = None,
) -> Mirror:
    """Change policy, readers or subdirs; another upstream channel needs another mirror."""
    require_superuser(actor)
    before = _as_json(mirror)
    mirror.namespace = namespace
    if public is not None:
        mirror.public = public
    if subdirs is not None:
        mirror.subdirs = _subdirs(subdirs)
    mirrors.policy_for(mirror)
    mirror.save(update_fields=["namespace", "public", "subdirs"])
    _add_indexes(mirror)
    change = {"before": before, "after": _as_json(mirror)}
    AuditEvent.record(actor, "mirror.change", mirror, change, namespace=namespace)
    return mirror


@audited()
def delete_mirror(*, actor: Actor, mirror: Mirror) -> Mirror:
    """Delete a mirror with its history: past days can then no longer be served."""
    require_superuser(actor)
    before, key = _as_json(mirror), mirror.pk
    mirror.delete()
    mirror.pk = key  # the deleted row is returned to the caller
    AuditEvent.record(actor, "mirror.delete", mirror, before, namespace=mirror.namespace)
    return mirror


def _as_json(mirror: Mirror) -> dict[str, Any]:
    return {
        "upstream": mirror.upstream,
        "namespace": mirror.namespace.name if mirror.namespace else None,
        "public": mirror.public,
        "subdirs": list(mirror.subdirs),
    }


def _subdirs(asked: Iterable[str]) -> list[str]:
    """Return the subdirs with `noarch`, which conda clients request from every channel."""
    found = dict.fromkeys([*asked, "noarch"])
    faults = [
        InvalidInputError(f"{printable(one)} is not a known platform.")
        for one in found
        if one not in SUBDIRS
    ]
    if faults:
        raise SpecificationError(faults, hint=f"Choose from {', '.join(SUBDIRS)}.")
    return list(found)


def _add_indexes(mirror: Mirror) -> None:
    for subdir in mirror.subdirs:
        index, new = MirrorIndex.objects.get_or_create(mirror=mirror, subdir=subdir)
        if new:
            queueing.queue(index)


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedView:
    """One subdir of a mirror, now or at the end of a day, that the actor may read."""

    mirror: Mirror
    index: MirrorIndex
    moment: str
    policy: Policy
    view: MirrorView

    @property
    def stale_since(self) -> datetime | None:
        """When the channel was last read, if it does not respond now."""
        return self.index.looked_at if self.index.failure is not None else None


def open_view(*, actor: Actor, name: str, subdir: str, moment: str = "") -> OpenedView | None:
    """Return the view to serve; None while it is being rendered, so that the client retries.

    Raises:
        NotFoundError: there is no such mirror or subdir.
        InvalidInputError: `moment` is not a day that has begun.
        ChannelNotAllowedError: the policy no longer allows the channel.
        UnavailableError: the channel was never read, or the view cannot be rendered.
    """
    mirror = find_mirror(actor, name)
    require(actor, Perm.DOWNLOAD, mirror)
    if moment:
        moment = parse_day(moment, now=timezone.now()).isoformat()
    rows = mirror.indexes.select_related("history", "mirror__namespace").filter(subdir=subdir)
    index = rows.first() if subdir in mirror.subdirs else None
    if index is None:
        raise NotFoundError(
            f"{mirror} has no {subdir!r}.", hint=f"Available subdirs: {', '.join(mirror.subdirs)}."
        )
    policy = mirrors.policy_for(mirror)
    if index.history is None:
        _refuse_failed(index)
        if index.message_sent_at is None:
            queueing.send(index)
        return None
    newest = mirrors.current_view(index, moment, policy)
    newest.retry()
    if newest.state == ViewState.WAITING and newest.message_sent_at is None:
        queueing.send(newest)
    view = (
        newest
        if newest.made_at is not None
        else mirrors.newest_rendered_view(index, moment, policy)
    )
    if view is not None and not _is_whole(view):
        MirrorView.objects.filter(pk=view.pk).delete()  # rendered again at the next request
        return None
    if view is None:
        _refuse_failed(newest)
        return None
    if view.used_at < timezone.now() - USE_INTERVAL:
        MirrorView.objects.filter(pk=view.pk).update(used_at=timezone.now())
    return OpenedView(mirror=mirror, index=index, moment=moment, policy=policy, view=view)


def _is_whole(view: MirrorView) -> bool:
    files = (view.repodata, view.shard_index, view.shards)
    return all(blob is not None and blobs.is_intact(blob) for blob in files)


def _refuse_failed(row: MirrorIndex | MirrorView) -> None:
    """Raise the failure of the last attempt instead of letting the client wait."""
    if row.failure is None:
        return
    if row.failure["code"] == ChannelNotFoundError.code:
        raise NotFoundError(row.failure["message"])
    raise ChannelUnavailableError(row.failure["message"])


def shard(opened: OpenedView, digest: str) -> bytes:
    """Raises NotFoundError. Shards of recently superseded views are served too."""
    try:
        key = bytes.fromhex(digest)
    except ValueError:
        key = b""
    newest = opened.view
    others = mirrors.rendered_views(newest.index, opened.moment, opened.policy)
    for view in (newest, *others.exclude(pk=newest.pk)[:3]):
        found = _part(view, key) if len(key) == 32 else None
        if found is not None and hashlib.sha256(found).digest() == key:
            return found
    raise NotFoundError(f"{opened.mirror} has no shard {digest[:64]}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package of a mirror: stored here, or to be fetched."""

    opened: OpenedView
    file_name: str
    download: Download
    blob: Blob | None


def open_package(
    *, actor: Actor, name: str, subdir: str, file_name: str, moment: str = ""
) -> Package | None:
    """Return the package if the mirror lists it; None while the view is being rendered.

    Raises:
        NotFoundError: the channel does not list it.
        PolicyError: a rule refuses it; names the rule.
        Also as `open_view`.
    """
    opened = open_view(actor=actor, name=name, subdir=subdir, moment=moment)
    if opened is None:
        return None
    record = _record(opened, file_name)
    download = Download(
        name=file_name,
        url=f"{opened.mirror.upstream}/{subdir}/{file_name}",
        sha256=record["sha256"].hex(),
        size=int(record.get("size") or 0),
        channel=opened.mirror.upstream,
    )
    blob = mirrors.stored_package(opened.mirror, subdir, download)
    return Package(opened=opened, file_name=file_name, download=download, blob=blob)


def _record(opened: OpenedView, file_name: str) -> dict[str, Any]:
    """Return the record of a file; version and build contain no hyphens, only a name may."""
    package = file_name.rsplit("-", 2)[0].lower()
    section = "packages.conda" if file_name.endswith(".conda") else "packages"
    digest = _digests(opened.view).get(package)
    if digest is not None and (content := _part(opened.view, digest)) is not None:
        found = msgpack.unpackb(zstandard.decompress(content))[section].get(file_name)
        if found is not None:
            return dict(found)
    refused = _part(opened.view, refused_key(package))
    before = msgpack.unpackb(zstandard.decompress(refused)) if refused else {}
    if file_name in before:
        raise PolicyError(before[file_name])
    raise NotFoundError(f"{opened.mirror} has no package {opened.index.subdir}/{file_name}.")


#: Parsed tables by blob digest, least recently used first.
_read: OrderedDict[str, Any] = OrderedDict()
_guard = ThreadLock()


def _cached(blob: Blob, read: Callable[[], Any]) -> Any:
    with _guard:
        if blob.sha256 in _read:
            _read.move_to_end(blob.sha256)
            return _read[blob.sha256]
    found = read()
    with _guard:
        _read[blob.sha256] = found
        while len(_read) > CACHED_TABLES:
            _read.popitem(last=False)
    return found


def _part(view: MirrorView, key: bytes) -> bytes | None:
    """Return the entry of the view's shard pack under `key`."""
    blob = view.shards
    assert blob is not None, "only rendered views are read"
    read = partial(blobs.read, blob)
    found = find(_cached(blob, lambda: read_table(blob.size, read)), key)
    return None if found is None else read(*found)


def _digests(view: MirrorView) -> Mapping[str, bytes]:
    """Return the digest of each package name's shard."""
    blob = view.shard_index
    assert blob is not None, "only rendered views are read"

    def read() -> Any:
        return msgpack.unpackb(zstandard.decompress(blobs.read(blob, 0, blob.size)))["shards"]

    found: Mapping[str, bytes] = _cached(blob, read)
    return found


def store_fetched(package: Package, path: Any) -> Blob:
    """Store the fetched file of a package."""
    opened = package.opened
    blob = mirrors.store_package(opened.mirror, opened.index.subdir, package.download, path)
    if blob is None:
        raise UnavailableError(f"{package.file_name} could not be stored. Request it again.")
    return blob
