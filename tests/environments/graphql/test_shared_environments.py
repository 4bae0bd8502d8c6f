"""What a person sees of the namespace of an environment that alone was shared with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from condastore.schema import schema
from environments.models import Namespace
from environments.operations.namespaces import share_environment
from tests import factories
from tests.environments.graphql.asking import ask, context_of

NAMESPACE = "namespace { databaseId name description myPermissions quotas { kind } }"
FOLLOW = f"""subscription($id: ID!) {{
  buildProgress(buildId: $id) {{ build {{ environment {{ {NAMESPACE} }} }} }} }}"""
LIST = f"{{ environments {{ edges {{ node {{ {NAMESPACE} }} }} }} }}"


def _shared() -> tuple[Any, Actor, Actor]:
    """A build whose environment is shared with Charlie, an administrator, and Charlie."""
    namespace = factories.make_namespace("research", dora=Role.ADMIN)
    Namespace.objects.filter(pk=namespace.pk).update(description="Not for Charlie")
    charlie, dora = factories.make_user("charlie"), User.objects.get(username="dora")
    build = factories.make_build(factories.make_environment(namespace))
    share_environment(actor=factories.actor(dora), environment=build.environment, user="charlie")
    return build, factories.actor(dora), factories.actor(charlie)


async def _first(actor: Actor, build: Any) -> Any:
    results = await schema.subscribe(
        FOLLOW, variable_values={"id": str(build.pk)}, context_value=context_of(actor)
    )
    try:
        return await asyncio.wait_for(anext(aiter(results)), 30)
    finally:
        await results.aclose()  # type: ignore[union-attr]


@pytest.mark.django_db(transaction=True)
def test_a_subscription_gives_only_the_name_of_a_namespace_that_is_not_visible() -> None:
    build, dora, charlie = _shared()
    for actor, description in ((charlie, ""), (dora, "Not for Charlie")):
        result = asyncio.run(_first(actor, build))
        assert not result.errors, result.errors
        shown = result.data["buildProgress"]["build"]["environment"]["namespace"]
        assert shown["name"] == "research"
        assert shown["description"] == description
        assert (shown["databaseId"] == "0") is (actor is charlie)


@pytest.mark.django_db
def test_a_list_and_a_mutation_show_the_namespace_to_those_who_may_see_it() -> None:
    build, dora, charlie = _shared()
    for actor, description in ((charlie, ""), (dora, "Not for Charlie")):
        (edge,) = ask(actor, LIST)["environments"]["edges"]
        assert edge["node"]["namespace"]["description"] == description
    renamed = ask(
        dora,
        'mutation($id: ID!) { renameEnvironment(environmentId: $id, name: "other") '
        f"{{ ... on Environment {{ {NAMESPACE} }} }} }}",
        id=str(build.environment.pk),
    )
    assert renamed["renameEnvironment"]["namespace"]["description"] == "Not for Charlie"
