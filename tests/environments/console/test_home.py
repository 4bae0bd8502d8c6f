"""Start page: what waits for a person, what is being built, own environments."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.models import ApprovalRequest, Build, Environment, WaitingBuild
from environments.operations import recalls
from tests import factories


def home(actor: Actor) -> str:
    client = Client()
    client.force_login(actor.account)
    answer = client.get("/")
    assert answer.status_code == 200
    return answer.content.decode()


def requested_by(actor: Actor, build: Build) -> Build:
    Build.objects.filter(pk=build.pk).update(requested_by=actor.account)
    return build


def test_signed_out_visitors_see_the_public_environments(db: None) -> None:
    answer = Client().get("/")
    assert (answer.status_code, answer["Location"]) == (302, "/environments/")


def test_a_new_account_is_told_how_to_begin(charlie: Actor) -> None:
    text = home(charlie)
    assert "Create your first environment" in text
    assert "condastore login http://testserver" in text


def test_own_environments_show_their_health(alice: Actor, environment: Environment) -> None:
    factories.make_build(environment)
    assert "works" in home(alice)
    factories.make_build(environment, BuildState.FAILED)
    assert "newest failed" in home(alice)


def test_failed_and_held_builds_wait_for_the_person_who_requested_them(
    alice: Actor, bob: Actor, environment: Environment
) -> None:
    factories.make_build(environment)
    failed = requested_by(alice, factories.make_build(environment, BuildState.FAILED))
    Build.objects.filter(pk=failed.pk).update(
        failure={"code": "x", "message": "numpy <b>excludes</b> scipy", "where": "", "hint": ""}
    )
    text = home(alice)
    assert "research/ml: 2 failed" in text
    assert "numpy &lt;b&gt;excludes&lt;/b&gt; scipy" in text
    assert "1 item is waiting for you" in text
    assert "2 failed" not in home(bob)
    # A newer build replaces the failed one.
    requested_by(alice, factories.make_build(environment, BuildState.HELD))
    text = home(alice)
    assert "2 failed" not in text
    assert "research/ml: 3 waits for others" in text
    assert "3 waits" not in home(bob)


def test_decisions_wait_for_those_who_may_decide(alice: Actor, environment: Environment) -> None:
    held = factories.make_build(environment, BuildState.HELD)
    request = ApprovalRequest.objects.create(
        namespace=environment.namespace, subject="conda:1", name="mlflow", rule="r", reason="new"
    )
    WaitingBuild.objects.create(request=request, build=held)
    owner = factories.actor(factories.make_user("olga"))
    environment.namespace.grant(Role.APPROVER, owner.account)
    text = home(owner)
    assert "1 package to decide in research" in text
    assert "Your decision lets 1 build continue." in text
    assert "to decide" not in home(alice)


def test_recalled_packages_of_own_environments_are_shown(
    alice: Actor, charlie: Actor, root: Actor, environment: Environment
) -> None:
    lock = factories.make_lock(factories.make_package("openssl"))
    factories.make_build(environment, lock=lock)
    recalls.recall(actor=root, spec="openssl", reason="CVE-2026-1")
    assert "research/ml contains a recalled package" in home(alice)
    assert "recalled" not in home(charlie)


@pytest.mark.parametrize("state", [BuildState.QUEUED, BuildState.LINKING])
def test_running_builds_show_their_usual_duration(
    alice: Actor, charlie: Actor, environment: Environment, state: BuildState
) -> None:
    done = factories.make_build(environment)
    Build.objects.filter(pk=done.pk).update(timings={"SOLVING": 1.0, "LINKING": 40.0})
    factories.make_build(environment, state)
    text = home(alice)
    assert "research/ml: 2" in text
    assert "of usually 41 s" in text
    assert "1 build is running or queued" in text
    assert "research" not in home(charlie)


def test_the_page_costs_a_bounded_number_of_queries(
    alice: Actor, environment: Environment, django_assert_max_num_queries: Any
) -> None:
    def more(first: int) -> None:
        for number in range(first, first + 4):
            made = factories.make_environment(environment.namespace, f"e{number}")
            factories.make_build(made)
            requested_by(alice, factories.make_build(made, BuildState.FAILED))
            factories.make_build(
                factories.make_environment(environment.namespace, f"r{number}"), BuildState.LINKING
            )

    client = Client()
    client.force_login(alice.account)
    more(0)
    client.get("/")
    with django_assert_max_num_queries(15):
        client.get("/")
    more(4)
    with django_assert_max_num_queries(15):
        client.get("/")
