"""The rows as clients see them: each type shows what its reader may see, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Self

import strawberry
import strawberry_django
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import (
    Exists,
    F,
    OuterRef,
    Prefetch,
    QuerySet,
    Subquery,
    prefetch_related_objects,
)
from django.http import HttpRequest
from django.urls import reverse
from strawberry import ID, Info
from strawberry_django.optimizer import optimize

from accounts.access import may
from accounts.models import ApiToken, User
from accounts.roles import Perm, Role
from environments import folders
from environments.domain import diff as differences
from environments.domain.errors import NotFoundError
from environments.domain.lifecycle import BuildState
from environments.domain.policy import Effect
from environments.graphql.inputs import (
    BuildStateEnum,
    PermEnum,
    PreviewStateEnum,
    RoleEnum,
)
from environments.graphql.packages import (
    BigInt,
    Failure,
    LockDiff,
    LockedPackage,
    compared,
    preferred,
)
from environments.graphql.pages import (
    Column,
    Connection,
    actor_of,
    below,
    connection,
    total_of,
)
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
from environments.operations.downloads import FILES


@strawberry.interface
class Node:
    id: ID


# --- who ---------------------------------------------------------------------------------------


@strawberry.type(description="Somebody who holds a role: a user or a group.")
class Grant:
    role: RoleEnum
    user: str | None = None
    group: str | None = None


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

    @strawberry_django.field(only=["role"], description="The highest role it acts with.")
    def role(self: Any) -> RoleEnum | None:
        return Role(self.role) if self.role else None

    @strawberry_django.field(only=["revoked_at"])
    def revoked(self: Any) -> bool:
        return self.revoked_at is not None


# --- namespaces --------------------------------------------------------------------------------


def _may(perm: Perm, namespace: str) -> Callable[[Info], Exists]:
    """An annotation: may the actor do that in the namespace of the row?"""

    def expression(info: Info) -> Exists:
        allowed = Namespace.objects.with_perm(actor_of(info), perm)
        return Exists(allowed.order_by().filter(pk=OuterRef(namespace)))

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
        cls, queryset: QuerySet[Namespace], info: Info, **kwargs: Any
    ) -> QuerySet[Namespace]:
        return queryset.filter(pk__in=Namespace.objects.visible_to(actor_of(info)).values("pk"))

    @strawberry_django.field(
        annotate={f"may_{perm}": _may(perm, "pk") for perm in Perm},
        description="What you may do in it.",
    )
    def my_permissions(self: Any, info: Info) -> list[PermEnum]:
        return [perm for perm in Perm if _allowed(self, info, perm, self)]

    @strawberry_django.field(
        annotate={"may_grant": _may(Perm.GRANT, "pk")},
        description="Who holds which role; empty for those who may not grant.",
        prefetch_related=[
            "user_grants__permission",
            "user_grants__user",
            "group_grants__permission",
            "group_grants__group",
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
        return sorted(held, key=lambda grant: (grant.user or "", grant.group or ""))


def _role(codename: str) -> Role:
    return Role(codename.removeprefix("role_"))


@strawberry.type(description="The roles you hold in a namespace, through groups too.")
class NamespaceRole:
    namespace: NamespaceNode
    roles: list[RoleEnum]


# --- environments ------------------------------------------------------------------------------


@strawberry_django.type(BuildTag, name="Tag", field_cls=Column)
class TagNode:
    name: str
    moved_at: datetime
    build: BuildNode


def _newest(info: Info) -> Prefetch[str, Any, str]:
    """The newest build of each environment of a list, with what was asked of it."""
    rows = optimize(newest_builds().filter(environment__deleted_at=None), info)
    return Prefetch("builds", queryset=rows, to_attr="newest_builds")


def newest_builds() -> QuerySet[Build]:
    of_same = Build.objects.filter(environment=OuterRef("environment"), deleted_at=None)
    newest = Subquery(of_same.order_by("-number").values("number")[:1])
    return Build.objects.filter(deleted_at=None, number=newest)


def _shares(self: Any) -> list[str]:
    users = [f"user {one.user.get_username()}" for one in self.user_shares.all()]
    return sorted(users + [f"group {one.group.name}" for one in self.group_shares.all()])


@strawberry_django.type(Environment, name="Environment", field_cls=Column)
class EnvironmentNode(Node):
    id: ID
    name: str
    description: str
    pinned: bool
    created_at: datetime
    updated_at: datetime
    current: BuildNode | None
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

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[Environment], info: Info, **kwargs: Any
    ) -> QuerySet[Environment]:
        visible = Environment.objects.visible_to(actor_of(info))
        return queryset.filter(pk__in=visible.values("pk"))

    @strawberry_django.field(
        annotate={"namespace_name": F("namespace__name")},
        description="Of an environment that was only shared with you it tells no more than the name.",
    )
    def namespace(self: Any) -> NamespaceNode:
        try:
            found: Any = self.namespace
        except Namespace.DoesNotExist:
            found = Namespace(pk=0, name=self.namespace_name, created_at=self.created_at)
        return found

    namespace.base_resolver.wrapped_func.can_optimize = True

    @strawberry_django.field(prefetch_related=[_newest])
    def latest(self: Any, info: Info) -> BuildNode | None:
        rows = getattr(self, "newest_builds", None)
        found: Any = (
            newest_builds().filter(environment=self.pk).first()
            if rows is None
            else next(iter(rows), None)
        )
        return found

    @strawberry_django.field(annotate={"creator": F("created_by__username")})
    def created_by(self: Any) -> str | None:
        return _name_of(self, "creator", "created_by")

    @strawberry_django.field(
        only=["name", "current"],
        annotate={"namespace_name": F("namespace__name")},
        description="Where its files are on the server; empty while nothing is built.",
    )
    def folder(self: Any) -> str:
        if self.current_id is None:
            return ""
        return str(folders.link_path(_namespace_name(self), self.name))

    @strawberry_django.field(
        annotate={"may_grant": _may(Perm.GRANT, "namespace")},
        prefetch_related=["user_shares__user", "group_shares__group"],
        description="Who else may see it; empty for those who may not grant.",
    )
    def shared_with(self: Any, info: Info) -> list[str]:
        return _shares(self) if _allowed(self, info, Perm.GRANT, self) else []


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


# --- builds ------------------------------------------------------------------------------------


@strawberry.type(description="How far the running stage is.")
class Progress:
    stage: str
    done: int
    total: int
    bytes_done: BigInt
    bytes_total: BigInt
    current: str

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self | None:
        if not stored:
            return None
        return cls(
            stage=stored.get("stage", ""),
            done=stored.get("done", 0),
            total=stored.get("total", 0),
            bytes_done=BigInt(stored.get("bytes_done", 0)),
            bytes_total=BigInt(stored.get("bytes_total", 0)),
            current=stored.get("current", ""),
        )


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
    state: BuildStateEnum
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


def absolute(info: Info, path: str) -> str:
    if settings.PUBLIC_URL:
        return str(settings.PUBLIC_URL).rstrip("/") + path
    request = info.context.request
    return request.build_absolute_uri(path) if isinstance(request, HttpRequest) else path


@strawberry_django.type(Build, name="Build", field_cls=Column)
class BuildNode(Node):
    id: ID
    number: int
    state: BuildStateEnum
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

    @classmethod
    def get_queryset(cls, queryset: QuerySet[Build], info: Info, **kwargs: Any) -> QuerySet[Build]:
        visible = Build.objects.visible_to(actor_of(info))
        return queryset.filter(pk__in=visible.order_by().values("pk"))

    @strawberry_django.field(only=["number"], annotate=_REF, description="`namespace/name:number`.")
    def ref(self: Any) -> str:
        namespace, environment = names_of(self)
        return f"{namespace}/{environment}:{self.number}"

    @strawberry_django.field(only=["state"], description="Nothing happens any more by itself.")
    def finished(self: Any) -> bool:
        return bool(Build.finished.fget(self))  # type: ignore[attr-defined]

    @strawberry_django.field(annotate={"requester": F("requested_by__username")})
    def requested_by(self: Any) -> str | None:
        return _name_of(self, "requester", "requested_by")

    @strawberry_django.field(only=["attempt_started_at"])
    def started_at(self: Any) -> datetime | None:
        started: datetime | None = self.attempt_started_at
        return started

    @strawberry_django.field(only=["failure"])
    def failure(self: Any) -> Failure | None:
        return Failure.of(self.failure)

    @strawberry_django.field(only=["progress"])
    def progress(self: Any) -> Progress | None:
        return Progress.of(self.progress)

    @strawberry_django.field(only=["timings"], description="Of the last attempt.")
    def timings(self: Any) -> list[Timing]:
        order = [state.value for state in BuildState]
        rank = {stage: order.index(stage) for stage in self.timings if stage in order}
        stages = sorted(self.timings, key=lambda stage: rank.get(stage, len(order)))
        return [Timing(stage=stage, seconds=float(self.timings[stage])) for stage in stages]

    @strawberry_django.field(annotate={"current_build": F("environment__current")})
    def is_current(self: Any) -> bool:
        if "current_build" in self.__dict__:
            return bool(self.current_build == self.pk)
        return bool(self.environment.current_id == self.pk)

    @strawberry_django.field(
        annotate={"prefix_folder": F("prefix__path")},
        description="Where its files are on the server; empty where it has none.",
    )
    def prefix_path(self: Any) -> str:
        path = _prefix(self, "prefix_folder", "path")
        return str(folders.data() / path) if path else ""

    @strawberry_django.field(
        annotate={"apparent": F("prefix__apparent_size")}, description="As if nothing was shared."
    )
    def apparent_size(self: Any) -> BigInt | None:
        return _prefix(self, "apparent", "apparent_size")  # type: ignore[no-any-return]

    @strawberry_django.field(
        annotate={"unique": F("prefix__unique_size")}, description="What only this build holds."
    )
    def unique_size(self: Any) -> BigInt | None:
        return _prefix(self, "unique", "unique_size")  # type: ignore[no-any-return]

    @strawberry_django.field(
        annotate={"apparent": F("prefix__apparent_size"), "unique": F("prefix__unique_size")},
        description="What it shares with other builds and the package cache.",
    )
    def shared_size(self: Any) -> BigInt | None:
        apparent = _prefix(self, "apparent", "apparent_size")
        unique = _prefix(self, "unique", "unique_size")
        return None if apparent is None else BigInt(apparent - unique)

    @strawberry_django.field(
        only=["log_lines"], annotate={"origin_lines": F("origin__log_lines")}
    )
    def log_lines(self: Any) -> int:
        if self.log_lines or "origin_lines" in self.__dict__:
            return int(self.log_lines or getattr(self, "origin_lines", 0) or 0)
        return int(self.origin.log_lines if self.origin else 0)

    @strawberry_django.field(
        only=["log_lines", "origin"], description="The lines from number `start` on."
    )
    def log(self: Any, start: int = 0, limit: int = 1000) -> list[str]:
        lines: list[str] = self.log_from(max(0, start), limit=max(0, min(limit, 10_000)))
        return lines

    @strawberry_django.field(
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

    @strawberry_django.field(
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

    @strawberry_django.field(only=["verdicts"])
    def verdicts(self: Any) -> list[Verdict]:
        return [
            Verdict(
                rule=one.get("rule", ""),
                effect=one.get("effect", Effect.WARN.value),
                subject=one.get("subject", ""),
                reason=one.get("reason", ""),
                chain=list(one.get("chain", ())),
            )
            for one in self.verdicts
        ]

    @strawberry_django.field(only=["number", "lock"], annotate=_REF)
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


def _prefix(build: Any, annotation: str, attribute: str) -> Any:
    if annotation in build.__dict__:
        return build.__dict__[annotation]
    return getattr(build.prefix, attribute) if build.prefix else None


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


@strawberry_django.type(SpecificationRow, name="Specification", field_cls=Column)
class SpecificationNode(Node):
    id: ID
    digest: str
    created_at: datetime

    @strawberry_django.field(only=["content"], description="environment, lock or explicit.")
    def kind(self: Any) -> str:
        return str(self.content["kind"])

    @strawberry_django.field(only=["content"])
    def name(self: Any) -> str:
        return str(self.content["name"])

    @strawberry_django.field(only=["content"])
    def description(self: Any) -> str:
        return str(self.content["description"])

    @strawberry_django.field(only=["content"], description="The first one wins.")
    def channels(self: Any) -> list[str]:
        return list(self.content["channels"])

    @strawberry_django.field(only=["content"])
    def platforms(self: Any) -> list[str]:
        return list(self.content["platforms"])

    @strawberry_django.field(only=["content"])
    def dependencies(self: Any, platform: str | None = None) -> list[str]:
        return _on_platform(self.content["dependencies"], platform)

    @strawberry_django.field(only=["content"])
    def pip(self: Any, platform: str | None = None) -> list[str]:
        return _on_platform(self.content["pip"], platform)

    @strawberry_django.field(only=["content"])
    def variables(self: Any) -> list[Variable]:
        return [Variable(name=k, value=v) for k, v in sorted(self.content["variables"].items())]

    @strawberry_django.field(only=["content"])
    def virtual_packages(self: Any) -> list[str]:
        return list(self.content["virtual_packages"])

    @strawberry_django.field(only=["content"])
    def exclude_newer(self: Any) -> str:
        return str(self.content["exclude_newer"])

    @strawberry_django.field(only=["content"], description="Modules that must import.")
    def test_imports(self: Any) -> list[str]:
        return list(self.content["smoke_tests"]["imports"])

    @strawberry_django.field(only=["content"], description="Commands that must succeed.")
    def test_commands(self: Any) -> list[str]:
        return list(self.content["smoke_tests"]["commands"])


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
    state: PreviewStateEnum
    created_at: datetime
    finished_at: datetime | None
    lock: LockNode | None

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[Preview], info: Info, **kwargs: Any
    ) -> QuerySet[Preview]:
        return queryset.filter(pk__in=Preview.objects.visible_to(actor_of(info)).values("pk"))

    @strawberry_django.field(only=["failure"])
    def failure(self: Any) -> Failure | None:
        return Failure.of(self.failure)

    @strawberry_django.field(
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

    @strawberry_django.field(description="What was accepted but may not be what you meant.")
    def warnings(self: Any) -> list[str]:
        return list(getattr(self, "said_warnings", ()))


# --- channels ----------------------------------------------------------------------------------


@strawberry_django.type(Channel, name="Channel", field_cls=Column)
class ChannelNode(Node):
    id: ID
    url: str
    first_seen_at: datetime
    indexed_at: datetime | None

    @strawberry_django.field(only=["url"], description="The last part of its address.")
    def name(self: Any) -> str:
        return str(self.url).rstrip("/").rsplit("/", 1)[-1]


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

    @strawberry_django.field(description="Yours, and those of your service accounts.")
    def tokens(self, info: Info) -> list[ApiTokenNode]:
        actor = actor_of(info)
        account = actor.account
        mine = ApiToken.objects.filter(user=account) | ApiToken.objects.filter(user__owner=account)
        if actor.token is not None and (actor.token.role or actor.token.namespaces):
            mine = mine.filter(pk=actor.token.pk)  # a limited token knows of itself only
        found: Any = mine
        return found

    @strawberry_django.field(description="Namespaces in which you hold a role.")
    def namespaces(self, info: Info) -> list[NamespaceRole]:
        actor = actor_of(info)
        held = roles_of(actor.account)
        rows: Any = optimize(
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
    return held
