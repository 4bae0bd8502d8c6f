"""Filters and orders of lists."""

from __future__ import annotations

from datetime import datetime

import strawberry
import strawberry_django
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.db.models.lookups import In

from environments.domain.lifecycle import BuildState
from environments.graphql.filtering import Direction, condition, filter_type, sort_key
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


@filter_type(
    Namespace,
    name="NamespaceFilter",
    description="Filter for namespaces; all given conditions must hold.",
)
class NamespaceFilter:
    name: TextFilter | None = condition(
        "name", TextFilter, "Condition on the name.", build=lambda name, text: text.on(name)
    )
    personal: bool | None = condition(
        "personal", bool, "True for personal namespaces only, false for others only."
    )
    public: bool | None = condition(
        "public", bool, "True for public namespaces only, false for others only."
    )


def _of_newest_build(column: str, states: list[str]) -> Q:
    newest = Build.objects.filter(environment=OuterRef(column), deleted_at=None)
    state = Subquery(newest.order_by("-number").values("state")[:1])
    return Q(In(state, states))


def _has_text(column: str, text: str) -> Q:
    prefix = column.removesuffix("name")
    names = Q(**{f"{prefix}name__icontains": text})
    names |= Q(**{f"{prefix}namespace__name__icontains": text})
    return names | Q(**{f"{prefix}description__icontains": text})


def _is_unused(column: str, since: datetime) -> Q:
    prefix = column.removesuffix("used_at")
    unused = Q(**{column: None}) | Q(**{f"{column}__lt": since})
    return unused & Q(**{f"{prefix}created_at__lt": since})


@filter_type(
    Environment,
    name="EnvironmentFilter",
    description="Filter for environments; all given conditions must hold.",
)
class EnvironmentFilter:
    namespace: str | None = condition("namespace__name", str, "Name of the namespace.")
    name: str | None = condition("name", str, "Exact name of the environment.")
    search: str | None = condition(
        "name",
        str,
        "Part of the environment's name, its namespace's name or its description.",
        build=_has_text,
    )
    state: list[BuildState] | None = condition(
        "pk", list[BuildState], "States of the newest build.", build=_of_newest_build
    )
    package: str | None = condition(
        "current__lock__in",
        str,
        "Name of a package that the current build contains.",
        build=lambda column, name: Q(**{column: locks_with(name).values("lock")}),
    )
    unused_since: datetime | None = condition(
        "used_at",
        datetime,
        "Only environments created before this time and not used after it.",
        build=_is_unused,
    )


def locks_with(name: str) -> QuerySet[LockedConda | LockedPypi]:
    """The locks that contain a package, by either manager."""
    conda = LockedConda.objects.order_by().filter(package__name=name.lower())
    pypi = LockedPypi.objects.order_by().filter(package__name=name.lower().replace("_", "-"))
    return conda.values("lock").union(pypi.values("lock"))  # type: ignore[return-value]


@filter_type(
    Build, name="BuildFilter", description="Filter for builds; all given conditions must hold."
)
class BuildFilter:
    namespace: str | None = condition("environment__namespace__name", str, "Name of the namespace.")
    environment: str | None = condition("environment__name", str, "Name of the environment.")
    state: list[BuildState] | None = condition(
        "state__in", list[BuildState], "States of the build."
    )


@strawberry_django.order_type(
    Namespace, name="NamespaceOrder", description="Sort key of namespaces; give exactly one field."
)
class NamespaceOrder:
    name: Direction | None = sort_key("name", description="By name.")
    created_at: Direction | None = sort_key("created_at", "pk", description="By time of creation.")


@strawberry_django.order_type(
    Environment,
    name="EnvironmentOrder",
    description="Sort key of environments; give exactly one field.",
)
class EnvironmentOrder:
    name: Direction | None = sort_key(
        "namespace__name", "name", description="By namespace, then by name."
    )
    created_at: Direction | None = sort_key("pk", description="By time of creation.")
    updated_at: Direction | None = sort_key(
        "updated_at", "pk", description="By time of the last change."
    )


@strawberry_django.order_type(
    Build, name="BuildOrder", description="Sort key of builds; give exactly one field."
)
class BuildOrder:
    created_at: Direction | None = sort_key("created_at", "pk", description="By time of creation.")
    number: Direction | None = sort_key(
        "environment", "number", description="By environment, then by build number."
    )
