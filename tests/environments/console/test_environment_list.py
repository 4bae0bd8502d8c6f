"""List of environments: search, filters, order, pages, and what each person sees of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from environments.domain.lifecycle import BuildState
from environments.models import Build, BuildTag, Environment
from environments.operations import recalls
from tests import factories

PAGE = "/environments/"
HTML = {"Accept": "text/html"}


def signed_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.account)
    return client


def names(client: Client, **query: str) -> list[str]:
    """Names of the environments that the page lists, in its order."""
    text = client.get(PAGE, query).content.decode()
    return re.findall(r'<a class="name" href="/environments/([^"]+)/"', text)


def with_packages(environment: Environment, *packages: Any) -> Build:
    return factories.make_build(environment, lock=factories.make_lock(*packages))


@pytest.fixture
def environments(environment: Environment) -> list[Environment]:
    """research/ml, research/etl and research/notes with different packages."""
    etl, notes = (factories.make_environment(environment.namespace, n) for n in ("etl", "notes"))
    openssl = [factories.make_package("openssl", v) for v in ("3.0.12", "3.0.13", "1.1.1")]
    with_packages(environment, openssl[0])
    with_packages(etl, openssl[1])
    with_packages(notes, factories.make_package("zlib"))
    return [environment, etl, notes]


def test_a_search_finds_parts_of_names(bob: Actor, environments: Any) -> None:
    client = signed_in(bob)
    assert names(client) == ["research/etl", "research/ml", "research/notes"]
    assert names(client, q="not") == ["research/notes"]
    assert names(client, q="research/m") == ["research/ml"]
    assert names(client, q="no such") == []


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("openssl <3.0.13", ["research/ml"]),
        ("openssl >=3", ["research/etl", "research/ml"]),
        ("openssl 3.0.13", ["research/etl"]),
        ("openssl<2", []),
        ("conda:zlib =1.0", ["research/notes"]),
        ("pypi:zlib =1.0", []),
    ],
)
def test_a_package_with_a_version_finds_the_builds_that_hold_it(
    bob: Actor, environments: Any, search: str, expected: list[str]
) -> None:
    assert names(signed_in(bob), q=search) == expected


def test_the_matching_version_is_shown_and_a_name_alone_is_offered(
    bob: Actor, environments: Any
) -> None:
    client = signed_in(bob)
    page = client.get(PAGE, {"contains": "openssl"}).content.decode()
    assert "openssl 3.0.12" in page
    assert "openssl 3.0.13" in page
    assert "contains=openssl" in client.get(PAGE, {"q": "openssl"}).content.decode()


@pytest.mark.parametrize("search", ["openssl <<>>", "openssl >=3,<", "<3"])
def test_a_search_that_cannot_be_read_is_explained(
    bob: Actor, environments: Any, search: str
) -> None:
    answer = signed_in(bob).get(PAGE, {"q": search})
    assert answer.status_code == 400
    assert "This search cannot be run" in answer.content.decode()


def test_filters_by_state_tell_what_needs_attention(
    bob: Actor, root: Actor, environments: list[Environment]
) -> None:
    ml, *_ = environments
    factories.make_build(ml, BuildState.FAILED)
    factories.make_environment(ml.namespace, "empty")
    client = signed_in(bob)
    assert names(client, state="failed") == ["research/ml"]
    assert names(client, state="works") == ["research/etl", "research/notes"]
    assert names(client, state="empty") == ["research/empty"]
    recalls.recall(actor=root, spec="zlib", reason="CVE-2026-1")
    assert names(client, state="recalled") == ["research/notes"]
    assert names(client, state="works") == ["research/etl"]
    assert client.get(PAGE, {"state": "<b>"}).status_code == 400
    counts = client.get(f"{PAGE}filters/").content.decode()
    assert re.search(r'Newest failed<span class="c">1</span>', counts)


def test_filters_by_tag_and_channel(bob: Actor, environments: list[Environment]) -> None:
    _, etl, _ = environments
    BuildTag.objects.create(environment=etl, name="prod", build=etl.builds.get())
    client = signed_in(bob)
    assert names(client, tag="prod") == ["research/etl"]
    assert len(names(client, channel=factories.CHANNEL)) == 3
    assert names(client, channel="https://other.example.org") == []
    text = client.get(f"{PAGE}filters/").content.decode()
    assert "prod" in text
    assert factories.CHANNEL in text


def test_nobody_finds_or_counts_what_they_may_not_see(
    charlie: Actor, environments: list[Environment]
) -> None:
    BuildTag.objects.create(
        environment=environments[0], name="secret", build=environments[0].builds.get()
    )
    for client in (signed_in(charlie), Client()):
        for query in ({}, {"q": "ml"}, {"contains": "openssl"}, {"tag": "secret"}):
            assert names(client, **query) == []
        facets = client.get(f"{PAGE}filters/").content.decode()
        assert "research" not in facets
        assert "secret" not in facets
        assert factories.CHANNEL not in facets
        assert 'class="c">1<' not in facets


def test_public_environments_are_listed_for_everybody(db: None) -> None:
    factories.make_environment(factories.make_namespace("open", public=True), "ml")
    assert names(Client()) == ["open/ml"]


@pytest.mark.parametrize("order", ["name", "used", "changed"])
def test_pages_neither_skip_nor_repeat_rows(
    bob: Actor, environment: Environment, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("environments.console.environment_list.PAGE_SIZE", 4)
    for number in range(10):
        made = factories.make_environment(environment.namespace, f"e{number}")
        if number % 3:
            Environment.objects.filter(pk=made.pk).update(used_at=made.created_at)
    client, seen, query = signed_in(bob), [], f"?sort={order}"
    pages = []
    while query:
        text = client.get(PAGE + query).content.decode()
        pages.append(re.findall(r'<a class="name" href="/environments/([^"]+)/"', text))
        seen += pages[-1]
        found = re.search(r'rel="next" href="[^"?]*(\?[^"]+)"', text)
        back = re.search(r'rel="prev" href="[^"?]*(\?[^"]+)"', text)
        assert bool(back) == (len(pages) > 1)
        query = found[1].replace("&amp;", "&") if found else ""
    assert len(seen) == len(set(seen)) == 11
    assert back is not None
    text = client.get(PAGE + back[1].replace("&amp;", "&")).content.decode()
    assert re.findall(r'<a class="name" href="/environments/([^"]+)/"', text) == pages[-2]


@pytest.mark.parametrize("cursor", ["x", "WzFd", "W251bGwsbnVsbF0", "a" * 2000, "é"])
def test_a_forged_position_is_refused(bob: Actor, environment: Environment, cursor: str) -> None:
    for name in ("after", "before"):
        answer = signed_in(bob).get(PAGE, {name: cursor})
        assert answer.status_code == 400
        assert "Start again on the first page." in answer.content.decode()


def test_the_list_costs_as_many_queries_for_fifty_as_for_five(
    bob: Actor, environment: Environment, django_assert_max_num_queries: Any
) -> None:
    lock = factories.make_lock(factories.make_package("openssl"))
    for number in range(50):
        made = factories.make_environment(environment.namespace, f"e{number}")
        factories.make_build(made, lock=lock)
    client = signed_in(bob)
    client.get(PAGE)
    with django_assert_max_num_queries(8):
        assert len(names(client)) == 50
    with django_assert_max_num_queries(15):
        assert len(names(client, q="openssl >0")) == 50


def test_texts_of_people_are_escaped(bob: Actor, environment: Environment) -> None:
    Environment.objects.filter(pk=environment.pk).update(description="<script>x</script>")
    text = signed_in(bob).get(PAGE, {"q": "<b>ml</b>"}).content.decode()
    assert "<b>ml" not in text
    assert "<script>x" not in signed_in(bob).get(PAGE).content.decode()


def test_htmx_receives_the_results_only(bob: Actor, environment: Environment) -> None:
    answer = signed_in(bob).get(PAGE, headers={"HX-Request": "true"})
    text = answer.content.decode()
    assert text.lstrip().startswith('<div id="results">')
    assert "<html" not in text
    assert "HX-Request" in answer["Vary"]
