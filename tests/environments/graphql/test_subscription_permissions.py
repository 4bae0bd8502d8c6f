"""Who may follow a subscription: each of them, as everybody.

Subscriptions read in other threads, so that their rows are committed: a file of its own, as the
world of the permission matrix is one transaction.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from accounts.roles import Perm
from condastore.schema import schema
from environments.domain.lifecycle import BuildState
from environments.models import BuildEvent
from tests.environments.graphql.asking import context_of
from tests.environments.graphql.test_permission_matrix import (
    FOLLOWED,
    Persona,
    actor_of,
    everybody,
    make_world,
    used,
)


@everybody
@pytest.mark.django_db(transaction=True)
def test_subscriptions_are_for_those_who_may_look(persona: Persona) -> None:
    world = make_world()
    if persona.refused:
        with pytest.raises(Exception, match="not valid"):
            actor_of(persona)
        return
    actor = actor_of(persona)

    async def first(document: str) -> Any:
        results = await schema.subscribe(
            document,
            variable_values=used(document, world.ids),
            context_value=context_of(actor),
        )
        try:
            return await asyncio.wait_for(anext(aiter(results)), 30)
        finally:
            await results.aclose()  # type: ignore[union-attr]

    async def followed(document: str) -> Any:
        waiting = asyncio.create_task(first(document))
        while not waiting.done():
            await BuildEvent(build=world.current, state=BuildState.READY).asave()
            await asyncio.wait({waiting}, timeout=0.2)
        return waiting.result()

    for name, document in FOLLOWED.items():
        result = asyncio.run(followed(document))
        if Perm.VIEW in persona.perms:
            assert result is not None
            assert not result.errors, (name, result)
        else:
            assert [error.extensions["code"] for error in result.errors] == ["not-found"], name
