"""The rows as clients see them: each type shows what its reader may see, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

import strawberry
import strawberry_django
from django.core.exceptions import ValidationError
from django.db.models import (
    BooleanField,
    Case,
    F,
    OuterRef,
    Prefetch,
    QuerySet,
    Subquery,
    When,
    prefetch_related_objects,
)
from django.urls import reverse
from strawberry import ID, Info

from accounts.access import may
from accounts.models import ApiToken, User
from accounts.roles import Perm, Role
from condastore.errors import NotFoundError
from environments.domain import diff as differences
from environments.domain.artifacts import ArtifactKind
from environments.domain.lifecycle import FINISHED, BuildState
from environments.domain.policy import Effect
from environments.graphql import folder_restores
from environments.graphql.approvals import (
    ApprovalRequestNode,
    of_builds,
    request_rows,
    shown,
)
from environments.graphql.artifacts import ArtifactNode, artifacts_of, of_locks
from environments.graphql.packages import (
    BigInt,
    Failure,
    LockDiff,
    LockedPackage,
    Progress,
    compared,
    preferred,
)
from environments.graphql.pages import (
    Column,
    Connection,
    Join,
    Outline,
    absolute,
    actor_of,
    below,
    computed,
    connection,
    field,
    inside,
    joined,
    optimized,
    total_of,
)
from environments.graphql.quotas import USED, Quota, quotas_of
from environments.graphql.retention_rules import Retention
from environments.models import (
    Build,
    BuildEvent,
    BuildTag,
    Channel,
    Environment,
    IndexedPackage,
    LockedConda,
    LockedPypi,
    LockRow,
    Namespace,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
    Preview,
    SpecificationRow,
)
from environments.models.builds import BuildQuerySet
from environments.models.environments import EnvironmentQuerySet
from environments.models.namespaces import NamespaceQuerySet, held, mapped
from environments.models.previews import PreviewQuerySet, PreviewState
from environments.models.recalls import recall_reason
from environments.operations.downloads import FILES
from environments.operations.quotas import KINDS
from environments.services import folders


@strawberry.interface
class Node:
    id: ID


# --- who ---------------------------------------------------------------------------------------


@strawberry.type(description="Somebody who holds a role: a user or a group.")
class Grant:
    role: Role
    user: str | None = None
    group: str | None = None
    mapped: bool = strawberry.field(
        default=False, description="By a role mapping, which administrators change."
    )


@strawberry_django.type(ApiToken, name="ApiToken", field_cls=Column)
class ApiTokenNode(Node):
    id: ID
    name: str
    hint: str
    namespaces: list[str]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    last_used_address: str | None

    role: Role | None = computed(
        lambda token: Role(token.role) if token.role else None,
        description="The highest role it acts with.",
    )
    revoked: bool = computed(lambda token: token.revoked_at is not None, only=["revoked_at"])


# --- namespaces --------------------------------------------------------------------------------


def _may(perm: Perm, *, through: str = "") -> Callable[[Info], Case]:
    """An annotation: may the actor do that in the namespace, or the one `through` leads to?"""

    def expression(info: Info) -> Case:
        allowed = When(held(actor_of(info), perm, through=through), then=True)
        return Case(allowed, default=False, output_field=BooleanField())

    return expression


def _allowed(row: Any, info: Info, perm: Perm, guarded: Any) -> bool:
    """The annotation, or a look of its own where the row did not come in a list."""
    annotation = f"may_{perm}"
    if annotation in row.__dict__:
        return bool(row.__dict__[annotation])
    return may(actor_of(info), perm, guarded)


@strawberry_django.type(Namespace, name="Namespace", field_cls=Column)
class NamespaceNode(Node):
    id: ID
    name: str
    description: str
    personal: bool
    public: bool
    two_person_approval: bool
    eager_artifacts: list[ArtifactKind]
    base_image: str = computed(
        lambda row: row.base_image,
        only=["base_image"],
        description="What its container images lie on; empty: what the installation's do.",
    )
    add_pip_as_python_dependency: bool = computed(
        lambda row: row.add_pip_as_python_dependency,
        only=["add_pip_as_python_dependency"],
        description="Whether solves add pip as a dependency of Python, as conda and mamba do.",
    )
    created_at: datetime
    environments: Connection[EnvironmentNode] = connection(
        count="environment_total",
        annotate={
            "environment_total": total_of(
                lambda info: Environment.objects.visible_to(actor_of(info)), "namespace"
            )
        },
    )

    @classmethod
    def get_queryset(
        cls, queryset: NamespaceQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[Namespace]:
        return queryset.visible_to(actor_of(info))

    @field(
        annotate={f"may_{perm}": _may(perm) for perm in Perm},
        description="What you may do in it.",
    )
    def my_permissions(self: Any, info: Info) -> list[Perm]:
        return [perm for perm in Perm if _allowed(self, info, perm, self)]

    quotas: list[Quota] = computed(
        quotas_of,
        only=[kind.limit for kind in KINDS],
        annotate=USED,
        description="What it may hold and ask for, and how much of it is used.",
    )

    retention: Retention = computed(
        Retention.of,
        only=["keep_last", "keep_days", "keep_tagged", "delete_days"],
        description="What stays of its builds; the plan is `retentionPlan`.",
    )

    @field(
        annotate={"may_grant": _may(Perm.GRANT)},
        description="Who holds which role; empty for those who may not grant.",
        prefetch_related=[
            "user_grants__permission",
            "user_grants__user",
            "group_grants__permission",
            "group_grants__group",
            "pending_grants",
            "mapped_roles__group",
            "mapped_roles__user",
        ],
    )
    def grants(self: Any, info: Info) -> list[Grant]:
        if not _allowed(self, info, Perm.GRANT, self):
            return []
        held = [
            Grant(role=_role(one.permission.codename), user=one.user.get_username())
            for one in self.user_grants.all()
        ]
        held += [
            Grant(role=_role(one.permission.codename), group=one.group.name)
            for one in self.group_grants.all()
        ]
        # No account or group has these names yet; nothing here shows which ones.
        held += [
            Grant(role=Role(one.role), **{"group" if one.is_group else "user": one.holder})
            for one in self.pending_grants.all()
        ]
        held += [
            Grant(
                role=Role(one.role),
                user=one.user.get_username() if one.user else None,
                group=one.group.name,
                mapped=True,
            )
            for one in self.mapped_roles.all()
        ]
        return sorted(held, key=lambda grant: (grant.user or "", grant.group or ""))


def _role(codename: str) -> Role:
    return Role(codename.removeprefix("role_"))


@strawberry.type(description="The roles you hold in a namespace, through groups too.")
class NamespaceRole:
    namespace: NamespaceNode
    roles: list[Role]


# --- environments ------------------------------------------------------------------------------


@strawberry_django.type(BuildTag, name="Tag", field_cls=Column)
class TagNode:
    name: str
    moved_at: datetime
    build: BuildNode


def _newest(info: Info) -> Prefetch[str, Any, str]:
    """The newest build of each environment of a list, with what was asked of it."""
    rows = optimized(newest_builds().filter(environment__deleted_at=None), info)
    return Prefetch("builds", queryset=rows, to_attr="newest_builds")


def newest_builds() -> QuerySet[Build]:
    of_same = Build.objects.filter(environment=OuterRef("environment"), deleted_at=None)
    newest = Subquery(of_same.order_by("-number").values("number")[:1])
    return Build.objects.filter(deleted_at=None, number=newest)


def _shares(self: Any) -> list[str]:
    users = [f"user {one.user.get_username()}" for one in self.user_shares.all()]
    groups = [f"group {one.group.name}" for one in self.group_shares.all()]
    kinds = {True: "group", False: "user"}
    pending = [f"{kinds[one.is_group]} {one.holder}" for one in self.pending_shares.all()]
    return sorted(users + groups + pending)


def _shown(info: Info) -> dict[str, Any]:
    """Is the namespace of an environment one that the actor may see?"""
    everything = actor_of(info).sees_everything
    return {} if everything else {"namespace_shown": _may(Perm.VIEW, through="namespace__")(info)}


def _namespace(environment: Any) -> Any:
    with suppress(Namespace.DoesNotExist):  # not among those that the actor may see
        if environment.__dict__.get("namespace_shown", True):
            return environment.namespace
    return _outline(_namespace_name(environment), environment.created_at)


def _outline(name: str, created_at: datetime) -> Namespace:
    return Namespace(pk=0, name=name, created_at=created_at)


def _current(environment: Any) -> Any:
    build = environment.current
    # Absent where it was read by a statement of its own, which finds no deleted ones.
    return None if build is None or build.__dict__.get("deleted_at") else build


def _latest(environment: Any) -> Any:
    if "newest_builds" in environment.__dict__:
        return next(iter(environment.newest_builds), None)
    return newest_builds().filter(environment=environment.pk).first()


def _folder(environment: Any) -> str:
    if environment.current_id is None or _withdrawn(environment):
        return ""
    return str(folders.link_path(_namespace_name(environment), environment.name))


def _withdrawn(environment: Any) -> bool:
    """Was the current build recalled?"""
    if "current_recalled" in environment.__dict__:
        return environment.current_recalled is not None
    return environment.current is not None and _recalled(environment.current) is not None


def _namespace_name(environment: Any) -> str:
    name = getattr(environment, "namespace_name", None)
    return environment.namespace.name if name is None else str(name)


def _name_of(row: Any, annotation: str, relation: str) -> str | None:
    """A user's name: annotated where the row came in a list, else read."""
    if annotation in row.__dict__:
        name: str | None = row.__dict__[annotation]
        return name
    user = getattr(row, relation)
    return user.get_username() if user else None


@strawberry_django.type(Environment, name="Environment", field_cls=Column)
class EnvironmentNode(Node):
    id: ID
    name: str
    description: str
    pinned: bool
    created_at: datetime
    updated_at: datetime
    current: BuildNode | None = joined(
        Join(
            "current",
            Build,
            lambda info: Build.objects.filter(deleted_at=None),
            only=["current__deleted_at"],
            hidden_by="deleted_at",
        ),
        _current,
    )
    last_used_at: datetime | None = computed(
        lambda row: row.used_at,
        only=["used_at"],
        description="Last download or pull of one of its builds, or use of its folder, as far as "
        "the file system tells.",
    )
    tags: list[TagNode]
    builds: Connection[BuildNode] = connection(
        count="build_total",
        annotate={
            "build_total": total_of(
                lambda info: Build.objects.visible_to(actor_of(info)), "environment"
            )
        },
        description="The newest first.",
    )

    namespace: NamespaceNode = joined(
        Join(
            "namespace",
            Namespace,
            lambda info: Namespace.objects.visible_to(actor_of(info)),
            annotated=lambda info: {"namespace_name": F("namespace__name"), **_shown(info)},
            outline=Outline(
                unless="namespace_shown", columns=["namespace__name", "created_at"], row=_outline
            ),
        ),
        _namespace,
        description="Of an environment that was only shared with you it tells just the name.",
    )
    latest: BuildNode | None = computed(_latest, prefetch_related=[_newest])
    created_by: str | None = computed(
        lambda row: _name_of(row, "creator", "created_by"),
        annotate={"creator": F("created_by__username")},
    )
    folder: str = computed(
        _folder,
        only=["name", "current"],
        annotate={
            "namespace_name": F("namespace__name"),
            "current_recalled": recall_reason("current__lock"),
        },
        description="Where its files are on the server; empty where there are none.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: EnvironmentQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[Environment]:
        if inside(info, "NamespaceNode", "BuildNode"):
            return queryset.present()
        return queryset.visible_to(actor_of(info))

    @field(
        annotate={"may_grant": _may(Perm.GRANT, through="namespace__")},
        prefetch_related=["user_shares__user", "group_shares__group", "pending_shares"],
        description="Who else may see it; empty for those who may not grant.",
    )
    def shared_with(self: Any, info: Info) -> list[str]:
        return _shares(self) if _allowed(self, info, Perm.GRANT, self) else []


# --- builds ------------------------------------------------------------------------------------


@strawberry.type
class Timing:
    stage: str
    seconds: float


@strawberry.type(description="What a rule says of a package or a channel, and why.")
class Verdict:
    rule: str
    effect: str
    subject: str
    reason: str
    chain: list[str]


@strawberry.type
class Download:
    name: str
    url: str


@strawberry_django.type(BuildEvent, name="BuildEvent", field_cls=Column)
class BuildEventNode:
    state: BuildState
    at: datetime
    message: str


_REF = {
    "environment_name": F("environment__name"),
    "namespace_name": F("environment__namespace__name"),
}


def names_of(build: Any) -> tuple[str, str]:
    """Namespace and environment."""
    if "namespace_name" in build.__dict__:
        return build.namespace_name, build.environment_name
    environment = build.environment
    return environment.namespace.name, environment.name


def _ref(build: Any) -> str:
    namespace, environment = names_of(build)
    return f"{namespace}/{environment}:{build.number}"


def _timings(build: Any) -> list[Timing]:
    order = [state.value for state in BuildState]
    rank = {stage: order.index(stage) for stage in build.timings if stage in order}
    stages = sorted(build.timings, key=lambda stage: rank.get(stage, len(order)))
    return [Timing(stage=stage, seconds=float(build.timings[stage])) for stage in stages]


def _is_current(build: Any) -> bool:
    if "current_build" in build.__dict__:
        return bool(build.current_build == build.pk)
    return bool(build.environment.current_id == build.pk)


def _prefix(build: Any, annotation: str, attribute: str) -> Any:
    if annotation in build.__dict__:
        return build.__dict__[annotation]
    return getattr(build.prefix, attribute) if build.prefix else None


def _prefix_path(build: Any) -> str:
    path = _prefix(build, "prefix_folder", "path") if build.state == BuildState.READY else None
    if not path or _recalled(build) is not None or folder_restores.missing_state(build):
        return ""
    return str(folders.data() / path)


def _recalled(build: Any) -> str | None:
    """Why it was recalled: annotated where the row came in a list, else read."""
    if "recall_reason" in build.__dict__:
        reason: str | None = build.__dict__["recall_reason"]
        return reason
    rows = Build.objects.filter(pk=build.pk).annotate(recall_reason=recall_reason("lock"))
    return rows.values_list("recall_reason", flat=True).first()


def _shared_size(build: Any) -> int | None:
    apparent = _prefix(build, "apparent", "apparent_size")
    unique = _prefix(build, "unique", "unique_size")
    return None if apparent is None else apparent - unique


def _log_lines(build: Any) -> int:
    """Of a copied build: those of the one it was copied from."""
    if build.log_lines or "origin_lines" in build.__dict__:
        return int(build.log_lines or getattr(build, "origin_lines", 0) or 0)
    return int(build.origin.log_lines if build.origin else 0)


def _verdicts(row: Any) -> list[Verdict]:
    return [
        Verdict(
            rule=one.get("rule", ""),
            effect=one.get("effect", Effect.WARN.value),
            subject=one.get("subject", ""),
            reason=one.get("reason", ""),
            chain=list(one.get("chain", ())),
        )
        for one in row.verdicts
    ]


@strawberry_django.type(Build, name="Build", field_cls=Column)
class BuildNode(Node):
    id: ID
    number: int
    state: BuildState
    source: str
    attempt: int
    created_at: datetime
    finished_at: datetime | None
    platform: str
    sandboxed: bool | None
    link_scripts: list[str]
    environment: EnvironmentNode
    specification: SpecificationNode
    lock: LockNode | None
    events: list[BuildEventNode]
    tags: list[TagNode]

    ref: str = computed(
        _ref, only=["number"], annotate=_REF, description="`namespace/name:number`."
    )
    finished: bool = computed(
        lambda build: build.state in FINISHED,
        only=["state"],
        description="Nothing happens any more by itself.",
    )
    requested_by: str | None = computed(
        lambda build: _name_of(build, "requester", "requested_by"),
        annotate={"requester": F("requested_by__username")},
    )
    started_at: datetime | None = computed(
        lambda build: build.attempt_started_at, only=["attempt_started_at"]
    )
    failure: Failure | None = computed(lambda build: Failure.of(build.failure))
    progress: Progress | None = computed(lambda build: Progress.of(build.progress))
    timings: list[Timing] = computed(_timings, description="Of the last attempt.")
    is_current: bool = computed(_is_current, annotate={"current_build": F("environment__current")})
    prefix_path: str = computed(
        _prefix_path,
        only=["state", "prefix"],
        annotate={
            "prefix_folder": F("prefix__path"),
            "recall_reason": recall_reason("lock"),
            "folder_state": folder_restores.STATE,
        },
        description="Where its files are on the server; empty where it has none.",
    )
    missing_folder: folder_restores.MissingFolder | None = computed(
        folder_restores.missing_folder,
        only=["prefix"],
        annotate={
            "folder_state": folder_restores.STATE,
            "folder_failure": folder_restores.FAILURE,
        },
        description="That its folder is missing, and what becomes of it; null if it is there.",
    )
    recalled: str | None = computed(
        _recalled,
        only=["lock"],
        annotate={"recall_reason": recall_reason("lock")},
        description="Why it is not served any more: something that it holds was called back.",
    )
    reason: str = computed(
        lambda build: build.reason,
        only=["reason"],
        description="What it is for, in the words of who asked.",
    )
    apparent_size: BigInt | None = computed(
        lambda build: _prefix(build, "apparent", "apparent_size"),
        annotate={"apparent": F("prefix__apparent_size")},
        description="As if nothing was shared.",
    )
    unique_size: BigInt | None = computed(
        lambda build: _prefix(build, "unique", "unique_size"),
        annotate={"unique": F("prefix__unique_size")},
        description="What only this build holds.",
    )
    shared_size: BigInt | None = computed(
        _shared_size,
        annotate={"apparent": F("prefix__apparent_size"), "unique": F("prefix__unique_size")},
        description="What it shares with other builds and the package cache.",
    )
    log_lines: int = computed(
        _log_lines, only=["log_lines"], annotate={"origin_lines": F("origin__log_lines")}
    )
    verdicts: list[Verdict] = computed(_verdicts)

    @classmethod
    def get_queryset(cls, queryset: BuildQuerySet, info: Info, **kwargs: Any) -> QuerySet[Build]:
        if inside(info, "EnvironmentNode", "TagNode"):
            return queryset.filter(deleted_at=None)
        return queryset.visible_to(actor_of(info))

    @field(only=["log_lines", "origin"], description="The lines from number `start` on.")
    def log(self: Any, start: int = 0, limit: int = 1000) -> list[str]:
        lines: list[str] = self.log_from(max(0, start), limit=max(0, min(limit, 10_000)))
        return lines

    @field(
        only=["lock", "number", "environment", "platform"],
        description="What changed since `other`; without it, since the build before.",
    )
    def diff_to(
        self: Any, info: Info, other: ID | None = None, platform: str | None = None
    ) -> LockDiff:
        visible = Build.objects.visible_to(actor_of(info))
        older: Build | None
        if other is not None:
            older = find(visible, other, "build")
        else:
            earlier = visible.filter(environment=self.environment_id, number__lt=self.number)
            older = earlier.exclude(lock=None).order_by("-number").first()
        return compared(_lock(older), _lock(self), platform, prefer=[self.platform])

    @field(
        only=["lock", "specification", "platform"],
        description="Chains from what was asked for to the package `name`, the shortest first.",
    )
    def why(self: Any, name: str, platform: str | None = None) -> list[list[str]]:
        lock = _lock(self)
        if lock is None:
            return []
        chosen = platform or preferred([part.platform for part in lock], [self.platform])
        part = lock.on(chosen)
        if part is None:
            raise NotFoundError(f"The build has no lock for {chosen}.", where="platform")
        asked = self.specification.value()
        requested = [*asked.dependencies.get(chosen, ()), *asked.pip.get(chosen, ())]
        if asked.lock is not None:
            requested = [package.name for package in (*part.conda, *part.pypi)]
        return [list(chain) for chain in differences.why(part, requested, name)]

    @field(
        prefetch_related=[lambda info: of_builds()],
        description="The packages that people decided on for it, or have to.",
    )
    def approvals(self: Any, info: Info) -> list[ApprovalRequestNode]:
        if "shown_requests" in self.__dict__:
            return shown(actor_of(info), self.shown_requests)
        return shown(actor_of(info), list(request_rows().filter(builds=self.pk).order_by("name")))

    @field(
        only=["number", "lock", "specification"],
        annotate=_REF | {"variables_set": F("specification__content__variables")},
        prefetch_related=[lambda info: of_locks()],
        description="Its files that were asked for: made, under way, or failed.",
    )
    def artifacts(self: Any, info: Info) -> list[ArtifactNode]:
        return artifacts_of(info, self, *names_of(self))

    @field(only=["number", "lock"], annotate=_REF)
    def downloads(self: Any, info: Info) -> list[Download]:
        namespace, environment = names_of(self)
        names = FILES if self.lock_id else ("log",)
        return [
            Download(
                name=name,
                url=absolute(
                    info, reverse("download", args=[namespace, environment, self.number, name])
                ),
            )
            for name in names
        ]


def _lock(build: Build | None) -> Any:
    return build.lock.value() if build is not None and build.lock is not None else None


def find(rows: QuerySet[Any], pk: object, what: str) -> Any:
    """The row with this id; NotFoundError where there is none, or where the id is no id."""
    try:
        found = rows.filter(pk=pk).first() if len(str(pk)) < 40 else None
    except (ValueError, OverflowError, ValidationError):
        found = None
    if found is None:
        raise NotFoundError(f"There is no such {what}.", where="id")
    return found


# --- specifications and locks ------------------------------------------------------------------


@strawberry.type
class Variable:
    name: str
    value: str


def _content(read: Callable[[Any], Any], description: str | None = None) -> Any:
    return computed(lambda row: read(row.content), only=["content"], description=description)


@strawberry_django.type(SpecificationRow, name="Specification", field_cls=Column)
class SpecificationNode(Node):
    id: ID
    digest: str
    created_at: datetime

    kind: str = _content(lambda it: it["kind"], description="environment, lock or explicit.")
    name: str = _content(lambda it: it["name"])
    description: str = _content(lambda it: it["description"])
    channels: list[str] = _content(lambda it: it["channels"], description="The first one wins.")
    platforms: list[str] = _content(lambda it: it["platforms"])
    variables: list[Variable] = _content(
        lambda it: [Variable(name=k, value=v) for k, v in sorted(it["variables"].items())]
    )
    virtual_packages: list[str] = _content(lambda it: it["virtual_packages"])
    exclude_newer: str = _content(lambda it: it["exclude_newer"])
    test_imports: list[str] = _content(
        lambda it: it["smoke_tests"]["imports"], description="Modules that must import."
    )
    test_commands: list[str] = _content(
        lambda it: it["smoke_tests"]["commands"], description="Commands that must succeed."
    )

    @field(only=["content"])
    def dependencies(self: Any, platform: str | None = None) -> list[str]:
        return _on_platform(self.content["dependencies"], platform)

    @field(only=["content"])
    def pip(self: Any, platform: str | None = None) -> list[str]:
        return _on_platform(self.content["pip"], platform)


def _on_platform(by_platform: dict[str, list[str]], platform: str | None) -> list[str]:
    """Those of one platform; without it, those of all, each once."""
    if platform is not None:
        return list(by_platform.get(platform, ()))
    return sorted({one for listed in by_platform.values() for one in listed})


def locked_packages() -> list[Prefetch[str, Any, str]]:
    """A lock's packages without the channel's own text of each."""
    return [
        Prefetch(
            "conda",
            LockedConda.objects.select_related("package").defer("package__record"),
            to_attr="shown_conda",
        ),
        Prefetch(
            "pypi",
            LockedPypi.objects.select_related("package").defer("package__requires"),
            to_attr="shown_pypi",
        ),
    ]


@strawberry_django.type(LockRow, name="Lock", field_cls=Column)
class LockNode(Node):
    id: ID
    digest: str
    channels: list[str]
    platforms: list[str]
    package_count: int
    size: BigInt
    created_at: datetime

    def _packages(
        self: Any, platform: str | None = None, search: str | None = None
    ) -> Iterable[LockedPackage]:
        if not hasattr(self, "shown_conda"):
            prefetch_related_objects([self], *locked_packages())
        needle = (search or "").lower()
        return [
            LockedPackage.of(one.package, one.platform)
            for one in sorted(
                [*self.shown_conda, *self.shown_pypi],
                key=lambda one: (one.platform, one.package.name),
            )
            if platform in (None, one.platform) and needle in one.package.name.lower()
        ]

    packages: Connection[LockedPackage] = connection(
        _packages,
        graphql_type=Connection[LockedPackage],
        prefetch_related=locked_packages(),
        description="By platform and name, those of both managers.",
    )


# --- previews ----------------------------------------------------------------------------------


@strawberry_django.type(Preview, name="Preview", field_cls=Column)
class PreviewNode(Node):
    id: ID
    state: PreviewState
    created_at: datetime
    finished_at: datetime | None
    lock: LockNode | None
    failure: Failure | None = computed(lambda preview: Failure.of(preview.failure))
    warnings: list[str] = strawberry_django.field(
        field_cls=Column, description="What was accepted but may not be what you meant."
    )
    verdicts: list[Verdict] = computed(
        _verdicts,
        only=["verdicts"],
        description="What the rules say of it: a build would be held where one asks.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: PreviewQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[Preview]:
        return queryset.visible_to(actor_of(info))

    @field(
        only=["lock", "environment"],
        description="What would change in the environment's current build; null until solved.",
    )
    def diff(self: Any, info: Info, platform: str | None = None) -> LockDiff | None:
        if self.lock is None:
            return None
        visible = Build.objects.visible_to(actor_of(info))
        current = None
        if self.environment_id is not None:
            current = visible.filter(pk=self.environment.current_id).first()
        prefer = [current.platform] if current else []
        return compared(_lock(current), self.lock.value(), platform, prefer=prefer)


# --- channels ----------------------------------------------------------------------------------


@strawberry_django.type(Channel, name="Channel", field_cls=Column)
class ChannelNode(Node):
    id: ID
    url: str
    first_seen_at: datetime
    indexed_at: datetime | None

    name: str = computed(
        lambda channel: channel.url.rstrip("/").rsplit("/", 1)[-1],
        only=["url"],
        description="The last part of its address.",
    )


@strawberry_django.type(IndexedPackage, name="IndexedPackage", field_cls=Column)
class IndexedPackageNode:
    name: str
    latest_version: str
    versions: int
    subdirs: list[str]
    license: str
    summary: str
    channel: ChannelNode


@strawberry.type(description="A build that contains a package.")
class LockedPackageUse:
    package: LockedPackage
    environment: EnvironmentNode
    build: BuildNode


# --- me ----------------------------------------------------------------------------------------


@strawberry.type(description="Who you are to the server.")
class Me:
    username: str
    email: str
    is_superuser: bool
    token_name: str | None = strawberry.field(description="Of the token you came with.")

    @field(description="Yours, and those of your service accounts.")
    def tokens(self, info: Info) -> list[ApiTokenNode]:
        actor = actor_of(info)
        account = actor.account
        mine = ApiToken.objects.filter(user=account) | ApiToken.objects.filter(user__owner=account)
        if actor.token is not None and (actor.token.role or actor.token.namespaces):
            mine = mine.filter(pk=actor.token.pk)  # a limited token knows of itself only
        found: Any = mine
        return found  # type: ignore[no-any-return]

    @field(description="Namespaces in which you hold a role.")
    def namespaces(self, info: Info) -> list[NamespaceRole]:
        actor = actor_of(info)
        held = roles_of(actor.account)
        rows: Any = optimized(
            Namespace.objects.visible_to(actor).filter(pk__in=held), below(info, "namespace")
        )
        return [
            NamespaceRole(namespace=row, roles=sorted(held[row.pk], key=list(Role).index))
            for row in rows
        ]


def roles_of(account: User) -> dict[int, set[Role]]:
    """Namespace -> roles, those of groups too."""
    held: dict[int, set[Role]] = {}
    for rows in (
        NamespaceUserObjectPermission.objects.filter(user=account),
        NamespaceGroupObjectPermission.objects.filter(group__user=account),
    ):
        for namespace, codename in rows.values_list("content_object", "permission__codename"):
            held.setdefault(namespace, set()).add(_role(codename))
    for role in Role:
        for namespace in mapped(account.pk, [role]).values_list("namespace", flat=True):
            held.setdefault(namespace, set()).add(role)
    return held
