"""Queries. Each field reads from `visible_to(actor)`; what is not visible does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import strawberry
from django.db.models import Q, QuerySet
from strawberry import ID, Info

from accounts.access import Actor
from condastore.errors import InvalidInputError, NotFoundError
from environments.graphql.accounts import Me
from environments.graphql.arguments import EnvironmentName, NamespaceName
from environments.graphql.audit import AuditQuery
from environments.graphql.builds import BuildNode
from environments.graphql.channels import ChannelNode, IndexedPackageNode, LockedPackageUse
from environments.graphql.connections import Connection, connection
from environments.graphql.credentials import CredentialQuery
from environments.graphql.environments import EnvironmentNode
from environments.graphql.fields import actor_of, described, field
from environments.graphql.filtering import filtered, ordered
from environments.graphql.governance import GovernanceQuery
from environments.graphql.hosted import HostedQuery
from environments.graphql.images import ImageQuery
from environments.graphql.inputs import (
    BuildFilter,
    BuildOrder,
    EnvironmentFilter,
    EnvironmentOrder,
    NamespaceFilter,
    NamespaceOrder,
)
from environments.graphql.limits import page_limit
from environments.graphql.mirrors import MirrorQuery
from environments.graphql.namespaces import NamespaceNode
from environments.graphql.nodes import Node, find, load_nodes, register_model
from environments.graphql.package_uses import find_uses
from environments.graphql.packages import LockDiff, compared
from environments.graphql.policies import PolicyQueries
from environments.graphql.previews import PreviewNode
from environments.graphql.retention import RetentionQuery
from environments.graphql.role_mappings import RoleMappingQueries
from environments.graphql.service_accounts import ServiceAccountQueries
from environments.graphql.specifications import LockNode, SpecificationNode
from environments.models import (
    Build,
    Environment,
    IndexedPackage,
    Namespace,
    Preview,
    SpecificationRow,
)
from environments.operations.environments import find_build, find_environment
from environments.operations.package_search import visible_channels, visible_locks


def _namespaces(
    info: Info,
    filters: Annotated[NamespaceFilter | None, described("Conditions on the namespaces.")] = None,
    order: Annotated[
        list[NamespaceOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[NamespaceNode]:
    found: Any = ordered(
        filtered(Namespace.objects.all(), filters, info), NamespaceOrder, order, info
    )
    return found  # type: ignore[no-any-return]


def _environments(
    info: Info,
    filters: Annotated[
        EnvironmentFilter | None, described("Conditions on the environments.")
    ] = None,
    order: Annotated[
        list[EnvironmentOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[EnvironmentNode]:
    found: Any = ordered(
        filtered(Environment.objects.all(), filters, info), EnvironmentOrder, order, info
    )
    return found  # type: ignore[no-any-return]


def _builds(
    info: Info,
    filters: Annotated[BuildFilter | None, described("Conditions on the builds.")] = None,
    order: Annotated[
        list[BuildOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[BuildNode]:
    found: Any = ordered(filtered(Build.objects.all(), filters, info), BuildOrder, order, info)
    return found  # type: ignore[no-any-return]


def _packages(
    info: Info,
    search: Annotated[str, described("Part of the package's name.")],
    channel: Annotated[
        str | None,
        described("URL of the channel or its last path segment; null means all channels."),
    ] = None,
) -> Iterable[IndexedPackageNode]:
    rows = IndexedPackage.objects.filter(
        name__icontains=search, channel__in=visible_channels(actor_of(info)).values("pk")
    )
    if channel:
        rows = rows.filter(
            Q(channel__url=channel.rstrip("/")) | Q(channel__url__endswith=f"/{channel}")
        )
    found: Any = rows
    return found  # type: ignore[no-any-return]


def _channels(info: Info) -> Iterable[ChannelNode]:
    found: Any = visible_channels(actor_of(info))
    return found  # type: ignore[no-any-return]


def visible_specifications(actor: Actor) -> QuerySet[SpecificationRow]:
    builds = Build.objects.visible_to(actor).order_by()
    previews = Preview.objects.visible_to(actor).order_by()
    return SpecificationRow.objects.filter(
        Q(pk__in=builds.values("specification")) | Q(pk__in=previews.values("specification"))
    )


@strawberry.type(
    description="Read access. Objects that the caller may not see are treated as missing."
)
class Query(
    AuditQuery,
    CredentialQuery,
    GovernanceQuery,
    HostedQuery,
    MirrorQuery,
    ImageQuery,
    PolicyQueries,
    RetentionQuery,
    RoleMappingQueries,
    ServiceAccountQueries,
):
    namespaces: Connection[NamespaceNode] = connection(
        _namespaces,
        graphql_type=Connection[NamespaceNode],
        prepared=True,
        description="Namespaces the caller may see.",
    )
    environments: Connection[EnvironmentNode] = connection(
        _environments,
        graphql_type=Connection[EnvironmentNode],
        prepared=True,
        description="Environments the caller may see.",
    )
    builds: Connection[BuildNode] = connection(
        _builds,
        graphql_type=Connection[BuildNode],
        description="Builds the caller may see, newest first.",
        prepared=True,
    )
    channels: Connection[ChannelNode] = connection(
        _channels,
        graphql_type=Connection[ChannelNode],
        description="Channels used by locks the caller may see, and the default channels.",
    )
    packages: Connection[IndexedPackageNode] = connection(
        _packages,
        graphql_type=Connection[IndexedPackageNode],
        description="Packages offered by the caller's channels, searched by name.",
    )
    locked_packages: Connection[LockedPackageUse] = connection(
        find_uses,
        graphql_type=Connection[LockedPackageUse],
        description="Builds whose lock contains a package.",
    )

    @field(description="The signed-in user; null when the request is anonymous.")
    def me(self, info: Info) -> Me | None:
        actor = actor_of(info)
        if not actor.signed_in:
            return None
        return Me(
            username=actor.name,
            email=actor.account.email,
            is_superuser=actor.is_superuser,
            token_name=actor.token.name if actor.token else None,
        )

    @field(description="One namespace; null when it does not exist or is not visible.")
    def namespace(self, info: Info, name: NamespaceName) -> NamespaceNode | None:
        found: Any = Namespace.objects.filter(name=name)
        return found  # type: ignore[no-any-return]

    @field(description="One environment; null when it does not exist or is not visible.")
    def environment(
        self, info: Info, namespace: NamespaceName, name: EnvironmentName
    ) -> EnvironmentNode | None:
        found: Any = Environment.objects.filter(namespace__name=namespace, name=name)
        return found  # type: ignore[no-any-return]

    @field(
        description="One build, by id or by namespace, environment and number; null "
        "when it does not exist or is not visible."
    )
    def build(
        self,
        info: Info,
        key: Annotated[
            ID | None,
            described(
                "Id of the build; the other arguments are ignored when it is given.", name="id"
            ),
        ] = None,
        namespace: Annotated[str | None, described("Name of the namespace.")] = None,
        environment: Annotated[str | None, described("Name of the environment.")] = None,
        number: Annotated[
            str | None, described("Number of the build, a tag, `latest`, or `current` (default).")
        ] = None,
    ) -> BuildNode | None:
        actor = actor_of(info)
        try:
            if key is not None:
                found_key = find(Build.objects.visible_to(actor).only("pk"), key, "build").pk
            elif namespace is not None and environment is not None:
                place = find_environment(actor, namespace, environment)
                found_key = find_build(actor, place, number or "current").pk
            else:
                raise InvalidInputError("Give an id, or namespace and environment.", where="build")
        except NotFoundError:
            return None
        found: Any = Build.objects.filter(pk=found_key)
        return found  # type: ignore[no-any-return]

    @field(
        description="One specification, by digest; null when no visible build or preview has it."
    )
    def specification(
        self,
        info: Info,
        digest: Annotated[str, described("Digest of the specification, in hexadecimal.")],
    ) -> SpecificationNode | None:
        found: Any = visible_specifications(actor_of(info)).filter(digest=digest)
        return found  # type: ignore[no-any-return]

    @field(description="One lock, by digest; null when no visible build or preview has it.")
    def lock(
        self, info: Info, digest: Annotated[str, described("Digest of the lock, in hexadecimal.")]
    ) -> LockNode | None:
        found: Any = visible_locks(actor_of(info)).filter(digest=digest)
        return found  # type: ignore[no-any-return]

    @field(description="One preview; null when it does not exist or is not visible.")
    def preview(
        self, info: Info, key: Annotated[ID, described("Id of the preview.", name="id")]
    ) -> PreviewNode | None:
        try:
            found_key = find(Preview.objects.visible_to(actor_of(info)), key, "preview").pk
        except NotFoundError:
            return None
        found: Any = Preview.objects.filter(pk=found_key)
        return found  # type: ignore[no-any-return]

    @field(description="Object with this global id; null when it does not exist or is not visible.")
    def node(
        self,
        info: Info,
        id: Annotated[ID, described("Global id of the object.")],  # noqa: A002
    ) -> Node | None:
        found: Node | None = load_nodes(info, [id])[0]
        return found

    @field(
        description="Objects with these global ids, in their order; null for each that does "
        "not exist or is not visible."
    )
    def nodes(
        self,
        info: Info,
        ids: Annotated[
            list[ID], described("Global ids of the objects; at most as many as a page holds.")
        ],
    ) -> list[Node | None]:
        if len(ids) > page_limit():
            raise InvalidInputError(
                f"{len(ids)} ids are given; {page_limit()} are allowed.", where="ids"
            )
        return load_nodes(info, ids)

    @field(description="Package changes between two builds of any environments.")
    def compare_builds(
        self,
        info: Info,
        before: Annotated[ID, described("Id of the first build.")],
        after: Annotated[ID, described("Id of the second build.")],
        platform: Annotated[
            str | None,
            described("Platform to compare; null means the platform of the second build."),
        ] = None,
    ) -> LockDiff:
        visible = Build.objects.visible_to(actor_of(info)).select_related("lock")
        old, new = find(visible, before, "build"), find(visible, after, "build")
        for build in (old, new):
            if build.lock is None:
                raise NotFoundError(f"{build} has no lock: its state is {build.state}.")
        return compared(old.lock.value(), new.lock.value(), platform, prefer=[new.platform])


register_model("Lock", LockNode, lambda info: visible_locks(actor_of(info)))
register_model(
    "Specification", SpecificationNode, lambda info: visible_specifications(actor_of(info))
)
register_model("Channel", ChannelNode, lambda info: visible_channels(actor_of(info)))
