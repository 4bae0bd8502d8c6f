"""Previews: solve a specification without building it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from environments.domain.names import parse_name
from environments.models import Environment, Namespace, Preview, SpecificationRow
from environments.operations import credentials, queueing
from environments.operations.builds import read_submission
from environments.operations.namespaces import namespace_to_build_in
from environments.services import hosted_channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Previewed:
    preview: Preview
    warnings: tuple[str, ...]


@transaction.atomic
def preview_for(
    *,
    actor: Actor,
    namespace: str,
    environment: str | None,
    specification: str,
    force_solve: bool = False,
    platforms_wanted: Sequence[str] = (),
) -> Previewed:
    """Preview what `submit_to` would build, in an environment that may not exist yet.

    Args:
        namespace: the caller's personal namespace is created if needed, as by a submission.
        environment: a name; None means no comparison.
    Raises:
        InvalidInputError: the environment name is not valid.
        NotFoundError: there is no such namespace that the caller may see.
    """
    location = namespace_to_build_in(actor, namespace)
    found = None
    if environment is not None:
        visible = Environment.objects.visible_to(actor).select_related("namespace", "current")
        found = visible.filter(namespace=location, name=environment).first()
        if found is None:
            parse_name(environment, what="environment")
    return preview_solve(
        actor=actor,
        namespace=location,
        environment=found,
        specification=specification,
        force_solve=force_solve,
        platforms_wanted=platforms_wanted,
    )


@transaction.atomic
def preview_solve(
    *,
    actor: Actor,
    namespace: Namespace,
    environment: Environment | None,
    specification: str,
    force_solve: bool = False,
    platforms_wanted: Sequence[str] = (),
) -> Previewed:
    """Queue a solve without a build; it is compared with the environment's current build."""
    require(actor, Perm.BUILD, namespace)
    if environment is not None:
        require(actor, Perm.VIEW, environment)
    submission = read_submission(namespace, specification, platforms_wanted=platforms_wanted)
    hosted_channels.require_readable(actor, namespace, submission.specification)
    credentials.require_stored(actor=actor, namespace=namespace, credentials=submission.credentials)
    preview = Preview.objects.create(
        namespace=namespace,
        environment=environment,
        specification=SpecificationRow.store(submission.specification),
        force_solve=force_solve,
        warnings=list(submission.warnings),
        requested_by=actor.account,
        message_sent_at=timezone.now(),  # by `queueing`, once this is committed
    )
    queueing.queue_marked(preview)
    return Previewed(preview=preview, warnings=submission.warnings)
