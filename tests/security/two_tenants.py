"""Two tenants in one installation: everything of the first is named `zebra-...`.

The rows are those of the permission matrix. Olga runs the namespace `other`, and shares with the
marked tenant what tenants share in practice: a lock, a specification, a channel, package records,
a blob, and builds that were copied while she still had access.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import AutoField, CharField, JSONField, Model, TextField
from django.test import Client
from django.utils import timezone
from guardian.shortcuts import assign_perm

from accounts.models import ApiToken, DirectoryGroup, Identity, User
from accounts.roles import Role
from environments.domain.artifacts import ArtifactState
from environments.domain.lifecycle import BuildState
from environments.models import (
    ApprovalRequest,
    Artifact,
    AuditEvent,
    BaseImage,
    Blob,
    Build,
    BuildEvent,
    BuildTag,
    Channel,
    ChannelCredential,
    CondaRecord,
    Decision,
    Environment,
    EnvironmentUserObjectPermission,
    HostedChannel,
    HostedPackage,
    ImageBlob,
    LegalHold,
    LockRow,
    LogChunk,
    Mirror,
    MirrorIndex,
    MirrorPackage,
    Namespace,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
    Notification,
    Policy,
    PolicyRule,
    PolicyVersion,
    Preview,
    Push,
    PushRule,
    SpecificationRow,
    WaitingBuild,
    Webhook,
    Worker,
)
from environments.models.approvals import RequestAsker
from environments.models.audit import AuditHead
from environments.models.environments import SHARED
from environments.models.images import ImageIndex, ImageStatement
from environments.models.mirrors import ViewState
from environments.models.pending_grants import PendingGrant
from environments.operations.policies import add_rule
from environments.operations.tokens import create_token
from environments.services import blobs, mirrors
from tests import factories
from tests.environments.graphql.test_permission_matrix import govern, make_world

#: In every name, text and file of the first tenant.
MARK = "zebra"
HOUR = timedelta(hours=1)
_MARKED = re.compile(r"zebra(?:[._-]*[a-z0-9]+)*")
#: Texts whose values have a meaning of their own.
STRUCTURAL = {
    *("action", "base", "digest", "effect", "file_name", "hint", "key", "kind", "manager"),
    *("md5", "media_type", "moment", "password", "platform", "policy_version", "record", "role"),
    *("scope", "sealed", "sealed_secret", "sha256", "state", "subdir", "subject", "variant"),
    *("username", "artifact_type", "diff_id", "idempotency_key", "lease_owner", "event", "noarch"),
}
_OTHER_DIGITS = str.maketrans("0123456789abcdef", "123456789abcdef0")
#: What belongs to a namespace, and by which relation.
IN_NAMESPACE: dict[type[Model], str] = {
    **dict.fromkeys((Environment, Webhook, Mirror, HostedChannel, PushRule), "namespace"),
    PendingGrant: "namespace",
    **dict.fromkeys((Preview, ApprovalRequest, Decision, ChannelCredential, Policy), "namespace"),
    **dict.fromkeys((Build, BuildTag, LegalHold), "environment__namespace"),
    **dict.fromkeys((PolicyRule, PolicyVersion), "policy__namespace"),
    **dict.fromkeys((BuildEvent, LogChunk, WaitingBuild), "build__environment__namespace"),
    **dict.fromkeys((MirrorIndex, MirrorPackage), "mirror__namespace"),
    HostedPackage: "channel__namespace",
    Push: "rule__namespace",
    Notification: "webhook__namespace",
    NamespaceUserObjectPermission: "content_object",
    NamespaceGroupObjectPermission: "content_object",
    EnvironmentUserObjectPermission: "content_object__namespace",
}
#: What only the marked tenant may change.
_MODELS: list[type[Model]] = [Namespace, User, ApiToken, Group, *IN_NAMESPACE]
OWNED = {model._meta.db_table: model for model in _MODELS}
URLS = {"url": "/{}", "upstream": "/{}", "url_prefix": "/{}/", "channel": "/{}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Somebody who sends requests.

    `outsider`: holds nothing of the marked tenant, whose marks it must not receive.
    """

    name: str
    user: str = ""
    secret: str = ""
    outsider: bool = True

    def client(self) -> Client:
        client = Client(raise_request_exception=False)
        if self.secret:
            client.defaults["HTTP_AUTHORIZATION"] = f"Bearer {self.secret}"
        elif self.user:
            client.force_login(User.objects.get(username=self.user))
        return client


@dataclass(kw_only=True)
class Tenants:
    """`theirs` and `own`: values by the names of arguments and of parts of URLs.

    Theirs are of the marked tenant, own are Olga's. `rows` are the rows of the marked tenant,
    by model.
    """

    theirs: dict[str, list[Any]]
    own: dict[str, list[Any]]
    askers: list[Asker]
    rows: dict[type[Model], frozenset[Any]]

    def pools(self, whose: str) -> dict[str, list[Any]]:
        if whose == "both":
            return {key: [*self.theirs[key], *self.own[key]] for key in self.theirs}
        return self.theirs if whose == "theirs" else self.own

    @cached_property
    def absent(self) -> dict[str, str]:
        """Value of the marked tenant alone -> one like it that nobody has."""
        found = {}
        for values in self.theirs.values():
            for value in map(str, values):
                if value.startswith(MARK) or f"//{MARK}" in value:
                    found[value] = value.replace(MARK, "okapi", 1)
                elif value.isdecimal() and int(value) >= THEIR_KEYS:
                    found[value] = str(int(value) + 20_000)
                elif len(value) in (36, 64) and value not in map(str, self.own["digest"]):
                    found[value] = value[:8] + value[8:].translate(_OTHER_DIGITS)
        return found

    def rows_of(self, model: type[Model]) -> list[Any]:
        """The marked tenant's rows of `model` as they are now, and how many there are in all."""
        rows = model._default_manager.filter(pk__in=self.rows[model]).order_by("pk")
        within = IN_NAMESPACE.get(model)
        spaces = self.rows[Namespace]
        count = model._default_manager.filter(**{f"{within}__in": spaces}).count() if within else 0
        return [count, *rows.values_list()]


def marks_in(text: str) -> set[str]:
    return set(_MARKED.findall(text.lower()))


#: Keys of rows are counted from here, so that no row of one tenant has the key of another's.
THEIR_KEYS, OWN_KEYS = 50_000, 90_000


def make_tenants() -> Tenants:
    _count_from(THEIR_KEYS)
    world = make_world()
    _add_more(world.environment, world.current)
    Decision.objects.update(decided_by=User.objects.get(username="anna"))
    rows = {model: set(model._default_manager.values_list("pk", flat=True)) for model in _models()}
    for model, keys in rows.items():
        for row in model._default_manager.filter(pk__in=keys):
            _mark(row)
    other, olga = Namespace.objects.get(name="other"), User.objects.get(username="olga")
    rows[Namespace].discard(other.pk)
    rows[User].discard(olga.pk)
    dora = factories.actor(User.objects.get(username=f"{MARK}-dora"))
    research = Namespace.objects.get(pk=world.research.pk)
    AuditEvent.record(dora, "test.event", research, {"note": ["", f"{MARK}-audit-change"]})
    theirs = _values(rows)
    shared = Build.objects.get(pk=world.current.pk)
    _count_from(OWN_KEYS)
    own = _make_own(other, olga, shared)
    limited = create_token(
        actor=factories.actor(olga), name="limited", role=Role.VIEWER, namespaces=["other"]
    )
    return Tenants(
        theirs=theirs,
        own=own,
        askers=[
            Asker(name="signed out"),
            Asker(name="olga", user="olga"),
            Asker(name="limited token of olga", secret=limited.secret),
            Asker(name="dora", user=f"{MARK}-dora", outsider=False),
            Asker(name="root", user=f"{MARK}-root", outsider=False),
        ],
        rows={model: frozenset(keys) for model, keys in rows.items()},
    )


def _count_from(key: int) -> None:
    """Give the next row of each table the key `key`."""
    with connection.cursor() as cursor:
        for model in _models():
            table = model._meta.db_table
            if not isinstance(model._meta.pk, AutoField):
                continue
            if connection.vendor == "sqlite":
                cursor.execute("DELETE FROM sqlite_sequence WHERE name = %s", [table])
                cursor.execute("INSERT INTO sqlite_sequence VALUES (%s, %s)", [table, key - 1])
            else:
                cursor.execute(
                    "SELECT setval(pg_get_serial_sequence(%s, 'id'), %s, false)", [table, key]
                )


def _models() -> list[type[Model]]:
    return [
        *apps.get_app_config("environments").get_models(),
        *(ApiToken, DirectoryGroup, Identity, User, Group, LogEntry),
    ]


def _texts(row: Model) -> Iterator[Any]:
    for one in row._meta.concrete_fields:
        free = isinstance(one, CharField | TextField) and not one.choices
        if free and one.name not in STRUCTURAL:
            yield one


def _mark(row: Model) -> None:
    """Put the mark into each text of a row, but for what is Olga's or shared with her."""
    if isinstance(row, AuditEvent | AuditHead):
        return  # nobody changes these
    if isinstance(row, Namespace) and row.name == "other":
        return
    if isinstance(row, CondaRecord) and row.name == "python":
        return
    changed: dict[str, Any] = {}
    if isinstance(row, User):
        if row.username == "olga":
            return
        changed["username"] = f"{MARK}-{row.username}"
        changed["email"] = f"{changed['username']}@example.org"
    else:
        for one in _texts(row):
            text = f"{MARK}-{row._meta.model_name}-{one.name}-{row.pk}".replace("_", "-")
            if one.name in URLS:
                text = f"https://{MARK}.example.org" + URLS[one.name].format(text)
            changed[one.name] = text[: one.max_length] if one.max_length else text
    if isinstance(row, CondaRecord):
        record = json.loads(row.record) | {"name": changed["name"], "license": changed["license"]}
        changed["record"] = json.dumps(record)
        changed["file_name"] = f"{changed['name']}-{row.pk}.conda"
    elif isinstance(row, HostedPackage):
        changed["file_name"] = f"{MARK}-tool-{row.pk}-0.conda"
    for one in row._meta.concrete_fields:
        if isinstance(one, JSONField):
            text = json.dumps(getattr(row, one.name))
            for word in ("left-pad", "right-pad", "research"):
                text = text.replace(f'"{word}"', f'"{MARK}-{word}"')
            changed[one.name] = json.loads(text)
    if changed:
        type(row)._default_manager.filter(pk=row.pk).update(**changed)


def _keep(content: str) -> Blob:
    return blobs.add_bytes(content.encode(), folder=blobs.blobs_folder())


def _add_more(environment: Environment, build: Build) -> None:
    """What the matrix does not need of `research`: files, logs, images, messages."""
    research = environment.namespace
    secret = _keep(f"{MARK}-bytes")
    HostedPackage.objects.update(blob=secret, sha256=secret.sha256, size=secret.size)
    locked = factories.make_lock(factories.make_package("zebra-locked"))
    build = factories.make_build(
        environment, lock=locked, text="dependencies: [zebra-wanted]", current=True
    )
    BuildTag.objects.create(environment=environment, build=build, name="prod")
    BuildEvent.objects.create(build=build, state=BuildState.READY, message="made")
    LogChunk.objects.create(build=build, first=0, count=1, text="log")
    Build.objects.filter(pk=build.pk).update(log_lines=1)
    failed = factories.make_build(environment, BuildState.FAILED, lock=locked)
    problem = {"code": "unsatisfiable", "message": f"{MARK}-failure", "where": "", "hint": ""}
    Build.objects.filter(pk=failed.pk).update(failure=problem, reason="why")
    Environment.objects.filter(pk=environment.pk).update(description="plans")
    assert build.lock is not None
    artifact = Artifact.objects.create(
        lock=build.lock,
        kind="TAR_ZST",
        platform=factories.PLATFORM,
        recipe=1,
        state=ArtifactState.READY,
        blob=secret,
        finished_at=timezone.now(),
    )
    ImageBlob.objects.create(artifact=artifact, blob=secret, media_type="x")
    ImageIndex.objects.create(lock=build.lock, blob=secret)
    ImageStatement.objects.create(
        build=build, subject="2" * 64, manifest=secret, envelope=secret, empty=secret
    )
    index = MirrorIndex.objects.get()
    index.history = secret
    index.save()
    for moment in ("", "2026-01-01"):
        view = mirrors.current_view(index, moment, mirrors.policy_for(index.mirror))
        view.repodata = view.shard_index = view.shards = secret
        view.state, view.made_at = ViewState.READY, timezone.now()
        view.save()
    MirrorPackage.objects.create(
        mirror=index.mirror, subdir="noarch", file_name="tool-1-0.conda", blob=secret
    )
    request = ApprovalRequest.objects.get()
    RequestAsker.objects.create(request=request, user=User.objects.get(username="alice"))
    PendingGrant.objects.create(namespace=research, holder="zoe", role=Role.VIEWER.value)
    assign_perm(SHARED, User.objects.get(username="charlie"), environment)
    webhook = Webhook.objects.get()
    Notification.objects.create(webhook=webhook, event="build.ready", subject="x", content={})
    PushRule.objects.update(pattern="ml")
    Worker.objects.create(
        name="w", platform="linux-64", queues=["builds"], expires_at=timezone.now() + HOUR
    )
    BaseImage.objects.create(name="base", platform="linux-64", digest="3" * 64)
    root = User.objects.get(username="root")
    LogEntry.objects.create(
        user=root,
        content_type=ContentType.objects.get_for_model(Namespace),
        object_id=str(research.pk),
        object_repr="research",
        action_flag=2,
        change_message="[]",
    )
    group = Group.objects.get(name="team")
    DirectoryGroup.objects.create(group=group, directory="campus", name="team")
    Identity.objects.create(user=root, issuer="https://idp.example.org", subject="1")


def _make_own(namespace: Namespace, olga: User, shared: Build) -> dict[str, list[Any]]:
    """What Olga has: her own rows, a public namespace, and what she shares with the others."""
    assert shared.lock is not None
    before = {
        model: set(model._default_manager.values_list("pk", flat=True)) for model in _models()
    }
    before[Namespace].discard(namespace.pk)
    Channel.objects.create(url=factories.CHANNEL)
    environment = factories.make_environment(namespace, "own")
    lock = factories.make_lock(factories.make_package("yak"), factories.make_package("python"))
    first = factories.make_build(environment, lock=lock)
    copied = factories.make_build(environment, lock=factories.make_lock())
    Build.objects.filter(pk=copied.pk).update(origin=shared, requested_by=olga)
    queued = factories.make_build(environment, BuildState.QUEUED)
    factories.make_build(environment, BuildState.ARCHIVED)
    BuildTag.objects.create(environment=environment, build=first, name="prod")
    LogChunk.objects.create(build=copied, first=0, count=1, text="a line")
    Build.objects.filter(pk=copied.pk).update(log_lines=1)
    govern(namespace, queued, name="other", package_name="yak", people=("olga", "olga"))
    artifact = Artifact.objects.create(
        lock=copied.lock,
        kind="TAR_ZST",
        platform=factories.PLATFORM,
        recipe=1,
        state=ArtifactState.READY,
        blob=_keep("own bytes"),
        finished_at=timezone.now(),
    )
    ImageBlob.objects.create(artifact=artifact, blob=artifact.blob, media_type="x")
    HostedPackage.objects.filter(channel__name="other").update(
        blob=artifact.blob, sha256=artifact.blob.sha256, size=artifact.blob.size
    )
    actor = factories.actor(olga)
    create_token(actor=actor, name="own")
    add_rule(
        actor=actor,
        namespace=namespace,
        kind="packages-denied",
        effect="warn",
        name="none of these",
        settings={"packages": ["left-pad"]},
    )
    Preview.objects.create(
        namespace=namespace,
        environment=environment,
        specification=first.specification,
        lock=first.lock,
        state="READY",
        requested_by=olga,
    )
    commons = factories.make_namespace("commons", public=True, olga=Role.ADMIN)
    public = factories.make_build(
        factories.make_environment(commons, "public"), lock=factories.make_lock()
    )
    Build.objects.filter(pk=public.pk).update(origin=shared)
    rows = {
        model: set(model._default_manager.values_list("pk", flat=True)) - keys
        for model, keys in before.items()
    }
    return _values(rows)


def _values(rows: dict[type[Model], set[Any]]) -> dict[str, list[Any]]:
    """What can stand for an argument or a part of a URL, by the names that these have."""

    def of(model: type[Model], name: str) -> list[Any]:
        found = model._default_manager.filter(pk__in=rows[model]).order_by("pk")
        return list(dict.fromkeys(found.values_list(name, flat=True)))

    users = [name for name in of(User, "username") if name]
    names = {
        "namespace": of(Namespace, "name"),
        "environment": of(Environment, "name"),
        "build": [str(number) for number in of(Build, "number")],
        "reference": ["current", *of(BuildTag, "name"), *map(str, of(Build, "number"))],
        "tag": of(BuildTag, "name"),
        "channel": of(HostedChannel, "name"),
        "mirror": of(Mirror, "name"),
        "fileName": of(HostedPackage, "file_name"),
        "package": of(CondaRecord, "name"),
        "digest": [*of(LockRow, "digest"), *of(SpecificationRow, "digest"), *of(Blob, "sha256")],
        "sha256": [*of(CondaRecord, "sha256"), *of(Blob, "sha256")],
        "user": users,
        "group": of(Group, "name"),
        "url": [*of(Channel, "url"), *of(Webhook, "url"), *of(Mirror, "upstream")],
        "registry": of(ChannelCredential, "url_prefix"),
        "kind": ["packages-denied", "size", "TAR_ZST"],
    }
    keys = sorted({str(key) for keys in rows.values() for key in keys}, key=lambda x: (len(x), x))
    texts = [value for values in names.values() for value in values]
    # Equal requests share one row.
    builds = Build.objects.filter(pk__in=rows[Build])
    names["digest"] += builds.exclude(lock=None).values_list("lock__digest", flat=True)
    names["digest"] += builds.values_list("specification__digest", flat=True)
    return names | {"id": keys, "text": list(dict.fromkeys(map(str, texts)))}
