"""Quotas of namespaces: limits, usage, and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import (
    BigIntegerField,
    Count,
    Expression,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
)
from django.db.models.functions import Coalesce
from django.utils import timezone

from accounts.access import Actor, require_superuser
from accounts.models import User
from accounts.roles import Role
from condastore.errors import InvalidInputError, QuotaError
from condastore.mail_texts import compose
from condastore.statements import KEY, Lookup
from environments.domain.lifecycle import RUNNING, BuildState
from environments.models import (
    AuditEvent,
    Build,
    Environment,
    HostedPackage,
    Namespace,
    Notification,
    Prefix,
    audited,
)
from environments.models.notifications import Event

#: Warn at this fraction of a quota.
WARN_AT = 0.8
DAY = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One quota; `limit` is the column of the namespace."""

    name: str
    limit: str
    setting: str
    what: str
    hint: str


KINDS = (
    Kind(
        name="bytes",
        limit="max_bytes",
        setting="QUOTA_BYTES",
        what="bytes on the disk",
        hint="Archive or delete builds or environments that are no longer needed",
    ),
    Kind(
        name="environments",
        limit="max_environments",
        setting="QUOTA_ENVIRONMENTS",
        what="environments",
        hint="Delete environments that are no longer needed",
    ),
    Kind(
        name="builds_at_once",
        limit="max_builds_at_once",
        setting="QUOTA_BUILDS_AT_ONCE",
        what="builds queued or running",
        hint="Wait until one has finished, or cancel one",
    ),
    Kind(
        name="builds_a_day",
        limit="max_builds_a_day",
        setting="QUOTA_BUILDS_A_DAY",
        what="builds within 24 hours",
        hint="Submit it again later",
    ),
)


#: Read by every submission, so it is prepared and its SQL compiled once.
_LIMITS = Lookup(Namespace, own=("id", *(kind.limit for kind in KINDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Usage of one quota; `limit` is None if unlimited."""

    kind: Kind
    used: int
    limit: int | None

    def has_room_for(self, more: int) -> bool:
        """Return whether `more` fits; sizes are known only afterwards, so some space must be
        left."""
        return self.limit is None or self.used + max(more, 1) <= self.limit

    def is_near(self, more: int = 0) -> bool:
        return self.limit is not None and self.used + more >= WARN_AT * self.limit

    def text(self, more: int = 0) -> str:
        return f"{self.used + more:,} of {self.limit:,} {self.kind.what}"


def _limit(namespace: Namespace, kind: Kind) -> int | None:
    own = getattr(namespace, kind.limit)
    return (int(getattr(settings, kind.setting)) if own is None else own) or None


# --- usage ----------------------------------------------------------------------------------------


class _Sum(Subquery):
    """Sum of the column `part` of a query."""

    template = "(SELECT COALESCE(SUM(parts.part), 0) FROM (%(subquery)s) parts)"


def _counted(rows: QuerySet[Any], through: str) -> Expression:
    mine = rows.filter(**{through: OuterRef("pk")}).order_by()
    total = mine.values(through).annotate(total=Count("pk")).values("total")
    return Coalesce(Subquery(total), 0)


def used(kind: str) -> Any:
    """Annotation of namespaces with their usage of a quota."""
    builds, location = Build.objects.all(), "environment__namespace"
    if kind == "environments":
        return _counted(Environment.objects.present(), "namespace")
    if kind == "builds_at_once":
        return _counted(builds.filter(state__in={BuildState.QUEUED, *RUNNING}), location)
    if kind == "builds_a_day":
        # Builds that were copied with an environment do not count as submitted.
        return _counted(builds.filter(origin=None, created_at__gt=timezone.now() - DAY), location)
    # A folder shared by copies counts proportionally in each namespace.
    here = builds.filter(environment__namespace=OuterRef(OuterRef("pk"))).order_by()
    holders = (
        builds.filter(prefix=OuterRef("pk"))
        .order_by()
        .values("prefix")
        .annotate(holders=Count("environment__namespace", distinct=True))
        .values("holders")
    )
    parts = Prefix.objects.filter(pk__in=here.exclude(prefix=None).values("prefix"))
    share = F("share_size") / Coalesce(Subquery(holders), Value(1))
    folders = _Sum(parts.order_by().values(part=share), output_field=BigIntegerField())
    hosted = HostedPackage.objects.filter(channel__namespace=OuterRef("pk"))
    uploaded = _Sum(hosted.order_by().values(part=F("size")), output_field=BigIntegerField())
    return folders + uploaded


def usage(namespace: Namespace, kinds: Sequence[Kind] = KINDS) -> list[Use]:
    """Return the usage of a namespace with one query."""
    row = (
        Namespace.objects.filter(pk=namespace.pk)
        .annotate(**{f"used_{kind.name}": used(kind.name) for kind in kinds})
        .get()
    )
    return uses_of(row, kinds)


def uses_of(row: Any, kinds: Sequence[Kind] = KINDS) -> list[Use]:
    """Return the usage of a namespace that has the annotations `used_...`."""
    return [
        Use(kind=kind, used=int(getattr(row, f"used_{kind.name}")), limit=_limit(row, kind))
        for kind in kinds
    ]


# --- limits ---------------------------------------------------------------------------------------


def require_quota(namespace: Namespace, *, environments: int = 0, builds: int = 0) -> list[str]:
    """Refuse what would exceed a quota, and return warnings about quotas that are nearly used up.

    Call it in the transaction of the operation, before its changes: the namespace's row is locked,
    so that two concurrent requests cannot both use the last free unit.

    Raises:
        QuotaError: lists all exceeded quotas.
    """
    requested = {"environments": environments, "builds_at_once": builds, "builds_a_day": builds}
    return _check(
        namespace, {name: more for name, more in requested.items() if more} | {"bytes": 0}
    )


def require_restore_quota(namespace: Namespace) -> list[str]:
    """Check the quotas for an existing build that is only linked again."""
    return _check(namespace, {"builds_at_once": 1, "bytes": 0})


def require_upload_quota(namespace: Namespace, size: int) -> list[str]:
    """Check the quotas for an upload of `size` bytes."""
    return _check(namespace, {"bytes": size})


def _check(namespace: Namespace, asked: Mapping[str, int]) -> list[str]:
    # FOR NO KEY UPDATE: rows that only refer to the namespace may be inserted meanwhile.
    fresh = _LIMITS.first(
        ("limits of a namespace",),
        lambda: Namespace.objects.order_by().filter(pk=KEY),
        {KEY: namespace.pk},
    )
    if fresh is None:
        raise Namespace.DoesNotExist
    kinds = [kind for kind in KINDS if kind.name in asked and _limit(fresh, kind) is not None]
    if not kinds:
        return []
    Namespace.objects.select_for_update(no_key=True).get(pk=namespace.pk)
    found = usage(namespace, kinds)
    if full := [use for use in found if not use.has_room_for(asked[use.kind.name])]:
        raise _refusal(namespace, full)
    near = [use for use in found if use.is_near(asked[use.kind.name])]
    for use in near:
        _notify(namespace, use, asked[use.kind.name])
    return [f"{namespace} uses {use.text(asked[use.kind.name])}." for use in near]


def _notify(namespace: Namespace, use: Use, more: int) -> None:
    """Notify the namespace's managers, at most once a day for each quota."""
    mail = compose(
        "quota_warning",
        namespace=namespace,
        quota=use.kind.what,
        use=use.text(more),
        hint=use.kind.hint,
    )
    recent = Notification.objects.filter(
        event=Event.QUOTA_WARNING, subject=mail.subject, created_at__gt=timezone.now() - DAY
    )
    if recent.exists():
        return
    role = Role.ADMIN.codename
    people = User.objects.filter(
        Q(pk__in=namespace.user_grants.filter(permission__codename=role).values("user"))
        | Q(groups__in=namespace.group_grants.filter(permission__codename=role).values("group")),
        is_active=True,
    )
    Notification.tell(
        Event.QUOTA_WARNING,
        namespace=namespace.pk,
        subject=mail.subject,
        text=mail.text,
        data={
            "namespace": namespace.name,
            "quota": use.kind.name,
            "used": use.used + more,
            "limit": use.limit,
        },
        emails=people.exclude(email="").values_list("email", flat=True).distinct(),
    )


def _refusal(namespace: Namespace, full: Iterable[Use]) -> QuotaError:
    full = list(full)
    hints = [use.kind.hint for use in full]
    details: dict[str, Any] = {
        "exceeded": [{"quota": use.kind.name, "used": use.used, "limit": use.limit} for use in full]
    }
    if any(use.kind.name == "bytes" for use in full) and (large := _largest(namespace)):
        details["largest"] = large
        named = ", ".join(f"{one['build']} ({one['bytes']:,} bytes)" for one in large)
        hints.append(f"The largest builds that are not current: {named}")
    return QuotaError(
        f"The quota of {namespace} is used up: {'; '.join(use.text() for use in full)}.",
        where="quota",
        hint=". ".join([*hints, "An administrator of the installation can allow more."]),
        details=details,
    )


def _largest(namespace: Namespace, *, most: int = 3) -> list[dict[str, Any]]:
    """Return the builds whose archiving would free the most bytes."""
    builds = (
        Build.objects.filter(environment__namespace=namespace, state=BuildState.READY)
        .exclude(environment__current=F("pk"))
        .select_related("environment__namespace", "prefix")
        .defer("source", "log_archive", "verdicts")
        .order_by("-prefix__unique_size", "-pk")[:most]
    )
    return [
        {"build": str(build), "bytes": build.prefix.unique_size} for build in builds if build.prefix
    ]


@audited()
def set_quota(*, actor: Actor, namespace: Namespace, limits: Mapping[str, int | None]) -> Namespace:
    """Set limits by quota name; 0 means unlimited, None the installation's default."""
    require_superuser(actor)
    known = {kind.name: kind for kind in KINDS}
    for name, limit in limits.items():
        if name not in known:
            raise InvalidInputError(f"There is no quota {name!r}.", where="quota")
        if limit is not None and not 0 <= limit < 2**53:
            raise InvalidInputError("A quota must be 0 (unlimited) or more.", where=name)
        if limit is not None and name != "bytes" and limit >= 2**31:
            raise InvalidInputError(
                f"The quota of {known[name].what} must be below 2^31.", where=name
            )
    namespace.refresh_from_db()
    before = {name: getattr(namespace, known[name].limit) for name in limits}
    changes = {known[name].limit: limit for name, limit in limits.items()}
    if changes:
        Namespace.objects.filter(pk=namespace.pk).update(**changes)
        namespace.refresh_from_db()
    AuditEvent.record(
        actor, "namespace.quota", namespace, {"before": before, "after": dict(limits)}
    )
    return namespace
