"""Builds, their events, tags and downloads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import strawberry
import strawberry_django
from django.db.models import F, QuerySet, Window
from django.db.models.functions import RowNumber
from django.urls import reverse
from strawberry import ID, Info

from condastore.errors import NotFoundError
from environments.domain import diff as differences
from environments.domain.lifecycle import FINISHED, BuildState
from environments.graphql import folder_restores
from environments.graphql.approvals import ApprovalRequestNode, of_builds, request_rows, shown
from environments.graphql.artifacts import (
    ArtifactNode,
    artifact_of,
    artifacts_of,
    has_artifact,
    of_locks,
)
from environments.graphql.connections import ordered_by_keys
from environments.graphql.fields import (
    Column,
    absolute,
    actor_of,
    column,
    computed,
    described,
    field,
)
from environments.graphql.nodes import Node, find, id_field, key_field, register, register_model
from environments.graphql.optimizer import inside
from environments.graphql.packages import (
    Failure,
    LockDiff,
    Progress,
    compared,
    preferred,
)
from environments.graphql.scalars import BigInt
from environments.graphql.specifications import LockNode, SpecificationNode
from environments.graphql.verdicts import Verdict, verdicts_of
from environments.models import (
    Artifact,
    Build,
    BuildEvent,
    BuildTag,
)
from environments.models.builds import BuildQuerySet
from environments.models.recalls import recall_reason
from environments.operations.downloads import FILES
from environments.services import folders

if TYPE_CHECKING:
    from environments.graphql.environments import EnvironmentNode

#: Newest builds of a lock among which the build of one of its artifacts is searched.
ARTIFACT_BUILDS = 20
#: Declared in a module that imports this one.
LazyEnvironment = Annotated["EnvironmentNode", strawberry.lazy("environments.graphql.environments")]


@strawberry.type(description="Time spent in one stage of a build.")
class Timing:
    stage: str = strawberry.field(description="Name of the stage.")
    seconds: float = strawberry.field(description="Duration, in seconds.")


@strawberry.type(description="Downloadable file of a build.")
class Download:
    name: str = strawberry.field(description="Name of the file.")
    url: str = strawberry.field(description="Absolute URL of the file.")


@strawberry_django.type(
    BuildEvent, name="BuildEvent", field_cls=Column, description="One state change of a build."
)
class BuildEventNode:
    state: BuildState = column("State that the build moved to.")
    at: datetime = column("When the build moved.")
    message: str = column("Additional information, for people.")


@strawberry_django.type(
    BuildTag,
    name="Tag",
    field_cls=Column,
    description="Movable name for a build within its environment.",
)
class TagNode:
    name: str = column("Name of the tag.")
    moved_at: datetime = column("When the tag was last moved.")
    build: BuildNode = column("Build the tag points to.")


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
    if not path or recalled_reason(build) is not None or folder_restores.missing_state(build):
        return ""
    return str(folders.data() / path)


def recalled_reason(build: Any) -> str | None:
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


def username_of(row: Any, annotation: str, relation: str) -> str | None:
    """A user's name: annotated where the row came in a list, else read."""
    if annotation in row.__dict__:
        name: str | None = row.__dict__[annotation]
        return name
    user = getattr(row, relation)
    return user.get_username() if user else None


@strawberry_django.type(
    Build,
    name="Build",
    field_cls=Column,
    description="One build of an environment: a specification, its lock, its "
    "attempts and its outcome.",
)
class BuildNode(Node):
    id: ID = id_field("Build")
    database_id: str = key_field()
    number: int = column("Number of the build within its environment, starting at 1.")
    state: BuildState = column("State of the build.")
    source: str = column("Specification as it was submitted, with comments.")
    attempt: int = column("Number of the current or last attempt, starting at 1.")
    created_at: datetime = column("When the build was submitted.")
    finished_at: datetime | None = column("When the build reached a final state; null until then.")
    platform: str = column("Platform the build's prefix is linked for, such as linux-64.")
    sandboxed: bool | None = column(
        "True when the smoke tests ran in a sandbox; null when none ran."
    )
    link_scripts: list[str] = column("Names of packages whose link scripts were not executed.")
    environment: LazyEnvironment = column("Environment the build belongs to.")
    specification: SpecificationNode = column("Parsed specification of the build.")
    lock: LockNode | None = column("Lock of the build; null until it is solved.")
    events: list[BuildEventNode] = column("State changes of the build, oldest first.")
    tags: list[TagNode] = column("Tags that point to the build.")

    ref: str = computed(
        _ref,
        only=["number"],
        annotate=_REF,
        description="Reference of the build, as `namespace/name:number`.",
    )
    finished: bool = computed(
        lambda build: build.state in FINISHED,
        only=["state"],
        description="True when the build has reached a final state.",
    )
    requested_by: str | None = computed(
        lambda build: username_of(build, "requester", "requested_by"),
        annotate={"requester": F("requested_by__username")},
        description="Name of the user who submitted the build; null if the account was deleted.",
    )
    started_at: datetime | None = computed(
        lambda build: build.attempt_started_at,
        only=["attempt_started_at"],
        description="When the current or last attempt started.",
    )
    failure: Failure | None = computed(
        lambda build: Failure.of(build.failure),
        description="Why the build failed; null if it did not.",
    )
    progress: Progress | None = computed(
        lambda build: Progress.of(build.progress),
        description="Progress of the running stage; null when no stage runs.",
    )
    timings: list[Timing] = computed(
        _timings, description="Seconds spent in each stage of the last attempt."
    )
    is_current: bool = computed(
        _is_current,
        annotate={"current_build": F("environment__current")},
        description="True when the build is the current build of its environment.",
    )
    prefix_path: str = computed(
        _prefix_path,
        only=["state", "prefix"],
        annotate={
            "prefix_folder": F("prefix__path"),
            "recall_reason": recall_reason("lock"),
            "folder_state": folder_restores.STATE,
        },
        description="Path of the prefix on the server; empty when the build has none.",
    )
    missing_folder: folder_restores.MissingFolder | None = computed(
        folder_restores.missing_folder,
        only=["prefix"],
        annotate={
            "folder_state": folder_restores.STATE,
            "folder_failure": folder_restores.FAILURE,
        },
        description="State of relinking the prefix when its folder is missing on the "
        "server; null when it is present.",
    )
    recalled: str | None = computed(
        recalled_reason,
        only=["lock"],
        annotate={"recall_reason": recall_reason("lock")},
        description="Reason of the recall that stopped serving the build; null when it "
        "is not recalled.",
    )
    reason: str = computed(
        lambda build: build.reason,
        only=["reason"],
        description="Purpose of the build, as stated by its requester for approvers.",
    )
    apparent_size: BigInt | None = computed(
        lambda build: _prefix(build, "apparent", "apparent_size"),
        annotate={"apparent": F("prefix__apparent_size")},
        description="Total size of the prefix's files, in bytes, including files shared "
        "with other builds.",
    )
    unique_size: BigInt | None = computed(
        lambda build: _prefix(build, "unique", "unique_size"),
        annotate={"unique": F("prefix__unique_size")},
        description="Size of the files that only this build uses, in bytes.",
    )
    shared_size: BigInt | None = computed(
        _shared_size,
        annotate={"apparent": F("prefix__apparent_size"), "unique": F("prefix__unique_size")},
        description="Size of the files shared with other builds and the package cache, in bytes.",
    )
    log_lines: int = computed(
        _log_lines,
        only=["log_lines"],
        annotate={"origin_lines": F("origin__log_lines")},
        description="Number of lines in the build log.",
    )
    verdicts: list[Verdict] = computed(
        verdicts_of, description="Policy verdicts on the packages and channels of the build."
    )

    @classmethod
    def get_queryset(cls, queryset: BuildQuerySet, info: Info, **kwargs: Any) -> QuerySet[Build]:
        if inside(info, "EnvironmentNode", "TagNode"):
            return ordered_by_keys(queryset.filter(deleted_at=None), "-created_at")
        return queryset.visible_to(actor_of(info))

    @field(only=["log_lines", "origin"], description="Lines of the build log.")
    def log(
        self: Any,
        start: Annotated[int, described("Number of the first line, starting at 0.")] = 0,
        limit: Annotated[int, described("Maximum number of lines, at most 10,000.")] = 1000,
    ) -> list[str]:
        lines: list[str] = self.log_from(max(0, start), limit=max(0, min(limit, 10_000)))
        return lines

    @field(
        only=["lock", "number", "environment", "platform"],
        description="Package changes between an earlier build and this build.",
    )
    def diff_to(
        self: Any,
        info: Info,
        other: Annotated[
            ID | None,
            described(
                "Id of the build to compare with; null means the previous build with a lock."
            ),
        ] = None,
        platform: Annotated[
            str | None, described("Platform to compare; null means the platform of this build.")
        ] = None,
    ) -> LockDiff:
        visible = Build.objects.visible_to(actor_of(info))
        older: Build | None
        if other is not None:
            older = find(visible, other, "build")
        else:
            earlier = visible.filter(environment=self.environment_id, number__lt=self.number)
            older = earlier.exclude(lock=None).order_by("-number").first()
        return compared(lock_of(older), lock_of(self), platform, prefer=[self.platform])

    @field(
        only=["lock", "specification", "platform"],
        description="Dependency chains from requested packages to one package, shortest first.",
    )
    def why(
        self: Any,
        name: Annotated[str, described("Name of the package to explain.")],
        platform: Annotated[
            str | None, described("Platform of the lock; null means the platform of this build.")
        ] = None,
    ) -> list[list[str]]:
        lock = lock_of(self)
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
        description="Approval requests and decisions that concern the build.",
    )
    def approvals(self: Any, info: Info) -> list[ApprovalRequestNode]:
        if "shown_requests" in self.__dict__:
            return shown(actor_of(info), self.shown_requests)
        return shown(actor_of(info), list(request_rows().filter(builds=self.pk).order_by("name")))

    @field(
        only=["number", "lock", "specification"],
        annotate=_REF | {"variables_set": F("specification__content__variables")},
        prefetch_related=[lambda info: of_locks()],
        description="Files generated from the build's lock, in any state.",
    )
    def artifacts(self: Any, info: Info) -> list[ArtifactNode]:
        return artifacts_of(info, self, *names_of(self))

    @field(
        only=["number", "lock"],
        annotate=_REF,
        description="Files of the build that can be downloaded, with their URLs.",
    )
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


def lock_of(build: Build | None) -> Any:
    return build.lock.value() if build is not None and build.lock is not None else None


register_model("Build", BuildNode, lambda info: Build.objects.all())


def _load_artifacts(info: Info, keys: Sequence[str]) -> dict[str, ArtifactNode]:
    """Find artifacts with the newest visible build that has them, whose URL they are shown with.

    Two statements for any number of keys.
    """
    rows = list(Artifact.objects.filter(pk__in=keys).select_related("blob"))
    newest = Window(RowNumber(), partition_by="lock", order_by="-pk")
    visible = Build.objects.visible_to(actor_of(info)).filter(
        lock__in={row.lock_id for row in rows}
    )
    builds: dict[int | None, list[Build]] = {}
    for build in (
        visible.select_related("environment__namespace")
        .defer("source", "log_archive", "verdicts", "progress")
        .annotate(variables_set=F("specification__content__variables"), rank=newest)
        .filter(rank__lte=ARTIFACT_BUILDS)
        .order_by("-pk")
    ):
        builds.setdefault(build.lock_id, []).append(build)
    found: dict[str, ArtifactNode] = {}
    for row in rows:
        for build in builds.get(row.lock_id, ()):
            if has_artifact(build, row):
                found[str(row.pk)] = artifact_of(info, build, row)
                break
    return found


register("Artifact", _load_artifacts)
