"""Policy operations: who may change rules, what they refuse, and what a simulation reports."""

from __future__ import annotations

import pytest

from accounts.roles import Role
from condastore.errors import (
    AccessDeniedError,
    ConflictError,
    NotFoundError,
    PolicyError,
    RuleError,
)
from environments.domain.lifecycle import BuildState
from environments.domain.policy import Effect
from environments.jobs import builds
from environments.models import (
    AuditEvent,
    Build,
    Decision,
    Policy,
    PolicyRule,
    PolicyVersion,
    Recall,
)
from environments.operations import policies, policy_simulation
from environments.operations.policy_simulation import Draft
from environments.services.policies import judge, policy_of
from tests import factories

DENIED = {"kind": "packages-denied", "effect": "enforce", "name": "no left-pad"}


def add(actor, namespace, **changes):
    given = {**DENIED, "settings": {"packages": ["left-pad"]}, **changes}
    return policies.add_rule(actor=actor, namespace=namespace, **given)


# --- who may --------------------------------------------------------------------------------------


def test_only_who_runs_a_namespace_changes_its_rules(
    research, alice, bob, charlie, dora, root, nobody
):
    for person in (alice, bob, charlie, nobody):
        with pytest.raises(AccessDeniedError):
            add(person, research)
        with pytest.raises(AccessDeniedError):
            policy_simulation.simulate(actor=person, namespace=research)
    rule = add(dora, research)
    for person in (alice, bob, charlie, nobody):
        with pytest.raises(AccessDeniedError):
            policies.change_rule(actor=person, rule=rule, enabled=False)
        with pytest.raises(AccessDeniedError):
            policies.move_rule(actor=person, rule=rule, position=0)
        with pytest.raises(AccessDeniedError):
            policies.remove_rule(actor=person, rule=rule)
    add(root, research, name="another")


def test_only_administrators_change_the_rules_of_all(research, dora, root):
    with pytest.raises(AccessDeniedError):
        add(dora, None)
    rule = add(root, None)
    with pytest.raises(AccessDeniedError):
        policies.remove_rule(actor=dora, rule=rule)


def test_a_rule_is_there_for_those_who_see_its_namespace(research, bob, charlie, dora, nobody):
    rule = add(dora, research)
    assert policies.find_rule(bob, rule.pk) == rule
    for person in (charlie, nobody):
        with pytest.raises(NotFoundError):
            policies.find_rule(person, rule.pk)
        with pytest.raises(NotFoundError):
            policies.find_policy(person, research)


# --- versions -------------------------------------------------------------------------------------


def test_each_change_is_a_version_with_who_and_why(research, dora):
    rule = add(dora, research, comment="the incident of March")
    rule = policies.change_rule(actor=dora, rule=rule, effect="warn")
    policies.remove_rule(actor=dora, rule=rule, comment="over")
    policy = Policy.objects.get(namespace=research)
    versions = PolicyVersion.objects.filter(policy=policy).order_by("number")
    assert policy.version == 3
    assert [(v.number, len(v.rules), v.comment) for v in versions] == [
        (1, 1, "the incident of March"),
        (2, 1, ""),
        (3, 0, "over"),
    ]
    assert {v.changed_by.username for v in versions} == {"dora"}
    actions = AuditEvent.objects.filter(action__startswith="policy.").order_by("pk")
    assert [event.action for event in actions] == [
        "policy.add-rule",
        "policy.change-rule",
        "policy.remove-rule",
    ]
    assert actions[1].changes["before"]["effect"] == "enforce"


def test_a_change_that_rests_on_an_older_version_is_refused(research, dora):
    rule = add(dora, research, version=0)
    policies.change_rule(actor=dora, rule=rule, enabled=False, version=1)
    with pytest.raises(ConflictError, match="version 2"):
        policies.change_rule(actor=dora, rule=rule, enabled=True, version=1)
    assert not PolicyRule.objects.get().enabled


def test_a_rule_that_cannot_be_read_changes_nothing(research, dora):
    with pytest.raises(RuleError) as caught:
        add(dora, research, effect="never", settings={"pakages": ["a"], "except": ["=="]})
    wheres = {fault.where for fault in caught.value.faults}
    assert {"effect", "settings.packages", "settings.pakages", "settings.except[0]"} <= wheres
    assert not PolicyRule.objects.exists()
    assert not PolicyVersion.objects.exists()


def test_two_rules_of_a_policy_do_not_share_a_name(research, dora):
    add(dora, research)
    with pytest.raises(ConflictError):
        add(dora, research)
    assert Policy.objects.get().version == 1


def test_a_moved_rule_is_told_in_its_place(research, dora):
    first, second = add(dora, research, name="first"), add(dora, research, name="second")
    policies.move_rule(actor=dora, rule=second, position=0)
    assert [rule.name for rule in PolicyRule.objects.all()] == ["second", "first"]
    policies.move_rule(actor=dora, rule=first, position=0)
    assert [rule.name for rule in PolicyRule.objects.all()] == ["first", "second"]


def test_an_older_version_is_restored_as_a_new_one(research, dora):
    first = add(dora, research)
    second = add(dora, research, name="second", effect="warn")
    policies.move_rule(actor=dora, rule=second, position=0)
    policies.change_rule(actor=dora, rule=first, settings={"packages": ["right-pad"]})
    policies.remove_rule(actor=dora, rule=second)
    add(dora, research, name="third")
    old = policies.find_version(dora, research, 3)
    policy = policies.restore_version(actor=dora, restored=old, comment="as it was")
    rules = list(PolicyRule.objects.values_list("name", "effect", "settings"))
    assert rules == [
        ("second", "warn", {"packages": ["left-pad"]}),
        (first.name, "enforce", {"packages": ["left-pad"]}),
    ]
    assert PolicyRule.objects.get(name=first.name) == first
    created = PolicyVersion.objects.get(policy=policy, number=7)
    assert (created.rules, created.comment) == (old.rules, "as it was")
    event = AuditEvent.objects.get(action="policy.restore-version")
    assert event.changes["restored"] == 3
    assert [rule["name"] for rule in event.changes["before"]] == [first.name, "third"]
    with pytest.raises(ConflictError, match="rules of version 3"):
        policies.restore_version(actor=dora, restored=old)
    assert Policy.objects.get(pk=policy.pk).version == 7


def test_only_who_may_change_rules_restores_them_and_a_version_that_is_none_is_not_found(
    research, alice, bob, charlie, dora
):
    rule = add(dora, research)
    policies.change_rule(actor=dora, rule=rule, effect="warn")
    old = policies.find_version(bob, research, 1)
    for person in (alice, bob, charlie):
        with pytest.raises(AccessDeniedError):
            policies.restore_version(actor=person, restored=old)
    with pytest.raises(NotFoundError):
        policies.find_version(charlie, research, 1)
    with pytest.raises(NotFoundError, match="no version 9"):
        policies.find_version(dora, research, 9)


def test_a_version_with_a_rule_that_none_can_read_any_more_changes_nothing(research, dora):
    rule = add(dora, research)
    policies.change_rule(actor=dora, rule=rule, effect="warn")
    old = policies.find_version(dora, research, 1)
    old.rules[0]["kind"] = "horoscope"
    with pytest.raises(RuleError, match="horoscope"):
        policies.restore_version(actor=dora, restored=old)
    assert PolicyRule.objects.get().effect == "warn"


# --- what holds -----------------------------------------------------------------------------------


def lock_with(*names: str):
    return factories.make_lock(*(factories.make_package(name) for name in names))


def test_rules_of_all_come_first_and_a_namespace_cannot_loosen_them(research, dora, root):
    add(root, None, name="of all")
    add(
        dora,
        research,
        kind="packages-allowed",
        name="of ours",
        settings={"packages": ["left-pad", "python"]},
    )
    policy = policy_of(research)
    assert [rule.name for rule in policy.rules][-2:] == ["of all", "of ours"]
    specification = factories.make_specification("dependencies: [left-pad]").value()
    with pytest.raises(PolicyError, match="of all"):
        judge(policy, lock_with("left-pad"), specification)
    other = factories.make_namespace("other")
    assert [rule.name for rule in policy_of(other).rules][-1] == "of all"


def test_a_change_of_a_rule_a_decision_or_a_recall_makes_another_version(research, dora, root):
    versions = [policy_of(research).version]
    rule = add(dora, research, effect="ask")
    versions.append(policy_of(research).version)
    Decision.objects.create(
        approved=True, scope="spec", spec="left-pad", name="left-pad", namespace=research
    )
    versions.append(policy_of(research).version)
    Recall.objects.create(spec="openssl <3", reason="a hole")
    versions.append(policy_of(research).version)
    policies.change_rule(actor=dora, rule=rule, enabled=False)
    versions.append(policy_of(research).version)
    assert len(set(versions)) == 5
    assert policy_of(research).version == versions[-1]


def test_the_policy_of_a_namespace_costs_the_same_however_many_rules(
    research, dora, django_assert_num_queries
):
    for number in range(5):
        add(dora, research, name=f"rule {number}")
    with django_assert_num_queries(3):
        policy_of(research)


def test_a_decision_of_one_namespace_does_not_hold_in_another(research, dora, root):
    add(root, None, effect="ask")
    other = factories.make_namespace("other")
    Decision.objects.create(
        approved=True, scope="spec", spec="left-pad", name="left-pad", namespace=other
    )
    specification = factories.make_specification("dependencies: [left-pad]").value()
    requested = judge(policy_of(research), lock_with("left-pad"), specification)
    assert [verdict.effect for verdict in requested] == [Effect.ASK]
    assert not judge(policy_of(other), lock_with("left-pad"), specification)


def test_a_recalled_package_is_refused_everywhere(research):
    Recall.objects.create(spec="left-pad", reason="it was taken over")
    specification = factories.make_specification("dependencies: [left-pad]").value()
    with pytest.raises(PolicyError, match="was recalled: it was taken over"):
        judge(policy_of(research), lock_with("left-pad"), specification)


# --- in a build -----------------------------------------------------------------------------------

#: A worker looks at its lease from a thread of its own.
workers = pytest.mark.django_db(transaction=True)


@workers
def test_a_build_takes_what_is_allowed_and_refuses_what_is_not(submit, research, dora):
    rule = add(dora, research, settings={"packages": ["libalpha >=2"]})
    build = submit("dependencies: [libalpha]")
    builds.run(build.pk)
    build.refresh_from_db()
    assert build.state == BuildState.READY
    assert {p.version for part in build.lock.value() for p in part.conda} == {"1.1"}
    # Another policy is another question: the stored answer does not hold any more.
    policies.change_rule(actor=dora, rule=rule, settings={"packages": ["libalpha"]})
    again = Build.objects.get(pk=build.pk)
    with pytest.raises(PolicyError, match="left-pad"):
        submit("dependencies: [libalpha]")
    assert again.state == BuildState.READY


@workers
def test_a_build_that_only_a_decision_allows_is_held_with_the_chain(submit, research, dora):
    add(dora, research, effect="ask", settings={"packages": ["libalpha"]})
    build = submit("dependencies: [apptool]")
    builds.run(build.pk)
    build.refresh_from_db()
    assert build.state == BuildState.HELD
    [verdict] = [v for v in build.verdicts if v["package"]["name"] == "libalpha"]
    assert verdict["chain"][0] == "apptool"
    assert verdict["chain"][-1] == "libalpha"
    assert verdict["rule"] == "no left-pad"
    assert verdict["policy"] == policy_of(research).version


@workers
def test_constraints_and_required_packages_join_every_solve(submit, research, dora):
    add(
        dora,
        research,
        kind="constraints",
        name="old alpha",
        settings={"packages": ["libalpha <2"]},
    )
    add(dora, research, kind="required", name="mit", settings={"packages": ["license-mit"]})
    build = submit("dependencies: [apptool]")
    builds.run(build.pk)
    build.refresh_from_db()
    versions = {p.name: p.version for part in build.lock.value() for p in part.conda}
    assert versions["libalpha"] == "1.1"
    assert "license-mit" in versions


@workers
def test_a_removed_rule_lets_the_builds_go_on_that_waited_for_it(submit, research, dora):
    rule = add(dora, research, effect="ask", settings={"packages": ["libalpha"]})
    build = submit("dependencies: [libalpha]")
    builds.run(build.pk)
    policies.remove_rule(actor=dora, rule=rule)
    build.refresh_from_db()
    assert build.state == BuildState.QUEUED
    builds.run(build.pk)
    build.refresh_from_db()
    assert build.state == BuildState.READY


# --- tried before ---------------------------------------------------------------------------------


@pytest.fixture
def stored(research):
    """Three environments in two namespaces: with left-pad below web, with it alone, without."""
    other = factories.make_namespace("other", olga=Role.ADMIN)
    web = factories.make_package("web", depends=["left-pad"])
    pad, python = factories.make_package("left-pad"), factories.make_package("python")
    for namespace, name, packages, text in (
        (research, "app", (pad, web), "dependencies: [web]"),
        (research, "plain", (python,), "dependencies: [python]"),
        (other, "lib", (pad,), "dependencies: [left-pad]"),
    ):
        factories.make_build(
            factories.make_environment(namespace, name),
            lock=factories.make_lock(*packages),
            text=text,
        )
    return other


def draft(effect="enforce", kind="packages-denied", **settings):
    return Draft(
        kind=kind,
        effect=effect,
        name="tried",
        settings=settings or {"packages": ["left-pad"]},
    )


def test_a_rule_that_is_tried_says_whom_it_hits_through_which_chain(stored, root, dora, research):
    found = policy_simulation.simulate(actor=root, namespace=None, drafts=[draft()])
    assert (found.environments, found.blocked, found.asked) == (3, 2, 0)
    assert [str(each.environment) for each in found.affected] == ["other/lib", "research/app"]
    [hit] = found.affected[1].hits
    assert hit.chain == ("web", "left-pad")
    assert "is denied" in hit.reason
    own = policy_simulation.simulate(actor=dora, namespace=research, drafts=[draft("ask")])
    assert (own.environments, own.blocked, own.asked) == (2, 0, 1)
    assert not PolicyRule.objects.exists()


def test_without_a_draft_the_rules_in_force_are_tried(stored, dora, research):
    add(dora, research, effect="warn")
    found = policy_simulation.simulate(actor=dora, namespace=research)
    assert (found.blocked, found.warned) == (0, 1)


def test_what_was_decided_counts_when_a_rule_is_tried(stored, root, research):
    Decision.objects.create(
        approved=True, scope="spec", spec="left-pad", name="left-pad", namespace=research
    )
    found = policy_simulation.simulate(actor=root, namespace=None, drafts=[draft("ask")])
    assert [str(each.environment) for each in found.affected] == ["other/lib"]


@pytest.mark.parametrize(
    ("rule", "hit"),
    [
        (draft(kind="size", packages=1), ["research/app"]),
        (draft(kind="required", packages=["left-pad"]), ["research/plain"]),
        (draft(kind="licenses", deny=["MIT"]), ["other/lib", "research/app", "research/plain"]),
        (draft(kind="channels", deny=[factories.CHANNEL]), 3),
        (draft(kind="packages-allowed", packages=["python"]), ["other/lib", "research/app"]),
        (draft(kind="age", minimum="1 day"), 3),
        (draft(kind="install-scripts", reason="none of them"), []),
    ],
)
def test_each_kind_of_rule_can_be_tried(stored, root, rule, hit):
    found = policy_simulation.simulate(actor=root, namespace=None, drafts=[rule])
    names = [str(each.environment) for each in found.affected]
    assert (len(names) if isinstance(hit, int) else names) == hit


def test_trying_asks_the_database_the_same_for_many_environments(
    research, root, django_assert_max_num_queries
):
    for number in range(30):
        factories.make_build(
            factories.make_environment(research, f"env{number}"),
            lock=factories.make_lock(factories.make_package(f"package{number}")),
        )
    with django_assert_max_num_queries(12):
        found = policy_simulation.simulate(
            actor=root, namespace=None, drafts=[draft(packages=["package*"])], limit=0
        )
    assert found.blocked == 30
