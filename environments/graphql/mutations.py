"""What can be changed? Each finds in `visible_to`, calls the operation, and answers.

A StoreError becomes the OperationError of the payload (`errors.StoreErrors`): none is caught here.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import strawberry
from asgiref.sync import sync_to_async
from strawberry import ID, Info

from accounts.access import Actor
from accounts.roles import Role
from condastore.errors import NotFoundError
from condastore.http import request_turns
from environments.domain.artifacts import ArtifactKind
from environments.graphql.artifacts import ArtifactNode, artifact_of
from environments.graphql.audit import AuditMutation
from environments.graphql.credentials import CredentialMutation
from environments.graphql.errors import OperationError
from environments.graphql.governance import GovernanceMutation
from environments.graphql.hosted import HostedMutation
from environments.graphql.images import ImageMutation
from environments.graphql.mirrors import MirrorMutation
from environments.graphql.packages import BigInt
from environments.graphql.pages import Key, actor_of, field
from environments.graphql.policies import PolicyMutations
from environments.graphql.retention import RetentionMutation
from environments.graphql.role_mappings import RoleMappingMutations
from environments.graphql.service_accounts import ServiceAccountMutations
from environments.graphql.types import (
    ApiTokenNode,
    BuildNode,
    EnvironmentNode,
    NamespaceNode,
    PreviewNode,
    find,
)
from environments.models import Build, Environment, Preview, audited
from environments.models.previews import PreviewState
from environments.operations import (
    artifacts,
    builds,
    environments,
    namespaces,
    previews,
    quotas,
    tokens,
)
from environments.operations.namespaces import find_namespace, namespace_to_build_in

#: Between two looks at a preview that is being solved.
LOOK = 0.1
LONGEST_WAIT = 60.0


@strawberry.type
class SubmittedBuild:
    build: BuildNode
    warnings: list[str]
    created: bool = strawberry.field(
        description="False where the idempotency key was seen before: this is the first build."
    )


@strawberry.type(description="`secret` is told now and never again.")
class CreatedToken:
    secret: str
    token: ApiTokenNode


NamespacePayload = Annotated[NamespaceNode | OperationError, strawberry.union("NamespacePayload")]
EnvironmentPayload = Annotated[
    EnvironmentNode | OperationError, strawberry.union("EnvironmentPayload")
]
BuildPayload = Annotated[BuildNode | OperationError, strawberry.union("BuildPayload")]
ArtifactPayload = Annotated[ArtifactNode | OperationError, strawberry.union("ArtifactPayload")]
SubmitPayload = Annotated[SubmittedBuild | OperationError, strawberry.union("SubmitPayload")]
PreviewPayload = Annotated[PreviewNode | OperationError, strawberry.union("PreviewPayload")]
CreatedTokenPayload = Annotated[
    CreatedToken | OperationError, strawberry.union("CreatedTokenPayload")
]
TokenPayload = Annotated[ApiTokenNode | OperationError, strawberry.union("TokenPayload")]


def _build(actor: Actor, key: ID) -> Build:
    rows = Build.objects.visible_to(actor).select_related("environment__namespace", "lock")
    found: Build = find(rows, key, "build")
    return found


def _environment(actor: Actor, key: ID) -> Environment:
    rows = Environment.objects.visible_to(actor).select_related("namespace", "current")
    found: Environment = find(rows, key, "environment")
    return found


@strawberry.type
class Mutation(
    AuditMutation,
    CredentialMutation,
    GovernanceMutation,
    HostedMutation,
    MirrorMutation,
    ImageMutation,
    PolicyMutations,
    RetentionMutation,
    RoleMappingMutations,
    ServiceAccountMutations,
):
    # --- namespaces ----------------------------------------------------------------------------

    @field()
    def create_namespace(
        self, info: Info, name: str, description: str = "", public: bool = False
    ) -> NamespacePayload:
        found: Any = namespaces.create_namespace(
            actor=actor_of(info), name=name, description=description, public=public
        )
        return found  # type: ignore[no-any-return]

    @field(
        description="To a user or a group, in place of the role it had. A name that does not exist "
        "is accepted too, and gets the role when it does."
    )
    def grant_role(
        self,
        info: Info,
        namespace: str,
        role: Role,
        user: str | None = None,
        group: str | None = None,
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        namespaces.grant_role(
            actor=actor, namespace=found, role=role, user=user or "", group=group or ""
        )
        return found  # type: ignore[no-any-return]

    @field(description="The role that was granted to this name; roles by groups stay.")
    def revoke_role(
        self, info: Info, namespace: str, user: str | None = None, group: str | None = None
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        namespaces.revoke_role(actor=actor, namespace=found, user=user or "", group=group or "")
        return found  # type: ignore[no-any-return]

    @field(
        description="By administrators. 0: no limit; null: the installation's default; left out: "
        "as it is."
    )
    def set_quota(
        self,
        info: Info,
        namespace: str,
        bytes: BigInt | None = strawberry.UNSET,  # noqa: A002 - as clients call it
        environments: int | None = strawberry.UNSET,
        builds_at_once: int | None = strawberry.UNSET,
        builds_a_day: int | None = strawberry.UNSET,
    ) -> NamespacePayload:
        actor = actor_of(info)
        asked = {
            "bytes": bytes,
            "environments": environments,
            "builds_at_once": builds_at_once,
            "builds_a_day": builds_a_day,
        }
        found: Any = quotas.set_quota(
            actor=actor,
            namespace=find_namespace(actor, namespace),
            limits={name: limit for name, limit in asked.items() if limit is not strawberry.UNSET},
        )
        return found  # type: ignore[no-any-return]

    @field(
        description="Whether new solves of the namespace add pip as a dependency of Python, as "
        "conda and mamba do. A `pip:` part of a specification always adds it."
    )
    def set_add_pip_as_python_dependency(
        self, info: Info, namespace: str, on: bool
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = namespaces.set_add_pip(
            actor=actor, namespace=find_namespace(actor, namespace), on=on
        )
        return found  # type: ignore[no-any-return]

    @field(description="The files that each new build of the namespace is made into.")
    def set_eager_artifacts(
        self, info: Info, namespace: str, kinds: list[ArtifactKind]
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = artifacts.set_eager_artifacts(
            actor=actor, namespace=find_namespace(actor, namespace), kinds=kinds
        )
        return found  # type: ignore[no-any-return]

    # --- environments --------------------------------------------------------------------------

    @field(description="With a specification it also submits the first build.")
    def create_environment(
        self,
        info: Info,
        namespace: str,
        name: str,
        description: str = "",
        specification: str | None = None,
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        place = namespace_to_build_in(actor, namespace)
        with audited():  # a specification that is refused leaves no environment
            found: Any = environments.create_environment(
                actor=actor, namespace=place, name=name, description=description
            )
            if specification is not None:
                builds.submit_build(actor=actor, environment=found, specification=specification)
        found.refresh_from_db()
        return found  # type: ignore[no-any-return]

    @field(
        description="Copy an environment with its history, without copying bytes. The rules of "
        "another namespace judge it: its current build is refused, or held for approval; other "
        "builds that are not allowed there are left out."
    )
    def copy_environment(
        self, info: Info, environment_id: ID, namespace: str, name: str
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = environments.copy_environment(
            actor=actor,
            environment=_environment(actor, environment_id),
            namespace=namespace_to_build_in(actor, namespace),
            name=name,
        )
        return found  # type: ignore[no-any-return]

    @field(
        description="Move an environment with its history. Refused where the rules of the other "
        "namespace do not allow every build that could be served there."
    )
    def move_environment(
        self, info: Info, environment_id: ID, namespace: str
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = environments.move_environment(
            actor=actor,
            environment=_environment(actor, environment_id),
            namespace=find_namespace(actor, namespace),
        )
        return found  # type: ignore[no-any-return]

    @field()
    def rename_environment(self, info: Info, environment_id: ID, name: str) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = environments.rename_environment(
            actor=actor, environment=_environment(actor, environment_id), name=name
        )
        return found  # type: ignore[no-any-return]

    @field(description="Cancels what runs; the files go to the trash.")
    def delete_environment(self, info: Info, environment_id: ID) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = environments.delete_environment(
            actor=actor, environment=_environment(actor, environment_id)
        )
        return found  # type: ignore[no-any-return]

    @field(description="Let a user or a group see and download it; as `grantRole` of names.")
    def share_environment(
        self, info: Info, environment_id: ID, user: str | None = None, group: str | None = None
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = _environment(actor, environment_id)
        namespaces.share_environment(
            actor=actor, environment=found, user=user or "", group=group or ""
        )
        return found  # type: ignore[no-any-return]

    @field()
    def unshare_environment(
        self, info: Info, environment_id: ID, user: str | None = None, group: str | None = None
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = _environment(actor, environment_id)
        namespaces.unshare_environment(
            actor=actor, environment=found, user=user or "", group=group or ""
        )
        return found  # type: ignore[no-any-return]

    # --- builds --------------------------------------------------------------------------------

    @field(
        description="Queue a build of an environment.yml, a conda-lock.yml or an @EXPLICIT list."
    )
    def submit_build(
        self,
        info: Info,
        namespace: str,
        environment: str,
        specification: str,
        idempotency_key: str | None = None,
        force_solve: bool = False,
        platforms: list[str] | None = None,
        create_missing: bool = True,
        reason: str = "",
    ) -> SubmitPayload:
        actor = actor_of(info)
        asked: dict[str, Any] = {
            "actor": actor,
            "specification": specification,
            "idempotency_key": idempotency_key or "",
            "force_solve": force_solve,
            "platforms_wanted": tuple(platforms or ()),
            "reason": reason,
        }
        if create_missing:
            place = _namespace_for(actor, namespace, environment)
            submitted = environments.submit_to(namespace=place, name=environment, **asked)
        else:
            found = environments.find_environment(actor, namespace, environment)
            submitted = builds.submit_build(environment=found, **asked)
        made: Any = submitted.build
        return SubmittedBuild(
            build=made, warnings=list(submitted.warnings), created=submitted.created
        )

    @field(
        description="Solve a specification without building it, and compare the answer with the "
        "current build of the environment, which need not exist yet. Waits up to `wait` seconds."
    )
    async def preview_solve(
        self,
        info: Info,
        namespace: str,
        specification: str,
        environment: str | None = None,
        force_solve: bool = False,
        wait: float = 20,
        platforms: list[str] | None = None,
    ) -> PreviewPayload:
        actor = actor_of(info)

        def ask() -> previews.Previewed:
            return previews.preview_for(
                actor=actor,
                namespace=namespace,
                environment=environment,
                specification=specification,
                force_solve=force_solve,
                platforms_wanted=tuple(platforms or ()),
            )

        previewed = await sync_to_async(ask)()
        found: Any = await _solved(previewed.preview, wait)
        return found  # type: ignore[no-any-return]

    @field()
    def cancel_build(self, info: Info, key: Key) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.cancel_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field(description="A pinned pointer is not moved by builds that come later.")
    def set_current_build(self, info: Info, key: Key, pin: bool = False) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.set_current_build(actor=actor, build=_build(actor, key), pin=pin)
        return found  # type: ignore[no-any-return]

    @field(description="Roll forward: to the newest READY build, and go on.")
    def unpin(self, info: Info, environment_id: ID) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = builds.unpin(actor=actor, environment=_environment(actor, environment_id))
        return found  # type: ignore[no-any-return]

    @field(description="To the READY build before the current one; pins it.")
    def rollback(self, info: Info, environment_id: ID, to: ID | None = None) -> EnvironmentPayload:
        actor = actor_of(info)
        environment: Any = _environment(actor, environment_id)
        target = None
        if to is not None:
            rows = Build.objects.visible_to(actor).filter(environment=environment)
            target = find(rows, to, f"build of {environment}")
        builds.rollback(actor=actor, environment=environment, to=target)
        environment.refresh_from_db()
        return environment  # type: ignore[no-any-return]

    @field(description="Moves the tag here from where it is.")
    def tag_build(self, info: Info, key: Key, tag: str) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.tag_build(actor=actor, build=_build(actor, key), tag=tag)
        return found  # type: ignore[no-any-return]

    @field()
    def untag(self, info: Info, environment_id: ID, tag: str) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = builds.untag(
            actor=actor, environment=_environment(actor, environment_id), tag=tag
        )
        return found  # type: ignore[no-any-return]

    @field(description="Drops the bytes; it can be restored without a solve.")
    def archive_build(self, info: Info, key: Key) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.archive_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field()
    def restore_build(self, info: Info, key: Key) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.restore_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field()
    def delete_build(self, info: Info, key: Key) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.delete_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field(
        description="Have a file made of the build's lock, or tell how far that is. Without a "
        "platform: for that of the build's folder. Ask `build { artifacts }` for its progress."
    )
    def create_artifact(
        self, info: Info, build_id: ID, kind: ArtifactKind, platform: str | None = None
    ) -> ArtifactPayload:
        actor = actor_of(info)
        build = _build(actor, build_id)
        made = artifacts.create_artifact(
            actor=actor, build=build, kind=kind, platform=platform or ""
        )
        return artifact_of(info, build, made)

    # --- tokens --------------------------------------------------------------------------------

    @field(description="For you, or for a service account of yours.")
    def create_token(
        self,
        info: Info,
        name: str,
        role: Role | None = None,
        namespaces: list[str] | None = None,
        days: int = 90,
        service_account: str | None = None,
    ) -> CreatedTokenPayload:
        made = tokens.create_token(
            actor=actor_of(info),
            name=name,
            role=role,
            namespaces=namespaces or (),
            days=days,
            service_account=service_account or "",
        )
        token: Any = made.token
        return CreatedToken(secret=made.secret, token=token)

    @field()
    def revoke_token(self, info: Info, key: Key) -> TokenPayload:
        if not key.isdecimal() or len(key) > 18:
            raise NotFoundError("There is no such token.", where="id")
        found: Any = tokens.revoke_token(actor=actor_of(info), token_id=key)
        return found  # type: ignore[no-any-return]


def _namespace_for(actor: Actor, namespace: str, environment: str) -> Any:
    """The namespace; through the environment for those with whom only that was shared."""
    try:
        return namespace_to_build_in(actor, namespace)
    except NotFoundError:
        found = Environment.objects.visible_to(actor).filter(
            namespace__name=namespace, name=environment
        )
        if place := found.select_related("namespace").first():
            return place.namespace
        raise


async def _solved(preview: Preview, wait: float) -> Preview:
    """The preview as it is when it is finished, or when the wait is over."""
    until = time.monotonic() + min(max(wait, 0), LONGEST_WAIT)
    rows = Preview.objects.select_related("lock", "environment")
    while True:
        found = await rows.aget(pk=preview.pk)
        left = until - time.monotonic()
        if found.state in (PreviewState.READY, PreviewState.FAILED) or left <= 0:
            return found
        await request_turns.pause(min(LOOK, left))
