"""Start page of the console: numbers that link to the lists they count, and two tables."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import Count, Exists, OuterRef, Q, Sum
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from environments.admin.changelist import MAX_COUNTED
from environments.admin.display import RelatedTable, link, list_url, size
from environments.admin.namespaces import amount, quota_status
from environments.domain.lifecycle import RUNNING, BuildState
from environments.models import (
    ApprovalRequest,
    Build,
    FolderRestore,
    Namespace,
    Prefix,
    Recall,
    RecalledLock,
    Worker,
)
from environments.models.folder_restores import RestoreState
from environments.operations import quotas

#: Number of namespaces in a table.
LARGEST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number of the start page. `alarming` means that somebody should act."""

    title: str
    value: str
    url: str
    note: str = ""
    alarming: bool = False


def numbers(actor: Actor) -> Sequence[Number]:
    """Return the numbers that concern the actor; an approver gets those of decisions only."""
    found = [_waiting(actor)]
    if actor.is_superuser:
        found += [_failed(), *_queue(), _workers(), _disk(), _folders(), _recalled()]
    return found


def related_tables(actor: Actor) -> Sequence[RelatedTable]:
    return (_near_quota(), _by_namespace()) if actor.is_superuser else ()


def _waiting(actor: Actor) -> Number:
    rows = ApprovalRequest.objects.with_perm(actor, Perm.APPROVE).undecided().order_by()
    count = rows[: MAX_COUNTED + 1].count()
    value = f"{MAX_COUNTED:,}+" if count > MAX_COUNTED else f"{count:,}"
    return Number(
        title="Packages waiting for a decision",
        value=value,
        url=list_url(ApprovalRequest),
        alarming=count > 0,
    )


def _failed() -> Number:
    since = timezone.now() - datetime.timedelta(days=1)
    recent = Build.objects.filter(deleted_at=None, created_at__gte=since).order_by()
    count = recent.filter(state=BuildState.FAILED).count()
    return Number(
        title="Builds failed since yesterday",
        value=f"{count:,}",
        url=list_url(Build, state__exact=BuildState.FAILED, since=f"{since:%F}"),
        alarming=count > 0,
    )


def _queue() -> Sequence[Number]:
    waiting = Q(state=BuildState.QUEUED)
    held = Q(state=BuildState.HELD)
    running = Q(state__in=sorted(RUNNING))
    found = Build.objects.filter(waiting | held | running).aggregate(
        queued=Count("pk", filter=waiting),
        held=Count("pk", filter=held),
        running=Count("pk", filter=running),
    )
    states = ",".join(sorted(RUNNING))
    return (
        Number(
            title="Builds queued",
            value=f"{found['queued']:,}",
            url=list_url(Build, state__exact=BuildState.QUEUED),
        ),
        Number(
            title="Builds running",
            value=f"{found['running']:,}",
            url=list_url(Build, state__in=states),
        ),
        Number(
            title="Builds held for approval",
            value=f"{found['held']:,}",
            url=list_url(Build, state__exact=BuildState.HELD),
        ),
    )


def _workers() -> Number:
    alive = Worker.objects.alive().exclude(name__startswith=Worker.SCHEDULER).count()
    return Number(
        title="Workers alive", value=str(alive), url=list_url(Worker), alarming=alive == 0
    )


def _disk() -> Number:
    held = Prefix.objects.aggregate(held=Sum("share_size"))["held"] or 0
    free = shutil.disk_usage(settings.DATA).free
    return Number(
        title="Used disk space",
        value=size(held),
        note=f"{size(free)} free, of which {size(settings.DISK_RESERVE)} are reserved",
        url=list_url(Namespace),
        alarming=free < 2 * settings.DISK_RESERVE,
    )


def _folders() -> Number:
    missing = FolderRestore.objects.missing()
    failed = missing.filter(state=RestoreState.FAILED).count()
    note = f"{failed:,} cannot be restored" if failed else "being restored automatically"
    count = missing.count()
    return Number(
        title="Missing folders",
        value=f"{count:,}",
        note=note if count else "",
        url=list_url(FolderRestore),
        alarming=count > 0,
    )


def _recalled() -> Number:
    active = Recall.objects.active().count()
    hit = RecalledLock.objects.active().values("lock").distinct().count()
    return Number(
        title="Recalls in force",
        value=f"{active:,}",
        note=f"{hit:,} locks contain a recalled package",
        url=list_url(Recall, undone="no"),
        alarming=hit > 0,
    )


def _near_quota() -> RelatedTable:
    kinds = quotas.KINDS
    limited = Q()
    for kind in kinds:
        limited |= Q() if getattr(settings, kind.setting) else Q(**{f"{kind.limit}__gt": 0})
    everywhere = any(getattr(settings, kind.setting) for kind in kinds)
    rows: Any = Namespace.objects.all() if everywhere else Namespace.objects.filter(limited)
    rows = rows.annotate(**{f"used_{kind.name}": quotas.used(kind.name) for kind in kinds})
    near = [
        (
            link(row),
            use.kind.what,
            amount(use.kind, use.used),
            amount(use.kind, use.limit),
            quota_status(use),
        )
        for row in rows.order_by("name")
        for use in quotas.uses_of(row)
        if use.is_near()
    ]
    return RelatedTable(
        title="Namespaces near or over a quota",
        headers=("Namespace", "Quota", "Used", "Limit", "Status"),
        rows=near[: 2 * LARGEST],
    )


def _by_namespace() -> RelatedTable:
    """Sum the disk use of each namespace; files that copies share count once in a namespace."""
    path = "environment__namespace"
    same = Build.objects.filter(
        prefix=OuterRef("prefix"),
        environment__namespace=OuterRef(path),
        pk__lt=OuterRef("pk"),
    )
    # Only copies share a prefix with another build.
    first = Build.objects.exclude(prefix=None).filter(Q(origin=None) | ~Exists(same))
    held = first.order_by().values(f"{path}__pk", f"{path}__name")
    held = held.annotate(bytes=Sum("prefix__share_size")).order_by("-bytes")[:LARGEST]
    return RelatedTable(
        title="Disk use by namespace, largest first",
        headers=("Namespace", "Size"),
        rows=[
            (link(Namespace(pk=one[f"{path}__pk"]), one[f"{path}__name"]), size(one["bytes"]))
            for one in held
        ],
        more=list_url(Namespace),
    )
