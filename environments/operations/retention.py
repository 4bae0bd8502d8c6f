"""Retention rules, legal holds, and restoring what was deleted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.errors import ConflictError, InvalidInputError, NotFoundError, StoreError
from environments.domain.lifecycle import FINISHED, BuildState
from environments.domain.retention import Bounds, Candidate, Decision, Fate, Rules, decide
from environments.models import (
    Artifact,
    AuditEvent,
    Blob,
    Build,
    BuildTag,
    Environment,
    ImageIndex,
    LegalHold,
    LockedConda,
    LockedPypi,
    Namespace,
    audited,
)
from environments.models.approvals import LONGEST_REASON
from environments.operations import builds, quotas
from environments.services import blobs

logger = structlog.get_logger(__name__)
#: Upper bound of builds or days in a rule.
MAX_NUMBER = 100_000
RULES = ("keep_last", "keep_days", "delete_days")
_FATES = {Fate.ARCHIVE: "archived by retention", Fate.DELETE: "deleted by retention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Effect of the rules on a build now; `size` is the number of bytes that would be freed."""

    build: Build
    fate: Fate
    why: str
    size: int


def bounds() -> Bounds:
    return Bounds(
        least_builds=settings.RETENTION_LEAST_BUILDS,
        most_builds=settings.RETENTION_MOST_BUILDS or None,
        least_days=settings.RETENTION_LEAST_DAYS,
        most_days=settings.RETENTION_MOST_DAYS or None,
    )


def rules_of(namespace: Namespace) -> Rules:
    """Return the rules in effect: the namespace's own or the installation's, within the bounds."""

    def said(own: int | None, default: int) -> int | None:
        return (default if own is None else own) or None

    requested = Rules(
        keep_last=said(namespace.keep_last, settings.RETENTION_KEEP_LAST),
        keep_days=said(namespace.keep_days, settings.RETENTION_KEEP_DAYS),
        keep_tagged=namespace.keep_tagged,
        delete_days=said(namespace.delete_days, settings.RETENTION_DELETE_DAYS),
    )
    return requested.within(bounds())


@audited()
def set_retention(
    *,
    actor: Actor,
    namespace: Namespace,
    rules: Mapping[str, int | None],
    keep_tagged: bool | None = None,
) -> Namespace:
    """Set rules by name; 0 disables a rule, None means the installation's default."""
    require(actor, Perm.MANAGE, namespace)
    for name, number in rules.items():
        if name not in RULES:
            raise InvalidInputError(f"There is no rule {name!r}.", where="retention")
        if number is not None and not 0 <= number <= MAX_NUMBER:
            raise InvalidInputError(
                f"Must be a number from 0 (no rule) to {MAX_NUMBER}.", where=name
            )
    changes: dict[str, Any] = dict(rules)
    if keep_tagged is not None:
        changes["keep_tagged"] = keep_tagged
    namespace.refresh_from_db()
    before = {name: getattr(namespace, name) for name in changes}
    if changes:
        Namespace.objects.filter(pk=namespace.pk).update(**changes)
        namespace.refresh_from_db()
    AuditEvent.record(actor, "namespace.retention", namespace, {"before": before, "after": changes})
    return namespace


# --- applying the rules ---------------------------------------------------------------------------


def plan(*, actor: Actor, namespace: Namespace) -> Iterator[Planned]:
    """Yield what the rules would archive or delete now, environment by environment."""
    require(actor, Perm.VIEW, namespace)
    return _planned(namespace, timezone.now())


def _planned(namespace: Namespace, now: datetime) -> Iterator[Planned]:
    rules = rules_of(namespace)
    for environment in _affected(namespace, rules, now).iterator():
        chosen = {one.number: one for one in _decisions(environment, rules, now)}
        rows = Build.objects.filter(environment=environment, number__in=list(chosen))
        for build in rows.select_related("prefix", "environment__namespace").order_by("number"):
            one = chosen[build.number]
            size = build.prefix.unique_size if build.prefix and one.fate is Fate.ARCHIVE else 0
            yield Planned(build=build, fate=one.fate, why=one.why, size=size)


def apply_rules() -> int:
    """Archive and delete builds by the rules; safe to run concurrently. Returns their number."""
    now, done = timezone.now(), 0
    for namespace in Namespace.objects.iterator():
        rules = rules_of(namespace)
        for environment in _affected(namespace, rules, now).iterator():
            try:
                done += _apply(environment, rules, now)
            except StoreError as error:  # a build has changed meanwhile; the next run sees it
                logger.warning("retention", environment=str(environment), error=str(error))
    return done


@audited()
def _apply(environment: Environment, rules: Rules, now: datetime) -> int:
    # Tagging, holding and pointing lock this row too, so the decision stays true until the end.
    Environment.objects.select_for_update().get(pk=environment.pk)
    chosen = _decisions(environment, rules, now)
    for one in chosen:
        build = Build.objects.select_related("environment__namespace").get(
            environment=environment, number=one.number
        )
        act = builds.archive_idle if one.fate is Fate.ARCHIVE else builds.delete_idle
        act(build, by=None, message=f"{_FATES[one.fate]}: {one.why}")
    return len(chosen)


def _affected(namespace: Namespace, rules: Rules, now: datetime) -> QuerySet[Environment]:
    """Environments with builds that a rule may apply to."""
    found = Environment.objects.present().filter(namespace=namespace).select_related("namespace")
    if not rules.active:
        return found.none()
    old = Q(created_at__lte=now - timedelta(days=rules.keep_days or 0))
    some = Q(state=BuildState.READY)
    if rules.delete_days is not None:
        ended = Q(finished_at__lte=now - timedelta(days=rules.delete_days))
        some |= Q(state__in=FINISHED - {BuildState.READY}) & ended
    of_it = Build.objects.filter(old, some, environment=OuterRef("pk"), deleted_at=None)
    others = of_it.exclude(pk=OuterRef("current_id")).order_by()
    return found.filter(Exists(others) | Q(current=None) & Exists(of_it.order_by())).order_by("pk")


def _decisions(environment: Environment, rules: Rules, now: datetime) -> list[Decision]:
    rows = Build.objects.filter(environment=environment, deleted_at=None)
    tagged = set(BuildTag.objects.filter(environment=environment).values_list("build", flat=True))
    holds = LegalHold.objects.active().filter(environment=environment)
    held = set(holds.values_list("build", flat=True))
    current = Environment.objects.values_list("current", flat=True).get(pk=environment.pk)
    columns = ("pk", "number", "state", "created_at", "finished_at")
    candidates = [
        Candidate(
            number=number,
            state=BuildState(state),
            created_at=created_at,
            finished_at=finished_at,
            current=key == current,
            tagged=key in tagged,
            held=key in held or None in held,
        )
        for key, number, state, created_at, finished_at in rows.values_list(*columns)
    ]
    return [one for one in decide(candidates, rules, now=now) if one.fate is not Fate.KEEP]


# --- legal holds ----------------------------------------------------------------------------------


@audited()
def place_hold(
    *, actor: Actor, environment: Environment, reason: str, build: Build | None = None
) -> LegalHold:
    """Prevent archiving and deleting the build, or all of the environment, until released."""
    require(actor, Perm.MANAGE, environment)
    Environment.objects.select_for_update().get(pk=environment.pk)
    hold = LegalHold.objects.create(
        environment=environment, build=build, reason=_reason(reason), placed_by=actor.account
    )
    AuditEvent.record(actor, "hold.place", build or environment, {"reason": hold.reason})
    return hold


@audited()
def release_hold(*, actor: Actor, hold: LegalHold, reason: str) -> LegalHold:
    require(actor, Perm.MANAGE, hold.environment)
    reported = {"reason": _reason(reason), "placed": hold.reason}
    released = LegalHold.objects.active().filter(pk=hold.pk)
    if not released.update(released_at=timezone.now(), released_by=actor.account):
        raise ConflictError("This hold is already released.")
    AuditEvent.record(actor, "hold.release", hold.build or hold.environment, reported)
    hold.refresh_from_db()
    return hold


def holds(actor: Actor) -> QuerySet[LegalHold]:
    """Active holds in namespaces that the actor manages."""
    mine = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by().values("pk")
    rows = LegalHold.objects.active().filter(environment__namespace__in=mine)
    return rows.select_related("environment__namespace", "build", "placed_by")


def _reason(text: str) -> str:
    if not text.strip() or len(text) > LONGEST_REASON or "\0" in text:
        raise InvalidInputError(
            f"Give a reason of at most {LONGEST_REASON} characters.", where="reason"
        )
    return text.strip()


# --- deleted builds and environments --------------------------------------------------------------


def deleted_builds(actor: Actor) -> QuerySet[Build]:
    """Deleted builds that can be restored, in namespaces that the actor manages."""
    mine = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by().values("pk")
    since = timezone.now() - settings.UNDO_WINDOW
    rows = Build.objects.filter(environment__namespace__in=mine, deleted_at__gte=since)
    return rows.filter(environment__deleted_at=None).select_related("environment__namespace")


def deleted_environments(actor: Actor) -> QuerySet[Environment]:
    mine = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by().values("pk")
    since = timezone.now() - settings.UNDO_WINDOW
    rows = Environment.objects.filter(namespace__in=mine, deleted_at__gte=since)
    return rows.select_related("namespace")


def find_deleted_build(actor: Actor, namespace: str, environment: str, number: int) -> Build:
    """Raises NotFoundError, also for builds the actor may not manage."""
    location = {"environment__namespace__name": namespace, "environment__name": environment}
    found = deleted_builds(actor).filter(**location, number=number).first()
    if found is None:
        raise NotFoundError(
            f"There is no deleted build {namespace}/{environment}:{number} to restore.",
            hint=f"Deleted builds can be restored for {settings.UNDO_WINDOW.days} days.",
        )
    return found


def find_deleted_environment(actor: Actor, namespace: str, name: str) -> Environment:
    """Return the most recently deleted one. Raises NotFoundError, also if it is not visible."""
    rows = deleted_environments(actor).filter(namespace__name=namespace, name=name)
    found = rows.order_by("-deleted_at").first()
    if found is None:
        raise NotFoundError(
            f"There is no deleted environment {namespace}/{name} to restore.",
            hint=f"Deleted environments can be restored for {settings.UNDO_WINDOW.days} days.",
        )
    return found


@audited()
def undelete_build(*, actor: Actor, build: Build) -> Build:
    """Undelete a build: a READY build is ARCHIVED now, and its tags are not restored."""
    require(actor, Perm.MANAGE, build.environment.namespace)
    since = timezone.now() - settings.UNDO_WINDOW
    if not Build.objects.filter(pk=build.pk, deleted_at__gte=since).update(deleted_at=None):
        raise ConflictError(f"{build} is not deleted, or was deleted too long ago.")
    _mark_used(build.lock_id)
    AuditEvent.record(actor, "build.undelete", build)
    build.refresh_from_db()
    return build


@audited()
def undelete_environment(*, actor: Actor, environment: Environment) -> Environment:
    """Undelete an environment with its builds, which are ARCHIVED until one is restored."""
    require(actor, Perm.MANAGE, environment.namespace)
    quotas.require_quota(environment.namespace, environments=1)
    since = timezone.now() - settings.UNDO_WINDOW
    rows = Environment.objects.filter(pk=environment.pk, deleted_at__gte=since)
    try:
        with transaction.atomic():
            if not rows.update(deleted_at=None, updated_at=timezone.now()):
                raise ConflictError(f"{environment} is not deleted, or was deleted too long ago.")
    except IntegrityError:
        raise ConflictError(
            f"Another environment is named {environment} now.",
            hint="Rename that one first.",
        ) from None
    locks = environment.builds.filter(deleted_at=None).exclude(lock=None).order_by()
    for lock in locks.values_list("lock", flat=True).distinct():
        _mark_used(lock)
    AuditEvent.record(actor, "environment.undelete", environment)
    environment.refresh_from_db()
    return environment


def _mark_used(lock: int | None) -> None:
    """Mark the blobs of a lock as used, so that garbage collection keeps them."""
    if lock is None:
        return
    artifacts = Artifact.objects.filter(lock=lock).order_by()
    blobs.mark_used(
        Blob.objects.filter(
            Q(pk__in=artifacts.exclude(blob=None).values("blob"))
            | Q(pk__in=artifacts.filter(image_blobs__isnull=False).values("image_blobs__blob"))
            | Q(pk__in=ImageIndex.objects.filter(lock=lock).order_by().values("blob"))
        )
    )
    for locked in (LockedConda, LockedPypi):
        digests = locked.objects.filter(lock=lock).order_by().values(digest=F("package__sha256"))
        blobs.mark_used(Blob.objects.filter(sha256__in=digests))
