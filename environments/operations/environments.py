"""What people ask of environments: create, copy, move, rename, delete."""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from environments import approvals, folder_access, folders
from environments.domain.errors import ConflictError, InvalidInputError, NotFoundError
from environments.domain.lifecycle import FINISHED, RUNNING, BuildState
from environments.domain.names import parse_name
from environments.models import (
    AuditEvent,
    Build,
    BuildEvent,
    BuildTag,
    Environment,
    Namespace,
    Push,
    audited,
)
from environments.models.approvals import in_turn
from environments.operations import queueing, quotas
from environments.operations.builds import Submitted, refuse_held, submit_build


def find_environment(actor: Actor, namespace: str, name: str) -> Environment:
    """Raises NotFoundError, also for what the actor may not see."""
    found = (
        Environment.objects.visible_to(actor)
        .select_related("namespace", "current")
        .filter(namespace__name=namespace, name=name)
        .first()
    )
    if found is None:
        raise NotFoundError(f"There is no environment {namespace}/{name}.")
    return found


def find_build(actor: Actor, environment: Environment, reference: str) -> Build:
    """`reference`: a number, a tag, `current` or `latest` (the newest, whatever its state)."""
    builds = Build.objects.visible_to(actor).filter(environment=environment)
    builds = builds.select_related("environment__namespace", "lock", "specification")
    found: Build | None
    if reference in ("", "current"):
        found = builds.filter(pk=environment.current_id or 0).first()
        if found is None:
            raise NotFoundError(f"{environment} has no current build yet.")
        return found
    if reference.isdecimal():
        found = builds.filter(number=int(reference)).first() if len(reference) < 10 else None
    else:
        found = builds.filter(tags__name=reference, tags__environment=environment).first()
        if found is None and reference == "latest":
            found = builds.order_by("-number").first()
    if found is None:
        raise NotFoundError(f"{environment} has no build {reference!r}.")
    return found


@audited()
def create_environment(
    *, actor: Actor, namespace: Namespace, name: str, description: str = ""
) -> Environment:
    require(actor, Perm.BUILD, namespace)
    environment = _create(actor, namespace, name, description)
    AuditEvent.record(actor, "environment.create", environment)
    return environment


@audited()
def submit_to(
    *,
    actor: Actor,
    namespace: Namespace,
    name: str,
    specification: str,
    description: str = "",
    idempotency_key: str = "",
    force_solve: bool = False,
    platforms_wanted: tuple[str, ...] = (),
    reason: str = "",
) -> Submitted:
    """Submit a build; the environment is created where it does not exist.

    A specification that is refused leaves no environment behind.
    """
    require(actor, Perm.BUILD, namespace)
    found = Environment.objects.present().filter(namespace=namespace, name=name).first()
    environment = found or create_environment(
        actor=actor, namespace=namespace, name=name, description=description
    )
    return submit_build(
        actor=actor,
        environment=environment,
        specification=specification,
        idempotency_key=idempotency_key,
        force_solve=force_solve,
        platforms_wanted=platforms_wanted,
        reason=reason,
    )


@audited()
def rename_environment(*, actor: Actor, environment: Environment, name: str) -> Environment:
    """The folder under `envs/` moves too; prefixes stay where they are, so what runs goes on."""
    require(actor, Perm.BUILD, environment)
    before = environment.name
    _place(environment, environment.namespace, parse_name(name, what="environment"))
    AuditEvent.record(actor, "environment.rename", environment, {"before": before})
    return environment


@audited()
def move_environment(
    *, actor: Actor, environment: Environment, namespace: Namespace
) -> Environment:
    """With its history, and without copying bytes."""
    require(actor, Perm.MANAGE, environment)
    require(actor, Perm.BUILD, namespace)
    before = str(environment)
    if namespace.pk != environment.namespace_id:
        quotas.require_room(namespace, environments=1)
    source = environment.namespace
    _place(environment, namespace, environment.name)
    # The rules of the namespace that it left do not send it any more, nor show where it is now.
    Push.objects.filter(environment=environment).exclude(rule__namespace=namespace).delete()
    # Those who run the namespace it left read of it too.
    AuditEvent.record(
        actor, "environment.leave", before, {"after": str(environment)}, namespace=source
    )
    AuditEvent.record(actor, "environment.move", environment, {"before": before})
    return environment


@audited()
def copy_environment(
    *, actor: Actor, environment: Environment, namespace: Namespace, name: str
) -> Environment:
    """An environment with the same builds, numbers and tags, which shares the linked folders."""
    require(actor, Perm.DOWNLOAD, environment)
    require(actor, Perm.BUILD, namespace)
    environment.refresh_from_db()
    copy = _create(actor, namespace, name, environment.description)
    kept = environment.builds.filter(deleted_at=None, state__in=FINISHED).order_by("number")
    copies: dict[int, Build] = {}
    for build in kept:
        origin, source_events = build.origin_id or build.pk, list(build.events.all())
        old = build.pk
        build.pk = None
        build._state.adding = True
        build.environment, build.origin_id = copy, origin
        build.idempotency_key, build.log_archive, build.log_lines = "", None, 0
        build.message_sent_at = None
        build.save(force_insert=True)
        BuildEvent.objects.bulk_create(
            BuildEvent(build=build, state=e.state, at=e.at, message=e.message)
            for e in source_events
        )
        copies[old] = build
    BuildTag.objects.bulk_create(
        BuildTag(environment=copy, name=tag.name, build=copies[tag.build_id], moved_at=tag.moved_at)
        for tag in environment.tags.all()
        if tag.build_id in copies
    )
    current = copies.get(environment.current_id) if environment.current_id else None
    Environment.objects.filter(pk=copy.pk).update(
        last_number=environment.last_number,
        current=current,
        pinned=environment.pinned and current is not None,
    )
    copy.refresh_from_db()
    AuditEvent.record(actor, "environment.copy", copy, {"from": str(environment)})
    folders.follow_environment(copy)
    transaction.on_commit(lambda: folder_access.apply_to_environment(copy))
    return copy


@audited()
def delete_environment(*, actor: Actor, environment: Environment) -> Environment:
    """Cancel what runs, take the folder away, and send the bytes to the trash."""
    require(actor, Perm.MANAGE, environment)
    now = timezone.now()
    Environment.objects.select_for_update().get(pk=environment.pk)
    refuse_held(environment.holds.all(), "delete")
    if environment.builds.filter(state=BuildState.HELD).exists():
        in_turn()  # before the builds' rows, as those do who decide
    for build in environment.builds.exclude(state__in=FINISHED):
        running = build.state in RUNNING
        if build.state != BuildState.CANCELLING:
            build.move(
                BuildState.CANCELLING if running else BuildState.CANCELLED,
                message="its environment was deleted",
            )
        approvals.withdraw(build)
    Environment.objects.filter(pk=environment.pk).update(
        deleted_at=now, current=None, pinned=False, updated_at=now
    )
    for build in environment.builds.filter(state=BuildState.READY):
        build.move(BuildState.ARCHIVED, message="its environment was deleted", prefix=None)
    AuditEvent.record(actor, "environment.delete", environment)
    folders.follow_environment(environment)
    queueing.queue_tidy()
    environment.refresh_from_db()
    return environment


def _create(actor: Actor, namespace: Namespace, name: str, description: str) -> Environment:
    name = parse_name(name, what="environment")
    folders.require_room(namespace.name, name)
    quotas.require_room(namespace, environments=1)
    try:
        with transaction.atomic():
            return Environment.objects.create(
                namespace=namespace,
                name=name,
                description=description,
                created_by=actor.account,
            )
    except IntegrityError:
        raise ConflictError(
            f"There is an environment {namespace}/{name} already.",
            hint="Choose another name, or submit a build to it.",
        ) from None


def _place(environment: Environment, namespace: Namespace, name: str) -> None:
    """Give the environment another namespace or name; both folders follow."""
    if (namespace.pk, name) == (environment.namespace_id, environment.name):
        raise InvalidInputError(f"It is {environment} already.", where="name")
    if environment.builds.filter(state__in=RUNNING).exists():
        raise ConflictError(
            f"A build of {environment} is running.", hint="Wait for it, or cancel it."
        )
    folders.require_room(namespace.name, name)
    old_namespace, old_name = environment.namespace.name, environment.name
    try:
        with transaction.atomic():
            Environment.objects.filter(pk=environment.pk).update(
                namespace=namespace, name=name, updated_at=timezone.now()
            )
    except IntegrityError:
        raise ConflictError(f"There is an environment {namespace}/{name} already.") from None
    environment.refresh_from_db()
    folders.follow(environment.namespace.name, environment.name)
    folders.follow(old_namespace, old_name)
    transaction.on_commit(lambda: folder_access.apply_to_environment(environment))
