"""Specifications and locks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import (
    Prefetch,
    prefetch_related_objects,
)
from strawberry import ID

from environments.graphql.connections import Connection, SortedItems, connection
from environments.graphql.fields import Column, column, computed, described, field
from environments.graphql.nodes import Node, id_field, key_field
from environments.graphql.packages import (
    LockedPackage,
)
from environments.graphql.scalars import BigInt
from environments.models import (
    LockedConda,
    LockedPypi,
    LockRow,
    SpecificationRow,
)


@strawberry.type(description="Environment variable of a specification.")
class Variable:
    name: str = strawberry.field(description="Name of the variable.")
    value: str = strawberry.field(description="Value of the variable.")


def _content(read: Callable[[Any], Any], description: str | None = None) -> Any:
    return computed(lambda row: read(row.content), only=["content"], description=description)


@strawberry_django.type(
    SpecificationRow,
    name="Specification",
    field_cls=Column,
    description="Parsed specification of an environment.",
)
class SpecificationNode(Node):
    id: ID = id_field("Specification")
    database_id: str = key_field()
    digest: str = column("Digest of the specification's contents, in hexadecimal.")
    created_at: datetime = column("When the specification was first stored.")

    kind: str = _content(lambda it: it["kind"], description="Format of the specification.")
    name: str = _content(
        lambda it: it["name"],
        description="Name given in the specification; empty when it gives none.",
    )
    description: str = _content(
        lambda it: it["description"], description="Description given in the specification."
    )
    channels: list[str] = _content(
        lambda it: it["channels"], description="URLs of the channels, highest priority first."
    )
    platforms: list[str] = _content(
        lambda it: it["platforms"], description="Platforms to solve for, such as linux-64."
    )
    variables: list[Variable] = _content(
        lambda it: [Variable(name=k, value=v) for k, v in sorted(it["variables"].items())],
        description="Environment variables set on activation.",
    )
    virtual_packages: list[str] = _content(
        lambda it: it["virtual_packages"],
        description="Virtual packages assumed for the solve, such as `__cuda`.",
    )
    exclude_newer: str = _content(
        lambda it: it["exclude_newer"],
        description="Packages published after this time are ignored; empty means no limit.",
    )
    test_imports: list[str] = _content(
        lambda it: it["smoke_tests"]["imports"], description="Modules that the smoke tests import."
    )
    test_commands: list[str] = _content(
        lambda it: it["smoke_tests"]["commands"], description="Commands that the smoke tests run."
    )

    @field(only=["content"], description="Requested conda packages.")
    def dependencies(
        self: Any,
        platform: Annotated[
            str | None,
            described("Only packages requested for this platform; null means all platforms."),
        ] = None,
    ) -> list[str]:
        return _on_platform(self.content["dependencies"], platform)

    @field(only=["content"], description="Requested PyPI packages.")
    def pip(
        self: Any,
        platform: Annotated[
            str | None,
            described("Only packages requested for this platform; null means all platforms."),
        ] = None,
    ) -> list[str]:
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


@strawberry_django.type(
    LockRow,
    name="Lock",
    field_cls=Column,
    description="Exact set of packages that a solve chose, for one or more platforms.",
)
class LockNode(Node):
    id: ID = id_field("Lock")
    database_id: str = key_field()
    digest: str = column("Digest of the lock's contents, in hexadecimal.")
    channels: list[str] = column("URLs of the channels of the lock, highest priority first.")
    platforms: list[str] = column("Platforms of the lock, such as linux-64.")
    package_count: int = column("Number of packages, over all platforms.")
    size: BigInt = column("Total size of the package files, in bytes, over all platforms.")
    created_at: datetime = column("When the lock was first stored.")

    def _packages(
        self: Any,
        platform: Annotated[str | None, described("Only packages of this platform.")] = None,
        search: Annotated[str | None, described("Part of the package's name.")] = None,
    ) -> Iterable[LockedPackage]:
        if not hasattr(self, "shown_conda"):
            prefetch_related_objects([self], *locked_packages())
        needle = (search or "").lower()
        found: Any = SortedItems(
            [
                LockedPackage.of(one.package, one.platform)
                for one in [*self.shown_conda, *self.shown_pypi]
                if platform in (None, one.platform) and needle in one.package.name.lower()
            ],
            key=lambda one: (one.platform, one.name, one.kind.value),
        )
        return found  # type: ignore[no-any-return]

    packages: Connection[LockedPackage] = connection(
        _packages,
        graphql_type=Connection[LockedPackage],
        prefetch_related=locked_packages(),
        description="Packages of the lock, ordered by platform and name.",
    )
