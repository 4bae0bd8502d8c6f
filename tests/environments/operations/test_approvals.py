"""A lock that needs decisions of people: held, decided, resumed; on real packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Perm, Role
from condastore.errors import AccessDeniedError, ConflictError, InvalidInputError, TransitionError
from environments.domain.lifecycle import BuildState
from environments.jobs import builds as building
from environments.models import (
    ApprovalRequest,
    AuditEvent,
    Build,
    CondaRecord,
    Decision,
    DecisionScope,
    Namespace,
    Policy,
    RequestState,
)
from environments.operations import approvals, builds, queueing
from environments.operations.environments import delete_environment
from tests import factories
from tests.environments.graphql.asking import ask
from tests.migrated import migrated_postgres

pytestmark = pytest.mark.django_db(transaction=True)
S = BuildState
APPTOOL = "dependencies: [apptool]"
Ask = Callable[..., None]


def run(build: Build) -> Build:
    building.run(build.pk)
    return Build.objects.get(pk=build.pk)


def again(build: Build) -> Build:
    return Build.objects.get(pk=build.pk)


def ask_about(*specs: str, namespace: Namespace | None = None, name: str = "look") -> None:
    Policy.of(namespace).rules.create(
        kind="packages-denied", effect="ask", name=name, settings={"packages": list(specs)}
    )


@pytest.fixture
def anna(research: Namespace) -> Actor:
    return factories.actor(User.objects.get(username="anna"))


@pytest.fixture
def ada(research: Namespace) -> Actor:
    user = factories.make_user("ada")
    research.grant(Role.APPROVER, user)
    return factories.actor(user)


@pytest.fixture
def held(submit: Any) -> Build:
    """Alice's build, which waits for libalpha, a package that nobody asked for by name."""
    ask_about("libalpha")
    build = run(submit(APPTOOL, reason="for the course"))
    assert build.state == S.HELD, build.failure
    return build


def request_of(build: Build, name: str = "libalpha") -> ApprovalRequest:
    return build.requests.select_related("namespace").get(name=name)


def approve(actor: Actor, request: ApprovalRequest, **options: Any) -> Decision:
    answer: dict[str, Any] = {"approve": True, "reason": "looked at it"} | options
    [decision] = approvals.decide(actor=actor, requests=[request], **answer)
    return decision


# --- held ----------------------------------------------------------------------------------------


def test_a_build_is_held_and_says_for_which_package_and_by_which_way(held):
    request = request_of(held)
    assert (request.state, request.name, request.rule) == (RequestState.OPEN, "libalpha", "look")
    assert request.chain[0] == "apptool"
    assert request.chain[-1] == "libalpha"
    assert request.conda.sha256 == request.subject.removeprefix("conda:")
    waiting = request.waiting.get()
    assert (waiting.asked_by.username, waiting.note) == ("alice", "for the course")
    assert held.prefix is None
    assert held.lock is not None
    assert "libalpha" in held.events.last().message


def test_builds_of_one_namespace_share_a_request_and_other_namespaces_have_their_own(
    held, submit, research, alice
):
    other = factories.make_namespace("lab", alice=Role.DEVELOPER)
    second = run(submit(APPTOOL))
    third = run(submit(APPTOOL, environment=factories.make_environment(other, "ml")))
    assert second.state == third.state == S.HELD
    assert request_of(second) == request_of(held)
    assert request_of(third) != request_of(held)
    assert request_of(third).namespace == other


def test_a_decision_lets_every_build_go_on_with_no_other_step(held, submit, anna, unsent):
    second = run(submit(APPTOOL))
    unsent.clear()
    approve(anna, request_of(held))
    assert again(held).state == again(second).state == S.QUEUED
    assert unsent == [held.pk, second.pk]
    assert run(held).state == run(second).state == S.READY
    assert request_of(held).state == RequestState.APPROVED
    assert "SOLVING" not in [event.state for event in again(held).events.all()][-6:]


def test_a_build_that_waits_for_two_packages_goes_on_after_the_second_decision(submit, anna):
    ask_about("libalpha", "libbeta")
    build = run(submit(APPTOOL))
    approve(anna, request_of(build, "libbeta"))
    assert again(build).state == S.HELD
    approve(anna, request_of(build))
    assert run(build).state == S.READY


def test_many_requests_are_decided_at_once(submit, anna):
    ask_about("libalpha", "libbeta", "apptool")
    build = run(submit(APPTOOL))
    requests = list(build.requests.select_related("namespace"))
    created = approvals.decide(actor=anna, requests=requests, approve=True, reason="all fine")
    assert len(created) == len(requests) == 3
    assert again(build).state == S.QUEUED


def test_a_rejection_fails_all_that_wait_with_the_reason(held, submit, anna):
    second = run(submit(APPTOOL))
    ask_about("libbeta", name="more")
    third = run(submit(APPTOOL))
    approve(anna, request_of(held), approve=False, reason="it is not maintained")
    for build in (again(held), again(second), again(third)):
        assert build.state == S.FAILED
        assert build.failure["code"] == "package-rejected"
        assert "anna" in build.failure["message"]
        assert "not maintained" in build.failure["message"]
    # Nobody waits for the other package any more.
    assert request_of(third, "libbeta").state == RequestState.WITHDRAWN
    # The next solve leaves the rejected version out, and asks about another one.
    assert request_of(run(submit(APPTOOL))).version != request_of(held).version


def test_a_cancelled_build_withdraws_what_nobody_else_waits_for(held, submit, alice):
    second = run(submit(APPTOOL))
    builds.cancel_build(actor=alice, build=held)
    assert request_of(held).state == RequestState.OPEN
    builds.cancel_build(actor=alice, build=second)
    assert request_of(held).state == RequestState.WITHDRAWN
    assert run(submit(APPTOOL)).state == S.HELD


def test_a_deleted_environment_withdraws_its_requests(held, dora):
    delete_environment(actor=dora, environment=held.environment)
    assert again(held).state == S.CANCELLED
    assert request_of(held).state == RequestState.WITHDRAWN


# --- until when, and for what --------------------------------------------------------------------


def test_an_expired_waiver_holds_the_next_build_and_not_the_one_that_runs(held, submit, anna):
    decision = approve(anna, request_of(held), expires_at=timezone.now() + timedelta(hours=1))
    first = again(held)
    lease = first.claim("worker", life=timedelta(minutes=1))
    assert lease is not None
    first.move(S.LINKING, lease=lease)
    Decision.objects.filter(pk=decision.pk).update(expires_at=timezone.now())
    assert again(first).state == S.LINKING
    assert run(submit(APPTOOL)).state == S.HELD


def test_a_waiver_that_ends_before_the_build_goes_on_holds_it_again(held, anna):
    decision = approve(anna, request_of(held), expires_at=timezone.now() + timedelta(hours=1))
    Decision.objects.filter(pk=decision.pk).update(expires_at=timezone.now())
    assert run(held).state == S.HELD
    assert held.requests.undecided().get().name == "libalpha"


def test_a_revoked_decision_holds_the_next_build(held, submit, anna, bob):
    decision = approve(anna, request_of(held))
    with pytest.raises(AccessDeniedError):
        approvals.revoke_decision(actor=bob, decision=decision, reason="no")
    approvals.revoke_decision(actor=anna, decision=decision, reason="a mistake")
    assert run(submit(APPTOOL)).state == S.HELD
    with pytest.raises(TransitionError):
        approvals.revoke_decision(actor=anna, decision=decision, reason="again")


def test_a_version_and_a_spec_cover_what_they_say_and_no_more(submit, anna):
    ask_about("libalpha")
    old = run(submit("dependencies: [libalpha ==1.0]"))
    new = run(submit("dependencies: [libalpha ==2.1]"))
    approve(anna, request_of(old), scope=DecisionScope.VERSION)
    assert (again(old).state, again(new).state) == (S.QUEUED, S.HELD)
    with pytest.raises(InvalidInputError, match="does not match"):
        approve(anna, request_of(new), scope=DecisionScope.SPEC, spec="libalpha <2")
    approve(anna, request_of(new), scope=DecisionScope.SPEC, spec="libalpha >=2")
    assert again(new).state == S.QUEUED
    assert run(submit("dependencies: [libalpha ==2.0]")).state == S.READY
    assert run(submit("dependencies: [libalpha ==1.1]")).state == S.HELD


def test_one_answer_covers_every_open_request_that_it_fits(submit, anna):
    ask_about("libalpha")
    waiting = [run(submit(f"dependencies: [libalpha =={v}]")) for v in ("1.0", "1.1", "2.0")]
    approve(anna, request_of(waiting[0]), scope=DecisionScope.SPEC, spec="libalpha <2")
    assert [again(build).state for build in waiting] == [S.QUEUED, S.QUEUED, S.HELD]


def test_an_approved_build_string_is_told_from_the_other_of_its_version(submit, anna):
    ask_about("mathkernel")
    tuned = run(submit("dependencies: [mathkernel=3.1=tuned_1]"))
    generic = run(submit("dependencies: [mathkernel=3.1=generic_0]"))
    approve(anna, request_of(tuned, "mathkernel"), scope=DecisionScope.BUILD)
    assert (again(tuned).state, again(generic).state) == (S.QUEUED, S.HELD)


def test_a_question_about_the_whole_lock_is_decided_too(submit, anna):
    Policy.of(None).rules.create(kind="size", effect="ask", name="small", settings={"packages": 1})
    build = run(submit(APPTOOL))
    assert build.state == S.HELD
    approve(anna, request_of(build, "small"))
    assert run(build).state == S.READY


def test_install_scripts_are_seen_once_the_package_is_fetched(submit, anna):
    Policy.of(None).rules.create(kind="install-scripts", effect="ask", name="scripts")
    CondaRecord.objects.update(link_scripts=None)
    build = run(submit("dependencies: [post-linked]"))
    assert build.state == S.HELD, build.failure
    assert "FETCHING" in [event.state for event in build.events.all()]
    request = request_of(build, "post-linked")
    assert "post-link" in request.reason
    approve(anna, request)
    assert run(build).state == S.READY


# --- who -----------------------------------------------------------------------------------------


def test_only_approvers_of_the_namespace_decide(held, alice, bob, charlie, research):
    for actor in (alice, bob, charlie):
        with pytest.raises(AccessDeniedError):
            approve(actor, request_of(held))
    factories.make_namespace("lab", erin=Role.APPROVER)
    with pytest.raises(AccessDeniedError):
        approve(factories.actor(User.objects.get(username="erin")), request_of(held))
    assert Decision.objects.count() == 0


def test_nobody_decides_on_what_they_asked_for_unless_it_is_allowed(
    held, alice, research, settings
):
    research.grant(Role.APPROVER, alice.account)
    for answer in (True, False):
        with pytest.raises(AccessDeniedError, match="yourself"):
            approve(alice, request_of(held), approve=answer)
    settings.SELF_APPROVAL = True
    approve(alice, request_of(held))
    assert again(held).state == S.QUEUED


def test_nobody_decides_on_what_their_service_account_asked_for(held, anna):
    robot = factories.make_user("robot")
    User.objects.filter(pk=robot.pk).update(is_service=True, owner=anna.account)
    request_of(held).askers.update(user=robot)
    with pytest.raises(AccessDeniedError, match="yourself"):
        approve(anna, request_of(held))


def test_an_answer_to_another_request_does_not_cover_ones_own(submit, anna, ada, environment):
    ask_about("libalpha")
    old = run(submit("dependencies: [libalpha ==1.0]"))
    new = run(submit("dependencies: [libalpha ==2.0]"))
    request_of(new).askers.update(user=anna.account)
    with pytest.raises(AccessDeniedError, match="yourself"):
        approve(anna, request_of(old), scope=DecisionScope.SPEC, spec="libalpha")
    assert Decision.objects.count() == 0
    approve(anna, request_of(old))


def test_a_decision_for_all_namespaces_needs_the_permission_for_it(held, submit, anna, charlie):
    lab = factories.make_namespace("lab", alice=Role.DEVELOPER)
    there = run(submit(APPTOOL, environment=factories.make_environment(lab, "ml")))
    with pytest.raises(AccessDeniedError, match="all namespaces"):
        approve(anna, request_of(held), everywhere=True)
    group = Group.objects.create(name="it")
    group.permissions.add(Permission.objects.get(codename="decide_everywhere"))
    charlie.account.groups.add(group)
    assert lab in Namespace.objects.with_perm(charlie, Perm.APPROVE)
    assert lab not in Namespace.objects.visible_to(charlie)
    assert request_of(there) in ApprovalRequest.objects.visible_to(charlie)
    approve(charlie, request_of(held), everywhere=True)
    assert again(held).state == again(there).state == S.QUEUED


def test_a_decision_holds_in_its_namespace_alone(held, submit, anna):
    lab = factories.make_namespace("lab", alice=Role.DEVELOPER)
    there = run(submit(APPTOOL, environment=factories.make_environment(lab, "ml")))
    approve(anna, request_of(held))
    assert (again(held).state, again(there).state) == (S.QUEUED, S.HELD)


@pytest.mark.parametrize("everywhere", [True, False])
def test_two_people_must_agree_where_the_rule_is_on(
    held, anna, ada, dora, research, settings, everywhere
):
    if everywhere:
        settings.TWO_PERSON_APPROVAL = True
    else:
        approvals.require_two_people(actor=dora, namespace=research, two=True)
    decision = approve(anna, request_of(held))
    assert not decision.complete
    assert request_of(held).state == RequestState.SECOND
    assert again(held).state == S.HELD
    with pytest.raises(AccessDeniedError, match="somebody else"):
        approvals.give_second_approval(actor=anna, decision=decision)
    with pytest.raises(ConflictError, match="one person"):
        approve(ada, request_of(held))
    approvals.give_second_approval(actor=ada, decision=decision)
    assert request_of(held).state == RequestState.APPROVED
    assert run(held).state == S.READY


def test_one_of_two_may_reject_and_ends_the_half_approval(held, anna, ada, settings):
    settings.TWO_PERSON_APPROVAL = True
    half = approve(anna, request_of(held))
    approve(ada, request_of(held), approve=False, reason="no")
    assert again(held).state == S.FAILED
    with pytest.raises(TransitionError):
        approvals.give_second_approval(actor=anna, decision=half)


def test_a_half_approval_that_is_revoked_leaves_the_request_open(held, anna, ada, settings):
    settings.TWO_PERSON_APPROVAL = True
    half = approve(anna, request_of(held))
    approvals.revoke_decision(actor=anna, decision=half, reason="a mistake")
    assert request_of(held).state == RequestState.OPEN


def test_a_request_is_decided_once(held, anna, ada):
    stale = request_of(held)
    approve(anna, request_of(held))
    with pytest.raises(TransitionError, match="anna"):
        approve(ada, stale, approve=False, reason="no")
    assert again(held).state == S.QUEUED


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"reason": "  "}, "reason"),
        ({"expires_at": timezone.now() - timedelta(days=1)}, "expires_at"),
        ({"spec": "libalpha"}, "spec"),
        ({"scope": DecisionScope.SPEC}, "spec"),
        ({"scope": DecisionScope.SPEC, "spec": "libalpha [[["}, ""),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(held, anna, options, where):
    with pytest.raises(InvalidInputError) as caught:
        approve(anna, request_of(held), **options)
    assert caught.value.where == where
    assert Decision.objects.count() == 0
    assert again(held).state == S.HELD


def test_every_step_is_in_the_audit_log(held, anna, ada, alice, dora, research, settings):
    approvals.require_two_people(actor=dora, namespace=research, two=True)
    approvals.explain_request(actor=alice, request=request_of(held), note="for the thesis")
    decision = approve(anna, request_of(held))
    approvals.give_second_approval(actor=ada, decision=decision)
    approvals.revoke_decision(actor=anna, decision=decision, reason="too old")
    assert [(event.username, event.action) for event in AuditEvent.objects.order_by("pk")][-5:] == [
        ("dora", "namespace.two-person-approval"),
        ("alice", "approval.explain"),
        ("anna", "approval.approve"),
        ("ada", "approval.second"),
        ("anna", "approval.revoke"),
    ]
    assert request_of(held).waiting.get().note == "for the thesis"


def test_only_who_asked_says_what_it_is_for(held, bob):
    with pytest.raises(AccessDeniedError):
        approvals.explain_request(actor=bob, request=request_of(held), note="mine")


# --- beside each other ---------------------------------------------------------------------------


def test_a_decision_that_comes_before_the_hold_counts(submit, anna, unsent):
    """Decided between the look at the rules and the hold: nobody else would wake the build."""
    from environments.services import approval_requests as keeping
    from environments.services.policies import judge, policy_of

    ask_about("libalpha")
    approved = approve(anna, request_of(run(submit(APPTOOL))))
    build = submit(APPTOOL)
    lock = Build.objects.exclude(lock=None).first().lock
    Decision.objects.update(revoked_at=timezone.now())
    verdicts = judge(
        policy_of(build.environment.namespace), lock.value(), build.specification.value()
    )
    lease = build.claim("worker", life=timedelta(minutes=1))
    Build.objects.filter(pk=build.pk).update(lock=lock)
    Decision.objects.filter(pk=approved.pk).update(revoked_at=None)
    assert not keeping.hold(build, verdicts, lease=lease)
    assert again(build).state == S.QUEUED
    queueing.send_due(Build)
    assert build.pk in unsent
    assert run(build).state == S.READY


def test_changed_rules_are_asked_again_about_what_is_held(held, unsent):
    Policy.of(None).rules.all().delete()
    unsent.clear()
    approvals.reconsider(None)
    assert unsent == [held.pk]
    assert run(held).state == S.READY
    assert request_of(held).state == RequestState.WITHDRAWN


def test_a_restored_build_is_held_where_a_waiver_has_ended(held, anna, alice, submit):
    decision = approve(anna, request_of(held))
    old = run(held)
    newer = run(submit(APPTOOL))
    assert newer.state == S.READY
    builds.archive_build(actor=alice, build=old)
    Decision.objects.filter(pk=decision.pk).update(expires_at=timezone.now())
    builds.restore_build(actor=alice, build=again(old))
    assert run(old).state == S.HELD
    builds.cancel_build(actor=alice, build=again(old))
    assert again(old).state == S.ARCHIVED


# --- through the doors ---------------------------------------------------------------------------

SHOWN = """
id name version build channel license size installScripts chain reason state approvedVersions
environments deciders mayDecide waiting { build askedBy note } decision { reason decidedBy }
"""


def test_a_request_shows_what_who_decides_has_to_know(held, submit, anna, alice):
    approve(anna, request_of(run(submit("dependencies: [libalpha ==1.0]"))))
    first = run(submit("dependencies: [libalpha ==1.0]"))
    assert first.state == S.READY
    document = f"query($id: ID!) {{ approvalRequest(id: $id) {{ {SHOWN} }} }}"
    found = ask(anna, document, id=str(request_of(held).pk))["approvalRequest"]
    assert found["chain"][0] == "apptool"
    assert found["license"] == "MIT"
    assert int(found["size"]) > 0
    assert found["approvedVersions"] == ["libalpha ==1.0"]
    assert found["environments"] == 1
    assert found["deciders"] == ["anna", "dora"]
    assert found["mayDecide"] is True
    [waiting] = found["waiting"]
    assert waiting == {"build": str(held).replace(" build ", ":"), "askedBy": "alice",
                       "note": "for the course"}  # fmt: skip
    assert (
        ask(alice, document, id=str(request_of(held).pk))["approvalRequest"]["mayDecide"] is False
    )


def test_the_build_says_for_what_it_waits_and_who_decides(held, bob):
    document = (
        "query($id: ID!) { build(id: $id) { state reason approvals { name chain deciders } } }"
    )
    found = ask(bob, document, id=str(held.pk))["build"]
    assert (found["state"], found["reason"]) == ("HELD", "for the course")
    [request] = found["approvals"]
    assert (request["name"], request["deciders"]) == ("libalpha", ["anna", "dora"])
    client = Client()
    client.force_login(bob.account)
    page = client.get(f"/environments/research/ml/builds/{held.number}/").content.decode()
    assert "libalpha" in page
    assert "apptool →" in page
    assert "anna, dora can decide." in page


def test_a_decision_through_graphql_lets_the_build_go_on(held, anna, bob):
    document = """
    mutation($id: ID!) {
      decide(requests: [$id], approve: true, reason: "fine", expiresAt: "2999-01-01") {
        ... on Decided { decisions { spec inForce expiresAt } requests { state } }
        ... on OperationError { code }
      }
    }
    """
    key = str(request_of(held).pk)
    assert ask(bob, document, id=key)["decide"] == {"code": "access-denied"}
    created = ask(anna, document, id=key)["decide"]
    assert created["requests"] == [{"state": "APPROVED"}]
    assert created["decisions"][0]["inForce"] is True
    assert again(held).state == S.QUEUED


def test_a_list_of_requests_costs_as_many_queries_for_many_as_for_few(research, anna):
    document = f"{{ approvalRequests(first: 50) {{ totalCount edges {{ node {{ {SHOWN} }} }} }} }}"

    def queries(count: int) -> int:
        location = factories.make_environment(research, f"e{count}")
        for number in range(count):
            package = factories.make_package(f"p{count}-{number}")
            build = factories.make_build(location, S.HELD, lock=factories.make_lock(package))
            record = CondaRecord.objects.get(name=package.name)
            request = ApprovalRequest.objects.create(
                namespace=research, subject=f"conda:{record.sha256}", conda=record,
                name=package.name, version="1.0",
            )  # fmt: skip
            request.waiting.create(build=build, asked_by=anna.account)
        with CaptureQueriesContext(connection) as found:
            answer = ask(anna, document)["approvalRequests"]
        assert len(answer["edges"]) == min(answer["totalCount"], 50)
        return len(found)

    few = queries(3)
    assert queries(30) == few


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ("{}", 1),
        ("{state: [OPEN]}", 1),
        ("{state: [APPROVED]}", 0),
        ('{namespace: "research"}', 1),
        ('{namespace: "lab"}', 0),
        ('{name: "libalpha"}', 1),
        ('{name: "lib"}', 0),
        ('{search: "alpha"}', 1),
    ],
)
def test_requests_are_found_by_state_namespace_and_name(research, anna, filters, count):
    ApprovalRequest.objects.create(
        namespace=research, subject="conda:0", name="libalpha", version="1.0"
    )
    found = ask(anna, f"{{ approvalRequests(filters: {filters}) {{ totalCount }} }}")
    assert found["approvalRequests"]["totalCount"] == count


def test_people_who_act_at_the_same_moment_leave_nothing_half_done(tmp_path: Path) -> None:
    """On PostgreSQL, where two transactions do run at once."""
    with migrated_postgres() as service:
        environ = {
            **os.environ,
            "CONDASTORE_DATABASE_URL": service.url,
            "CONDASTORE_DATA": str(tmp_path),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }
        answer = subprocess.run(
            [sys.executable, "-m", "tests.environments.racing"],
            env=environ, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    outcomes = json.loads(answer.stdout.splitlines()[-1])
    assert set(outcomes["two approvers"]) == {"['TransitionError', 'done'] 1"}
    assert set(outcomes["approve and cancel"]) == {"done CANCELLED"}
    assert set(outcomes["hold and approve"]) == {"['done', 'done'] QUEUED"}


def test_a_spec_with_stars_covers_every_name_that_it_fits(submit, anna):
    ask_about("libalpha", "libbeta", "mathkernel")
    build, other = run(submit(APPTOOL)), run(submit("dependencies: [mathkernel]"))
    approve(anna, request_of(build), scope=DecisionScope.SPEC, spec="lib*")
    assert (again(build).state, again(other).state) == (S.QUEUED, S.HELD)
    assert run(submit("dependencies: [libbeta]")).state == S.READY
