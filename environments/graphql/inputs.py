"""Filters and orders of lists."""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import strawberry
from django.db.models import OuterRef, Q, QuerySet, Subquery

from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment, LockedConda, LockedPypi, Namespace


@strawberry.input(description="Conditions on a text; all given conditions must hold.")
class TextFilter:
    exact: str | None = strawberry.field(default=None, description="Equal to this text.")
    i_contains: str | None = strawberry.field(
        default=None, description="Contains this text, ignoring case."
    )
    starts_with: str | None = strawberry.field(default=None, description="Starts with this text.")
    in_list: list[str] | None = strawberry.field(
        default=None, description="Equal to one of these texts."
    )

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


@strawberry.input(description="Filter for namespaces; all given conditions must hold.")
class NamespaceFilter:
    name: TextFilter | None = strawberry.field(default=None, description="Condition on the name.")
    personal: bool | None = strawberry.field(
        default=None, description="True for personal namespaces only, false for others only."
    )
    public: bool | None = strawberry.field(
        default=None, description="True for public namespaces only, false for others only."
    )

    def apply(self, rows: QuerySet[Namespace]) -> QuerySet[Namespace]:
        if self.name:
            rows = rows.filter(self.name.on("name"))
        if self.personal is not None:
            rows = rows.filter(personal=self.personal)
        if self.public is not None:
            rows = rows.filter(public=self.public)
        return rows


@strawberry.input(description="Filter for environments; all given conditions must hold.")
class EnvironmentFilter:
    namespace: str | None = strawberry.field(default=None, description="Name of the namespace.")
    name: str | None = strawberry.field(default=None, description="Exact name of the environment.")
    search: str | None = strawberry.field(
        default=None,
        description="Part of the environment's name, its namespace's name or its description.",
    )
    state: list[BuildState] | None = strawberry.field(
        default=None, description="States of the newest build."
    )
    package: str | None = strawberry.field(
        default=None, description="Name of a package that the current build contains."
    )
    unused_since: datetime | None = strawberry.field(
        default=None,
        description="Only environments created before this time and not used after it.",
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


@strawberry.input(description="Filter for builds; all given conditions must hold.")
class BuildFilter:
    namespace: str | None = strawberry.field(default=None, description="Name of the namespace.")
    environment: str | None = strawberry.field(default=None, description="Name of the environment.")
    state: list[BuildState] | None = strawberry.field(
        default=None, description="States of the build."
    )

    def apply(self, rows: QuerySet[Build]) -> QuerySet[Build]:
        if self.namespace is not None:
            rows = rows.filter(environment__namespace__name=self.namespace)
        if self.environment is not None:
            rows = rows.filter(environment__name=self.environment)
        if self.state is not None:
            rows = rows.filter(state__in=self.state)
        return rows


@strawberry.enum(description="Order of namespaces.")
class NamespaceOrder(Enum):
    NAME = strawberry.enum_value(("name",), description="By name.")
    NAME_DESC = strawberry.enum_value(("-name",), description="By name, descending.")
    CREATED_AT = strawberry.enum_value(("created_at", "pk"), description="Oldest first.")
    CREATED_AT_DESC = strawberry.enum_value(("-created_at", "-pk"), description="Newest first.")


@strawberry.enum(description="Order of environments.")
class EnvironmentOrder(Enum):
    NAME = strawberry.enum_value(("namespace__name", "name"), description="By namespace and name.")
    NAME_DESC = strawberry.enum_value(
        ("-namespace__name", "-name"), description="By namespace and name, descending."
    )
    CREATED_AT = strawberry.enum_value(("pk",), description="Oldest first.")
    CREATED_AT_DESC = strawberry.enum_value(("-pk",), description="Newest first.")
    UPDATED_AT = strawberry.enum_value(
        ("updated_at", "pk"), description="Least recently changed first."
    )
    UPDATED_AT_DESC = strawberry.enum_value(
        ("-updated_at", "-pk"), description="Most recently changed first."
    )


@strawberry.enum(description="Order of builds.")
class BuildOrder(Enum):
    CREATED_AT = strawberry.enum_value(("created_at", "pk"), description="Oldest first.")
    CREATED_AT_DESC = strawberry.enum_value(("-created_at", "-pk"), description="Newest first.")
    NUMBER = strawberry.enum_value(
        ("environment", "number"), description="By environment, then by ascending build number."
    )
    NUMBER_DESC = strawberry.enum_value(
        ("environment", "-number"), description="By environment, then by descending build number."
    )
