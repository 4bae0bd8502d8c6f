"""A row of each kind that the console shows, as many times as asked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import Group
from django.utils import timezone

from accounts.models import ApiToken, token_digest
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.models import (
    ApprovalRequest,
    AuditEvent,
    Blob,
    BuildEvent,
    Channel,
    ChannelCredential,
    CondaRecord,
    Decision,
    DecisionScope,
    HostedChannel,
    HostedPackage,
    LockedPypi,
    MappedRole,
    Mirror,
    MirrorIndex,
    Notification,
    Policy,
    PolicyRule,
    PolicyVersion,
    Preview,
    PypiRecord,
    Recall,
    RecalledLock,
    RoleMapping,
    WaitingBuild,
    Webhook,
    Worker,
)
from tests.factories import (
    CHANNEL,
    actor,
    make_build,
    make_environment,
    make_lock,
    make_namespace,
    make_package,
    make_user,
)


def furnish(number: int) -> None:
    """One of each, in a namespace of its own."""
    user = make_user(f"person-{number}")
    roles: Any = {user.username: Role.APPROVER}
    namespace = make_namespace(f"team-{number}", **roles)
    group = Group.objects.create(name=f"ldap:group-{number}")
    group.user_set.add(user)
    namespace.grant(Role.VIEWER, group)
    mapping = RoleMapping.objects.create(group=group.name, namespace=namespace.name, role="viewer")
    MappedRole.objects.create(mapping=mapping, group=group, namespace=namespace, role="viewer")
    environment = make_environment(namespace)
    lock = make_lock(make_package("python"), make_package("shared", f"{number}.0"))
    build = make_build(environment, lock=lock)
    build.requested_by = user
    build.save(update_fields=["requested_by"])
    BuildEvent.objects.create(build=build, state="READY")
    held = make_build(environment, BuildState.HELD, lock=lock)
    assert build.lock is not None
    wheel = PypiRecord.objects.create(
        url=f"https://pypi.example.org/{number}",
        sha256=f"{number:064x}",
        name="wheel",
        version=f"{number}.0",
        file_name=f"wheel-{number}.0-py3-none-any.whl",
        size=1000,
    )
    LockedPypi.objects.create(lock=build.lock, package=wheel, platform="linux-64", position=0)
    record = CondaRecord.objects.get(name="shared", version=f"{number}.0")
    request = ApprovalRequest.objects.create(
        namespace=namespace,
        subject=f"conda:{record.sha256}",
        conda=record,
        name=record.name,
        version=record.version,
        rule="ask first",
        reason="shared is not on the list of allowed packages",
        chain=["python", "shared"],
    )
    WaitingBuild.objects.create(request=request, build=held, asked_by=user, note="for work")
    Decision.objects.create(
        approved=True,
        scope=DecisionScope.SPEC,
        name="shared",
        spec=f"shared <{number}",
        namespace=namespace,
        reason="looked at",
        decided_by=user,
        expires_at=timezone.now() + timedelta(days=number + 1),
    )
    mirror = Mirror.objects.create(
        name=f"mirror-{number}", upstream=CHANNEL, namespace=namespace, subdirs=["noarch"]
    )
    MirrorIndex.objects.create(mirror=mirror, subdir="noarch", records=number)
    channel = HostedChannel.objects.create(
        name=f"hosted-{number}", namespace=namespace, created_by=user
    )
    HostedPackage.objects.create(
        channel=channel,
        subdir="noarch",
        file_name="tool-1.0-0.conda",
        name="tool",
        version="1.0",
        build="0",
        record="{}",
        sha256=f"{number:064x}",
        size=number,
        blob=Blob.objects.get_or_create(sha256=f"{number:064x}", defaults={"size": number})[0],
        revision=1,
        uploaded_by=user,
    )
    recall = Recall.objects.create(spec=f"shared =={number}", reason="broken", recalled_by=user)
    RecalledLock.objects.create(recall=recall, lock=build.lock, packages=["shared"])
    policy = Policy.objects.create(namespace=namespace, version=1)
    rule = PolicyRule.objects.create(
        policy=policy,
        kind="packages-denied",
        effect="ask",
        name="ask first",
        settings={"packages": ["shared"]},
    )
    PolicyVersion.objects.create(
        policy=policy,
        number=1,
        changed_by=user,
        change="added",
        rules=[
            {
                "name": rule.name,
                "kind": rule.kind,
                "effect": rule.effect,
                "enabled": True,
                "settings": rule.settings,
            }
        ],
    )
    ApiToken.objects.create(
        user=user,
        name="laptop",
        digest=token_digest(user.username),
        expires_at=timezone.now() + timedelta(days=1),
    )
    hook = Webhook(namespace=namespace, url=f"https://hooks.example.org/{number}")
    hook.seal("secret")
    hook.save()
    Notification.objects.create(
        webhook=hook, event="recall", subject="recalled", content={"text": "it was recalled"}
    )
    Channel.objects.create(url=f"https://channel.example.org/{number}")
    credential = ChannelCredential(
        namespace=namespace, url_prefix=f"https://{number}.example.org", kind="token"
    )
    credential.seal("secret")
    credential.save()
    Preview.objects.create(
        namespace=namespace, specification=build.specification, requested_by=user
    )
    Worker.announce(
        f"worker-{number}", platform="linux-64", queues=["builds"], life=timedelta(minutes=1)
    )
    AuditEvent.record(actor(user), "build.submit", build, {"specification": "x"})
