"""Namespace admins in the console: the rules and credentials of their namespaces only."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from accounts.roles import Role
from environments.models import (
    AuditEvent,
    ChannelCredential,
    Namespace,
    Policy,
    PolicyRule,
    PolicyVersion,
)
from environments.operations.policies import add_rule
from tests.environments.admin.furnishing import furnish
from tests.factories import make_user

pytestmark = pytest.mark.django_db

MODELS = ("policy", "policyrule", "policyversion", "channelcredential")
RULE = {"name": "no numpy", "effect": "enforce", "enabled": "on", "packages": "numpy <1"}


@pytest.fixture
def manager(client: Client, root) -> Client:
    """Mona runs team-1; there is team-2, and there are rules of the installation."""
    furnish(1)
    furnish(2)
    add_rule(
        actor=root,
        namespace=None,
        kind="licenses",
        effect="warn",
        name="of the whole installation",
        settings={"deny": ["GPL-3.0-only"]},
    )
    mona = make_user("mona")
    Namespace.objects.get(name="team-1").grant(Role.ADMIN, mona)
    client.force_login(User.objects.get(username="mona"))
    return client


def url_of(page: str, *args: object, **query: object) -> str:
    url = reverse(f"admin:environments_{page}", args=args)
    return url + "?" + "&".join(f"{key}={value}" for key, value in query.items())


def rows_of(team: str) -> dict[str, Any]:
    location = Namespace.objects.get(name=team)
    policy = Policy.objects.get(namespace=location)
    return {
        "policy": policy,
        "policyrule": PolicyRule.objects.get(policy=policy),
        "policyversion": PolicyVersion.objects.get(policy=policy),
        "channelcredential": ChannelCredential.objects.get(namespace=location),
    }


def test_lists_hold_what_is_of_their_namespace_and_nothing_else(manager: Client):
    own = rows_of("team-1")
    for model in MODELS:
        changelist = manager.get(url_of(f"{model}_changelist")).context["cl"]
        assert list(changelist.result_list) == [own[model]], model
    for query in ({"namespace": "team-2"}, {"q": "installation"}):
        changelist = manager.get(url_of("policyrule_changelist", **query)).context["cl"]
        assert list(changelist.result_list) == [], query
    start = manager.get(reverse("admin:index")).content.decode()
    assert "Policies" in start
    assert "team-2" not in start


def test_pages_and_questions_of_other_namespaces_are_not_there(manager: Client):
    others: list[dict[str, Any]] = [
        rows_of("team-2"),
        {"policy": Policy.of(None), "policyrule": Policy.of(None).rules.get()},
    ]
    for rows in others:
        for model, row in rows.items():
            page = manager.get(url_of(f"{model}_change", row.pk))
            assert page.status_code == 302, model  # Django's way to say that there is none
            assert "team-2" not in page["Location"]
    other = others[0]["policyrule"]
    for action in ("edit", "on", "off", "move", "remove"):
        for rule in (other, others[1]["policyrule"]):
            url = url_of(f"policyrule_{action}", ids=rule.pk)
            assert manager.get(url).status_code == 404, action
            assert manager.post(url, {**RULE, "position": 0}).status_code == 404, action
    for model, action in (("policy", "try"), ("channelcredential", "remove")):
        url = url_of(f"{model}_{action}", ids=others[0][model].pk)
        assert manager.get(url).status_code == 404
        assert manager.post(url).status_code == 404
    assert PolicyRule.objects.filter(pk=other.pk, enabled=True, settings=other.settings).exists()


def test_a_rule_is_tried_added_changed_and_removed_in_ones_own_namespace(manager: Client):
    own = Namespace.objects.get(name="team-1")
    url = url_of("policy_add-rule", kind="packages-denied")
    given = {**RULE, "namespace": str(own.pk), "packages": "shared"}
    tried = manager.post(url, {**given, "_try": "1"}).content.decode()
    assert "Of 1 current environments, 1 would be refused" in tried
    assert "/admin/environments/environment/" not in tried  # no link to a page that she may not see
    manager.post(url, given)
    rule = PolicyRule.objects.get(name="no numpy")
    assert rule.policy.namespace == Namespace.objects.get(name="team-1")
    page = manager.get(url_of("policy_change", rule.policy.pk))
    assert "+ no numpy (packages-denied, enforce)" in page.content.decode()
    changed = {**RULE, "effect": "warn", "version": 2}
    manager.post(url_of("policyrule_edit", ids=rule.pk), changed)
    rule.refresh_from_db()
    assert rule.effect == "warn"
    manager.post(url_of("policyrule_remove", ids=rule.pk), {"comment": "not needed"})
    assert not PolicyRule.objects.filter(name="no numpy").exists()
    created = AuditEvent.objects.filter(username="mona", action__startswith="policy.")
    assert created.count() == 3


@pytest.mark.parametrize("namespace", ["", "team-2", "nowhere"])
def test_a_rule_cannot_be_added_to_another_namespace_whether_or_not_it_exists(
    manager: Client, namespace: str
) -> None:
    found = Namespace.objects.filter(name=namespace).first()
    key = found.pk if found else namespace and 999_999
    audited = AuditEvent.objects.count()
    before = PolicyRule.objects.count()
    url = url_of("policy_add-rule", kind="packages-denied")
    for extra in ({}, {"_try": "1"}):
        form = manager.post(url, {**RULE, "namespace": key, **extra}).context["form"]
        [text] = form.errors["namespace"]
        assert ("Select a valid choice" in text) == bool(namespace)
    assert PolicyRule.objects.count() == before
    assert AuditEvent.objects.count() == audited


def test_a_credential_is_deleted_by_who_runs_its_namespace(manager: Client):
    own = ChannelCredential.objects.get(namespace__name="team-1")
    answer = manager.post(url_of("channelcredential_remove", ids=own.pk), follow=True)
    assert b"Delete: done." in answer.content
    assert not ChannelCredential.objects.filter(pk=own.pk).exists()
    event = AuditEvent.objects.get(action="credential.delete")
    assert (event.username, event.changes) == ("mona", {"url_prefix": "https://1.example.org"})


def test_developers_and_approvers_find_no_rules(manager: Client):
    for role in (Role.DEVELOPER, Role.APPROVER):
        person = make_user(f"a-{role.value}")
        Namespace.objects.get(name="team-1").grant(role, person)
        browser = Client()
        browser.force_login(User.objects.get(pk=person.pk))
        for model in MODELS:
            assert browser.get(url_of(f"{model}_changelist")).status_code in {302, 403}, model
