"""Approval pages: the queue, decisions with their effect, and who may decide."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.models import (
    ApprovalRequest,
    Build,
    CondaRecord,
    Decision,
    Environment,
    RequestAsker,
    RequestState,
    WaitingBuild,
)
from tests import factories

HTML = {"Accept": "text/html"}


def signed_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.account)
    return client


@pytest.fixture
def olga(environment: Environment) -> Actor:
    """An approver of the namespace who is not staff."""
    olga = factories.actor(factories.make_user("olga"))
    environment.namespace.grant(Role.APPROVER, olga.account)
    return olga


def make_request(build: Build, name: str, asker: Actor, note: str = "") -> ApprovalRequest:
    record = CondaRecord.from_value(factories.make_package(name))
    record.save()
    request = ApprovalRequest.objects.create(
        namespace=build.environment.namespace,
        subject=f"conda:{record.sha256}",
        conda=record,
        name=name,
        version="1.0",
        rule="new packages",
        reason=f"{name} is new here.",
        chain=["mlflow", name],
    )
    WaitingBuild.objects.create(request=request, build=build, asked_by=asker.account, note=note)
    return request


@pytest.fixture
def requests(alice: Actor, environment: Environment) -> list[ApprovalRequest]:
    """Two requests of one held build."""
    build = factories.make_build(environment, BuildState.HELD)
    return [make_request(build, name, alice, "for <b>tests</b>") for name in ("mlflow", "graphene")]


def test_the_queue_shows_what_an_approver_must_know(
    olga: Actor, requests: list[ApprovalRequest]
) -> None:
    text = signed_in(olga).get("/approvals/").content.decode()
    assert "2 packages are waiting for your decision." in text
    assert "alice in research" in text
    assert "for &lt;b&gt;tests&lt;/b&gt;" in text
    assert "2<span" in re.sub(r"\s", "", text)  # the count in the header


def test_only_approvers_find_requests_in_their_queue(
    alice: Actor, charlie: Actor, requests: list[ApprovalRequest]
) -> None:
    for actor in (alice, charlie):
        text = signed_in(actor).get("/approvals/").content.decode()
        assert "No package is waiting for your decision." in text
        assert "mlflow" not in text
    assert "mlflow" in signed_in(alice).get("/approvals/?tab=mine").content.decode()
    assert "mlflow" not in signed_in(charlie).get("/approvals/?tab=mine").content.decode()
    assert "mlflow" not in signed_in(charlie).get("/approvals/?tab=decided").content.decode()
    address = f"/approvals/{requests[0].pk}/"
    assert signed_in(charlie).get(address, headers=HTML).status_code == 404
    for page in ("/approvals/", address):
        assert Client().get(page)["Location"] == f"/login/?next={page}"


def test_the_effect_of_a_decision_is_shown_before_it(
    olga: Actor, requests: list[ApprovalRequest]
) -> None:
    client = signed_in(olga)
    first, both = [requests[0].pk], [one.pk for one in requests]
    bar = client.get("/approvals/effect/", {"request": first}).content.decode()
    assert '1 selected.</span> Approving it lets <span class="strong">no build<' in bar
    bar = client.get("/approvals/effect/", {"request": both}).content.decode()
    assert '2 selected.</span> Approving them lets <span class="strong">1 build<' in bar
    page = client.get("/approvals/decide/", {"request": both}).content.decode()
    assert "1 build continues at once." in page
    query = "&".join(f"request={one}" for one in both)
    rejecting = client.get(f"/approvals/decide/?{query}&decision=reject")
    assert "fail with your reason" in rejecting.content.decode()


def test_several_requests_are_approved_and_the_build_continues(
    olga: Actor, requests: list[ApprovalRequest]
) -> None:
    form = {
        "request": [one.pk for one in requests],
        "decision": "approve",
        "scope": "version",
        "reason": "Well known.",
        "days": "90",
    }
    answer = signed_in(olga).post("/approvals/decide/", form)
    assert (answer.status_code, answer["Location"]) == (303, "/approvals/")
    assert {one.state for one in ApprovalRequest.objects.all()} == {RequestState.APPROVED}
    decision = Decision.objects.first()
    assert decision is not None
    assert decision.expires_at is not None
    assert Build.objects.get().state == BuildState.QUEUED


def test_a_decision_on_its_own_page_leads_to_the_next_request(
    olga: Actor, requests: list[ApprovalRequest]
) -> None:
    client = signed_in(olga)
    form = {"request": requests[0].pk, "one": "1", "scope": "build", "reason": "ok"}
    answer = client.post("/approvals/decide/", {**form, "decision": "approve"})
    assert answer["Location"] == f"/approvals/{requests[1].pk}/"
    page = client.get(answer["Location"]).content.decode()
    assert "Approved: mlflow 1.0." in page
    assert "1 build continues" in page
    form |= {"request": requests[1].pk, "decision": "reject", "reason": "No <i>license</i>"}
    assert client.post("/approvals/decide/", form)["Location"] == "/approvals/"
    assert Build.objects.get().state == BuildState.FAILED
    page = client.get(f"/approvals/{requests[1].pk}/").content.decode()
    assert "No &lt;i&gt;license&lt;/i&gt;" in page


def test_a_decision_without_a_reason_keeps_what_was_typed(
    olga: Actor, requests: list[ApprovalRequest]
) -> None:
    form = {"request": requests[0].pk, "decision": "approve", "scope": "spec", "spec": "mlflow >=1"}
    answer = signed_in(olga).post("/approvals/decide/", {**form, "reason": " "})
    assert answer.status_code == 400
    assert "mlflow &gt;=1" in answer.content.decode()
    assert ApprovalRequest.objects.get(pk=requests[0].pk).state == RequestState.OPEN


@pytest.mark.parametrize("person", ["alice", "charlie"])
def test_who_may_not_decide_is_refused(
    person: str, requests: list[ApprovalRequest], request: pytest.FixtureRequest
) -> None:
    client = signed_in(request.getfixturevalue(person))
    form = {"request": str(requests[0].pk), "decision": "approve", "scope": "version"}
    form["reason"] = "x"
    assert client.post("/approvals/decide/", form, headers=HTML).status_code == 404
    assert client.get("/approvals/effect/", form, headers=HTML).status_code == 404
    answer = client.post(f"/approvals/{requests[0].pk}/second/", headers=HTML)
    assert answer.status_code in {303, 403, 404}
    assert {one.state for one in ApprovalRequest.objects.all()} == {RequestState.OPEN}


def test_nobody_approves_what_they_asked_for(olga: Actor, requests: list[ApprovalRequest]) -> None:
    RequestAsker.objects.create(request=requests[0], user=olga.account)
    form = {"request": requests[0].pk, "decision": "approve", "scope": "version", "reason": "x"}
    answer = signed_in(olga).post("/approvals/decide/", form, headers=HTML)
    assert answer.status_code == 403
    assert "You asked for this yourself" in answer.content.decode()


def test_the_requester_explains_what_a_package_is_for(
    alice: Actor, olga: Actor, requests: list[ApprovalRequest]
) -> None:
    client, address = signed_in(alice), f"/approvals/{requests[0].pk}/"
    page = client.get(address).content.decode()
    assert "olga" in page  # who decides
    assert 'name="decision"' not in page
    answer = client.post(f"{address}explain/", {"note": "Reproduce the <paper>."})
    assert answer["Location"] == address
    assert "Reproduce the &lt;paper&gt;." in signed_in(olga).get(address).content.decode()
    refused = signed_in(olga).post(f"{address}explain/", {"note": "x"}, headers=HTML)
    assert refused.status_code == 403


@pytest.mark.parametrize("key", [0, 10**30])
def test_a_request_that_does_not_exist_is_not_found(olga: Actor, key: int) -> None:
    assert signed_in(olga).get(f"/approvals/{key}/", headers=HTML).status_code == 404


@pytest.mark.parametrize("selected", [[], ["x"], ["9" * 30], ["-1"]])
def test_a_selection_that_is_not_valid_is_explained(
    olga: Actor, requests: list[ApprovalRequest], selected: list[str]
) -> None:
    answer = signed_in(olga).get("/approvals/decide/", {"request": selected}, follow=True)
    assert "Select at least one request." in answer.content.decode()


def test_the_queue_costs_a_constant_number_of_queries(
    olga: Actor, alice: Actor, environment: Environment, django_assert_max_num_queries: Any
) -> None:
    client = signed_in(olga)
    for number in range(12):
        build = factories.make_build(environment, BuildState.HELD)
        make_request(build, f"p{number}", alice)
        if number in {2, 11}:
            client.get("/approvals/")
            with django_assert_max_num_queries(6):
                client.get("/approvals/")
