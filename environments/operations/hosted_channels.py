"""Operations on hosted channels and their packages, by roles of the owning namespace.

Those who may view the namespace may read a channel (a public one is readable by everybody), those
who may build may upload, and those who manage it create and delete channels and yank packages.
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
from environments.engine.packages import package_validation
from environments.engine.pypi import wheel_conversion
from environments.models import AuditEvent, Blob, HostedChannel, HostedPackage, Namespace, audited
from environments.operations import quotas
from environments.operations.served_channels import RENDERING_VERSION, Document, document
from environments.services import blobs, hosted_channels

LONGEST_TEXT = 2_000  # characters of a description, or of a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """`created` is False if the channel already had a file with the same bytes."""

    package: HostedPackage
    created: bool
    warnings: tuple[str, ...] = ()


def find_channel(actor: Actor, name: str) -> HostedChannel:
    """Raises NotFoundError, also for channels the actor may not see."""
    rows = HostedChannel.objects.visible_to(actor).select_related("namespace")
    found = rows.filter(name=name).first()
    if found is None:
        raise NotFoundError(f"There is no hosted channel {printable(name)}.")
    return found


def find_package(actor: Actor, channel: str, subdir: str, file_name: str) -> HostedPackage:
    """Raises NotFoundError, also for packages of a channel the actor may not see."""
    return _package(find_channel(actor, channel), subdir, file_name)


def _package(channel: HostedChannel, subdir: str, file_name: str) -> HostedPackage:
    rows = channel.packages.filter(subdir=subdir, file_name=file_name)
    found = rows.select_related("channel__namespace", "blob", "uploaded_by", "yanked_by").first()
    if found is None:
        raise NotFoundError(f"{channel} has no package {printable(f'{subdir}/{file_name}')}.")
    return found


# --- channels -------------------------------------------------------------------------------------


@audited()
def create_channel(
    *,
    actor: Actor,
    namespace: Namespace,
    name: str,
    description: str = "",
    public: bool = False,
) -> HostedChannel:
    """Create a channel called `NAMESPACE/NAME`; administrators may choose any name.

    Names without a namespace are unique in the installation. If everybody could choose them, a
    refusal would reveal channels that one may not see. The name of a deleted channel stays with its
    namespace.

    Raises:
        AccessDeniedError: the name has no namespace, and the actor is not an administrator.
        ConflictError: the name is or was in use.
    """
    require(actor, Perm.MANAGE, namespace)
    _check_name(actor, namespace, name)
    _check_length(description, "description")
    values: dict[str, Any] = {"description": description, "public": public}
    taken = ConflictError(
        f"The name {name!r} is or was used by a hosted channel.",
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
    """Change the given fields; None leaves a field unchanged."""
    require(actor, Perm.MANAGE, channel)
    requested = {"description": description, "public": public}
    changes = {name: value for name, value in requested.items() if value is not None}
    _check_length(description or "", "description")
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
    """Delete a channel: its packages are gone at once, builds keep theirs. Its name stays
    reserved."""
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
            "Only administrators of the installation can choose names without a namespace.",
            where="name",
            hint=f"Name it {namespace}/NAME.",
        )
    if slash and owner != namespace.name:
        raise InvalidInputError(
            f"A channel of {namespace} must be named {namespace}/NAME.", where="name"
        )
    parse_name(own, what="channel")
    if own in SUBDIRS:
        raise InvalidInputError(f"{own} is the name of a platform.", where="name")


def _check_length(text: str, where: str) -> None:
    if len(text) > LONGEST_TEXT or "\0" in text:
        raise InvalidInputError(f"A text has at most {LONGEST_TEXT} characters.", where=where)


# --- packages -------------------------------------------------------------------------------------


@transaction.atomic
def may_upload(*, actor: Actor, channel: HostedChannel, file_name: str, size: int) -> None:
    """Check an upload before its first byte is read. `size`: as announced, or 0.

    Raises:
        AccessDeniedError, QuotaError, PackageInvalidError: as in `upload`.
    """
    require(actor, Perm.BUILD, channel.namespace)
    if not wheel_conversion.is_wheel(file_name):
        package_validation.check_file_name(file_name)
    quotas.require_upload_quota(channel.namespace, size)


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
    """Add the package in the file at `path`, which is moved away. A wheel is converted first.

    Args:
        subdir: the requested subdir, or "" for the package's own.
    Raises:
        PackageInvalidError: lists everything that is wrong with it.
        ConflictError: the channel has another file of this name.
    """
    require(actor, Perm.BUILD, channel.namespace)
    made_from, warnings = "", tuple[str, ...]()
    if wheel_conversion.is_wheel(file_name):
        known = channel.packages.filter(made_from=sha256).select_related("channel__namespace")
        if (same := known.first()) is not None:
            return Uploaded(package=same, created=False)
        result = wheel_conversion.convert(path, file_name, limits=settings.UNPACKING)
        path.unlink()
        path, file_name, warnings, made_from = (
            result.path,
            result.file_name,
            result.warnings,
            sha256,
        )
    try:
        if made_from:
            sha256, md5 = _digest(path, "sha256"), _digest(path, "md5")
        record = package_validation.read_package(path, file_name, limits=settings.UNPACKING)
        if subdir and subdir != record["subdir"]:
            raise InvalidInputError(
                f"{file_name} is for {record['subdir']}, but was uploaded to {subdir}.",
                where="subdir",
                hint=f"Upload it to {record['subdir']}, or to the channel without a platform.",
            )
        stored = _stored(path, record, sha256=sha256, md5=md5)
        return _added(actor, channel, file_name, stored, made_from=made_from, warnings=warnings)
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredPackage:
    blob: Blob
    md5: str
    record: dict[str, Any]


def _stored(path: Path, record: dict[str, Any], *, sha256: str, md5: str) -> _StoredPackage:
    """Store the bytes outside of the transaction; if that fails, garbage collection deletes
    them."""
    size = path.stat().st_size
    digests = {"sha256": sha256, "md5": md5, "size": size}
    return _StoredPackage(blob=blobs.add(path, sha256), md5=md5, record=record | digests)


@audited()
def _added(
    actor: Actor,
    channel: HostedChannel,
    file_name: str,
    stored: _StoredPackage,
    *,
    made_from: str,
    warnings: tuple[str, ...],
) -> Uploaded:
    # What was checked before the upload may have changed in the meantime.
    require(actor, Perm.BUILD, channel.namespace)
    revision = channel.next_revision()
    if channel.deleted_at is not None:
        raise NotFoundError(f"There is no hosted channel {channel.name!r}.")
    record, subdir = stored.record, stored.record["subdir"]
    known = channel.packages.filter(subdir=subdir, file_name=file_name).first()
    if known is not None:
        if known.sha256 == record["sha256"] or (made_from and known.made_from == made_from):
            return Uploaded(package=_package(channel, subdir, file_name), created=False)
        raise ConflictError(
            f"{channel} already has another file {subdir}/{file_name}, uploaded at "
            f"{known.uploaded_at:%Y-%m-%d %H:%M} UTC.",
            hint="Packages are immutable: increase the build number and upload that.",
        )
    quotas.require_upload_quota(channel.namespace, record["size"])
    blobs.mark_used(Blob.objects.filter(pk=stored.blob.pk))
    now = timezone.now()
    # Rules on age use this time, as the publisher controls the package's own timestamp.
    reported = record | {"indexed_timestamp": int(now.timestamp() * 1000)}
    package = HostedPackage.objects.create(
        channel=channel,
        subdir=subdir,
        file_name=file_name,
        name=record["name"],
        version=record["version"],
        build=record["build"],
        record=CondaPackage.from_record(reported, url="", channel="", file_name="").record_json(),
        sha256=record["sha256"],
        md5=stored.md5,
        size=record["size"],
        made_from=made_from,
        blob=stored.blob,
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
    """Yank a package: solves no longer choose it; existing locks keep working, as it stays
    stored."""
    require(actor, Perm.MANAGE, package.channel)
    _check_length(reason, "reason")
    if not reason.strip():
        raise InvalidInputError("Give a reason for yanking it.", where="reason")
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
        state = "already yanked" if yanked_at else "not yanked"
        raise ConflictError(f"{package} is {state}.")
    package.refresh_from_db()
    reported = {"package": str(package)} | ({"reason": reason} if reason else {})
    AuditEvent.record(actor, action, channel.namespace, reported)
    return package


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableChannel:
    """A hosted channel as read by an actor who may download from it."""

    channel: HostedChannel

    def document(self, subdir: str, name: str) -> Document:
        """As `ServedChannel.document`; rendered once for each change of the packages."""
        if subdir not in SUBDIRS:
            raise NotFoundError(f"{self.channel} has no {printable(subdir)}.")
        recalls = hosted_channels.Recalls()
        revision = self.channel.states().get(subdir, 0)
        state = f"{RENDERING_VERSION} hosted {self.channel.identity} {revision} {recalls.state}"
        return document(
            f"{self.channel}", state, subdir, name, lambda: self._packages(subdir, recalls)
        )

    def _packages(self, subdir: str, recalls: hosted_channels.Recalls) -> list[CondaPackage]:
        base = hosted_channels.url_of(self.channel)
        rows = self.channel.packages.listed().filter(subdir=subdir).order_by("file_name")
        packages = (row.value(base=base) for row in rows.iterator())
        return [package for package in packages if not recalls.reason(package)]

    def package(self, subdir: str, file_name: str) -> HostedPackage:
        """Return a package; yanked ones are included.

        Raises:
            NotFoundError: the channel has no such package.
            RecalledError: it was recalled.
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
    """Packages of one channel, newest first; empty if the actor may not see it."""
    rows = HostedPackage.objects.visible_to(actor).filter(channel__name=channel)
    return rows.select_related("channel", "uploaded_by", "yanked_by").order_by("-pk")
