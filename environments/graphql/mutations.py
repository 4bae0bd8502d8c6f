"""Mutations. Each finds its rows in `visible_to`, calls the operation, and returns the result.

A StoreError becomes the OperationError of the payload (`errors.StoreErrors`): none is caught here.

One file: GraphQL has one Mutation type. Other subjects' mutations are mixed in from their modules.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import strawberry
from asgiref.sync import sync_to_async
from strawberry import ID, Info

from accounts.access import Actor
from condastore.errors import NotFoundError
from condastore.http import request_turns
from condastore.row_changes import AsyncWatch, topic_of
from environments.domain.artifacts import ArtifactKind
from environments.graphql.accounts import ApiTokenNode
from environments.graphql.arguments import (
    BuildKey,
    EnvironmentId,
    EnvironmentName,
    GroupName,
    NamespaceName,
    Platforms,
    UserName,
)
from environments.graphql.artifacts import ArtifactNode, artifact_of
from environments.graphql.audit import AuditMutation
from environments.graphql.builds import BuildNode
from environments.graphql.credentials import CredentialMutation
from environments.graphql.enums import Role
from environments.graphql.environments import EnvironmentNode
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import actor_of, described, field
from environments.graphql.governance import GovernanceMutation
from environments.graphql.hosted import HostedMutation
from environments.graphql.images import ImageMutation
from environments.graphql.mirrors import MirrorMutation
from environments.graphql.namespaces import NamespaceNode
from environments.graphql.nodes import find, key_in
from environments.graphql.policies import PolicyMutations
from environments.graphql.previews import PreviewNode
from environments.graphql.retention import RetentionMutation
from environments.graphql.role_mappings import RoleMappingMutations
from environments.graphql.scalars import BigInt
from environments.graphql.service_accounts import ServiceAccountMutations
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

LONGEST_WAIT = 60.0


@strawberry.type(description="Result of submitting a build.")
class SubmittedBuild:
    build: BuildNode = strawberry.field(
        description="The new build, or the build that already has the idempotency key."
    )
    warnings: list[str] = strawberry.field(
        description="Parts of the specification that were accepted but are probably mistakes."
    )
    created: bool = strawberry.field(
        description="False when a build with the idempotency key already existed."
    )


@strawberry.type(description="New API token with its secret.")
class CreatedToken:
    secret: str = strawberry.field(description="Secret of the token; it is shown only once.")
    token: ApiTokenNode = strawberry.field(description="The new token.")


NamespacePayload = Annotated[NamespaceNode | OperationError, refusable("NamespacePayload")]
EnvironmentPayload = Annotated[EnvironmentNode | OperationError, refusable("EnvironmentPayload")]
BuildPayload = Annotated[BuildNode | OperationError, refusable("BuildPayload")]
ArtifactPayload = Annotated[ArtifactNode | OperationError, refusable("ArtifactPayload")]
SubmitPayload = Annotated[SubmittedBuild | OperationError, refusable("SubmitPayload")]
PreviewPayload = Annotated[PreviewNode | OperationError, refusable("PreviewPayload")]
CreatedTokenPayload = Annotated[CreatedToken | OperationError, refusable("CreatedTokenPayload")]
TokenPayload = Annotated[ApiTokenNode | OperationError, refusable("TokenPayload")]


def _build(actor: Actor, key: ID) -> Build:
    rows = Build.objects.visible_to(actor).select_related("environment__namespace", "lock")
    found: Build = find(rows, key, "build")
    return found


def _environment(actor: Actor, key: ID) -> Environment:
    rows = Environment.objects.visible_to(actor).select_related("namespace", "current")
    found: Environment = find(rows, key, "environment")
    return found


@strawberry.type(
    description="Changes. Each mutation checks the caller's permissions and returns "
    "OperationError when it is refused."
)
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

    @field(description="Create a namespace.")
    def create_namespace(
        self,
        info: Info,
        name: NamespaceName,
        description: Annotated[str, described("Description of the namespace.")] = "",
        public: Annotated[
            bool, described("True to let everyone view and download its environments.")
        ] = False,
    ) -> NamespacePayload:
        found: Any = namespaces.create_namespace(
            actor=actor_of(info), name=name, description=description, public=public
        )
        return found  # type: ignore[no-any-return]

    @field(
        description="Grant a role to a user or group, replacing the previous one. A "
        "name that does not exist yet receives the role when it does."
    )
    def grant_role(
        self,
        info: Info,
        namespace: NamespaceName,
        role: Annotated[Role, described("Role to grant.")],
        user: UserName = None,
        group: GroupName = None,
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        namespaces.grant_role(
            actor=actor, namespace=found, role=role, user=user or "", group=group or ""
        )
        return found  # type: ignore[no-any-return]

    @field(
        description="Revoke the role granted to a user or group by name; roles through groups stay."
    )
    def revoke_role(
        self, info: Info, namespace: NamespaceName, user: UserName = None, group: GroupName = None
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        namespaces.revoke_role(actor=actor, namespace=found, user=user or "", group=group or "")
        return found  # type: ignore[no-any-return]

    @field(
        description="Set quotas. Omitted arguments stay unchanged; null means the "
        "installation's default, 0 means no limit. Administrators only."
    )
    def set_quota(
        self,
        info: Info,
        namespace: NamespaceName,
        bytes: Annotated[BigInt | None, described("Limit of bytes on disk.")] = strawberry.UNSET,  # noqa: A002 - as clients call it
        environments: Annotated[int | None, described("Limit of environments.")] = strawberry.UNSET,
        builds_at_once: Annotated[
            int | None, described("Limit of unfinished builds.")
        ] = strawberry.UNSET,
        builds_a_day: Annotated[
            int | None, described("Limit of builds submitted within 24 hours.")
        ] = strawberry.UNSET,
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
        description="Set whether new solves add pip as a dependency of Python. A `pip:` "
        "section of a specification always adds it."
    )
    def set_add_pip_as_python_dependency(
        self,
        info: Info,
        namespace: NamespaceName,
        on: Annotated[bool, described("True to add pip.")],
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = namespaces.set_add_pip(
            actor=actor, namespace=find_namespace(actor, namespace), on=on
        )
        return found  # type: ignore[no-any-return]

    @field(description="Set the files that are generated for each new build without a request.")
    def set_eager_artifacts(
        self,
        info: Info,
        namespace: NamespaceName,
        kinds: Annotated[
            list[ArtifactKind], described("Formats of the files; an empty list means none.")
        ],
    ) -> NamespacePayload:
        actor = actor_of(info)
        found: Any = artifacts.set_eager_artifacts(
            actor=actor, namespace=find_namespace(actor, namespace), kinds=kinds
        )
        return found  # type: ignore[no-any-return]

    # --- environments --------------------------------------------------------------------------

    @field(
        description="Create an environment, and submit its first build when a "
        "specification is given."
    )
    def create_environment(
        self,
        info: Info,
        namespace: NamespaceName,
        name: EnvironmentName,
        description: Annotated[str, described("Description of the environment.")] = "",
        specification: Annotated[
            str | None, described("Specification of the first build; null means no build.")
        ] = None,
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
        description="Copy an environment with its history, without copying files. In "
        "another namespace its rules apply: the current build is refused or "
        "held for approval, and other disallowed builds are omitted."
    )
    def copy_environment(
        self,
        info: Info,
        environment_id: EnvironmentId,
        namespace: Annotated[str, described("Name of the target namespace.")],
        name: Annotated[str, described("Name of the copy.")],
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
        description="Move an environment with its history. Refused if the target "
        "namespace does not allow every build that could be served there."
    )
    def move_environment(
        self,
        info: Info,
        environment_id: EnvironmentId,
        namespace: Annotated[str, described("Name of the target namespace.")],
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = environments.move_environment(
            actor=actor,
            environment=_environment(actor, environment_id),
            namespace=find_namespace(actor, namespace),
        )
        return found  # type: ignore[no-any-return]

    @field(description="Rename an environment.")
    def rename_environment(
        self,
        info: Info,
        environment_id: EnvironmentId,
        name: Annotated[str, described("New name of the environment.")],
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = environments.rename_environment(
            actor=actor, environment=_environment(actor, environment_id), name=name
        )
        return found  # type: ignore[no-any-return]

    @field(
        description="Delete an environment and cancel its running builds; it can be "
        "undeleted for a limited time."
    )
    def delete_environment(self, info: Info, environment_id: EnvironmentId) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = environments.delete_environment(
            actor=actor, environment=_environment(actor, environment_id)
        )
        return found  # type: ignore[no-any-return]

    @field(
        description="Let a user or group view and download one environment. A name that "
        "does not exist yet receives access when it does."
    )
    def share_environment(
        self,
        info: Info,
        environment_id: EnvironmentId,
        user: UserName = None,
        group: GroupName = None,
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = _environment(actor, environment_id)
        namespaces.share_environment(
            actor=actor, environment=found, user=user or "", group=group or ""
        )
        return found  # type: ignore[no-any-return]

    @field(description="Stop sharing an environment with a user or group.")
    def unshare_environment(
        self,
        info: Info,
        environment_id: EnvironmentId,
        user: UserName = None,
        group: GroupName = None,
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
        namespace: NamespaceName,
        environment: EnvironmentName,
        specification: Annotated[str, described("Text of the specification.")],
        idempotency_key: Annotated[
            str | None, described("Repeated submissions with the same key return the first build.")
        ] = None,
        force_solve: Annotated[
            bool, described("True to solve again even if the specification was solved before.")
        ] = False,
        platforms: Platforms = None,
        create_missing: Annotated[
            bool, described("True to create the environment if it does not exist.")
        ] = True,
        reason: Annotated[str, described("Purpose of the build, for approvers.")] = "",
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
        description="Solve a specification without building it, and compare the result "
        "with the environment's current build."
    )
    async def preview_solve(
        self,
        info: Info,
        namespace: NamespaceName,
        specification: Annotated[str, described("Text of the specification.")],
        environment: Annotated[
            str | None, described("Name of the environment to compare with; it need not exist.")
        ] = None,
        force_solve: Annotated[
            bool, described("True to solve again even if the specification was solved before.")
        ] = False,
        wait: Annotated[
            float, described("Maximum time to wait for the result, in seconds, at most 60.")
        ] = 20,
        platforms: Platforms = None,
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

    @field(description="Cancel a queued, held or running build.")
    def cancel_build(self, info: Info, key: BuildKey) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.cancel_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field(description="Make a READY build the current build of its environment.")
    def set_current_build(
        self,
        info: Info,
        key: BuildKey,
        pin: Annotated[bool, described("True to pin it: later builds do not replace it.")] = False,
    ) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.set_current_build(actor=actor, build=_build(actor, key), pin=pin)
        return found  # type: ignore[no-any-return]

    @field(description="Unpin an environment and make its newest READY build current.")
    def unpin(self, info: Info, environment_id: EnvironmentId) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = builds.unpin(actor=actor, environment=_environment(actor, environment_id))
        return found  # type: ignore[no-any-return]

    @field(description="Roll back to the previous READY build, or to a given one, and pin it.")
    def rollback(
        self,
        info: Info,
        environment_id: EnvironmentId,
        to: Annotated[
            ID | None,
            described("Id of the build to roll back to; null means the previous READY build."),
        ] = None,
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        environment: Any = _environment(actor, environment_id)
        target = None
        if to is not None:
            rows = Build.objects.visible_to(actor).filter(environment=environment)
            target = find(rows, to, f"build of {environment}")
        builds.rollback(actor=actor, environment=environment, to=target)
        environment.refresh_from_db()
        return environment  # type: ignore[no-any-return]

    @field(description="Point a tag to a build, moving it if it exists.")
    def tag_build(
        self, info: Info, key: BuildKey, tag: Annotated[str, described("Name of the tag.")]
    ) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.tag_build(actor=actor, build=_build(actor, key), tag=tag)
        return found  # type: ignore[no-any-return]

    @field(description="Delete a tag from an environment.")
    def untag(
        self,
        info: Info,
        environment_id: EnvironmentId,
        tag: Annotated[str, described("Name of the tag.")],
    ) -> EnvironmentPayload:
        actor = actor_of(info)
        found: Any = builds.untag(
            actor=actor, environment=_environment(actor, environment_id), tag=tag
        )
        return found  # type: ignore[no-any-return]

    @field(description="Delete the prefix of a build; it can be restored without a solve.")
    def archive_build(self, info: Info, key: BuildKey) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.archive_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field(description="Link the prefix of an archived build again from its lock.")
    def restore_build(self, info: Info, key: BuildKey) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.restore_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field(description="Delete a build; it can be undeleted for a limited time.")
    def delete_build(self, info: Info, key: BuildKey) -> BuildPayload:
        actor = actor_of(info)
        found: Any = builds.delete_build(actor=actor, build=_build(actor, key))
        return found  # type: ignore[no-any-return]

    @field(
        description="Request a file generated from the build's lock, or return its "
        "state if it was requested before. `Build.artifacts` shows its "
        "progress."
    )
    def create_artifact(
        self,
        info: Info,
        build_id: Annotated[ID, described("Id of the build.")],
        kind: Annotated[ArtifactKind, described("Format of the file.")],
        platform: Annotated[
            str | None, described("Platform of the file; null means the platform of the build.")
        ] = None,
    ) -> ArtifactPayload:
        actor = actor_of(info)
        build = _build(actor, build_id)
        made = artifacts.create_artifact(
            actor=actor, build=build, kind=kind, platform=platform or ""
        )
        return artifact_of(info, build, made)

    # --- tokens --------------------------------------------------------------------------------

    @field(
        description="Create an API token for the caller or for one of the caller's "
        "service accounts."
    )
    def create_token(
        self,
        info: Info,
        name: Annotated[str, described("Name of the token.")],
        role: Annotated[
            Role | None,
            described("Highest role the token acts with; null means the roles of its account."),
        ] = None,
        namespaces: Annotated[
            list[str] | None,
            described(
                "Names of the namespaces the token is limited to; null or an empty "
                "list means no limit."
            ),
        ] = None,
        days: Annotated[int, described("Days until the token expires.")] = 90,
        service_account: Annotated[
            str | None, described("Name of the service account; null means the caller.")
        ] = None,
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

    @field(description="Revoke an API token.")
    def revoke_token(
        self, info: Info, key: Annotated[ID, described("Id of the token.", name="id")]
    ) -> TokenPayload:
        token = key_in(key, "ApiToken")
        if not token.isdecimal() or len(token) > 18:
            raise NotFoundError("There is no such token.", where="id")
        found: Any = tokens.revoke_token(actor=actor_of(info), token_id=ID(token))
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
    with AsyncWatch(topic_of(preview)) as watch:
        while True:
            found = await rows.aget(pk=preview.pk)
            ended = found.state in (PreviewState.READY, PreviewState.FAILED)
            if ended or time.monotonic() >= until:
                return found
            await request_turns.pause(watch, until=until)
