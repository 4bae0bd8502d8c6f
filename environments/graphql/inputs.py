"""What clients may filter and sort by, and the values of a few words: named as in the domain."""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry
from django.db.models import OuterRef, Q, QuerySet, Subquery

from accounts.roles import Perm, Role
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment, LockedConda, LockedPypi, Namespace
from environments.models.previews import PreviewState

strawberry.enum(Role, description="What one may do in a namespace.")
strawberry.enum(Perm, name="Perm")
strawberry.enum(BuildState)
strawberry.enum(ArtifactKind, description="TAR_GZ and TAR_ZST: as conda-pack makes them.")
strawberry.enum(ArtifactState)
strawberry.enum(PreviewState, name="PreviewState")


@strawberry.enum
class PackageKind(Enum):
    CONDA = "conda"
    PYPI = "pypi"


@strawberry.enum(description="CHANNEL: the same version from another channel.")
class PackageChangeKind(Enum):
    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    REBUILD = "rebuild"
    CHANNEL = "channel"


@strawberry.input(description="All that is given must hold.")
class TextFilter:
    exact: str | None = None
    i_contains: str | None = None
    starts_with: str | None = None
    in_list: list[str] | None = None

    def on(self, field: str) -> Q:
        found = Q()
        if self.exact is not None:
            found &= Q(**{field: self.exact})
        if self.i_contains is not None:
            found &= Q(**{f"{field}__icontains": self.i_contains})
        if self.starts_with is not None:
            found &= Q(**{f"{field}__startswith": self.starts_with})
        if self.in_list is not None:
            found &= Q(**{f"{field}__in": self.in_list})
        return found


@strawberry.input
class NamespaceFilter:
    name: TextFilter | None = None
    personal: bool | None = None
    public: bool | None = None

    def apply(self, rows: QuerySet[Namespace]) -> QuerySet[Namespace]:
        if self.name:
            rows = rows.filter(self.name.on("name"))
        if self.personal is not None:
            rows = rows.filter(personal=self.personal)
        if self.public is not None:
            rows = rows.filter(public=self.public)
        return rows


@strawberry.input
class EnvironmentFilter:
    namespace: str | None = strawberry.field(default=None, description="Its name.")
    name: str | None = None
    search: str | None = strawberry.field(
        default=None, description="Part of the name, of the namespace's name or the description."
    )
    state: list[BuildState] | None = strawberry.field(
        default=None, description="Of the newest build."
    )
    package: str | None = strawberry.field(
        default=None, description="A package that the current build contains."
    )
    unused_since: datetime | None = strawberry.field(
        default=None, description="Neither used nor made after this moment."
    )

    def apply(self, rows: QuerySet[Environment]) -> QuerySet[Environment]:
        if self.namespace is not None:
            rows = rows.filter(namespace__name=self.namespace)
        if self.name is not None:
            rows = rows.filter(name=self.name)
        if self.search:
            rows = rows.filter(
                Q(name__icontains=self.search)
                | Q(namespace__name__icontains=self.search)
                | Q(description__icontains=self.search)
            )
        if self.state is not None:
            newest = Build.objects.filter(environment=OuterRef("pk"), deleted_at=None)
            state = Subquery(newest.order_by("-number").values("state")[:1])
            rows = rows.alias(newest_state=state).filter(newest_state__in=self.state)
        if self.unused_since is not None:
            unused = Q(used_at=None) | Q(used_at__lt=self.unused_since)
            rows = rows.filter(unused, created_at__lt=self.unused_since)
        if self.package:
            rows = rows.filter(current__lock__in=locks_with(self.package).values("lock"))
        return rows


def locks_with(name: str) -> QuerySet[LockedConda | LockedPypi]:
    """The locks that contain a package, by either manager."""
    conda = LockedConda.objects.order_by().filter(package__name=name.lower())
    pypi = LockedPypi.objects.order_by().filter(package__name=name.lower().replace("_", "-"))
    return conda.values("lock").union(pypi.values("lock"))  # type: ignore[return-value]


@strawberry.input
class BuildFilter:
    namespace: str | None = strawberry.field(default=None, description="Its name.")
    environment: str | None = strawberry.field(default=None, description="Its name.")
    state: list[BuildState] | None = None

    def apply(self, rows: QuerySet[Build]) -> QuerySet[Build]:
        if self.namespace is not None:
            rows = rows.filter(environment__namespace__name=self.namespace)
        if self.environment is not None:
            rows = rows.filter(environment__name=self.environment)
        if self.state is not None:
            rows = rows.filter(state__in=self.state)
        return rows


@strawberry.enum
class NamespaceOrder(Enum):
    NAME = ("name",)
    NAME_DESC = ("-name",)
    CREATED_AT = ("created_at", "pk")
    CREATED_AT_DESC = ("-created_at", "-pk")


@strawberry.enum
class EnvironmentOrder(Enum):
    NAME = ("namespace__name", "name")
    NAME_DESC = ("-namespace__name", "-name")
    CREATED_AT = ("pk",)
    CREATED_AT_DESC = ("-pk",)
    UPDATED_AT = ("updated_at", "pk")
    UPDATED_AT_DESC = ("-updated_at", "-pk")


@strawberry.enum
class BuildOrder(Enum):
    CREATED_AT = ("created_at", "pk")
    CREATED_AT_DESC = ("-created_at", "-pk")
    NUMBER = ("environment", "number")
    NUMBER_DESC = ("environment", "-number")
