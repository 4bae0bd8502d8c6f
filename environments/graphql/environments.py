"""Environments, with their current and newest builds."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

import strawberry_django
from django.db.models import (
    BooleanField,
    F,
    OuterRef,
    Prefetch,
    QuerySet,
    Subquery,
    Value,
)
from strawberry import ID, Info

from accounts.access import may
from accounts.roles import Perm
from environments.graphql.builds import BuildNode, TagNode, recalled_reason, username_of
from environments.graphql.connections import Connection, nested_connection, ordered_by_keys
from environments.graphql.fields import Column, actor_of, column, computed, field, joined
from environments.graphql.namespaces import NamespaceNode
from environments.graphql.nodes import Node, id_field, key_field, register_model
from environments.graphql.optimizer import Join, Outline, inside, optimized
from environments.graphql.permissions import allowed, may_annotation
from environments.models import (
    Build,
    Environment,
    Namespace,
)
from environments.models.environments import EnvironmentQuerySet
from environments.models.recalls import recall_reason
from environments.services import folders


def _newest(info: Info) -> Prefetch[str, Any, str]:
    """Prefetch of the newest build of each environment, with the requested fields."""
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
    """Annotate whether the actor may see the namespace of an environment."""
    if actor_of(info).sees_everything:
        return {"namespace_shown": Value(True, output_field=BooleanField())}
    return {"namespace_shown": may_annotation(Perm.VIEW, through="namespace__")(info)}


def _namespace(environment: Any) -> Any:
    """Return the namespace, or its outline, of a row that was read with `_shown`.

    Raises:
        KeyError: it was not; then nothing is known about what the actor may see.
    """
    if environment.__dict__["namespace_shown"]:
        with suppress(Namespace.DoesNotExist):  # not among those that the actor may see
            return environment.namespace
    return _outline(_namespace_name(environment), environment.created_at)


def _namespace_for(environment: Any, info: Info) -> Any:
    """Return the same of any row, such as one that a mutation returns."""
    if "namespace_shown" not in environment.__dict__:
        environment.namespace_shown = may(actor_of(info), Perm.VIEW, environment.namespace)
    return _namespace(environment)


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
    """Return True when the current build was recalled."""
    if "current_recalled" in environment.__dict__:
        return environment.current_recalled is not None
    return environment.current is not None and recalled_reason(environment.current) is not None


def _namespace_name(environment: Any) -> str:
    name = getattr(environment, "namespace_name", None)
    return environment.namespace.name if name is None else str(name)


@strawberry_django.type(
    Environment,
    name="Environment",
    field_cls=Column,
    description="Named environment with numbered builds, one of which is current.",
)
class EnvironmentNode(Node):
    id: ID = id_field("Environment")
    database_id: str = key_field()
    name: str = column("Name of the environment, unique in its namespace.")
    description: str = column("Description of the environment.")
    pinned: bool = column("True when the current build is pinned; later builds do not replace it.")
    created_at: datetime = column("When the environment was created.")
    updated_at: datetime = column("When the environment or its current build last changed.")
    current: BuildNode | None = joined(
        Join(
            "current",
            Build,
            lambda info: Build.objects.filter(deleted_at=None),
            only=["current__deleted_at"],
            hidden_by="deleted_at",
        ),
        _current,
        description="Current build; null when there is none.",
    )
    last_used_at: datetime | None = computed(
        lambda row: row.used_at,
        only=["used_at"],
        description="Last download or pull of one of its builds, or use of its folder "
        "as far as the file system records it.",
    )
    tags: list[TagNode] = column("Tags of the environment's builds.")
    builds: Connection[BuildNode] = nested_connection(
        "builds",
        "environment",
        lambda info: Build.objects.visible_to(actor_of(info)),
        description="Builds of the environment, newest first.",
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
        read_for=_namespace_for,
        description="Namespace of the environment. If only the environment was shared "
        "with the caller, only the name is set.",
    )
    latest: BuildNode | None = computed(
        _latest,
        prefetch_related=[_newest],
        description="Newest build in any state; null when there is none.",
    )
    created_by: str | None = computed(
        lambda row: username_of(row, "creator", "created_by"),
        annotate={"creator": F("created_by__username")},
        description="Name of the user who created the environment; null if the account "
        "was deleted.",
    )
    folder: str = computed(
        _folder,
        only=["name", "current"],
        annotate={
            "namespace_name": F("namespace__name"),
            "current_recalled": recall_reason("current__lock"),
        },
        description="Path of the current build's prefix on the server; empty when there is none.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: EnvironmentQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[Environment]:
        if inside(info, "NamespaceNode", "BuildNode"):
            return ordered_by_keys(queryset.present(), "name")
        return queryset.visible_to(actor_of(info))

    @field(
        annotate={"may_grant": may_annotation(Perm.GRANT, through="namespace__")},
        prefetch_related=["user_shares__user", "group_shares__group", "pending_shares"],
        description="Users and groups the environment is shared with; empty for callers "
        "who may not grant roles.",
    )
    def shared_with(self: Any, info: Info) -> list[str]:
        return _shares(self) if allowed(self, info, Perm.GRANT, self) else []


register_model("Environment", EnvironmentNode, lambda info: Environment.objects.all())
