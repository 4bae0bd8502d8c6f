"""What can be asked? Every field finds in `visible_to(actor)`: the rest is not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import strawberry
from django.conf import settings
from django.db.models import CharField, F, Q, QuerySet, Value
from strawberry import ID, Info

from accounts.access import Actor
from condastore.errors import InvalidInputError, NotFoundError
from environments.domain.names import canonical_channel
from environments.domain.policy.package_specs import match_spec, package_spec
from environments.domain.policy.subjects import comparable
from environments.graphql.audit import AuditQuery
from environments.graphql.credentials import CredentialQuery
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
from environments.graphql.mirrors import MirrorQuery
from environments.graphql.packages import LockDiff, LockedPackage, compared
from environments.graphql.pages import (
    Connection,
    Key,
    OptionalKey,
    actor_of,
    below,
    connection,
    field,
    optimized,
)
from environments.graphql.policies import PolicyQueries
from environments.graphql.retention import RetentionQuery
from environments.graphql.role_mappings import RoleMappingQueries
from environments.graphql.service_accounts import ServiceAccountQueries
from environments.graphql.types import (
    BuildNode,
    ChannelNode,
    EnvironmentNode,
    IndexedPackageNode,
    LockedPackageUse,
    LockNode,
    Me,
    NamespaceNode,
    PreviewNode,
    SpecificationNode,
    find,
)
from environments.models import (
    Build,
    Channel,
    CondaRecord,
    Environment,
    IndexedPackage,
    LockedConda,
    LockedPypi,
    LockRow,
    Namespace,
    Preview,
    PypiRecord,
    SpecificationRow,
)
from environments.operations.environments import find_build, find_environment


def _ordered(rows: QuerySet[Any], order: list[Any] | None) -> QuerySet[Any]:
    # Each once: what is named again changes nothing, and a statement may not grow with a request.
    names = dict.fromkeys(order or ())
    return rows.order_by(*(key for one in names for key in one.value)) if names else rows


def _namespaces(
    info: Info, filters: NamespaceFilter | None = None, order: list[NamespaceOrder] | None = None
) -> Iterable[NamespaceNode]:
    rows = Namespace.objects.all()
    found: Any = _ordered(filters.apply(rows) if filters else rows, order)
    return found  # type: ignore[no-any-return]


def _environments(
    info: Info,
    filters: EnvironmentFilter | None = None,
    order: list[EnvironmentOrder] | None = None,
) -> Iterable[EnvironmentNode]:
    rows = Environment.objects.all()
    found: Any = _ordered(filters.apply(rows) if filters else rows, order)
    return found  # type: ignore[no-any-return]


def _builds(
    info: Info, filters: BuildFilter | None = None, order: list[BuildOrder] | None = None
) -> Iterable[BuildNode]:
    rows = Build.objects.all()
    found: Any = _ordered(filters.apply(rows) if filters else rows, order)
    return found  # type: ignore[no-any-return]


def _packages(info: Info, search: str, channel: str | None = None) -> Iterable[IndexedPackageNode]:
    rows = IndexedPackage.objects.filter(
        name__icontains=search, channel__in=visible_channels(actor_of(info)).values("pk")
    )
    if channel:
        rows = rows.filter(
            Q(channel__url=channel.rstrip("/")) | Q(channel__url__endswith=f"/{channel}")
        )
    found: Any = rows
    return found  # type: ignore[no-any-return]


def visible_channels(actor: Actor) -> QuerySet[Channel]:
    """Those of locks that the actor sees; signed in, also those that everybody gets."""
    if actor.is_superuser:
        return Channel.objects.all()
    listed = visible_locks(actor).order_by().values_list("channels", flat=True).distinct()
    urls = {url for channels in listed for url in channels}
    if actor.signed_in:
        alias = settings.CHANNEL_ALIAS
        urls |= {canonical_channel(one, alias=alias).url for one in settings.DEFAULT_CHANNELS}
    return Channel.objects.filter(url__in=urls)


def _channels(info: Info) -> Iterable[ChannelNode]:
    found: Any = visible_channels(actor_of(info))
    return found  # type: ignore[no-any-return]


def visible_locks(actor: Actor) -> QuerySet[LockRow]:
    """Those that a visible build or preview has."""
    builds = Build.objects.visible_to(actor).order_by()
    previews = Preview.objects.visible_to(actor).order_by()
    return LockRow.objects.filter(
        Q(pk__in=builds.exclude(lock=None).values("lock"))
        | Q(pk__in=previews.exclude(lock=None).values("lock"))
    )


def visible_specifications(actor: Actor) -> QuerySet[SpecificationRow]:
    builds = Build.objects.visible_to(actor).order_by()
    previews = Preview.objects.visible_to(actor).order_by()
    return SpecificationRow.objects.filter(
        Q(pk__in=builds.values("specification")) | Q(pk__in=previews.values("specification"))
    )


class Uses:
    """Builds that contain a package: counted and sliced in the database, read with their names."""

    def __init__(self, info: Info, rows: QuerySet[Any, Any]) -> None:
        self.info, self.rows = info, rows

    def __len__(self) -> int:
        return self.rows.count()

    def __iter__(self) -> Iterator[Any]:
        return iter(self[0 : len(self)])

    def __getitem__(self, part: slice) -> list[LockedPackageUse]:
        page = list(self.rows[part])
        of_kind = {
            kind: [row["entry"] for row in page if row["kind"] == kind]
            for kind in ("conda", "pypi")
        }
        conda = LockedConda.objects.select_related("package").defer("package__record")
        entries: dict[tuple[str, int], Any] = {
            ("conda", one.pk): one for one in conda.filter(pk__in=of_kind["conda"])
        }
        pypi = LockedPypi.objects.select_related("package")
        entries |= {("pypi", one.pk): one for one in pypi.filter(pk__in=of_kind["pypi"])}
        builds = self._read(Build, "build", {row["build"] for row in page})
        environments = self._read(Environment, "environment", {row["place"] for row in page})
        return [
            LockedPackageUse(
                package=LockedPackage.of(entry.package, entry.platform),
                build=builds[row["build"]],
                environment=environments[row["place"]],
            )
            for row in page
            if (entry := entries[row["kind"], row["entry"]])
        ]

    def _read(self, model: type[Any], field: str, keys: set[int]) -> dict[int, Any]:
        rows = model.objects.filter(pk__in=keys)
        wanted = optimized(rows, below(self.info, "edges", "node", field))
        return {row.pk: row for row in wanted}


def versions_that_fit(kind: str, name: str, wanted: str) -> list[str]:
    """The versions of a package in locks that a range (`>=3,<3.0.13`, `1.26.*`) takes.

    They are few: so the database looks for their records, and not through all packages.
    """
    if not set(wanted) & set("<>=!~*|,"):
        return [wanted]
    spec = package_spec(f"{kind}:{name} {wanted}", wide=False)
    rows: Any = CondaRecord if kind == "conda" else PypiRecord
    held = rows.objects.filter(name=name).order_by().values_list("version", flat=True).distinct()
    matcher = match_spec(spec.matcher)
    return [
        version
        for version in held
        if (record := comparable(name, version)) is not None and matcher.matches(record)
    ]


def _locked_packages(
    info: Info,
    name: str,
    version: str | None = None,
    sha256: str | None = None,
    current_only: bool = True,
) -> Iterable[LockedPackageUse]:
    if not name.strip():
        raise InvalidInputError("The name of a package is missing.", where="name")
    actor = actor_of(info)
    rows: Any
    if current_only:
        # From the environments on: databases expect next to no build to be the current one of its
        # own environment, and make plans for that which go through all packages of all of them.
        rows = Environment.objects.visible_to(actor).filter(current__deleted_at=None)
        build, place = "current__", ""
    else:
        rows = Build.objects.visible_to(actor)
        build, place = "", "environment__"

    def of(kind: str, name: str) -> QuerySet[Any, Any]:
        # The records are few, and looked up first: so no database comes upon the thought of going
        # through all packages of all builds.
        records: Any = (CondaRecord if kind == "conda" else PypiRecord).objects.filter(name=name)
        if version:
            records = records.filter(version__in=versions_that_fit(kind, name, version))
        if sha256:
            records = records.filter(sha256=sha256)
        keys = list(records.order_by().values_list("pk", flat=True))
        found: QuerySet[Any, Any] = (
            rows.order_by()
            .filter(**{f"{build}lock__{kind}__package__in": keys})
            .values(
                kind=Value(kind, output_field=CharField()),
                entry=F(f"{build}lock__{kind}__pk"),
                build=F(f"{build}pk"),
                place=F(f"{place}pk"),
                namespace_name=F(f"{place}namespace__name"),
                place_name=F(f"{place}name"),
                build_number=F(f"{build}number"),
            )
        )
        return found

    conda, pypi = name.strip().lower(), name.strip().lower().replace("_", "-").replace(".", "-")
    both = of("conda", conda).union(of("pypi", pypi), all=True)
    found: Any = Uses(
        info, both.order_by("namespace_name", "place_name", "-build_number", "kind", "entry")
    )
    return found  # type: ignore[no-any-return]


@strawberry.type
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
        _namespaces, graphql_type=Connection[NamespaceNode], prepared=True
    )
    environments: Connection[EnvironmentNode] = connection(
        _environments, graphql_type=Connection[EnvironmentNode], prepared=True
    )
    builds: Connection[BuildNode] = connection(
        _builds,
        graphql_type=Connection[BuildNode],
        description="The newest first.",
        prepared=True,
    )
    channels: Connection[ChannelNode] = connection(_channels, graphql_type=Connection[ChannelNode])
    packages: Connection[IndexedPackageNode] = connection(
        _packages,
        graphql_type=Connection[IndexedPackageNode],
        description="Packages that the channels offer, by a part of the name.",
    )
    locked_packages: Connection[LockedPackageUse] = connection(
        _locked_packages,
        graphql_type=Connection[LockedPackageUse],
        description="Which environments contain this package? `version`: exactly, or a range such "
        "as <3.0.13.",
    )

    @field(description="You; null signed out.")
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

    @field()
    def namespace(self, info: Info, name: str) -> NamespaceNode | None:
        found: Any = Namespace.objects.filter(name=name)
        return found  # type: ignore[no-any-return]

    @field()
    def environment(self, info: Info, namespace: str, name: str) -> EnvironmentNode | None:
        found: Any = Environment.objects.filter(namespace__name=namespace, name=name)
        return found  # type: ignore[no-any-return]

    @field(description="By id; or by namespace, environment and number: `12`, a tag, or `current`.")
    def build(
        self,
        info: Info,
        key: OptionalKey = None,
        namespace: str | None = None,
        environment: str | None = None,
        number: str | None = None,
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

    @field()
    def specification(self, info: Info, digest: str) -> SpecificationNode | None:
        found: Any = visible_specifications(actor_of(info)).filter(digest=digest)
        return found  # type: ignore[no-any-return]

    @field()
    def lock(self, info: Info, digest: str) -> LockNode | None:
        found: Any = visible_locks(actor_of(info)).filter(digest=digest)
        return found  # type: ignore[no-any-return]

    @field()
    def preview(self, info: Info, key: Key) -> PreviewNode | None:
        try:
            found_key = find(Preview.objects.visible_to(actor_of(info)), key, "preview").pk
        except NotFoundError:
            return None
        found: Any = Preview.objects.filter(pk=found_key)
        return found  # type: ignore[no-any-return]

    @field(description="What `b` has that `a` has not; of any two environments.")
    def compare_builds(self, info: Info, a: ID, b: ID, platform: str | None = None) -> LockDiff:
        visible = Build.objects.visible_to(actor_of(info)).select_related("lock")
        old, new = find(visible, a, "build"), find(visible, b, "build")
        for build in (old, new):
            if build.lock is None:
                raise NotFoundError(f"{build} has no lock: it is {build.state}.")
        return compared(old.lock.value(), new.lock.value(), platform, prefer=[new.platform])
