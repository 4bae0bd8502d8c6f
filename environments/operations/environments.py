"""Operations on environments: create, copy, move, rename, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.errors import ConflictError, InvalidInputError, NotFoundError, PolicyError
from condastore.statements import KEY, Lookup, word
from environments.domain.lifecycle import FINISHED, RUNNING, SERVED, BuildState
from environments.domain.names import parse_name
from environments.domain.policy import Effect
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
from environments.operations.builds import (
    Submitted,
    accept,
    read_submission,
    refuse_held,
    require_reason,
    submit_permitted,
)
from environments.services import approval_requests, folder_access, folders
from environments.services.policies import Arrival, judge_arrivals


def find_environment(actor: Actor, namespace: str, name: str) -> Environment:
    """Raises NotFoundError, also for environments the actor may not see."""
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
    """`reference`: a number, a tag, `current` or `latest` (the newest build in any state)."""
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


_PRESENT = Lookup(Environment, own=[field.attname for field in Environment._meta.concrete_fields])


def _present(namespace: Namespace, name: str) -> Environment | None:
    """Return the environment of this name that is not deleted."""
    found = _PRESENT.first(
        ("present environment",),
        lambda: Environment.objects.present().order_by().filter(namespace=KEY, name=word("name")),
        {KEY: namespace.pk, word("name"): name},
    )
    if found is not None:
        found.namespace = namespace
    return found


@audited()
def create_environment(
    *, actor: Actor, namespace: Namespace, name: str, description: str = ""
) -> Environment:
    require(actor, Perm.BUILD, namespace)
    environment = _create(actor, namespace, name, description)
    AuditEvent.record(actor, "environment.create", environment)
    return environment


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
    """Submit a build; the environment is created if it does not exist.

    A refused specification creates no environment.
    """
    require(actor, Perm.BUILD, namespace)
    if (found := _present(namespace, name)) is not None:
        # The permission to build in a namespace applies to each of its environments.
        return submit_permitted(
            actor=actor,
            environment=found,
            specification=specification,
            idempotency_key=idempotency_key,
            force_solve=force_solve,
            platforms_wanted=platforms_wanted,
            reason=reason,
        )
    require_reason(reason)
    submission = read_submission(namespace, specification, platforms_wanted=platforms_wanted)
    with audited():
        environment = _present(namespace, name) or create_environment(
            actor=actor, namespace=namespace, name=name, description=description
        )
        return accept(
            actor=actor,
            environment=environment,
            submission=submission,
            idempotency_key=idempotency_key,
            force_solve=force_solve,
            reason=reason,
        )


@audited()
def rename_environment(*, actor: Actor, environment: Environment, name: str) -> Environment:
    """Rename an environment: its folder under `envs/` moves; prefixes stay, as programs may run."""
    require(actor, Perm.BUILD, environment)
    before = environment.name
    _relocate(environment, environment.namespace, parse_name(name, what="environment"))
    AuditEvent.record(actor, "environment.rename", environment, {"before": before})
    return environment


@audited()
def move_environment(
    *, actor: Actor, environment: Environment, namespace: Namespace
) -> Environment:
    """Move the environment with its history to another namespace, without copying files.

    All its builds are evaluated with the policy of `namespace` before anything changes.

    Raises:
        PolicyError: a build that could be served there is refused, or needs an approval.
    """
    require(actor, Perm.MANAGE, environment)
    require(actor, Perm.BUILD, namespace)
    before = str(environment)
    if namespace.pk != environment.namespace_id:
        quotas.require_quota(namespace, environments=1)
        _require_allowed_in(environment, namespace)
    source = environment.namespace
    _relocate(environment, namespace, environment.name)
    # Push rules of the old namespace no longer apply, and must not reveal where it is now.
    Push.objects.filter(environment=environment).exclude(rule__namespace=namespace).delete()
    # Managers of the old namespace may read this event too.
    AuditEvent.record(
        actor, "environment.leave", before, {"after": str(environment)}, namespace=source
    )
    AuditEvent.record(actor, "environment.move", environment, {"before": before})
    return environment


def _require_allowed_in(environment: Environment, namespace: Namespace) -> None:
    """Refuse a move that would bring builds into `namespace` that its policy does not allow.

    Deleted builds that can be restored count too, as they would be served there.
    """
    since = timezone.now() - settings.UNDO_WINDOW
    builds = environment.builds.filter(Q(deleted_at=None) | Q(deleted_at__gte=since))
    arrivals = judge_arrivals(namespace, _served(builds))
    unfit = [arrival for arrival in arrivals if not arrival.allowed]
    if not unfit:
        return
    current = next((one for one in unfit if one.build.pk == environment.current_id), None)
    shown = current or unfit[-1]
    numbers = ", ".join(str(one.build.number) for one in unfit)
    raise PolicyError(
        f"{namespace} does not accept {environment}, because of "
        f"{'build' if len(unfit) == 1 else 'builds'} {numbers}: {_why(shown)}",
        hint="Copy the environment instead: missing approvals are requested there, and older "
        "builds that the policy refuses are left out.",
        details={"verdicts": _details(shown)},
    )


def _served(builds: QuerySet[Build]) -> list[Build]:
    """Return the builds that can be served, by number."""
    rows = builds.filter(state__in=SERVED).exclude(lock=None).order_by("number")
    return list(rows.select_related("lock", "specification"))


def _why(arrival: Arrival) -> str:
    if arrival.refusal is not None:
        return arrival.refusal.message
    requested = [verdict.sentence for verdict in arrival.verdicts if verdict.effect is Effect.ASK]
    return f"it needs an approval. {' '.join(requested[:5])}"


def _details(arrival: Arrival) -> list[Any]:
    if arrival.refusal is not None:
        return list(arrival.refusal.details.get("verdicts", ()))
    return [verdict.to_json() for verdict in arrival.verdicts]


@audited()
def copy_environment(
    *, actor: Actor, environment: Environment, namespace: Namespace, name: str
) -> Environment:
    """Copy an environment with its builds, numbers and tags; the linked folders are shared.

    In another namespace its policy evaluates every build that can be served. The current build is
    refused, or HELD until it is decided; other builds that are not allowed are left out.

    Raises:
        PolicyError: the policy of `namespace` refuses the current build.
    """
    require(actor, Perm.DOWNLOAD, environment)
    require(actor, Perm.BUILD, namespace)
    environment.refresh_from_db()
    retained = environment.builds.filter(deleted_at=None, state__in=FINISHED).order_by("number")
    arrivals: dict[int, Arrival] = {}
    if namespace.pk != environment.namespace_id:
        found = judge_arrivals(namespace, _served(retained))
        arrivals = {arrival.build.pk: arrival for arrival in found}
    first = _first(environment, arrivals)
    if first is not None and first.refusal is not None:
        raise PolicyError(
            f"{namespace} does not accept {first.build}: {first.refusal.message}",
            details=first.refusal.details,
        )
    held = first if first is not None and first.asks else None
    if held is not None:
        in_turn()  # lock order: before the rows of builds, as decisions do
        quotas.require_quota(namespace, builds=1)
    copy = _create(actor, namespace, name, environment.description)
    copies: dict[int, Build] = {}
    left_out: list[int] = []
    for build in retained:
        arrival = arrivals.get(build.pk)
        if arrival is not None and not arrival.allowed and arrival is not held:
            left_out.append(build.number)
            continue
        old, source_events = build.pk, list(build.events.all())
        build.origin_id = build.origin_id or build.pk
        build.pk = None
        build._state.adding = True
        build.environment = copy
        build.idempotency_key, build.log_archive, build.log_lines = "", None, 0
        build.message_sent_at = None
        build.resumed_by = actor.account
        if arrival is not None:
            build.verdicts = [verdict.to_json() for verdict in arrival.verdicts]
        if arrival is not None and arrival is held:
            _hold(build, arrival, actor)
        else:
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
    if current is not None and current.state != BuildState.READY:
        current = None  # becomes current after it is approved and linked
    Environment.objects.filter(pk=copy.pk).update(
        last_number=environment.last_number,
        current=current,
        pinned=environment.pinned and current is not None,
    )
    copy.refresh_from_db()
    change = {"from": str(environment), "left_out": left_out}
    AuditEvent.record(
        actor, "environment.copy", copy, change | ({"held": held.build.number} if held else {})
    )
    folders.follow_environment(copy)
    transaction.on_commit(lambda: folder_access.apply_to_environment(copy))
    return copy


def _first(environment: Environment, arrivals: Mapping[int, Arrival]) -> Arrival | None:
    """Return the build that decides about a copy: the current one, else the newest linked one.

    Without either, the newest of those that could be served, if none of them is allowed.
    """
    if environment.current_id in arrivals:
        return arrivals[environment.current_id or 0]
    ready = [one for one in arrivals.values() if one.build.state == BuildState.READY]
    if ready and environment.current_id is None:
        return ready[-1]
    allowed = any(one.allowed for one in arrivals.values())
    return None if allowed or not arrivals else [*arrivals.values()][-1]


def _hold(build: Build, arrival: Arrival, actor: Actor) -> None:
    """Save the copy of a build as HELD; once approved it is linked into a folder of its own."""
    now = timezone.now()
    build.state, build.prefix, build.finished_at = BuildState.HELD, None, None
    build.requested_by, build.created_at = actor.account, now
    build.attempt, build.not_before, build.attempt_started_at = 0, now, None
    build.lease_token, build.restoring, build.force_solve = 0, False, False
    build.timings, build.link_scripts, build.sandboxed = {}, [], None
    build.save(force_insert=True)
    message = approval_requests.waiting_for(arrival.verdicts)
    BuildEvent.objects.create(build=build, state=BuildState.HELD, message=message)
    approval_requests.open_requests(build, arrival.verdicts)


@audited()
def delete_environment(*, actor: Actor, environment: Environment) -> Environment:
    """Cancel running builds, remove the link under `envs/`, and move the folders to the trash."""
    require(actor, Perm.MANAGE, environment)
    now = timezone.now()
    Environment.objects.select_for_update().get(pk=environment.pk)
    refuse_held(environment.holds.all(), "delete")
    if environment.builds.filter(state=BuildState.HELD).exists():
        in_turn()  # lock order: before the rows of builds, as decisions do
    for build in environment.builds.exclude(state__in=FINISHED):
        running = build.state in RUNNING
        if build.state != BuildState.CANCELLING:
            build.move(
                BuildState.CANCELLING if running else BuildState.CANCELLED,
                message="its environment was deleted",
            )
        approval_requests.withdraw(build)
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
    folders.require_path_length(namespace.name, name)
    quotas.require_quota(namespace, environments=1)
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
            f"The environment {namespace}/{name} already exists.",
            hint="Choose another name, or submit a build to it.",
        ) from None


def _relocate(environment: Environment, namespace: Namespace, name: str) -> None:
    """Change namespace or name of an environment; its links follow."""
    if (namespace.pk, name) == (environment.namespace_id, environment.name):
        raise InvalidInputError(f"It already is {environment}.", where="name")
    if environment.builds.filter(state__in=RUNNING).exists():
        raise ConflictError(
            f"A build of {environment} is running.", hint="Wait for it, or cancel it."
        )
    folders.require_path_length(namespace.name, name)
    old_namespace, old_name = environment.namespace.name, environment.name
    try:
        with transaction.atomic():
            Environment.objects.filter(pk=environment.pk).update(
                namespace=namespace, name=name, updated_at=timezone.now()
            )
    except IntegrityError:
        raise ConflictError(f"The environment {namespace}/{name} already exists.") from None
    environment.refresh_from_db()
    folders.follow(environment.namespace.name, environment.name)
    folders.follow(old_namespace, old_name)
    transaction.on_commit(lambda: folder_access.apply_to_environment(environment))
