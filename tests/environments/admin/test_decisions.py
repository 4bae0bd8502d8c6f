"""Approvals, recalls and rules in the console."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from accounts.roles import Role
from environments import tasks
from environments.models import (
    ApprovalRequest,
    AuditEvent,
    Build,
    Decision,
    Namespace,
    Policy,
    PolicyRule,
    Recall,
)
from tests.environments.admin.furnishing import furnish
from tests.factories import make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no queue here: what would be sent is not."""
    for actor in (tasks.run_next_build, tasks.tidy):
        monkeypatch.setattr(actor, "send", lambda *_: None)


@pytest.fixture
def site(client: Client, root) -> Client:
    furnish(1)
    furnish(2)
    client.force_login(root.account)
    return client


@pytest.fixture
def approver(site: Client) -> Client:
    """Anna decides in team-1 alone."""
    anna = make_user("anna")
    User.objects.filter(pk=anna.pk).update(is_staff=True)
    Namespace.objects.get(name="team-1").grant(Role.APPROVER, anna)
    client = Client()
    client.force_login(User.objects.get(username="anna"))
    return client


def url_of(page: str, **query: object) -> str:
    url = reverse(f"admin:environments_{page}")
    return url + "?" + "&".join(f"{key}={value}" for key, value in query.items())


def answers(**changed: object) -> dict[str, Any]:
    return {"reason": "looked at it", "scope": "version", "spec": "", "everywhere": "", **changed}


def test_an_approval_releases_waiting_builds_and_expires(site: Client):
    request = ApprovalRequest.objects.get(namespace__name="team-1")
    end = (timezone.now() + timedelta(days=30)).replace(microsecond=0)
    answer = site.post(
        url_of("approvalrequest_approve", ids=request.pk),
        answers(expires_at=end.strftime("%Y-%m-%dT%H:%M:%S")),
    )
    assert answer.status_code == 302
    decision = Decision.objects.latest("pk")
    assert (decision.approved, decision.reason) == (True, "looked at it")
    assert decision.expires_at == end
    request.refresh_from_db()
    assert request.state == "APPROVED"
    assert Build.objects.get(requests=request).state == "QUEUED"
    assert AuditEvent.objects.filter(action="approval.approve", username="root").count() == 1


def test_many_requests_are_rejected_at_once(site: Client):
    keys = list(ApprovalRequest.objects.values_list("pk", flat=True))
    chosen = site.post(
        reverse("admin:environments_approvalrequest_changelist"),
        {"action": "reject", "_selected_action": keys},
    )
    answer = site.post(
        chosen["Location"], answers(scope="spec", spec="shared", everywhere="yes"), follow=True
    )
    assert b"Rejected" in answer.content
    assert not ApprovalRequest.objects.undecided().exists()
    decision = Decision.objects.latest("pk")
    assert (decision.namespace, decision.spec) == (None, "shared")
    assert set(Build.objects.filter(requests__in=keys).values_list("state", flat=True)) == {
        "FAILED"
    }


def test_a_decision_without_a_reason_or_for_other_packages_is_refused_at_its_field(site: Client):
    url = url_of("approvalrequest_approve", ids=ApprovalRequest.objects.latest("pk").pk)
    form = site.post(url, answers(reason="")).context["form"]
    assert list(form.errors) == ["reason"]
    form = site.post(url, answers(scope="spec", spec="numpy <2")).context["form"]
    assert "does not match shared" in form.errors["spec"][0]
    assert ApprovalRequest.objects.undecided().count() == 2


def test_an_approver_sees_and_decides_only_requests_of_their_namespaces(approver: Client):
    mine = ApprovalRequest.objects.get(namespace__name="team-1")
    other = ApprovalRequest.objects.get(namespace__name="team-2")
    assert b"team-1" in (page := approver.get(url_of("approvalrequest_changelist")).content)
    assert b"team-2" not in page
    assert b"team-2" not in approver.get(url_of("decision_changelist")).content
    start = approver.get(reverse("admin:index")).content.decode()
    assert ">1</strong>" in start
    assert "Workers" not in start
    own = approver.get(reverse("admin:environments_approvalrequest_change", args=[mine.pk]))
    assert own.status_code == 200
    assert b"team-2" not in own.content
    theirs = reverse("admin:environments_approvalrequest_change", args=[other.pk])
    assert b"team-2" not in approver.get(theirs, follow=True).content
    assert approver.post(url_of("approvalrequest_approve", ids=other.pk)).status_code == 404
    everywhere = approver.post(
        url_of("approvalrequest_approve", ids=mine.pk), answers(everywhere="yes")
    )
    assert b"You may not decide for all namespaces" in everywhere.content
    assert AuditEvent.objects.filter(refused=True, username="anna").exists()
    approver.post(url_of("approvalrequest_approve", ids=mine.pk), answers())
    assert Decision.objects.latest("pk").decided_by == User.objects.get(username="anna")


def test_two_person_approval_needs_a_second_approver(site: Client, approver: Client):
    site.post(url_of("namespace_two-people", ids=Namespace.objects.get(name="team-1").pk))
    request = ApprovalRequest.objects.get(namespace__name="team-1")
    site.post(url_of("approvalrequest_approve", ids=request.pk), answers())
    request.refresh_from_db()
    assert request.state == "SECOND"
    same = site.post(url_of("approvalrequest_second", ids=request.pk))
    assert b"the second must come from somebody else" in same.content
    approver.post(url_of("approvalrequest_second", ids=request.pk))
    request.refresh_from_db()
    assert request.state == "APPROVED"


def test_a_decision_is_revoked_with_a_reason(site: Client):
    decision = Decision.objects.latest("pk")
    site.post(url_of("decision_revoke", ids=decision.pk), {"reason": "no longer true"})
    decision.refresh_from_db()
    assert decision.revoked_by == User.objects.get(username="root")


RECALL = {"manager": "conda", "spec": "shared ==1.0", "sha256": "", "reason": "broken"}


def test_a_recall_shows_whom_it_hits_before_it_can_be_confirmed(site: Client):
    before = Recall.objects.count()
    button = '<input type="submit" class="default" value="Recall a package">'
    assert button not in site.get(url_of("recall_new")).content.decode()
    page = site.post(url_of("recall_new"), RECALL)
    shown = page.content.decode()
    numbers = page.context["related_tables"][0]
    assert dict(zip(numbers.headers, numbers.rows[0], strict=True)) == {
        "Builds": "2",
        "Environments": "1",
        "Namespaces": "1",
        "People who requested them": "1",
    }
    assert "team-1/ml build 1" in shown
    assert button in shown
    assert Recall.objects.count() == before


def test_a_preview_of_other_values_does_not_confirm_a_recall(site: Client):
    before = Recall.objects.count()
    previewed = site.post(url_of("recall_new"), RECALL).context["previewed"]
    wider = {**RECALL, "spec": "shared", "_previewed": previewed}
    again = site.post(url_of("recall_new"), wider)
    assert Recall.objects.count() == before
    assert again.context["previewed"] not in ("", previewed)
    for forged in ("", "x", previewed.upper()):
        site.post(url_of("recall_new"), {**RECALL, "_previewed": forged})
    assert Recall.objects.count() == before


def test_an_invalid_recall_is_not_previewed(site: Client):
    page = site.post(url_of("recall_new"), {**RECALL, "spec": "*"})
    assert page.context["previewed"] == ""
    assert "This would recall every package." in page.content.decode()


def test_a_recall_applies_until_it_is_undone(site: Client):
    Recall.objects.all().delete()
    previewed = site.post(url_of("recall_new"), RECALL).context["previewed"]
    done = site.post(url_of("recall_new"), {**RECALL, "_previewed": previewed}, follow=True)
    assert b"no longer served: 2" in done.content
    recall = Recall.objects.get()
    page = site.get(reverse("admin:environments_recall_change", args=[recall.pk]))
    assert b"team-1/ml build 1" in page.content
    site.post(url_of("recall_undo", ids=recall.pk), {"reason": "it was not"})
    assert not Recall.objects.active().exists()


RULE = {"name": "no shared", "namespace": "", "effect": "enforce", "enabled": "on", "comment": "x"}


def test_a_dry_run_of_a_rule_changes_nothing(site: Client):
    url = url_of("policy_add-rule", kind="packages-denied")
    given = {**RULE, "packages": "shared >=2\nnumpy <1"}
    tried = site.post(url, {**given, "_try": "1"}).content.decode()
    assert "Of 2 current environments, 1 would be refused" in tried
    assert "team-2/ml" in tried
    assert not PolicyRule.objects.filter(name="no shared").exists()
    site.post(url, given)
    rule = PolicyRule.objects.get(name="no shared")
    assert rule.settings == {"packages": ["shared >=2", "numpy <1"]}
    assert rule.policy == Policy.of(None)
    page = site.get(reverse("admin:environments_policy_change", args=[rule.policy.pk]))
    assert "+ no shared (packages-denied, enforce)" in page.content.decode()


def test_all_faults_of_a_rule_are_shown_at_once(site: Client):
    url = url_of("policy_add-rule", kind="licenses")
    given = {
        **RULE,
        "name": "",
        "deny": "GPL-*",
        "missing": "perhaps",
        "map": "BSD: not a license(",
    }
    form = site.post(url, {**given, "name": "some"}).context["form"]
    assert sorted(form.errors) == ["map", "missing"]
    assert "perhaps is not one of the available choices" in form.errors["missing"][0]
    assert sorted(site.post(url, given).context["form"].errors) == ["map", "missing", "name"]


def test_a_rule_is_changed_as_it_is_shown_unless_another_changed_it(site: Client):
    rule = PolicyRule.objects.get(policy__namespace__name="team-1")
    url = url_of("policyrule_edit", ids=rule.pk)
    form = site.get(url).context["form"]
    assert form.initial["packages"] == "shared"
    given = {"name": rule.name, "effect": "warn", "packages": "shared\nother", "version": 1}
    site.post(url, {**given, "enabled": "on"})
    rule.refresh_from_db()
    assert (rule.effect, rule.settings) == ("warn", {"packages": ["shared", "other"]})
    late = site.post(url, {**given, "enabled": "on"})
    assert b"you saw version 1" in late.content


def test_a_package_leads_to_its_recall_and_its_denial(site: Client):
    from environments.models import CondaRecord

    record = CondaRecord.objects.get(name="shared", version="1.0")
    page = site.get(reverse("admin:environments_condarecord_change", args=[record.pk]))
    urls = dict(page.context["tools"])
    assert site.get(urls["Recall"]).context["form"].initial["spec"] == "shared ==1.0"
    form = site.get(urls["Deny"]).context["form"]
    assert form.initial["packages"] == "conda:shared ==1.0"
