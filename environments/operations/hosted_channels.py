"""Hosted channels: made, filled, read, emptied; by the roles of the namespace that owns one.

Who may see the namespace may read (everybody, of a public channel), who may build may upload, and
who runs it makes and deletes channels, and yanks packages.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.errors import (
    AccessDeniedError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    RecalledError,
)
from environments.domain.names import SUBDIRS, parse_name, printable
from environments.domain.records import CondaPackage
from environments.engine.packages import uploads
from environments.engine.pypi import wheel_conversion
from environments.models import AuditEvent, Blob, HostedChannel, HostedPackage, Namespace, audited
from environments.operations import quotas
from environments.operations.served_channels import RENDERER, Document, document
from environments.services import blobs, hosted_channels

LONGEST_TEXT = 2_000  # characters of a description, or of a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """`created` is False where the same bytes were there already."""

    package: HostedPackage
    created: bool
    warnings: tuple[str, ...] = ()


def find_channel(actor: Actor, name: str) -> HostedChannel:
    """Raises NotFoundError, also for one that the actor may not see."""
    rows = HostedChannel.objects.visible_to(actor).select_related("namespace")
    found = rows.filter(name=name).first()
    if found is None:
        raise NotFoundError(f"There is no hosted channel {printable(name)}.")
    return found


def find_package(actor: Actor, channel: str, subdir: str, file_name: str) -> HostedPackage:
    """Raises NotFoundError, also for one of a channel that the actor may not see."""
    return _package(find_channel(actor, channel), subdir, file_name)


def _package(channel: HostedChannel, subdir: str, file_name: str) -> HostedPackage:
    rows = channel.packages.filter(subdir=subdir, file_name=file_name)
    found = rows.select_related("channel__namespace", "blob", "uploaded_by", "yanked_by").first()
    if found is None:
        raise NotFoundError(f"{channel} has no package {printable(f'{subdir}/{file_name}')}.")
    return found


# --- channels -----------------------------------------------------------------------------------


@audited()
def create_channel(
    *,
    actor: Actor,
    namespace: Namespace,
    name: str,
    description: str = "",
    public: bool = False,
) -> HostedChannel:
    """Create a channel called `NAMESPACE/NAME`; or, by administrators, one of any name.

    Names without a namespace are unique in the installation. If everybody could take them, a
    refusal would tell that a channel exists which they may not see. The name of a deleted channel
    stays with its namespace.

    Raises:
        AccessDeniedError: the name has no namespace, and the actor is no administrator.
        ConflictError: there is such a channel.
    """
    require(actor, Perm.MANAGE, namespace)
    _check_name(actor, namespace, name)
    _checked(description, "description")
    values: dict[str, Any] = {"description": description, "public": public}
    taken = ConflictError(
        f"There is a hosted channel {name!r} already, or there was one.",
        hint="Choose another name.",
    )
    known = HostedChannel.objects.select_for_update().filter(name=name).first()
    if known is not None:
        if known.deleted_at is None or known.namespace_id != namespace.pk:
            raise taken
        HostedChannel.objects.filter(pk=known.pk).update(**values, deleted_at=None)
        known.refresh_from_db()
        channel = known
    else:
        try:
            with transaction.atomic():
                channel = HostedChannel.objects.create(
                    name=name, namespace=namespace, created_by=actor.account, **values
                )
        except IntegrityError:
            raise taken from None
    AuditEvent.record(actor, "channel.create", namespace, {"channel": name, "public": public})
    return channel


@audited()
def change_channel(
    *,
    actor: Actor,
    channel: HostedChannel,
    description: str | None = None,
    public: bool | None = None,
) -> HostedChannel:
    """None leaves as it is."""
    require(actor, Perm.MANAGE, channel)
    asked = {"description": description, "public": public}
    changes = {name: value for name, value in asked.items() if value is not None}
    _checked(description or "", "description")
    before = {name: getattr(channel, name) for name in changes}
    if changes:
        HostedChannel.objects.filter(pk=channel.pk).update(**changes)
    channel.refresh_from_db()
    AuditEvent.record(
        actor,
        "channel.change",
        channel.namespace,
        {"channel": channel.name, "before": before, "after": changes},
    )
    return channel


@audited()
def delete_channel(*, actor: Actor, channel: HostedChannel) -> HostedChannel:
    """Its packages go from it at once; builds keep those that they have. Its name stays taken."""
    require(actor, Perm.MANAGE, channel)
    channel.next_revision()
    packages = channel.packages.count()
    HostedPackage.objects.filter(channel=channel).delete()
    HostedChannel.objects.filter(pk=channel.pk).update(deleted_at=timezone.now())
    channel.refresh_from_db()
    AuditEvent.record(
        actor,
        "channel.delete",
        channel.namespace,
        {"channel": channel.name, "packages": packages},
    )
    return channel


def _check_name(actor: Actor, namespace: Namespace, name: str) -> None:
    owner, slash, own = name.rpartition("/")
    if not slash and not actor.is_superuser:
        raise AccessDeniedError(
            "Only administrators of the installation choose names without a namespace.",
            where="name",
            hint=f"Call it {namespace}/NAME.",
        )
    if slash and owner != namespace.name:
        raise InvalidInputError(
            f"A channel of {namespace} is called {namespace}/NAME.", where="name"
        )
    parse_name(own, what="channel")
    if own in SUBDIRS:
        raise InvalidInputError(f"{own} is the name of a platform.", where="name")


def _checked(text: str, where: str) -> None:
    if len(text) > LONGEST_TEXT or "\0" in text:
        raise InvalidInputError(f"At most {LONGEST_TEXT} characters of text.", where=where)


# --- packages -----------------------------------------------------------------------------------


@transaction.atomic
def may_upload(*, actor: Actor, channel: HostedChannel, file_name: str, size: int) -> None:
    """Asked before the first byte is taken; `size`: as announced, or 0.

    Raises:
        AccessDeniedError, QuotaError, PackageInvalidError: see the operations.
    """
    require(actor, Perm.BUILD, channel.namespace)
    if not wheel_conversion.is_wheel(file_name):
        uploads.check_file_name(file_name)
    quotas.require_bytes(channel.namespace, size)


def upload(
    *,
    actor: Actor,
    channel: HostedChannel,
    file_name: str,
    path: Path,
    sha256: str,
    md5: str,
    subdir: str = "",
) -> Uploaded:
    """Add the package in the file at `path`, which is gone afterwards.

    A wheel becomes a conda package first. `subdir`: where it was sent, or "" for its own.

    Raises:
        PackageInvalidError: all that is wrong with it.
        ConflictError: the channel has another file of this name.
    """
    require(actor, Perm.BUILD, channel.namespace)
    made_from, warnings = "", tuple[str, ...]()
    if wheel_conversion.is_wheel(file_name):
        known = channel.packages.filter(made_from=sha256).select_related("channel__namespace")
        if (same := known.first()) is not None:
            return Uploaded(package=same, created=False)
        made = wheel_conversion.convert(path, file_name, limits=settings.UNPACKING)
        path.unlink()
        path, file_name, warnings, made_from = made.path, made.file_name, made.warnings, sha256
    try:
        if made_from:
            sha256, md5 = _digest(path, "sha256"), _digest(path, "md5")
        record = uploads.read_package(path, file_name, limits=settings.UNPACKING)
        if subdir and subdir != record["subdir"]:
            raise InvalidInputError(
                f"{file_name} is for {record['subdir']}, and was sent to {subdir}.",
                where="subdir",
                hint=f"Send it to {record['subdir']}, or to the channel without a platform.",
            )
        kept = _kept(path, record, sha256=sha256, md5=md5)
        return _added(actor, channel, file_name, kept, made_from=made_from, warnings=warnings)
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    blob: Blob
    md5: str
    record: dict[str, Any]


def _kept(path: Path, record: dict[str, Any], *, sha256: str, md5: str) -> _Kept:
    """Bytes first, outside of the transaction; if that fails, the collection finds them."""
    size = path.stat().st_size
    digests = {"sha256": sha256, "md5": md5, "size": size}
    return _Kept(blob=blobs.add(path, sha256), md5=md5, record=record | digests)


@audited()
def _added(
    actor: Actor,
    channel: HostedChannel,
    file_name: str,
    kept: _Kept,
    *,
    made_from: str,
    warnings: tuple[str, ...],
) -> Uploaded:
    # Whatever was checked before the upload may have changed while it went on.
    require(actor, Perm.BUILD, channel.namespace)
    revision = channel.next_revision()
    if channel.deleted_at is not None:
        raise NotFoundError(f"There is no hosted channel {channel.name!r}.")
    record, subdir = kept.record, kept.record["subdir"]
    known = channel.packages.filter(subdir=subdir, file_name=file_name).first()
    if known is not None:
        if known.sha256 == record["sha256"] or (made_from and known.made_from == made_from):
            return Uploaded(package=_package(channel, subdir, file_name), created=False)
        raise ConflictError(
            f"{channel} has another file {subdir}/{file_name}, uploaded at "
            f"{known.uploaded_at:%Y-%m-%d %H:%M} UTC.",
            hint="A package never changes: raise its build number, and upload that.",
        )
    quotas.require_bytes(channel.namespace, record["size"])
    blobs.mark_used(Blob.objects.filter(pk=kept.blob.pk))
    now = timezone.now()
    # The publisher cannot set this clock: by it, rules tell how old a package is.
    told = record | {"indexed_timestamp": int(now.timestamp() * 1000)}
    package = HostedPackage.objects.create(
        channel=channel,
        subdir=subdir,
        file_name=file_name,
        name=record["name"],
        version=record["version"],
        build=record["build"],
        record=CondaPackage.from_record(told, url="", channel="", file_name="").record_json(),
        sha256=record["sha256"],
        md5=kept.md5,
        size=record["size"],
        made_from=made_from,
        blob=kept.blob,
        revision=revision,
        uploaded_at=now,
        uploaded_by=actor.account,
    )
    AuditEvent.record(
        actor,
        "channel.upload",
        channel.namespace,
        {"package": str(package), "sha256": package.sha256, "size": package.size},
    )
    return Uploaded(package=package, created=True, warnings=warnings)


@audited()
def yank(*, actor: Actor, package: HostedPackage, reason: str) -> HostedPackage:
    """No solve chooses it any more. Locks that have it stay good: its bytes are still given."""
    require(actor, Perm.MANAGE, package.channel)
    _checked(reason, "reason")
    if not reason.strip():
        raise InvalidInputError("Say why it is yanked.", where="reason")
    return _mark(actor, package, "channel.yank", yanked_at=timezone.now(), reason=reason)


@audited()
def unyank(*, actor: Actor, package: HostedPackage) -> HostedPackage:
    require(actor, Perm.MANAGE, package.channel)
    return _mark(actor, package, "channel.unyank", yanked_at=None, reason="")


def _mark(
    actor: Actor, package: HostedPackage, action: str, *, yanked_at: Any, reason: str
) -> HostedPackage:
    channel = package.channel
    revision = channel.next_revision()
    fits = HostedPackage.objects.filter(pk=package.pk, yanked_at__isnull=yanked_at is not None)
    changed = fits.update(
        yanked_at=yanked_at,
        yanked_by=actor.account if yanked_at else None,
        yank_reason=reason,
        revision=revision,
    )
    if not changed:
        state = "yanked already" if yanked_at else "not yanked"
        raise ConflictError(f"{package} is {state}.")
    package.refresh_from_db()
    told = {"package": str(package)} | ({"reason": reason} if reason else {})
    AuditEvent.record(actor, action, channel.namespace, told)
    return package


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


# --- what clients read --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableChannel:
    """A hosted channel, for one who may read it."""

    channel: HostedChannel

    def document(self, subdir: str, name: str) -> Document:
        """As `ServedChannel.document`; rendered once for each change of its packages."""
        if subdir not in SUBDIRS:
            raise NotFoundError(f"{self.channel} has no {printable(subdir)}.")
        recalls = hosted_channels.Recalls()
        revision = self.channel.states().get(subdir, 0)
        state = f"{RENDERER} hosted {self.channel.identity} {revision} {recalls.state}"
        return document(
            f"{self.channel}", state, subdir, name, lambda: self._packages(subdir, recalls)
        )

    def _packages(self, subdir: str, recalls: hosted_channels.Recalls) -> list[CondaPackage]:
        base = hosted_channels.url_of(self.channel)
        rows = self.channel.packages.listed().filter(subdir=subdir).order_by("file_name")
        packages = (row.value(base=base) for row in rows.iterator())
        return [package for package in packages if not recalls.reason(package)]

    def package(self, subdir: str, file_name: str) -> HostedPackage:
        """Also one that was yanked.

        Raises:
            NotFoundError: it is not there.
            RecalledError: it was called back.
        """
        found = _package(self.channel, subdir, file_name)
        if why := hosted_channels.Recalls().reason(
            found.value(base=hosted_channels.url_of(self.channel))
        ):
            raise RecalledError(f"{found} {why}.")
        return found


def read_channel(*, actor: Actor, channel: HostedChannel) -> ReadableChannel:
    require(actor, Perm.DOWNLOAD, channel)
    return ReadableChannel(channel=channel)


def channels(actor: Actor) -> QuerySet[HostedChannel]:
    return HostedChannel.objects.visible_to(actor).select_related("namespace")


def packages(actor: Actor, channel: str) -> QuerySet[HostedPackage]:
    """Of one channel, the newest first; none where the actor may not see it."""
    rows = HostedPackage.objects.visible_to(actor).filter(channel__name=channel)
    return rows.select_related("channel", "uploaded_by", "yanked_by").order_by("-pk")
