"""The page of a build: stages, summary, log windows, search, and live parts."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.test import AsyncClient, Client
from django.utils import timezone

from accounts.access import Actor
from environments.domain.lifecycle import BuildState
from environments.models import Build, BuildEvent, Environment
from environments.models.approvals import ApprovalRequest, WaitingBuild
from tests import factories

PAGE = "/environments/research/ml/builds/1/"


def signed_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.account)
    return client


def text_of(actor: Actor, path: str = PAGE) -> str:
    answer = signed_in(actor).get(path)
    assert answer.status_code == 200
    return answer.content.decode()


def lines_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'<li id="L(\d+)"', text)]


@pytest.mark.parametrize("state", list(BuildState))
def test_a_build_in_any_state_has_a_page_with_one_summary(
    bob: Actor, environment: Environment, state: BuildState
) -> None:
    factories.make_build(environment, state)
    text = text_of(bob)
    assert text.count('id="h-st"') == 1
    assert 'http-equiv="refresh"' not in text
    live = "data-stream" in text
    assert live == (
        state
        not in {BuildState.READY, BuildState.FAILED, BuildState.CANCELLED, BuildState.ARCHIVED}
    )


def test_stages_are_shown_beside_the_median_of_earlier_builds(
    bob: Actor, environment: Environment
) -> None:
    for seconds in (10.0, 20.0, 90.0):
        one = factories.make_build(environment)
        Build.objects.filter(pk=one.pk).update(timings={"SOLVING": 1.0, "LINKING": seconds})
    build = factories.make_build(environment)
    Build.objects.filter(pk=build.pk).update(timings={"SOLVING": 1.0, "LINKING": 50.0})
    text = text_of(bob, f"/environments/research/ml/builds/{build.number}/")
    assert "median of the last 3 builds: 21 s" in text
    assert "Linking: 50 s, usually 20 s" in text
    assert 'class="fg is-warn"' in text  # slower than 150 percent of the median
    assert "The build is ready. It took 51 s." in text


def test_a_running_build_shows_its_stage_and_progress(bob: Actor, environment: Environment) -> None:
    build = factories.make_build(environment, BuildState.LINKING)
    now = timezone.now()
    for state, ago in ((BuildState.QUEUED, 9), (BuildState.SOLVING, 8), (BuildState.LINKING, 5)):
        at = now - timedelta(seconds=ago)
        BuildEvent.objects.create(build=build, state=state, at=at)
    progress = {"stage": "linking", "done": 62, "total": 87, "current": "numpy"}
    Build.objects.filter(pk=build.pk).update(progress=progress)
    text = text_of(bob)
    assert "Packages are linked: 62 of 87." in text
    assert '<li class="is-now" aria-current="step">' in text
    assert "Solving: 3.0 s" in text


def test_the_log_is_shown_in_windows_and_each_line_has_an_address(
    bob: Actor, environment: Environment
) -> None:
    build = factories.make_build(environment)
    build.append_log([f"line {number}" for number in range(1, 2001)])
    assert lines_in(text_of(bob)) == list(range(1501, 2001))
    first = text_of(bob, f"{PAGE}?line=1")
    assert lines_in(first) == list(range(1, 501))
    assert 'href="?line=501#L501"' in first
    middle = text_of(bob, f"{PAGE}?line=1000")
    assert 1000 in lines_in(middle)
    assert 'href="?line=1000#L1000"' in middle
    for strange in ("0", "-1", "x", "99999999999", "9999", "٣"):
        assert lines_in(text_of(bob, f"{PAGE}?line={strange}"))


def test_every_line_of_the_log_is_reached_by_the_links_to_later_lines(
    bob: Actor, environment: Environment
) -> None:
    build = factories.make_build(environment)
    build.append_log([f"line {number}" for number in range(1, 1801)])
    seen: set[int] = set()
    address = "?line=1"
    while address:
        text = text_of(bob, PAGE + address)
        seen.update(lines_in(text))
        later = re.search(r'href="(\?line=\d+)#L\d+">Later lines', text)
        address = later[1] if later else ""
    assert seen == set(range(1, 1801))


def test_the_log_is_searched_on_the_server(bob: Actor, environment: Environment) -> None:
    build = factories.make_build(environment)
    build.append_log(["first", "a Warning: <b>", "last, warning and warning"])
    text = text_of(bob, f"{PAGE}?q=WARNING")
    assert "2 matches" in text
    assert text.count("<mark>") == 3
    assert "<mark>Warning</mark>: &lt;b&gt;" in text
    assert 'href="?line=3#L3"' in text
    assert "No line contains “&lt;i&gt;”." in text_of(bob, f"{PAGE}?q=<i>")


def test_a_long_log_costs_a_bounded_number_of_queries(
    bob: Actor, environment: Environment, django_assert_max_num_queries: Any
) -> None:
    build = factories.make_build(environment)
    for _ in range(50):
        build.append_log(["x"] * 100)
    build.archive_log()
    client = signed_in(bob)
    client.get(PAGE)
    with django_assert_max_num_queries(30):
        client.get(PAGE)


def hold(build: Build, asked_by: Any) -> ApprovalRequest:
    request = ApprovalRequest.objects.create(
        namespace=build.environment.namespace,
        subject="spec:mlflow",
        name="mlflow",
        version="3.6",
        rule="review",
        reason="It is new here.",
        chain=["tracker", "mlflow"],
    )
    WaitingBuild.objects.create(request=request, build=build, asked_by=asked_by)
    return request


def test_a_held_build_is_calm_and_takes_an_explanation_of_its_requester(
    alice: Actor, bob: Actor, environment: Environment
) -> None:
    request = hold(factories.make_build(environment, BuildState.HELD), bob.account)
    text = text_of(bob)
    assert "One package needs a decision. The build then continues automatically." in text
    assert "is-bad" not in text
    assert 'id="say"' in text
    answer = signed_in(bob).post(f"{PAGE}explain/", {"note": "For the <paper>."}, follow=True)
    assert "The approvers see your explanation." in answer.content.decode()
    assert "“For the &lt;paper&gt;.”" in text_of(alice)
    assert WaitingBuild.objects.get(request=request).note == "For the <paper>."


def test_only_the_requester_explains(
    alice: Actor, bob: Actor, charlie: Actor, environment: Environment
) -> None:
    request = hold(factories.make_build(environment, BuildState.HELD), bob.account)
    assert 'id="say"' not in text_of(alice)
    signed_in(alice).post(f"{PAGE}explain/", {"note": "mine"})
    assert signed_in(charlie).post(f"{PAGE}explain/", {"note": "mine"}).status_code == 404
    Client().post(f"{PAGE}explain/", {"note": "mine"})
    assert WaitingBuild.objects.get(request=request).note == ""


async def read(client: AsyncClient, path: str) -> tuple[Any, str]:
    answer: Any = await client.get(path)
    return answer, b"".join([part async for part in answer.streaming_content]).decode()


@pytest.mark.django_db(transaction=True)
def test_the_stream_of_a_finished_build_sends_new_lines_and_ends(
    bob: Actor, environment: Environment
) -> None:
    build = factories.make_build(environment, BuildState.FAILED)
    build.append_log(["one", "<two>", "three"])
    build.archive_log()
    client = AsyncClient()
    client.force_login(bob.account)
    answer, text = async_to_sync(read)(client, f"{PAGE}stream/?line=1")
    assert answer["Content-Type"] == "text/event-stream"
    assert 'id="L1"' not in text
    assert 'id="L2"' in text
    assert "&lt;two&gt;" in text
    assert 'hx-target="#stages"' in text
    assert text.endswith("event: finished\ndata: \n\n")


@pytest.mark.django_db(transaction=True)
def test_the_stream_of_an_empty_log_begins_with_its_first_line(
    bob: Actor, environment: Environment
) -> None:
    build = factories.make_build(environment, BuildState.LINKING)
    page = text_of(bob, PAGE)
    found = re.search(r'data-stream="([^"]+)"', page)
    assert found is not None
    build.append_log(["the first line", "the second line"])
    Build.objects.filter(pk=build.pk).update(
        state=BuildState.FAILED,
        finished_at=timezone.now() - timedelta(minutes=1),
        lease_expires_at=None,
    )
    client = AsyncClient()
    client.force_login(bob.account)
    _, text = async_to_sync(read)(client, found[1].replace("&amp;", "&"))
    assert "the first line" in text
    assert "the second line" in text


@pytest.mark.django_db(transaction=True)
def test_the_stream_follows_a_build_to_its_end(bob: Actor, environment: Environment) -> None:
    build = factories.make_build(environment, BuildState.LINKING)
    client = AsyncClient()
    client.force_login(bob.account)

    async def follow() -> list[str]:
        answer: Any = await client.get(f"{PAGE}stream/?line=1")
        parts: list[str] = []
        async for part in answer.streaming_content:
            parts.append(part.decode())
            if len(parts) == 1:
                await sync_to_async(finish)()
        return parts

    def finish() -> None:
        build.append_log(["first", "new line"])
        Build.objects.filter(pk=build.pk).update(
            state=BuildState.FAILED, finished_at=timezone.now(), lease_expires_at=None
        )
        Build.objects.get(pk=build.pk).archive_log()

    text = "".join(async_to_sync(follow)())
    assert "Packages are linked." in text
    assert "new line" in text
    assert "The build failed." in text
    assert text.count("event: finished") == 1


def test_the_stream_is_not_found_without_the_right_to_see_it(
    charlie: Actor, environment: Environment
) -> None:
    factories.make_build(environment, BuildState.LINKING)
    assert signed_in(charlie).get(f"{PAGE}stream/").status_code == 404
