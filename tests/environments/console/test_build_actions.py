"""Actions on a build: a page that states the effect, and a form that does it."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.access import Actor
from environments.console.build_actions import ACTIONS
from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment
from tests import factories
from tests.environments.console.test_build_page import PAGE, signed_in

#: State in which each action is possible, and whether the build is current then.
POSSIBLE = {
    "cancel": (BuildState.QUEUED, False),
    "retry": (BuildState.FAILED, False),
    "make-current": (BuildState.READY, False),
    "pin": (BuildState.READY, False),
    "archive": (BuildState.READY, False),
    "restore": (BuildState.ARCHIVED, False),
    "delete": (BuildState.FAILED, False),
}


def snapshot() -> list[object]:
    rows = Build.objects.order_by("pk").values_list("number", "state", "deleted_at")
    return [*rows, *Environment.objects.values_list("current", "pinned")]


def test_each_action_is_tried_here() -> None:
    assert set(POSSIBLE) == set(ACTIONS)


@pytest.mark.parametrize("action", POSSIBLE)
def test_an_action_states_its_effect_and_is_done_by_a_form_only(
    alice: Actor, dora: Actor, environment: Environment, action: str
) -> None:
    state, current = POSSIBLE[action]
    factories.make_build(environment, state, current=current)
    client = signed_in(dora if action == "delete" else alice)
    address = f"{PAGE}actions/{action}/"
    assert address in client.get(PAGE).content.decode()
    before = snapshot()
    page = client.get(address).content.decode()
    assert ACTIONS[action].label in page
    assert 'method="post"' in page
    assert snapshot() == before
    answer = client.post(address)
    assert answer.status_code == 303
    assert snapshot() != before
    assert "is-ok" in client.get("/environments/research/ml/").content.decode()


@pytest.mark.parametrize("action", POSSIBLE)
def test_an_action_is_refused_without_the_role_for_it(
    bob: Actor, charlie: Actor, environment: Environment, action: str
) -> None:
    state, current = POSSIBLE[action]
    factories.make_build(environment, state, current=current)
    before = snapshot()
    address = f"{PAGE}actions/{action}/"
    viewer = signed_in(bob)
    assert address not in viewer.get(PAGE).content.decode()
    assert "does not permit this" in viewer.get(address).content.decode()
    assert viewer.post(address).status_code == 403
    assert signed_in(charlie).post(address).status_code == 404
    assert Client().post(address).status_code == 404
    assert snapshot() == before


def test_an_action_that_is_not_possible_now_says_so(alice: Actor, environment: Environment) -> None:
    factories.make_build(environment)
    client = signed_in(alice)
    page = client.get(f"{PAGE}actions/cancel/").content.decode()
    assert "not possible now" in page
    answer = client.post(f"{PAGE}actions/cancel/", follow=True)
    assert "cannot be cancelled" in answer.content.decode()


def test_an_unknown_action_is_not_found(alice: Actor, environment: Environment) -> None:
    factories.make_build(environment)
    assert signed_in(alice).get(f"{PAGE}actions/explode/").status_code == 404


def test_a_retry_leads_to_the_new_build(alice: Actor, environment: Environment) -> None:
    factories.make_build(environment, BuildState.FAILED, text="dependencies: [zlib]")
    answer = signed_in(alice).post(f"{PAGE}actions/retry/")
    assert answer["Location"] == "/environments/research/ml/builds/2/"
    assert Build.objects.get(number=2).source == "dependencies: [zlib]"


def test_a_form_of_another_site_changes_nothing(alice: Actor, environment: Environment) -> None:
    factories.make_build(environment, BuildState.QUEUED)
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice.account)
    assert client.post(f"{PAGE}actions/cancel/").status_code == 403
