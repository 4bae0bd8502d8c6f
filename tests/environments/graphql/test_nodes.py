"""Objects by their global ids: the number of statements does not grow with the number of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from graphql import GraphQLObjectType, get_named_type, is_leaf_type

from accounts.access import Actor
from accounts.models import ApiToken, User
from accounts.roles import Role
from condastore.schema import schema
from environments.domain.artifacts import FORMS, ArtifactKind
from environments.graphql._private import graphql_schema
from environments.graphql.nodes import global_id, registered
from environments.models import (
    ApprovalRequest,
    Artifact,
    AuditEvent,
    Build,
    Channel,
    ChannelCredential,
    Decision,
    Environment,
    HostedChannel,
    HostedPackage,
    LegalHold,
    LockRow,
    Mirror,
    Namespace,
    Policy,
    PolicyRule,
    PolicyVersion,
    Preview,
    PushRule,
    Recall,
    RoleMapping,
    SpecificationRow,
    Webhook,
)
from tests import factories
from tests.environments.admin.furnishing import furnish
from tests.environments.graphql.asking import ask

MANY = 20
#: Fields that still cost statements for each object: what a build's requests show beyond their
#: rows, and the groups of a directory that match a pattern.
FOR_EACH = {"Build": {"approvals"}, "RoleMapping": {"groups"}}
ROWS: dict[str, Callable[[Actor], QuerySet[Any]]] = {
    "ApiToken": lambda actor: ApiToken.objects.filter(user=actor.account),
    "ApprovalRequest": lambda actor: ApprovalRequest.objects.all(),
    "Artifact": lambda actor: Artifact.objects.all(),
    "AuditEvent": lambda actor: AuditEvent.objects.all(),
    "Build": lambda actor: Build.objects.all(),
    "Channel": lambda actor: Channel.objects.all(),
    "ChannelCredential": lambda actor: ChannelCredential.objects.all(),
    "Environment": lambda actor: Environment.objects.all(),
    "HostedChannel": lambda actor: HostedChannel.objects.all(),
    "HostedPackage": lambda actor: HostedPackage.objects.all(),
    "LegalHold": lambda actor: LegalHold.objects.all(),
    "Lock": lambda actor: LockRow.objects.filter(builds__isnull=False).distinct(),
    "Mirror": lambda actor: Mirror.objects.all(),
    "Namespace": lambda actor: Namespace.objects.all(),
    "PackageDecision": lambda actor: Decision.objects.all(),
    "Policy": lambda actor: Policy.objects.exclude(namespace=None),
    "PolicyRule": lambda actor: PolicyRule.objects.all(),
    "PolicyVersion": lambda actor: PolicyVersion.objects.all(),
    "Preview": lambda actor: Preview.objects.all(),
    "PushRule": lambda actor: PushRule.objects.all(),
    "Recall": lambda actor: Recall.objects.all(),
    "RoleMapping": lambda actor: RoleMapping.objects.all(),
    "ServiceAccount": lambda actor: User.objects.filter(is_service=True),
    "Specification": lambda actor: SpecificationRow.objects.all(),
    "Webhook": lambda actor: Webhook.objects.all(),
}


@pytest.fixture
def chief(db: None) -> Actor:
    """An administrator, beside at least `MANY` objects of each type."""
    actor = factories.actor(factories.make_user("chief", superuser=True))
    later = timezone.now() + timedelta(days=1)
    for number in range(MANY):
        furnish(number)
        namespace = Namespace.objects.get(name=f"team-{number}")
        environment = Environment.objects.get(namespace=namespace)
        LegalHold.objects.create(environment=environment, reason="case")
        PushRule.objects.create(namespace=namespace, pattern="*", target=f"r.example.org/{number}")
        ApiToken.objects.create(
            user=actor.account, name=f"t{number}", digest=f"{number:064x}", expires_at=later
        )
        robot = factories.make_user(f"robot-{number}")
        robot.is_service, robot.owner = True, actor.account
        robot.save()
        factories.make_build(environment, text=f"dependencies: [python, x{number}]")
    for lock in LockRow.objects.filter(builds__isnull=False).distinct():
        kind = ArtifactKind.TAR_ZST
        Artifact.objects.create(
            lock=lock, kind=kind.value, platform="linux-64", recipe=FORMS[kind].recipe
        )
    return actor


def document_of(kind: str) -> str:
    """All leaves of the type without arguments, and those of the objects that it refers to."""
    types: Any = graphql_schema(schema).type_map

    def leaves(name: str, *, nested: bool) -> str:
        parts = []
        for field, described in types[name].fields.items():
            named = get_named_type(described.type)
            if described.args or field in FOR_EACH.get(name, ()):
                continue
            if is_leaf_type(named):
                parts.append(field)
            elif nested and isinstance(named, GraphQLObjectType):
                parts.append(f"{field} {{ {leaves(named.name, nested=False)} }}")
        return " ".join(parts)

    fields = leaves(kind, nested=True)
    return f"query($ids: [ID!]!) {{ nodes(ids: $ids) {{ ... on {kind} {{ {fields} }} }} }}"


def statements(actor: Actor, kind: str, ids: Sequence[str]) -> list[str]:
    with CaptureQueriesContext(connection) as sent:
        found = ask(actor, document_of(kind), ids=ids)["nodes"]
    assert [one["id"] for one in found] == ids
    return [one["sql"] for one in sent]


def test_each_type_of_nodes_is_tried() -> None:
    assert set(ROWS) == registered()


def test_twenty_ids_of_a_type_cost_as_many_statements_as_one(
    chief: Actor, data_folder: Any
) -> None:
    more = {}
    for kind, rows in ROWS.items():
        ids = [global_id(kind, key) for key in rows(chief).values_list("pk", flat=True)[:MANY]]
        assert len(ids) == MANY, kind
        statements(chief, kind, ids)  # this warms what Django keeps in memory
        one, many = statements(chief, kind, ids[:1]), statements(chief, kind, ids)
        if len(many) > len(one):
            more[kind] = [len(one), len(many), *(sql[:400] for sql in many[-3:])]
    assert not more


def test_an_artifact_is_shown_to_nobody_without_one_of_its_builds(chief: Actor) -> None:
    bob, charlie = (factories.make_user(name) for name in ("bob", "charlie"))
    build = Build.objects.exclude(lock=None).filter(state="READY").first()
    assert build is not None
    build.environment.namespace.grant(Role.VIEWER, bob)
    ids = [
        global_id("Artifact", key)
        for key in Artifact.objects.order_by("pk").values_list("pk", flat=True)
    ]
    own = {
        global_id("Artifact", one.pk)
        for one in Artifact.objects.filter(
            lock__builds__environment__namespace=build.environment.namespace
        )
    }
    document = "query($ids: [ID!]!) { nodes(ids: $ids) { id ... on Artifact { url } } }"
    seen = [one for one in ask(factories.actor(bob), document, ids=ids)["nodes"] if one]
    assert {one["id"] for one in seen} == own
    assert all(f"/{build.environment.namespace.name}/" in one["url"] for one in seen)
    assert not any(ask(factories.actor(charlie), document, ids=ids)["nodes"])
