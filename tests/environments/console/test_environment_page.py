"""The page of an environment, its actions, and the comparison of two builds."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from accounts.roles import Role
from environments.console.environment_actions import ACTIONS
from environments.domain.lifecycle import BuildState
from environments.models import Build, BuildTag, Environment
from tests import factories
from tests.environments.console.test_build_page import signed_in

PAGE = "/environments/research/ml/"
TABS = ["overview", "packages", "versions", "sharing", "settings"]


def text_of(actor: Actor, path: str = PAGE) -> str:
    answer = signed_in(actor).get(path)
    assert answer.status_code == 200
    return answer.content.decode()


def tag(build: Build, name: str) -> None:
    BuildTag.objects.create(environment=build.environment, build=build, name=name)


def test_current_newest_and_tags_are_three_things(bob: Actor, environment: Environment) -> None:
    tag(factories.make_build(environment), "paper")
    factories.make_build(environment, BuildState.FAILED)
    Environment.objects.update(pinned=True)
    text = text_of(bob)
    assert "Current: what people and jobs get" in text
    assert "Newest: last build that was requested" in text
    assert "Pinned: new builds do not replace it" in text
    assert "?use=paper#use" in text


@pytest.mark.parametrize("tab", [*TABS, "", "nothing"])
def test_each_tab_has_an_address_and_works_without_builds(
    dora: Actor, bob: Actor, environment: Environment, tab: str
) -> None:
    for actor in (dora, bob):
        text_of(actor, f"{PAGE}?tab={tab}")
    factories.make_build(environment)
    for actor in (dora, bob):
        text_of(actor, f"{PAGE}?tab={tab}")


def test_use_it_is_rewritten_for_a_tag_and_for_one_build(
    bob: Actor, environment: Environment
) -> None:
    tag(factories.make_build(environment), "paper")
    assert "condastore run research/ml -- python" in text_of(bob)
    assert "condastore run research/ml:paper -- python" in text_of(bob, f"{PAGE}?use=paper")
    assert "testserver/research/ml:1" in text_of(bob, f"{PAGE}?use=1")
    assert signed_in(bob).get(f"{PAGE}?use=none-such").status_code == 404


def test_requested_packages_are_apart_from_dependencies_with_their_chain(
    bob: Actor, environment: Environment
) -> None:
    python = factories.make_package("python", depends=["openssl"])
    lock = factories.make_lock(python, factories.make_package("openssl"))
    factories.make_build(environment, lock=lock)
    text = text_of(bob, f"{PAGE}?tab=packages")
    assert "1 requested, 1 dependency" in text
    assert text.index(">python</span>") < text.index(">openssl</span>")
    assert "<b>openssl</b>" in text


def test_older_versions_are_reached_by_links(bob: Actor, environment: Environment) -> None:
    for _ in range(55):
        factories.make_build(environment, BuildState.FAILED)
    first = text_of(bob, f"{PAGE}?tab=versions")
    assert "tab=versions&amp;before=6" in first
    assert 'builds/5/"' in text_of(bob, f"{PAGE}?tab=versions&before=6")


def test_the_page_costs_as_many_queries_for_many_builds(
    bob: Actor, environment: Environment, django_assert_max_num_queries: Any
) -> None:
    for _ in range(30):
        factories.make_build(environment)
    client = signed_in(bob)
    client.get(PAGE)
    with django_assert_max_num_queries(30):
        client.get(PAGE)


def test_a_page_offers_no_action_to_a_viewer_and_each_to_an_administrator(
    bob: Actor, dora: Actor, environment: Environment
) -> None:
    factories.make_build(environment)
    Environment.objects.update(pinned=True)
    text = text_of(dora, f"{PAGE}?tab=settings")
    assert all(f"{PAGE}actions/{name}/" in text for name in ACTIONS)
    viewer = text_of(bob)
    assert not any(f"actions/{name}/" in viewer for name in ACTIONS if name != "copy")
    assert "tab=sharing" not in viewer


FORMS: dict[str, dict[str, str]] = {
    "release-pin": {},
    "roll-back": {},
    "tag": {"tag": "prod", "build": "1"},
    "untag": {"tag": "paper"},
    "share": {"user": "charlie"},
    "rename": {"name": "other"},
    "copy": {"namespace": "research", "name": "second"},
    "delete": {"confirmation": "research/ml"},
}


def snapshot() -> list[object]:
    tags = BuildTag.objects.order_by("pk").values_list("name", "build__number")
    rows = Environment.objects.order_by("pk")
    return [
        *tags,
        *rows.values_list("name", "pinned", "current__number", "deleted_at"),
        *[one.user_shares.count() for one in rows],
    ]


@pytest.mark.parametrize("action", FORMS)
def test_an_action_states_its_effect_and_is_done_by_a_form_only(
    dora: Actor, bob: Actor, charlie: Actor, environment: Environment, action: str
) -> None:
    tag(factories.make_build(environment), "paper")
    factories.make_build(environment)
    Environment.objects.update(pinned=True)
    before, address = snapshot(), f"{PAGE}actions/{action}/"
    assert ACTIONS[action].label in text_of(dora, address)
    if action != "copy":
        assert signed_in(bob).post(address, FORMS[action]).status_code == 403
    assert signed_in(charlie).post(address, FORMS[action]).status_code == 404
    assert Client().post(address, FORMS[action]).status_code == 404
    assert snapshot() == before
    answer = signed_in(dora).post(address, FORMS[action], follow=True)
    assert "is-ok" in answer.content.decode()
    assert snapshot() != before


def test_an_environment_is_deleted_only_by_its_full_name(
    dora: Actor, environment: Environment
) -> None:
    answer = signed_in(dora).post(f"{PAGE}actions/delete/", {"confirmation": "ml"}, follow=True)
    assert "Type research/ml to confirm." in answer.content.decode()
    assert Environment.objects.present().count() == 1


def test_a_share_is_ended_and_an_environment_moved(
    dora: Actor, charlie: Actor, environment: Environment
) -> None:
    client = signed_in(dora)
    client.post(f"{PAGE}actions/share/", {"user": "charlie"})
    assert "charlie" in text_of(dora, f"{PAGE}?tab=sharing")
    text_of(charlie)
    client.post(f"{PAGE}actions/stop-sharing/", {"user": "charlie"})
    assert signed_in(charlie).get(PAGE).status_code == 404
    factories.make_namespace("archive", dora=Role.ADMIN)
    answer = client.post(f"{PAGE}actions/move/", {"namespace": "archive"})
    assert answer["Location"] == "/environments/archive/ml/"


def two_builds(environment: Environment) -> None:
    one = factories.make_package
    old = factories.make_lock(one("python", "3.11"), one("daal"), one("zlib", "1"))
    new = factories.make_lock(one("python", "3.12"), one("narwhals"), one("zlib", "1"))
    factories.make_build(environment, lock=old)
    factories.make_build(environment, lock=new)


def test_two_builds_are_compared_with_requested_packages_first(
    bob: Actor, environment: Environment
) -> None:
    two_builds(environment)
    text = text_of(bob, f"{PAGE}compare/?before=1&after=2")
    assert "1 package changed, 1 added, 1 removed." in text
    assert "Requested: 1" in text
    assert "Dependencies: 2" in text
    assert "<del>3.11</del> → <ins>3.12</ins>" in text
    assert "| python | updated | 3.11 | 3.12 |" in text
    assert "1 package unchanged" in text
    assert text_of(bob, f"{PAGE}compare/").count("<del>3.11</del>") == 1


def test_builds_that_cannot_be_compared_are_an_error_page(
    bob: Actor, charlie: Actor, environment: Environment
) -> None:
    assert "fewer than two builds" in text_of(bob, f"{PAGE}compare/")
    two_builds(environment)
    factories.make_build(environment, BuildState.QUEUED)
    for query in ("after=3", "before=99", "before=x"):
        assert signed_in(bob).get(f"{PAGE}compare/?{query}").status_code == 404
    assert signed_in(charlie).get(f"{PAGE}compare/").status_code == 404
