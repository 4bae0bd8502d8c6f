"""Operations on builds: submit, cancel, choose the current one, tag, archive, restore, delete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.errors import ConflictError, InvalidInputError, NotFoundError, TransitionError
from condastore.statements import Lookup, marks, values_of
from environments.domain.lifecycle import CANCELLABLE, FINISHED, RUNNING, BuildState
from environments.domain.names import parse_name
from environments.domain.policy import judge_names
from environments.domain.specification import Defaults, Submission
from environments.domain.specification_forms import parse_specification
from environments.models import (
    AuditEvent,
    Build,
    BuildEvent,
    BuildTag,
    Channel,
    Environment,
    FolderRestore,
    LegalHold,
    Namespace,
    RecalledLock,
    SpecificationRow,
    audited,
)
from environments.models.approvals import LONGEST_REASON, in_turn
from environments.models.holds import LegalHoldQuerySet
from environments.models.recalls import refuse_recalled
from environments.operations import credentials, queueing, quotas
from environments.services import approval_requests, folders, hosted_channels, platforms
from environments.services.policies import policy_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """`created` is False if the idempotency key was used before; `build` is then the first
    build."""

    build: Build
    warnings: tuple[str, ...]
    created: bool


def read_submission(
    namespace: Namespace, text: str, *, platforms_wanted: Sequence[str] = ()
) -> Submission:
    """Parse the text and evaluate what needs no solve. Raises SpecificationError or PolicyError."""
    defaults = Defaults(
        channels=tuple(settings.DEFAULT_CHANNELS),
        channel_alias=settings.CHANNEL_ALIAS,
        hosted_channels=hosted_channels.base_url(),
        platforms=tuple(platforms_wanted) or platforms.default_platforms(),
        max_bytes=settings.MAX_SPECIFICATION_BYTES,
        max_lock_bytes=settings.MAX_LOCK_BYTES,
    )
    submission = parse_specification(text, defaults=defaults)
    judge_names(policy_of(namespace), submission.specification)
    return submission


def submit_build(
    *,
    actor: Actor,
    environment: Environment,
    specification: str,
    idempotency_key: str = "",
    force_solve: bool = False,
    platforms_wanted: Sequence[str] = (),
    reason: str = "",
) -> Submitted:
    """Queue a build of `specification`, in any accepted format, in `environment`.

    `reason` explains the build to those who approve packages. Parsing and evaluation happen before
    the transaction, which on SQLite blocks all other writers.
    """
    require(actor, Perm.BUILD, environment)
    return submit_permitted(
        actor=actor,
        environment=environment,
        specification=specification,
        idempotency_key=idempotency_key,
        force_solve=force_solve,
        platforms_wanted=platforms_wanted,
        reason=reason,
    )


def submit_permitted(
    *,
    actor: Actor,
    environment: Environment,
    specification: str,
    idempotency_key: str,
    force_solve: bool,
    platforms_wanted: Sequence[str],
    reason: str,
) -> Submitted:
    """Submit a build for an actor whose permission was checked by the caller."""
    require_reason(reason)
    if idempotency_key and (known := _with_key(environment, idempotency_key)):
        return Submitted(build=known, warnings=(), created=False)
    return accept(
        actor=actor,
        environment=environment,
        submission=read_submission(
            environment.namespace, specification, platforms_wanted=platforms_wanted
        ),
        idempotency_key=idempotency_key,
        force_solve=force_solve,
        reason=reason,
    )


def require_reason(reason: str) -> None:
    """Raises InvalidInputError for a reason that is too long or has NUL characters."""
    if len(reason) > LONGEST_REASON or "\0" in reason:
        raise InvalidInputError(
            f"A reason has at most {LONGEST_REASON} characters.", where="reason"
        )


@audited()
def accept(
    *,
    actor: Actor,
    environment: Environment,
    submission: Submission,
    idempotency_key: str,
    force_solve: bool,
    reason: str,
) -> Submitted:
    """Queue a build of a parsed submission, for an actor who may build in the environment."""
    namespace, value = environment.namespace, submission.specification
    hosted_channels.require_readable(actor, namespace, value)
    near = quotas.require_quota(namespace, builds=1)
    credentials.store_from_urls(
        actor=actor, namespace=namespace, credentials=submission.credentials
    )
    # Hosted channels are not indexed for global search.
    urls = [url for url in dict.fromkeys(value.channels) if not hosted_channels.is_hosted(url)]
    for url in _unknown_channels(urls):
        Channel.objects.get_or_create(url=url)
    try:
        # This fails only if the idempotency key was used before; the existing build is read below.
        with transaction.atomic() if idempotency_key else nullcontext():
            specification = SpecificationRow.store(value)
            build = Build.objects.create(
                environment=environment,
                number=environment.take_number(),
                specification=specification,
                source=submission.source,
                platform=platforms.platform_to_link(value.platforms),
                force_solve=force_solve,
                requested_by=actor.account,
                idempotency_key=idempotency_key,
                reason=reason,
                message_sent_at=timezone.now(),  # `queueing` sends it after the commit
            )
    except IntegrityError:
        if known := _with_key(environment, idempotency_key):
            return Submitted(build=known, warnings=(), created=False)
        raise
    BuildEvent.objects.create(
        build=build, state=BuildState.QUEUED, message="\n".join(submission.warnings)
    )
    build.announce()
    if value.description and not environment.description:
        Environment.objects.filter(pk=environment.pk).update(description=value.description)
    AuditEvent.record(actor, "build.submit", build, {"specification": specification.digest})
    queueing.queue_marked(build)
    return Submitted(build=build, warnings=(*submission.warnings, *near), created=True)


_CHANNELS = Lookup(Channel, own=("id", "url"))


def _unknown_channels(urls: Sequence[str]) -> list[str]:
    if not urls:
        return []
    known = _CHANNELS.all(
        ("channels", len(urls)),
        lambda: Channel.objects.order_by().filter(url__in=marks(urls) or ()),
        values_of(0, urls),
    )
    return sorted(set(urls) - {channel.url for channel in known})


def _with_key(environment: Environment, key: str) -> Build | None:
    if not key:
        return None
    return Build.objects.filter(environment=environment, idempotency_key=key).first()


@audited()
def cancel_build(*, actor: Actor, build: Build) -> Build:
    """Cancel a waiting build at once; a running build is stopped by its worker within two
    seconds."""
    require(actor, Perm.BUILD, build)
    build.refresh_from_db()
    if build.state == BuildState.CANCELLING or build.state == BuildState.CANCELLED:
        return build
    if build.state not in CANCELLABLE:
        raise TransitionError(f"{build} is {build.state} and cannot be cancelled.")
    if build.state == BuildState.HELD:
        in_turn()  # lock order: before the row of the build, as decisions do
    running = build.state in RUNNING
    try:
        build.move(
            BuildState.CANCELLING if running else BuildState.CANCELLED,
            message=f"cancelled by {actor.name}",
        )
    except TransitionError:
        # The state changed between reading and cancelling; try once with the new state.
        build.refresh_from_db()
        if build.state in FINISHED:
            raise
        build.move(
            BuildState.CANCELLING if build.state in RUNNING else BuildState.CANCELLED,
            message=f"cancelled by {actor.name}",
        )
    approval_requests.withdraw(build)
    AuditEvent.record(actor, "build.cancel", build)
    return build


@audited()
def set_current_build(*, actor: Actor, build: Build, pin: bool = False) -> Build:
    """Make `build` current; with `pin` later builds do not replace it."""
    require(actor, Perm.BUILD, build)
    environment = Environment.objects.select_for_update().get(pk=build.environment_id)
    build.refresh_from_db()
    if build.state != BuildState.READY:
        raise ConflictError(
            f"{build} is {build.state}; only a READY build can be current.",
            hint="Restore it first." if build.state == BuildState.ARCHIVED else None,
        )
    refuse_recalled(build)
    before = environment.current
    if not environment.point(build, pinned=pin, expected=before):
        raise TransitionError(f"Another build of {environment} became current in the meantime.")
    change = {"before": before.number if before else None, "after": build.number, "pinned": pin}
    AuditEvent.record(actor, "environment.point", environment, change)
    folders.follow_environment(environment)
    build.environment.refresh_from_db()
    return build


def rollback(*, actor: Actor, environment: Environment, to: Build | None = None) -> Build:
    """Roll back to `to`, or to the previous READY build, and pin it."""
    require(actor, Perm.BUILD, environment)
    if to is None:
        to = earlier_build(environment)
        if to is None:
            raise NotFoundError(f"{environment} has no READY build before the current one.")
    return set_current_build(actor=actor, build=to, pin=True)


def earlier_build(environment: Environment) -> Build | None:
    """Return the build that a rollback makes current; None if there is none."""
    ready = _usable(environment)
    if environment.current is not None:
        ready = ready.filter(number__lt=environment.current.number)
    return ready.order_by("-number").first()


@audited()
def unpin(*, actor: Actor, environment: Environment) -> Environment:
    """Roll forward: make the newest READY build current, and let later builds replace it."""
    require(actor, Perm.BUILD, environment)
    Environment.objects.filter(pk=environment.pk).update(pinned=False, updated_at=timezone.now())
    newest = _usable(environment).order_by("-number").first()
    if newest is not None:
        environment.advance(newest)
    AuditEvent.record(actor, "environment.unpin", environment)
    folders.follow_environment(environment)
    environment.refresh_from_db()
    return environment


@audited()
def tag_build(*, actor: Actor, build: Build, tag: str) -> Build:
    """Move the tag to this build from any other build of the environment."""
    require(actor, Perm.BUILD, build)
    name = parse_name(tag, what="tag")
    # Retention locks the same row, so it either sees this tag or has already run.
    Environment.objects.select_for_update().get(pk=build.environment_id)
    BuildTag.objects.update_or_create(
        environment=build.environment,
        name=name,
        defaults={"build": build, "moved_at": timezone.now()},
    )
    AuditEvent.record(actor, "build.tag", build, {"tag": name})
    return build


@audited()
def untag(*, actor: Actor, environment: Environment, tag: str) -> Environment:
    require(actor, Perm.BUILD, environment)
    removed, _ = BuildTag.objects.filter(environment=environment, name=tag).delete()
    if not removed:
        raise NotFoundError(f"{environment} has no tag {tag!r}.")
    AuditEvent.record(actor, "build.untag", environment, {"tag": tag})
    return environment


@audited()
def archive_build(*, actor: Actor, build: Build) -> Build:
    """Delete the folder; specification, lock, log and verdicts stay, so restoring needs no
    solve."""
    require(actor, Perm.BUILD, build)
    archive_idle(build, by=actor, message=f"archived by {actor.name}")
    return build


def archive_idle(build: Build, *, by: Actor | None, message: str) -> None:
    """Archive a build for a person, or with `by` None for the retention rules."""
    require_idle(build, "archive")
    build.move(BuildState.ARCHIVED, message=message, prefix=None)
    AuditEvent.record(by, "build.archive", build, {"why": message} if by is None else None)
    queueing.queue_tidy()


@audited()
def restore_build(*, actor: Actor, build: Build) -> Build:
    """Queue the build to be linked again from its lock. It does not become current.

    For a READY build whose folder is missing, the next attempt to link it starts now.
    """
    require(actor, Perm.BUILD, build)
    build.refresh_from_db()
    if build.state == BuildState.READY and FolderRestore.hurry(build):
        AuditEvent.record(actor, "build.restore", build)
        queueing.queue_due(FolderRestore)
        return build
    if build.state != BuildState.ARCHIVED:
        hint = None
        if build.state == BuildState.READY:
            seconds = round(settings.TRASH_INTERVAL.total_seconds())
            hint = (
                "The folder is not known to be missing. A deleted folder is detected within "
                f"{seconds} seconds and linked again automatically."
            )
        raise TransitionError(
            f"{build} is {build.state}; only an ARCHIVED build can be restored.", hint=hint
        )
    refuse_recalled(build)
    quotas.require_restore_quota(build.environment.namespace)
    build.move(
        BuildState.QUEUED,
        message=f"restored by {actor.name}",
        restoring=True,
        resumed_by=actor.account,
        attempt=0,
        not_before=timezone.now(),
        message_sent_at=None,
        failure=None,
    )
    build.reopen_log()
    AuditEvent.record(actor, "build.restore", build)
    queueing.queue(build)
    return build


@audited()
def delete_build(*, actor: Actor, build: Build) -> Build:
    """Delete the build: the row stays for the record, and its number is never used again.

    Until the undo window ends it can be restored (`retention.undelete_build`).
    """
    require(actor, Perm.MANAGE, build)
    delete_idle(build, by=actor, message=f"deleted by {actor.name}")
    return build


def delete_idle(build: Build, *, by: Actor | None, message: str) -> None:
    """Delete a build for a person, or with `by` None for the retention rules."""
    build.refresh_from_db()
    if build.state not in FINISHED:
        raise ConflictError(f"{build} is {build.state}.", hint="Cancel it first.")
    require_idle(build, "delete")
    Build.objects.filter(pk=build.pk).update(deleted_at=timezone.now())
    if build.state == BuildState.READY:
        build.move(BuildState.ARCHIVED, message=message, prefix=None)
    BuildTag.objects.filter(build=build).delete()
    AuditEvent.record(by, "build.delete", build, {"why": message} if by is None else None)
    queueing.queue_tidy()
    build.refresh_from_db()


def _usable(environment: Environment) -> QuerySet[Build]:
    """READY builds without recalled packages."""
    recalled = RecalledLock.objects.active().values("lock")
    return environment.builds.filter(state=BuildState.READY, deleted_at=None).exclude(
        lock__in=recalled
    )


def require_idle(build: Build, what: str) -> None:
    """Refuse current (and so pinned) and held builds; a leased build is never READY."""
    environment = Environment.objects.select_for_update().get(pk=build.environment_id)
    if environment.current_id == build.pk and environment.deleted_at is None:
        raise ConflictError(
            f"{build} is the current build of its environment; you cannot {what} it.",
            hint="Make another build current first.",
        )
    refuse_held(LegalHold.objects.on(build), what)


def refuse_held(holds: LegalHoldQuerySet, what: str) -> None:
    """Raises ConflictError with the reason if one of these legal holds is active."""
    hold = holds.active().select_related("environment__namespace", "build", "placed_by").first()
    if hold is not None:
        raise ConflictError(
            f"There is a legal {hold}, placed by {hold.placed_by or 'a deleted account'}: "
            f"{hold.reason}",
            hint=f"You can {what} it after the hold is released.",
        )
