"""Pages: what they show and to whom, without anything from other hosts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from environments.domain.artifacts import ArtifactKind
from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment
from environments.operations.artifacts import create_artifact
from tests import factories

PAGES = ["/environments/", "/environments/research/ml/", "/environments/research/ml/builds/1/"]


def signed_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.account)
    return client


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_builds_and_escapes_their_texts(
    bob: Actor, environment: Environment, page: str
) -> None:
    build = factories.make_build(environment)
    build.append_log(["a <b>line</b> of the log"])
    Build.objects.filter(pk=build.pk).update(
        failure={"code": "x", "message": "it <i>failed</i>", "where": "", "hint": ""}
    )
    answer = signed_in(bob).get(page)
    text = answer.content.decode()
    assert answer.status_code == 200
    assert "research/ml" in text
    assert "<b>line</b>" not in text
    assert "<i>failed</i>" not in text
    assert not re.findall(r"""(?:src|href|action)=["'](?:https?:)?//""", text)
    assert 'http-equiv="refresh"' not in text


@pytest.mark.parametrize("page", PAGES[1:])
def test_a_page_is_not_found_without_the_right_to_see_it(
    charlie: Actor, environment: Environment, page: str
) -> None:
    factories.make_build(environment)
    answer = signed_in(charlie).get(page, headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert "There is no environment research/ml." in answer.content.decode()
    assert "research" not in signed_in(charlie).get(PAGES[0]).content.decode()


@pytest.mark.parametrize("page", [*PAGES[1:], "/environments/no/such/", "/nothing/here/"])
def test_a_signed_out_visitor_is_asked_to_sign_in_and_led_back(
    environment: Environment, page: str
) -> None:
    """Whether there is something at the address or not: the answer is the same."""
    answer = Client().get(page, headers={"Accept": "text/html"})
    assert (answer.status_code, answer["Location"]) == (302, f"/login/?next={page}")


def test_programs_are_not_redirected_to_the_sign_in(environment: Environment) -> None:
    for accept in ("*/*", "application/json"):
        assert Client().get(PAGES[1], headers={"Accept": accept}).status_code == 404


@pytest.mark.parametrize("host", ["evil.example.org", "[", "localhost:x", ""])
def test_a_refused_host_name_is_answered_by_a_page_that_says_so(host: str) -> None:
    answer = Client().get("/login/", HTTP_HOST=host, headers={"Accept": "text/html"})
    assert answer.status_code == 400
    assert b"does not answer to the host name of the request" in answer.content
    assert b"<footer" in answer.content


def test_the_page_of_an_environment_costs_a_bounded_number_of_queries(
    bob: Actor, environment: Environment, django_assert_max_num_queries: Any
) -> None:
    for _ in range(30):
        factories.make_build(environment)
    client = signed_in(bob)
    client.get("/environments/research/ml/")
    with django_assert_max_num_queries(30):
        client.get("/environments/research/ml/")


def test_people_sign_in_and_out(db: None) -> None:
    factories.make_user("alice", password="a long enough one")
    client = Client(enforce_csrf_checks=True)
    page = client.get("/login/?next=/environments/a/b/").content.decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token is not None
    form = {"username": "alice", "password": "wrong", "csrfmiddlewaretoken": token[1]}
    refused = client.post("/login/", form)
    assert "is wrong" in refused.content.decode()
    form |= {"password": "a long enough one", "next": "/"}
    assert client.post("/login/", form).headers["Location"] == "/"
    assert "alice" in client.get(PAGES[0]).content.decode()
    form = {"username": "alice", "password": "a long enough one"}
    forged = Client(enforce_csrf_checks=True).post("/login/", form)
    assert forged.status_code == 403


def test_sign_in_redirects_to_this_site_only(db: None) -> None:
    factories.make_user("alice", password="a long enough one")
    form = {
        "username": "alice",
        "password": "a long enough one",
        "next": "https://elsewhere.example.org/",
    }
    assert Client().post("/login/", form).headers["Location"] == "/"


ADMIN_LISTS = [
    "environments/namespace",
    "environments/environment",
    "environments/build",
    "environments/lockrow",
    "environments/preview",
    "environments/channel",
    "environments/channelcredential",
    "environments/worker",
    "environments/leader",
    "environments/auditevent",
    "accounts/user",
    "accounts/apitoken",
]


@pytest.mark.parametrize("name", ADMIN_LISTS)
def test_lists_of_the_console_need_a_bounded_number_of_queries(
    root: Actor, environment: Environment, name: str, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        factories.make_build(factories.make_environment(environment.namespace, f"e{number}"))
    client = signed_in(root)
    client.get("/admin/")
    with django_assert_max_num_queries(12):
        answer = client.get(f"/admin/{name}/")
    assert answer.status_code == 200


def test_rows_are_not_changed_in_the_admin(root: Actor, environment: Environment) -> None:
    build = factories.make_build(environment)
    client = signed_in(root)
    page = client.get(f"/admin/environments/build/{build.pk}/change/")
    assert page.status_code == 200
    assert "_save" not in page.content.decode()
    assert client.get("/admin/environments/build/add/").status_code == 403
    deleted = client.post(f"/admin/environments/build/{build.pk}/delete/", {"post": "yes"})
    assert deleted.status_code == 403
    assert Build.objects.filter(pk=build.pk).exists()


def test_the_admin_is_for_administrators_of_the_installation(dora: Actor) -> None:
    dora.account.is_staff = True
    dora.account.save()
    client = signed_in(dora)
    for name in ("environments/build", "accounts/apitoken", "environments/auditevent"):
        assert client.get(f"/admin/{name}/").status_code == 403


def test_a_ready_build_offers_every_download(bob: Actor, environment: Environment) -> None:
    build = factories.make_build(environment)
    rendered, made = ("environment.yml", "sbom.cdx.json"), ("env.tar.zst", "install.sh")
    client = signed_in(bob)

    def shown() -> str:
        return client.get(PAGES[2]).content.decode()

    text = shown()
    for name in (*rendered, *made):
        assert f"/api/envs/research/ml/1/{name}" in text
    assert "testserver/research/ml:1" in text
    assert "http://testserver/channel/research/ml/1" in text
    assert text.count("built on request") == 6
    create_artifact(actor=bob, build=build, kind=ArtifactKind.TAR_ZST)
    assert "in progress" in shown()
    Build.objects.filter(pk=build.pk).update(state=BuildState.HELD, finished_at=None, prefix=None)
    text = shown()
    assert all(name in text for name in rendered)
    assert not any(name in text for name in made)
    assert "testserver/research/ml:1" not in text
