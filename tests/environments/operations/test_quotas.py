"""Quotas of namespaces: what counts, what is said near the limit, and what is refused beyond it."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from condastore.errors import AccessDeniedError, InvalidInputError, QuotaError
from environments.domain.lifecycle import BuildState
from environments.jobs import cleanup
from environments.models import AuditEvent, Build, Environment, Namespace, Notification, Prefix
from environments.models.notifications import Webhook
from environments.operations import quotas
from environments.operations.builds import restore_build, submit_build
from environments.operations.environments import (
    copy_environment,
    create_environment,
    delete_environment,
    move_environment,
)
from environments.services import folders
from tests import factories
from tests.environments.graphql.asking import ERROR, ask

TEXT = "channels: [https://channel.example.org/main]\ndependencies: [python]\n"


def allow(namespace: Namespace, **limits: int) -> None:
    """By column: max_..."""
    Namespace.objects.filter(pk=namespace.pk).update(**limits)


def used(namespace: Namespace) -> dict[str, int]:
    return {use.kind.name: use.used for use in quotas.usage(namespace)}


def submit(actor: Actor, environment: Environment) -> Any:
    return submit_build(actor=actor, environment=environment, specification=TEXT)


@pytest.mark.django_db
def test_what_a_namespace_uses_is_one_query(
    environment: Environment, django_assert_num_queries: Any
):
    namespace = environment.namespace
    factories.make_build(environment, BuildState.QUEUED)
    factories.make_build(environment, BuildState.LINKING)
    factories.make_build(environment, BuildState.FAILED)
    factories.make_build(environment)
    factories.make_build(factories.make_environment(factories.make_namespace("other")))
    old = factories.make_build(environment, BuildState.HELD)
    Build.objects.filter(pk=old.pk).update(created_at=timezone.now() - timedelta(days=2))
    Prefix.objects.update(share_size=700)
    with django_assert_num_queries(1):
        found = used(namespace)
    assert found == {"bytes": 700, "environments": 1, "builds_at_once": 2, "builds_a_day": 4}


@pytest.mark.django_db
def test_a_folder_that_namespaces_share_counts_by_its_part(environment: Environment, dora: Actor):
    build = factories.make_build(environment)
    Prefix.objects.update(share_size=900)
    locations = [factories.make_namespace(name, dora=Role.ADMIN) for name in ("lab", "shop")]
    for location in locations:
        copy_environment(actor=dora, environment=environment, namespace=location, name="copy")
    copy_environment(actor=dora, environment=environment, namespace=locations[0], name="again")
    for location in (environment.namespace, *locations):
        assert used(location)["bytes"] == 300
        assert used(location)["builds_a_day"] == (1 if location == environment.namespace else 0)
    assert Build.objects.filter(prefix=build.prefix).count() == 4


def test_a_shared_file_counts_by_its_share(tmp_path: Path):
    from environments.engine.system.disk import tree_size

    for name in ("cache", "one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "cache" / "lib").write_bytes(b"x" * 1000)
    (tmp_path / "one" / "own").write_bytes(b"x" * 10)
    (tmp_path / "one" / "lib").hardlink_to(tmp_path / "cache" / "lib")
    assert tree_size(tmp_path / "one").share == 1010
    (tmp_path / "two" / "lib").hardlink_to(tmp_path / "cache" / "lib")
    (tmp_path / "two" / "twin").hardlink_to(tmp_path / "cache" / "lib")
    sizes = [tree_size(tmp_path / name) for name in ("one", "two")]
    assert [size.share for size in sizes] == [343, 666]
    assert [size.unique for size in sizes] == [10, 0]


@pytest.mark.django_db
def test_shares_are_counted_anew_when_they_are_old(environment: Environment):
    build = factories.make_build(environment)
    path = folders.data() / build.prefix.path
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"x" * 1234)
    cleanup.measure_again()
    assert Prefix.objects.get().share_size == 0
    Prefix.objects.update(measured_at=timezone.now() - timedelta(days=1))
    cleanup.measure_again()
    assert Prefix.objects.get().share_size == 1234


@pytest.mark.django_db
def test_without_a_limit_nothing_is_refused_or_counted(environment: Environment, alice: Actor):
    assert submit(alice, environment).warnings == ()


@pytest.mark.django_db
def test_what_is_too_much_is_refused_with_all_its_numbers(environment: Environment, alice: Actor):
    allow(environment.namespace, max_builds_at_once=2, max_builds_a_day=2, max_bytes=1000)
    old = factories.make_build(environment)
    Build.objects.update(created_at=timezone.now() - timedelta(days=2))
    factories.make_build(environment)
    Prefix.objects.filter(builds=old).update(share_size=800, unique_size=750)
    submit(alice, environment)
    Prefix.objects.filter(builds=old).update(share_size=1000)
    with pytest.raises(QuotaError) as caught:
        submit(alice, environment)
    assert caught.value.details["exceeded"] == [
        {"quota": "bytes", "used": 1000, "limit": 1000},
        {"quota": "builds_a_day", "used": 2, "limit": 2},
    ]
    assert caught.value.details["largest"] == [{"build": "research/ml build 1", "bytes": 750}]
    assert "1,000 of 1,000 bytes" in str(caught.value)
    assert "research/ml build 1 (750 bytes)" in caught.value.hint
    assert Build.objects.count() == 3


@pytest.mark.django_db
def test_a_build_that_ends_makes_room(environment: Environment, alice: Actor):
    allow(environment.namespace, max_builds_at_once=1)
    build = submit(alice, environment).build
    with pytest.raises(QuotaError, match="1 of 1 builds queued or running"):
        submit(alice, environment)
    build.move(BuildState.CANCELLED)
    submit(alice, environment)


@pytest.mark.django_db
def test_each_way_to_one_more_environment_is_counted(environment: Environment, dora: Actor):
    lab = factories.make_namespace("lab", dora=Role.ADMIN)
    allow(lab, max_environments=1)
    create_environment(actor=dora, namespace=lab, name="first")
    for attempt in (
        lambda: create_environment(actor=dora, namespace=lab, name="second"),
        lambda: copy_environment(actor=dora, environment=environment, namespace=lab, name="copy"),
        lambda: move_environment(actor=dora, environment=environment, namespace=lab),
    ):
        with pytest.raises(QuotaError, match="1 of 1 environments"):
            attempt()
    delete_environment(actor=dora, environment=Environment.objects.get(namespace=lab))
    move_environment(actor=dora, environment=environment, namespace=lab)
    assert used(lab)["environments"] == 1


@pytest.mark.django_db
def test_a_restore_needs_room_too(environment: Environment, alice: Actor):
    build = factories.make_build(environment, BuildState.ARCHIVED)
    factories.make_build(environment, BuildState.QUEUED)
    allow(environment.namespace, max_builds_at_once=1)
    with pytest.raises(QuotaError):
        restore_build(actor=alice, build=build)


@pytest.mark.django_db
def test_near_the_limit_it_is_said_and_told_once_a_day(
    environment: Environment, alice: Actor, settings: Any
):
    settings.EMAIL_URL = "smtp://localhost"
    hook = Webhook(url="https://hook.example.org")
    hook.seal("secret")
    hook.save()
    allow(environment.namespace, max_builds_at_once=5)
    said = [submit(alice, environment).warnings for _ in range(5)]
    assert said[:3] == [(), (), ()]
    assert said[3:] == [
        ("research uses 4 of 5 builds queued or running.",),
        ("research uses 5 of 5 builds queued or running.",),
    ]
    reported = Notification.objects.filter(event="quota.warning")
    assert sorted(one.email for one in reported) == ["", "dora@example.org"]


@pytest.mark.django_db
def test_a_namespace_has_its_own_limit_or_that_of_the_installation(
    environment: Environment, alice: Actor, settings: Any
):
    settings.QUOTA_BUILDS_AT_ONCE = 1
    submit(alice, environment)
    with pytest.raises(QuotaError):
        submit(alice, environment)
    allow(environment.namespace, max_builds_at_once=0)
    submit(alice, environment)
    allow(environment.namespace, max_builds_at_once=2)
    with pytest.raises(QuotaError):
        submit(alice, environment)


@pytest.mark.django_db
def test_administrators_set_quotas_and_nobody_else(research: Namespace, root: Actor, dora: Actor):
    limits = {"bytes": 10**12, "environments": None, "builds_a_day": 0}
    quotas.set_quota(actor=root, namespace=research, limits=limits)
    assert (research.max_bytes, research.max_environments, research.max_builds_a_day) == (
        10**12,
        None,
        0,
    )
    event = AuditEvent.objects.get()
    assert (event.action, event.changes["after"]) == ("namespace.quota", limits)
    with pytest.raises(AccessDeniedError):
        quotas.set_quota(actor=dora, namespace=research, limits=limits)
    for wrong in ({"bytes": -1}, {"environments": 2**31}, {"bytes": 2**60}, {"cpu": 1}):
        with pytest.raises(InvalidInputError):
            quotas.set_quota(actor=root, namespace=research, limits=wrong)


@pytest.mark.django_db(transaction=True)
def test_of_many_who_ask_at_once_the_limit_lets_so_many_through(
    environment: Environment, alice: Actor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("environments.operations.queueing.send", lambda row: True)
    allow(environment.namespace, max_builds_at_once=3)
    refused: list[QuotaError] = []
    start = threading.Barrier(6)

    def ask() -> None:
        try:
            location = Environment.objects.select_related("namespace").get(pk=environment.pk)
            start.wait()
            submit(Actor(User.objects.get(username="alice")), location)
        except QuotaError as error:
            refused.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Build.objects.count(), len(refused)) == (3, 3)


@pytest.mark.django_db
def test_graphql_shows_quotas_of_a_list_and_sets_them(
    environment: Environment, root: Actor, django_assert_max_num_queries: Any
):
    for name in ("lab", "shop", "store"):
        factories.make_namespace(name)
    change = "mutation { setQuota(namespace: %s, environments: 1, bytes: null) { __typename %s } }"
    answer = ask(root, change % ('"research"', ERROR))["setQuota"]
    assert answer == {"__typename": "Namespace"}
    listed = "{ namespaces { edges { node { name quotas { kind used limit near } } } } }"
    with django_assert_max_num_queries(2):
        edges = ask(root, listed)["namespaces"]["edges"]
    shown = {edge["node"]["name"]: edge["node"]["quotas"] for edge in edges}
    assert shown["research"][1] == {"kind": "ENVIRONMENTS", "used": 1, "limit": 1, "near": True}
    assert [one["limit"] for one in shown["lab"]] == [None] * 4
