"""How is the installation? The numbers of the first page, each with the list that it counts."""

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
from environments.admin.base import Panel, link, list_url, size
from environments.admin.changelist import COUNTED
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

#: Namespaces in a table.
LARGEST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """`alarming`: somebody has to do something."""

    title: str
    value: str
    url: str
    note: str = ""
    alarming: bool = False


def numbers(actor: Actor) -> Sequence[Number]:
    """Those of an approver are about decisions alone."""
    found = [_waiting(actor)]
    if actor.is_superuser:
        found += [_failed(), *_queue(), _workers(), _disk(), _folders(), _recalled()]
    return found


def panels(actor: Actor) -> Sequence[Panel]:
    return (_near_quota(), _by_namespace()) if actor.is_superuser else ()


def _waiting(actor: Actor) -> Number:
    rows = ApprovalRequest.objects.with_perm(actor, Perm.APPROVE).undecided().order_by()
    count = rows[: COUNTED + 1].count()
    value = f"{COUNTED:,}+" if count > COUNTED else f"{count:,}"
    return Number(
        title="Packages wait for a decision",
        value=value,
        url=list_url(ApprovalRequest),
        alarming=count > 0,
    )


def _failed() -> Number:
    since = timezone.now() - datetime.timedelta(days=1)
    recent = Build.objects.filter(deleted_at=None, created_at__gte=since).order_by()
    count = recent.filter(state=BuildState.FAILED).count()
    return Number(
        title="Builds of the last day failed",
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
        title="On the disk",
        value=size(held),
        note=f"{size(free)} free; {size(settings.DISK_RESERVE)} are kept in reserve",
        url=list_url(Namespace),
        alarming=free < 2 * settings.DISK_RESERVE,
    )


def _folders() -> Number:
    missing = FolderRestore.objects.missing()
    failed = missing.filter(state=RestoreState.FAILED).count()
    note = f"{failed:,} cannot be linked again" if failed else "linked again by themselves"
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
        note=f"{hit:,} locks hold what was recalled",
        url=list_url(Recall, undone_at__isempty=1),
        alarming=hit > 0,
    )


def _near_quota() -> Panel:
    kinds = quotas.KINDS
    limited = Q()
    for kind in kinds:
        limited |= Q() if getattr(settings, kind.setting) else Q(**{f"{kind.limit}__gt": 0})
    everywhere = any(getattr(settings, kind.setting) for kind in kinds)
    rows: Any = Namespace.objects.all() if everywhere else Namespace.objects.filter(limited)
    rows = rows.annotate(**{f"used_{kind.name}": quotas.used(kind.name) for kind in kinds})
    near = [
        (link(row), use.text())
        for row in rows.order_by("name")
        for use in quotas.uses_of(row)
        if use.is_near()
    ]
    return Panel(
        title="Near or over a quota",
        headers=("Namespace", "Uses"),
        rows=near[: 2 * LARGEST],
        empty="No namespace.",
    )


def _by_namespace() -> Panel:
    """What copies of an environment share counts once in each namespace."""
    place = "environment__namespace"
    same = Build.objects.filter(
        prefix=OuterRef("prefix"),
        environment__namespace=OuterRef(place),
        pk__lt=OuterRef("pk"),
    )
    # Only a copy has a prefix that another build has.
    first = Build.objects.exclude(prefix=None).filter(Q(origin=None) | ~Exists(same))
    held = first.order_by().values(f"{place}__pk", f"{place}__name")
    held = held.annotate(bytes=Sum("prefix__share_size")).order_by("-bytes")[:LARGEST]
    return Panel(
        title="Bytes by namespace, the largest first",
        headers=("Namespace", "Bytes"),
        rows=[
            (link(Namespace(pk=one[f"{place}__pk"]), one[f"{place}__name"]), size(one["bytes"]))
            for one in held
        ],
        more=list_url(Namespace),
    )
