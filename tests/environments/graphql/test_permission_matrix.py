"""Who sees what, and who may do what: every field of the schema, as everybody.

The rows are made once (`world` in tests/environments/conftest.py); each test's changes are undone.

A field that is added to Query, Mutation or Subscription must be added here: the first test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import transaction
from django.test import Client
from django.utils import timezone
from graphql import GraphQLObjectType
from guardian.shortcuts import assign_perm

from accounts.access import ANONYMOUS, Actor, may
from accounts.authentication import actor_with_token
from accounts.models import ApiToken, User
from accounts.roles import ROLES, Perm, Role
from condastore.schema import schema
from environments.domain.lifecycle import BuildState
from environments.graphql._private import graphql_schema
from environments.graphql.nodes import global_id
from environments.models import (
    ApprovalRequest,
    AuditEvent,
    Blob,
    Build,
    BuildTag,
    Channel,
    ChannelCredential,
    CondaRecord,
    Decision,
    Environment,
    HostedChannel,
    HostedPackage,
    IndexedPackage,
    LegalHold,
    Mirror,
    MirrorIndex,
    Namespace,
    Preview,
    Push,
    PushRule,
    Recall,
    RecalledLock,
    RoleMapping,
    WaitingBuild,
    Webhook,
)
from environments.models.environments import SHARED
from environments.operations.policies import add_rule, change_rule
from environments.operations.tokens import create_token
from tests import factories
from tests.environments.graphql.asking import ERROR, ask, post

NOTHING: frozenset[Perm] = frozenset()
EVERYTHING = frozenset(Perm)
TEXT = "channels: [https://channel.example.org/main]\ndependencies: [python]\n"


@dataclass(frozen=True, kw_only=True)
class Persona:
    """`perms`: what is allowed in the namespace `research`, which is private."""

    name: str
    user: str = ""
    perms: frozenset[Perm] = NOTHING
    token: Mapping[str, Any] | None = None
    refused: bool = False  # with 401, whatever is asked
    superuser: bool = False
    lab: frozenset[Perm] = NOTHING  # in another namespace, of which dora is a developer


PERSONAS = [
    Persona(name="signed out"),
    Persona(name="charlie, who holds nothing", user="charlie"),
    Persona(name="bob, a viewer", user="bob", perms=ROLES[Role.VIEWER]),
    Persona(name="alice, a developer", user="alice", perms=ROLES[Role.DEVELOPER]),
    Persona(name="anna, an approver", user="anna", perms=ROLES[Role.APPROVER]),
    Persona(name="dora, the admin", user="dora", perms=EVERYTHING, lab=ROLES[Role.DEVELOPER]),
    Persona(name="olga, admin of another namespace", user="olga"),
    Persona(name="gina, developer by a group", user="gina", perms=ROLES[Role.DEVELOPER]),
    Persona(name="gus, who was removed from that group", user="gus"),
    Persona(name="root", user="root", perms=EVERYTHING, superuser=True, lab=EVERYTHING),
    Persona(
        name="token of root with a ceiling: root holds no role",
        user="root",
        token={"role": Role.DEVELOPER},
    ),
    Persona(
        name="token of dora that may only look",
        user="dora",
        perms=ROLES[Role.VIEWER],
        lab=ROLES[Role.VIEWER],
        token={"role": Role.VIEWER},
    ),
    Persona(
        name="token of dora for this namespace",
        user="dora",
        perms=EVERYTHING,
        token={"namespaces": ["research"]},
    ),
    Persona(
        name="token of dora for another namespace",
        user="dora",
        lab=ROLES[Role.DEVELOPER],
        token={"namespaces": ["lab"]},
    ),
    Persona(name="expired token of dora", user="dora", token={"expired": True}, refused=True),
    Persona(name="revoked token of dora", user="dora", token={"revoked": True}, refused=True),
]
everybody = pytest.mark.parametrize("persona", PERSONAS, ids=lambda persona: persona.name)


@dataclass(kw_only=True)
class World:
    research: Namespace
    environment: Environment
    old: Build
    current: Build
    queued: Build
    archived: Build
    preview: Preview
    token: ApiToken
    ids: dict[str, Any] = field(default_factory=dict)


def make_world() -> World:
    factories.make_user("charlie")
    factories.make_user("root", superuser=True)
    research = factories.make_namespace(
        "research", bob=Role.VIEWER, alice=Role.DEVELOPER, anna=Role.APPROVER, dora=Role.ADMIN
    )
    group = Group.objects.create(name="team")
    research.grant(Role.DEVELOPER, group)
    for name in ("gina", "gus"):
        factories.make_user(name).groups.add(group)
    User.objects.get(username="gus").groups.remove(group)
    factories.make_namespace("other", olga=Role.ADMIN)
    keeper = User.objects.create(username="keeper", is_service=True)
    research.grant(Role.VIEWER, keeper)  # and it builds there: see below
    factories.make_namespace("lab", dora=Role.DEVELOPER)
    environment = factories.make_environment(research, "ml")
    assign_perm(SHARED, factories.make_user("sharon"), environment)
    old = factories.make_build(environment, lock=factories.make_lock(factories.make_package("a")))
    archived = factories.make_build(environment, BuildState.ARCHIVED)
    current = factories.make_build(environment)
    queued = factories.make_build(environment, BuildState.QUEUED)
    Build.objects.filter(pk=archived.pk).update(requested_by=keeper)
    Channel.objects.create(url=factories.CHANNEL)
    IndexedPackage.objects.create(channel=Channel.objects.get(), name="python", versions=1)
    preview = Preview.objects.create(
        namespace=research,
        environment=environment,
        specification=current.specification,
        lock=current.lock,
        state="READY",
    )
    dora = factories.actor(User.objects.get(username="dora"))
    created = create_token(actor=dora, name="kept")
    rule = add_rule(
        actor=dora,
        namespace=research,
        kind="packages-denied",
        effect="warn",
        name="no left-pad",
        settings={"packages": ["left-pad", "right-pad"]},
    )
    rule = change_rule(actor=dora, rule=rule, settings={"packages": ["left-pad"]})
    mapping = RoleMapping.objects.create(group="ldap:it", namespace="it-*", role=Role.VIEWER.value)
    world = World(
        research=research,
        environment=environment,
        old=old,
        current=current,
        queued=queued,
        archived=archived,
        preview=preview,
        token=created.token,
    )
    AuditEvent.record(dora, "test.event", research)
    world.ids = govern(research, queued) | {
        "environment": str(environment.pk),
        "old": str(old.pk),
        "current": str(current.pk),
        "node": global_id("Build", current.pk),
        "queued": str(queued.pk),
        "archived": str(archived.pk),
        "preview": str(preview.pk),
        "token": str(created.token.pk),
        "mapping": str(mapping.pk),
        "rule": str(rule.pk),
        "lock": current.lock.digest,  # type: ignore[union-attr]
        "specification": current.specification.digest,
        "text": TEXT,
    }
    return world


def govern(
    research: Namespace,
    waiting: Build,
    *,
    name: str = "research",
    package_name: str = "z",
    people: tuple[str, str] = ("alice", "olga"),
) -> dict[str, str]:
    """Add an approval request, half a decision, a recall, a webhook and a credential.

    Args:
        name: of the mirror and of the hosted channel.
        people: who asked for the package, and who decided on another one.
    """
    package = factories.make_package(package_name)
    location = factories.make_environment(research, "gone")
    Environment.objects.filter(pk=location.pk).update(last_number=100)
    gone = factories.make_build(location, lock=factories.make_lock(package))
    record = CondaRecord.objects.get(name=package_name)
    request = ApprovalRequest.objects.create(
        namespace=research,
        subject=f"conda:{record.sha256}",
        conda=record,
        name=package_name,
        version="1.0",
    )
    asker, decider = (User.objects.get(username=one) for one in people)
    WaitingBuild.objects.create(request=request, build=waiting, asked_by=asker)
    decision = Decision.objects.create(
        approved=True, scope="version", spec="y", name="y", namespace=research, decided_by=decider,
        complete=False,
    )  # fmt: skip
    recall = Recall.objects.create(spec=package_name, reason="it leaks")
    RecalledLock.objects.create(recall=recall, lock=gone.lock)
    hold = LegalHold.objects.create(environment=location, build=gone, reason="case 7")
    dropped = factories.make_build(location, BuildState.ARCHIVED)
    Build.objects.filter(pk=dropped.pk).update(deleted_at=timezone.now())
    factories.make_environment(research, "dropped")
    Environment.objects.filter(name="dropped").update(deleted_at=timezone.now())
    webhook = Webhook.objects.create(namespace=research, url="https://hook.example.org/")
    credential = ChannelCredential(
        namespace=research, url_prefix="https://private.example.org/", kind="token"
    )
    credential.seal("secret")
    credential.save()
    target = "registry.example.org/team/{environment}:{build}"
    rule = PushRule.objects.create(namespace=research, pattern="ml", target=target)
    Push.want(rule, waiting.environment, waiting)
    mirror = Mirror.objects.create(
        name=name, upstream=factories.CHANNEL, namespace=research, subdirs=["noarch"]
    )
    MirrorIndex.objects.create(mirror=mirror, subdir="noarch")
    channel = HostedChannel.objects.create(name=name, namespace=research)
    for number, yanked_at in ((1, None), (2, timezone.now())):
        HostedPackage.objects.create(
            channel=channel, subdir="noarch", file_name=f"tool-{number}-0.conda", name="tool",
            version=str(number), build="0", record=record.record, sha256="1" * 64, size=1,
            revision=number, yanked_at=yanked_at,
            blob=Blob.objects.get_or_create(sha256="1" * 64, size=1)[0],
        )  # fmt: skip
    return {
        "mirror": str(mirror.pk),
        "pushRule": str(rule.pk),
        "credential": str(credential.pk),
        "request": str(request.pk),
        "decision": str(decision.pk),
        "recall": str(recall.pk),
        "hold": str(hold.pk),
        "webhook": str(webhook.pk),
    }


def secret_of(persona: Persona) -> str:
    """A token of the persona's kind."""
    assert persona.token is not None
    options = dict(persona.token)
    expired, revoked = options.pop("expired", False), options.pop("revoked", False)
    owner = factories.actor(User.objects.get(username=persona.user))
    created = create_token(actor=owner, name="mine", **options)
    rows = ApiToken.objects.filter(pk=created.token.pk)
    if expired:
        rows.update(expires_at=timezone.now() - timedelta(seconds=1))
    if revoked:
        rows.update(revoked_at=timezone.now())
    return created.secret


def client_of(persona: Persona) -> Client:
    client = Client()
    if persona.token is not None:
        client.defaults["HTTP_AUTHORIZATION"] = f"Bearer {secret_of(persona)}"
    elif persona.user:
        client.force_login(User.objects.get(username=persona.user))
    return client


def actor_of(persona: Persona) -> Actor:
    if persona.token is not None:
        return actor_with_token(secret_of(persona))
    if not persona.user:
        return ANONYMOUS
    return factories.actor(User.objects.get(username=persona.user))


# --- what is asked ------------------------------------------------------------------------------

Data = Any
EDGES = "{ totalCount edges { node { %s } } }"


def names(found: Data) -> list[str]:
    assert found["totalCount"] == len(found["edges"])
    return [edge["node"]["name"] for edge in found["edges"]]


#: Field -> document and what it shows to those who may look into `research`.
SEEN: dict[str, tuple[str, Callable[[Data], bool]]] = {
    "namespaces": (f"{{ namespaces {EDGES % 'name'} }}", lambda it: "research" in names(it)),
    "namespace": ('{ namespace(name: "research") { name } }', bool),
    "environments": (f"{{ environments {EDGES % 'name'} }}", lambda it: "ml" in names(it)),
    "environment": ('{ environment(namespace: "research", name: "ml") { name } }', bool),
    "builds": (f"{{ builds {EDGES % 'ref'} }}", lambda it: len(it["edges"]) == 5),
    "build": ("query($current: ID!) { build(id: $current) { ref source } }", bool),
    "specification": (
        "query($specification: String!) { specification(digest: $specification) { digest } }",
        bool,
    ),
    "node": ("query($node: ID!) { node(id: $node) { id ... on Build { ref } } }", bool),
    "nodes": ("query($node: ID!) { nodes(ids: [$node]) { id } }", any),
    "lock": ("query($lock: String!) { lock(digest: $lock) { digest } }", bool),
    "packages": (f'{{ packages(search: "pyth") {EDGES % "name"} }}', lambda it: bool(it["edges"])),
    "channels": (f"{{ channels {EDGES % 'url'} }}", lambda it: bool(it["edges"])),
    "lockedPackages": (
        f'{{ lockedPackages(name: "python") {EDGES % "build { ref }"} }}',
        lambda it: bool(it["edges"]),
    ),
    "preview": ("query($preview: ID!) { preview(id: $preview) { state } }", bool),
    "approvalRequests": (
        f"{{ approvalRequests {EDGES % 'name waiting { askedBy } deciders mayDecide'} }}",
        lambda it: names(it) == ["z"],
    ),
    "approvalRequest": (
        "query($request: ID!) { approvalRequest(id: $request) { name waiting { build } } }",
        bool,
    ),
    "decisions": (f"{{ decisions {EDGES % 'name'} }}", lambda it: names(it) == ["y"]),
    "recalls": (f"{{ recalls {EDGES % 'spec'} }}", lambda it: bool(it["edges"])),
    "recallHits": (
        f"query($recall: ID!) {{ recallHits(id: $recall) {EDGES % 'build'} }}",
        lambda it: bool(it["edges"]),
    ),
    "hostedChannels": (
        f"{{ hostedChannels {EDGES % 'name packages'} }}",
        lambda it: names(it) == ["research"],
    ),
    "hostedChannel": ('{ hostedChannel(name: "research") { name url } }', bool),
    "hostedPackages": (
        f'{{ hostedPackages(channel: "research") {EDGES % "name yankedAt"} }}',
        lambda it: names(it) == ["tool", "tool"],
    ),
    "mirrors": (
        f"{{ mirrors {EDGES % 'name subdirs { subdir failure }'} }}",
        lambda it: names(it) == ["research"],
    ),
    "mirror": ('{ mirror(name: "research") { name upstream } }', bool),
    "policy": ('{ policy(namespace: "research") { digest rules { summary } } }', bool),
    "policies": (
        f"{{ policies {EDGES % 'namespace rules { name }'} }}",
        lambda it: "research" in [edge["node"]["namespace"] for edge in it["edges"]],
    ),
    "policyVersions": (
        f'{{ policyVersions(namespace: "research") {EDGES % "number rules changedBy"} }}',
        lambda it: bool(it["edges"]),
    ),
    "retentionPlan": (
        '{ retentionPlan(namespace: "research") { archived planned { build } } }',
        bool,
    ),
    "compareBuilds": (
        (
            "query($old: ID!, $current: ID!) { "
            "compareBuilds(before: $old, after: $current) { platform } }"
        ),
        bool,
    ),
}
#: Field -> document, what it shows, and the right in `research` that it takes to be shown it.
SEEN_WITH: dict[str, tuple[str, Callable[[Data], bool], Perm]] = {
    "auditEvents": (
        f'{{ auditEvents(filters: {{target: "research"}}) {EDGES % "action"} }}',
        lambda it: bool(it["edges"]),
        Perm.GRANT,
    ),
    "webhooks": (f"{{ webhooks {EDGES % 'url'} }}", lambda it: bool(it["edges"]), Perm.MANAGE),
    "legalHolds": (
        f"{{ legalHolds {EDGES % 'reason'} }}",
        lambda it: bool(it["edges"]),
        Perm.MANAGE,
    ),
    "deletedBuilds": (
        f"{{ deletedBuilds {EDGES % 'environment number'} }}",
        lambda it: bool(it["edges"]),
        Perm.MANAGE,
    ),
    "deletedEnvironments": (
        f"{{ deletedEnvironments {EDGES % 'name'} }}",
        lambda it: bool(it["edges"]),
        Perm.MANAGE,
    ),
    "pushRules": (
        f"{{ pushRules {EDGES % 'target pushes { build state }'} }}",
        lambda it: [one["node"]["pushes"][0]["state"] for one in it["edges"]] == ["WAITING"],
        Perm.MANAGE,
    ),
    "channelCredentials": (
        f"{{ channelCredentials {EDGES % 'urlPrefix'} }}",
        lambda it: bool(it["edges"]),
        Perm.MANAGE,
    ),
    "serviceAccounts": (
        f"{{ serviceAccounts {EDGES % 'username owner ownerLeft'} }}",
        lambda it: [edge["node"]["username"] for edge in it["edges"]] == ["keeper"],
        Perm.GRANT,
    ),
}
#: Field -> document: refused to all but those who run the installation.
ADMINISTRATORS = {
    "verifyAudit": "{ verifyAudit { intact } }",
    "verifyAuditAnchor": "{ verifyAuditAnchor(lines: []) { intact } }",
    "recallPreview": '{ recallPreview(spec: "y") { buildCount } }',
}
#: Fields that tell of the one who asks, and that tell administrators alone.
OF_ONESELF = {"me"}
OF_ADMINISTRATORS = {"roleMappings": f"{{ roleMappings {EDGES % 'group'} }}"}

#: Mutation -> its arguments, and what one must be allowed in `research`. By `ids` of the world.
CHANGES: dict[str, tuple[str, Perm]] = {
    "grantRole": ('namespace: "research", role: VIEWER, user: "charlie"', Perm.GRANT),
    "revokeRole": ('namespace: "research", user: "bob"', Perm.GRANT),
    "createEnvironment": (
        'namespace: "research", name: "another", specification: $text',
        Perm.BUILD,
    ),
    "copyEnvironment": (
        'environmentId: $environment, namespace: "research", name: "copy"',
        Perm.BUILD,
    ),
    "renameEnvironment": ('environmentId: $environment, name: "renamed"', Perm.BUILD),
    "deleteEnvironment": ("environmentId: $environment", Perm.MANAGE),
    "shareEnvironment": ('environmentId: $environment, user: "charlie"', Perm.GRANT),
    "unshareEnvironment": ('environmentId: $environment, user: "sharon"', Perm.GRANT),
    "submitBuild": (
        'namespace: "research", environment: "ml", specification: $text',
        Perm.BUILD,
    ),
    "previewSolve": (
        'namespace: "research", environment: "ml", specification: $text, wait: 0',
        Perm.BUILD,
    ),
    "cancelBuild": ("id: $queued", Perm.BUILD),
    "setCurrentBuild": ("id: $old", Perm.BUILD),
    "unpin": ("environmentId: $environment", Perm.BUILD),
    "rollback": ("environmentId: $environment", Perm.BUILD),
    "tagBuild": ('id: $current, tag: "prod"', Perm.BUILD),
    "untag": ('environmentId: $environment, tag: "kept"', Perm.BUILD),
    "archiveBuild": ("id: $old", Perm.BUILD),
    "restoreBuild": ("id: $archived", Perm.BUILD),
    "deleteBuild": ("id: $old", Perm.MANAGE),
    "createArtifact": ("buildId: $current, kind: TAR_ZST", Perm.DOWNLOAD),
    "setRetention": ('namespace: "research", keepLast: 5', Perm.MANAGE),
    "placeHold": ('environmentId: $environment, build: "1", reason: "case 7"', Perm.MANAGE),
    "setEagerArtifacts": ('namespace: "research", kinds: [TAR_ZST]', Perm.MANAGE),
    "setAddPipAsPythonDependency": ('namespace: "research", on: false', Perm.MANAGE),
    "addPolicyRule": (
        (
            'namespace: "research", kind: "size", effect: "warn", name: "small", '
            "settings: {packages: 500}"
        ),
        Perm.MANAGE,
    ),
    "changePolicyRule": ("id: $rule, enabled: false", Perm.MANAGE),
    "movePolicyRule": ("id: $rule, position: 0", Perm.MANAGE),
    "removePolicyRule": ("id: $rule", Perm.MANAGE),
    "restorePolicyVersion": ('namespace: "research", number: 1', Perm.MANAGE),
    "simulatePolicy": ('namespace: "research"', Perm.MANAGE),
    "decide": ('requests: [$request], approve: true, reason: "fine"', Perm.APPROVE),
    "secondDecision": ("id: $decision", Perm.APPROVE),
    "revokeDecision": ('id: $decision, reason: "old"', Perm.APPROVE),
    "setTwoPersonApproval": ('namespace: "research", on: true', Perm.MANAGE),
    "setBaseImage": ('namespace: "research", base: ""', Perm.MANAGE),
    "createPushRule": (
        'namespace: "research", pattern: "m*", target: "r.example.org/{environment}"',
        Perm.MANAGE,
    ),
    "keepRegistryLogin": (
        'namespace: "research", registry: "r.example.org", login: "a:b"',
        Perm.MANAGE,
    ),
    "setChannelCredential": (
        'namespace: "research", channel: "https://private.example.org/new", secret: "a:b"',
        Perm.MANAGE,
    ),
    "createHostedChannel": ('namespace: "research", name: "research/fresh"', Perm.MANAGE),
    "changeHostedChannel": ('name: "research", public: true', Perm.MANAGE),
    "deleteHostedChannel": ('name: "research"', Perm.MANAGE),
    "yankPackage": (
        'channel: "research", subdir: "noarch", fileName: "tool-1-0.conda", reason: "bad"',
        Perm.MANAGE,
    ),
    "unyankPackage": (
        'channel: "research", subdir: "noarch", fileName: "tool-2-0.conda"',
        Perm.MANAGE,
    ),
    "createWebhook": ('namespace: "research", url: "https://a.example.org/"', Perm.MANAGE),
}


def _signed_out(persona: Persona) -> str:
    return "" if persona.user else "not-signed-in"


def _of_a_namespace(persona: Persona) -> str:
    return _signed_out(persona) or ("" if persona.superuser else "access-denied")


def _of_a_token(persona: Persona) -> str:
    limited = persona.token and ({"role", "namespaces"} & set(persona.token))
    return _signed_out(persona) or ("access-denied" if limited else "")


def _of_doras_token(persona: Persona) -> str:
    # A limited token ends no other one: it sees itself alone.
    limited = persona.token and ({"role", "namespaces"} & set(persona.token))
    owns = (persona.user == "dora" or persona.superuser) and not limited
    return _signed_out(persona) or ("" if owns else "not-found")


def _of_a_move(persona: Persona) -> str:
    if Perm.VIEW not in persona.perms or Perm.VIEW not in persona.lab:
        return "not-found"
    return "" if Perm.MANAGE in persona.perms and Perm.BUILD in persona.lab else "access-denied"


def _of_who_asked(persona: Persona) -> str:
    if Perm.VIEW not in persona.perms:
        return "not-found"
    return "" if persona.user == "alice" else "access-denied"


def _of_an_administrator(persona: Persona) -> str:
    if Perm.VIEW not in persona.perms:
        return "not-found"
    return "" if persona.superuser else "access-denied"


#: Mutation -> its arguments, and the code that a persona gets; "" where it works.
OTHER_CHANGES: dict[str, tuple[str, Callable[[Persona], str]]] = {
    "createNamespace": ('name: "fresh"', _of_a_namespace),
    "createServiceAccount": (
        'name: "robot"',
        lambda persona: "" if persona.superuser else "access-denied",
    ),
    "assignServiceAccount": (
        'name: "keeper", owner: "alice"',
        lambda persona: "" if persona.superuser else "access-denied",
    ),
    "createToken": ('name: "another"', _of_a_token),
    "revokeToken": ("id: $token", _of_doras_token),
    "addRoleMapping": (
        'group: "ldap:physics", namespace: "lab-*", role: VIEWER',
        lambda persona: "" if persona.superuser else "access-denied",
    ),
    "removeRoleMapping": (
        "id: $mapping",
        lambda persona: "" if persona.superuser else "not-found",
    ),
    "moveEnvironment": ('environmentId: $environment, namespace: "lab"', _of_a_move),
    "explainRequest": ('id: $request, note: "for the course"', _of_who_asked),
    "recall": ('spec: "y", reason: "it leaks"', _of_a_namespace),
    "undoRecall": ('id: $recall, reason: "fixed"', _of_an_administrator),
    "createMirror": (
        'name: "fresh", upstream: "https://channel.example.org/other"',
        lambda persona: "" if persona.superuser else "access-denied",
    ),
    "changeMirror": ("id: $mirror, public: true", _of_an_administrator),
    "deleteMirror": ("id: $mirror", _of_an_administrator),
    "deleteChannelCredential": (
        "id: $credential",
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "releaseHold": (
        'id: $hold, reason: "settled"',
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "undeleteBuild": (
        'namespace: "research", environment: "gone", number: 102',
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "undeleteEnvironment": (
        'namespace: "research", name: "dropped"',
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "pushAgain": (
        "id: $pushRule",
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "deletePushRule": (
        "id: $pushRule",
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "testWebhook": (
        "id: $webhook",
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "deleteWebhook": (
        "id: $webhook",
        lambda persona: "" if Perm.MANAGE in persona.perms else "not-found",
    ),
    "setQuota": ('namespace: "research", environments: 9', _of_an_administrator),
    "pruneAudit": (
        'before: "2020-01-01T00:00:00Z"',
        lambda persona: "" if persona.superuser else "access-denied",
    ),
}
#: Subscription -> document; all are for those who may look.
FOLLOWED = {
    "buildProgress": (
        "subscription($current: ID!) { buildProgress(buildId: $current) { nextLine } }"
    ),
    "environmentEvents": (
        'subscription { environmentEvents(namespace: "research") { state message } }'
    ),
}
TYPES = {"specification": "String!", "lock": "String!", "text": "String!"}


def used(document: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in ids.items() if f"${name}" in document}


def change(name: str, arguments: str, ids: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The document of a mutation, and its variables."""
    values = used(arguments, ids)
    declared = ", ".join(f"${key}: {TYPES.get(key, 'ID!')}" for key in values)
    head = f"mutation({declared})" if declared else "mutation"
    return f"{head} {{ {name}({arguments}) {{ __typename {ERROR} }} }}", values


def outcome(persona: Persona, perm: Perm) -> str:
    """The code of a change in `research` that needs `perm`; "" where it works."""
    if Perm.VIEW not in persona.perms:
        return "not-found"
    if perm in persona.perms:
        return ""
    return "access-denied"


def fields_of(kind: GraphQLObjectType | None) -> set[str]:
    assert kind is not None
    return set(kind.fields)


# --- the tests ----------------------------------------------------------------------------------


def test_every_field_of_the_schema_is_tried_here() -> None:
    core = graphql_schema(schema)
    for_all = set(SEEN) | set(SEEN_WITH) | OF_ONESELF
    assert fields_of(core.query_type) == for_all | set(ADMINISTRATORS) | set(OF_ADMINISTRATORS)
    assert fields_of(core.mutation_type) == set(CHANGES) | set(OTHER_CHANGES)
    assert fields_of(core.subscription_type) == set(FOLLOWED)


@everybody
def test_queries_show_what_one_may_see_and_hide_the_rest(persona: Persona, world: World) -> None:
    client = client_of(persona)
    fields = {name: (*found, Perm.VIEW) for name, found in SEEN.items()} | SEEN_WITH
    for name, (document, shown, perm) in fields.items():
        answer = post(client, document, used(document, world.ids))
        if persona.refused:
            assert answer.status_code == 401, name
            assert answer.json()["code"] == "token-invalid"
            continue
        body = answer.json()
        found = body["data"][name] if body["data"] else None
        assert bool(found and shown(found)) == (perm in persona.perms), (name, body)
        if found is None and "errors" in body:
            assert [error["extensions"]["code"] for error in body["errors"]] == ["not-found"], name
    for name, document in OF_ADMINISTRATORS.items():
        if not persona.refused:
            found = post(client, document).json()["data"][name]
            assert bool(found["edges"]) == bool(found["totalCount"]) == persona.superuser, name
    for name, document in ADMINISTRATORS.items():
        body = post(client, document).json()
        if persona.superuser:
            assert body["data"][name], name
        elif not persona.refused:
            codes = [error["extensions"]["code"] for error in body["errors"]]
            refusals = ["access-denied"] if persona.user else ["access-denied", "not-signed-in"]
            assert len(codes) == 1, name
            assert codes[0] in refusals, name
    me = post(client, "{ me { username isSuperuser } }")
    if not persona.refused:
        expected = {"username": persona.user, "isSuperuser": persona.superuser}
        assert me.json()["data"]["me"] == (expected if persona.user else None)


@everybody
def test_changes_work_for_those_who_may_and_for_nobody_else(persona: Persona, world: World) -> None:
    client = client_of(persona)
    BuildTag.objects.create(environment=world.environment, build=world.current, name="kept")
    requested = {
        **{
            name: (arguments, outcome(persona, perm)) for name, (arguments, perm) in CHANGES.items()
        },
        **{name: (args, code(persona)) for name, (args, code) in OTHER_CHANGES.items()},
    }
    for name, (arguments, code) in requested.items():
        with transaction.atomic():
            answer = post(client, *change(name, arguments, world.ids))
            transaction.set_rollback(True)
        if persona.refused:
            assert answer.status_code == 401, name
            continue
        body = answer.json()
        assert "errors" not in body, (name, body)
        assert body["data"][name].get("code", "") == code, (name, body)


@everybody
def test_lists_and_checks_agree(persona: Persona, world: World) -> None:
    if persona.refused:
        return
    actor = actor_of(persona)
    for perm in Perm:
        allowed = perm in persona.perms
        guarded: list[Any] = [world.research, world.environment, world.current]
        for row in guarded:
            assert may(actor, perm, row) == allowed, (perm, row)
            listed = type(row).objects.with_perm(actor, perm)
            assert listed.filter(pk=row.pk).exists() == allowed
    shown = ask(actor, '{ namespace(name: "research") { myPermissions } }')["namespace"]
    expected = {perm.name for perm in persona.perms} or None
    assert (set(shown["myPermissions"]) if shown else None) == expected


# --- what lies behind the fields ----------------------------------------------------------------

INSIDE = """
{
  environments(first: 5) { edges { node {
    name namespace { id name description createdAt myPermissions grants { user }
      environments(first: 5) { totalCount edges { node { name } } } }
    sharedWith
    builds(first: 9) { totalCount edges { node {
      ref environment { name namespace { name description } } } } }
  } } }
}
"""


def test_one_shared_environment_opens_nothing_else(world: World) -> None:
    Namespace.objects.filter(pk=world.research.pk).update(description="secret plans")
    factories.make_build(factories.make_environment(world.research, "hidden"))
    dora = factories.actor(User.objects.get(username="dora"))
    charlie = factories.actor(User.objects.get(username="charlie"))
    document, values = change(
        "shareEnvironment", 'environmentId: $environment, user: "charlie"', world.ids
    )
    ask(dora, document, **values)
    (edge,) = ask(charlie, INSIDE)["environments"]["edges"]
    node = edge["node"]
    assert node["name"] == "ml"
    assert node["namespace"]["name"] == "research"
    assert node["namespace"]["description"] == ""
    assert node["namespace"]["environments"] == {"totalCount": 0, "edges": []}
    assert node["namespace"]["grants"] == []
    assert node["namespace"]["myPermissions"] == []
    assert node["sharedWith"] == []
    assert node["builds"]["totalCount"] == 4
    inner = node["builds"]["edges"][0]["node"]["environment"]["namespace"]
    assert inner == {"name": "research", "description": ""}
    assert ask(charlie, '{ namespace(name: "research") { name } }') == {"namespace": None}


def test_roles_and_shares_are_told_only_to_those_who_may_grant(world: World) -> None:
    seen = '{ environment(namespace: "research", name: "ml") { namespace { grants { user } } } }'
    for name in ("bob", "alice", "anna", "dora"):
        actor = factories.actor(User.objects.get(username=name))
        grants = ask(actor, seen)["environment"]["namespace"]["grants"]
        assert bool(grants) == may(actor, Perm.GRANT, world.research) == (name == "dora")


def test_a_limited_token_sees_no_other_tokens(world: World) -> None:
    dora = factories.actor(User.objects.get(username="dora"))
    created = create_token(actor=dora, name="small", role=Role.VIEWER)
    seen = "{ me { tokens { name } } }"
    assert {one["name"] for one in ask(dora, seen)["me"]["tokens"]} == {"kept", "small"}
    limited = actor_with_token(created.secret)
    assert ask(limited, seen)["me"]["tokens"] == [{"name": "small"}]


def test_a_deleted_build_is_gone_from_every_relation(world: World) -> None:
    Build.objects.filter(pk=world.old.pk).update(deleted_at=timezone.now())
    bob = factories.actor(User.objects.get(username="bob"))
    data = ask(bob, INSIDE)
    refs = {
        edge["node"]["ref"]
        for environment in data["environments"]["edges"]
        for edge in environment["node"]["builds"]["edges"]
    }
    assert world.old.number not in {int(ref.rsplit(":", 1)[1]) for ref in refs}
