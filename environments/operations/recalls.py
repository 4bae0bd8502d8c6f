"""Operations on recalls: recall a package, list affected builds, undo."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from condastore.errors import AccessDeniedError, InvalidInputError, NotFoundError, TransitionError
from condastore.mail_texts import compose, subject_of
from environments.domain.policy import package_spec
from environments.models import (
    AuditEvent,
    Build,
    LockRow,
    Namespace,
    Notification,
    Recall,
    RecalledLock,
    audited,
)
from environments.models.approvals import LONGEST_REASON
from environments.models.locks import BATCH
from environments.models.namespaces import RECALL_PACKAGES, holds_everywhere
from environments.models.notifications import Event
from environments.models.recalls import refuse_recalled
from environments.operations import queueing
from environments.services import recalled_locks

__all__ = [
    "RecallPreview",
    "find_recall",
    "hits",
    "preview_recall",
    "recall",
    "refuse_recalled",
    "undo_recall",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: Number of builds named in a notification; interfaces list all.
MAX_NAMED_BUILDS = 100


@audited()
def recall(
    *, actor: Actor, spec: str = "", sha256: str = "", manager: str = "conda", reason: str
) -> Recall:
    """Stop building and serving everything that holds a package, by MatchSpec or by digest.

    Current builds stay current, so that undoing the recall restores everything.
    """
    _require(actor)
    new = _unsaved(manager=manager, spec=spec, sha256=sha256)
    new.reason, new.recalled_by = reason.strip(), actor.account
    if not new.reason or len(new.reason) > LONGEST_REASON:
        raise InvalidInputError(
            "Give a reason; it is shown to everybody who is affected.", where="reason"
        )
    new.save()
    locks = recalled_locks.mark(new)
    hit = _hit(new)
    _notify(new, list(hit), undone=False)
    transaction.on_commit(partial(recalled_locks.follow_recall, new))
    queueing.queue_due(Notification)
    change = _change(new) | {"locks": locks, "builds": hit.count()}
    AuditEvent.record(actor, "recall.add", new, change)
    return new


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPreview:
    """What a recall would stop: numbers of rows, and the first of the builds."""

    build_count: int
    environment_count: int
    namespace_count: int
    requester_count: int
    builds: Sequence[Build]
    packages: Mapping[int, Sequence[str]]  # of each lock, by primary key: "name version"


def preview_recall(
    *, actor: Actor, spec: str = "", sha256: str = "", manager: str = "conda", limit: int
) -> RecallPreview:
    """Return what `recall` would stop building and serving, of which at most `limit` builds."""
    _require(actor)
    recall = _unsaved(manager=manager, spec=spec, sha256=sha256)
    held = recalled_locks.recalled_packages(recall, LockRow.objects.all())
    locks = sorted(held)
    builds: set[int] = set()
    environments: set[int] = set()
    namespaces: set[int] = set()
    requesters: set[int] = set()
    for start in range(0, len(locks), BATCH):
        rows = _present_builds().filter(lock__in=locks[start : start + BATCH])
        for build, environment, namespace, requester in rows.values_list(
            "pk", "environment", "environment__namespace", "requested_by"
        ):
            builds.add(build)
            environments.add(environment)
            namespaces.add(namespace)
            requesters |= {requester} - {None}
    latest = sorted(builds, reverse=True)[:limit]
    return RecallPreview(
        build_count=len(builds),
        environment_count=len(environments),
        namespace_count=len(namespaces),
        requester_count=len(requesters),
        builds=list(_present_builds().filter(pk__in=latest).order_by("-pk")),
        packages={lock: sorted(names) for lock, names in held.items()},
    )


def _unsaved(*, manager: str, spec: str, sha256: str) -> Recall:
    """Return a valid recall without its reason.

    Raises:
        InvalidInputError: it names no package, more than one way, or every package.
    """
    recall = Recall(
        manager=manager,
        spec=" ".join(spec.split()),
        sha256=sha256.strip().lower().removeprefix("sha256:"),
    )
    _check(recall)
    return recall


@audited()
def undo_recall(*, actor: Actor, recall: Recall, reason: str) -> Recall:
    """Serve again what the recall has stopped, unless another recall covers it too."""
    _require(actor)
    why = reason.strip()
    if not why or len(why) > LONGEST_REASON:
        raise InvalidInputError("Give a reason for undoing it.", where="reason")
    changed = Recall.objects.active().filter(pk=recall.pk)
    if not changed.update(undone_at=timezone.now(), undone_by=actor.account):
        raise TransitionError("This recall was already undone.")
    recall.refresh_from_db()
    _notify(recall, list(_hit(recall)), undone=True)
    transaction.on_commit(partial(recalled_locks.follow_recall, recall))
    queueing.queue_due(Notification)
    AuditEvent.record(actor, "recall.undo", recall, _change(recall) | {"undone": why})
    return recall


def hits(actor: Actor, recall: Recall) -> QuerySet[Build]:
    """Builds that hold recalled packages: all for those who may recall, else the visible ones."""
    everything = holds_everywhere(actor, RECALL_PACKAGES, Perm.MANAGE)
    found = Build.objects.all() if everything else Build.objects.visible_to(actor)
    return found.filter(pk__in=_hit(recall).order_by().values("pk")).order_by(
        "environment__namespace__name", "environment__name", "-number"
    )


def find_recall(actor: Actor, key: object) -> Recall:
    """Raises NotFoundError, also for recalls the actor may not see."""
    text = str(key)
    rows = Recall.objects.visible_to(actor)
    found = rows.filter(pk=int(text)).first() if text.isdecimal() and len(text) < 18 else None
    if found is None:
        raise NotFoundError("There is no such recall.", where="id")
    return found


def _require(actor: Actor) -> None:
    if not actor.signed_in or not holds_everywhere(actor, RECALL_PACKAGES, Perm.MANAGE):
        actor.account  # noqa: B018 - raises NotSignedInError
        raise AccessDeniedError(
            "You may not recall packages.",
            hint="Ask an administrator of the installation, who can also grant you the permission.",
        )


def _check(recall: Recall) -> None:
    if recall.manager not in ("conda", "pypi"):
        raise InvalidInputError(
            f"Unknown package manager {recall.manager[:20]!r}.",
            where="manager",
            hint="Use conda or pypi.",
        )
    for manager in ("conda", "pypi"):
        if recall.spec.startswith(f"{manager}:") and not recall.spec.startswith(f"{manager}::"):
            recall.manager, recall.spec = manager, recall.spec[len(manager) + 1 :].strip()
    if bool(recall.spec) == bool(recall.sha256):
        raise InvalidInputError("Give either a MatchSpec or a sha256.", where="spec")
    if recall.sha256 and not _DIGEST.fullmatch(recall.sha256):
        raise InvalidInputError("A sha256 must have 64 hexadecimal digits.", where="sha256")
    if len(recall.spec) > 500:
        raise InvalidInputError("A MatchSpec has at most 500 characters.", where="spec")
    if recall.spec and package_spec(f"{recall.manager}:{recall.spec}", wide=True).name == "*":
        raise InvalidInputError(
            "This would recall every package.",
            where="spec",
            hint="Name a package, or part of its name.",
        )


def _hit(recall: Recall) -> QuerySet[Build]:
    locks = RecalledLock.objects.filter(recall=recall).values("lock")
    return _present_builds().filter(lock__in=locks)


def _present_builds() -> QuerySet[Build]:
    return (
        Build.objects.filter(deleted_at=None, environment__deleted_at=None)
        .select_related("environment__namespace", "requested_by")
        .defer("source", "log_archive", "verdicts")
    )


def _notify(recall: Recall, builds: Sequence[Build], *, undone: bool) -> None:
    """Notify each namespace with an affected build, and the installation."""
    places: dict[int, tuple[Namespace, list[Build]]] = {}
    for build in builds:
        namespace = build.environment.namespace
        places.setdefault(namespace.pk, (namespace, []))[1].append(build)
    common = {"recall": str(recall.pk), "package": str(recall), "reason": recall.reason}
    for key, (namespace, held) in places.items():
        names = sorted({str(build.environment) for build in held})
        mail = compose(
            "recall", package=recall, undone=undone, reason=recall.reason, environments=names
        )
        Notification.tell(
            Event.RECALL,
            namespace=key,
            subject=mail.subject,
            text=mail.text,
            data=common
            | {
                "undone": undone,
                "namespace": namespace.name,
                "builds": [str(build) for build in held[:MAX_NAMED_BUILDS]],
            },
            emails={build.requested_by.email for build in held if build.requested_by},
        )
    if not places:
        Notification.tell(
            Event.RECALL,
            namespace=None,
            subject=subject_of("recall", package=recall, undone=undone),
            data=common | {"undone": undone, "namespace": None, "builds": []},
        )


def _change(recall: Recall) -> dict[str, object]:
    return {
        "recall": recall.pk,
        "manager": recall.manager,
        "spec": recall.spec,
        "sha256": recall.sha256,
        "reason": recall.reason,
    }
