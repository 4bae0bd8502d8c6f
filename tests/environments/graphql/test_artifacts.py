"""The files of a build as clients see them: asked for, made once, told of in lists."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.access import Actor
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.models import Artifact, AuditEvent, Blob, Build, Environment
from tests import factories
from tests.environments.graphql.asking import ERROR, ask

CREATE = (
    "mutation($build: ID!, $kind: ArtifactKind!, $platform: String) {"
    " createArtifact(buildId: $build, kind: $kind, platform: $platform) {"
    " ... on Artifact { id kind platform state url fileName size progress { stage } }"
    f" {ERROR} }} }}"
)
LIST = """query($n: Int) { builds(first: $n) { edges { node {
  ref lock { digest } artifacts { kind state size sha256 url failure { message } } } } } }"""


def create(actor: Actor, build: Build, kind: str = "TAR_ZST", **options: Any) -> dict[str, Any]:
    created: dict[str, Any] = ask(actor, CREATE, build=str(build.pk), kind=kind, **options)
    return created["createArtifact"]  # type: ignore[no-any-return]


def finish(artifact: Artifact) -> Blob:
    blob = Blob.objects.create(sha256=f"{artifact.pk:064x}", size=7_000_000_000)
    Artifact.objects.filter(pk=artifact.pk).update(state=ArtifactState.READY, blob=blob)
    return blob


def test_a_file_is_queued_once_however_often_it_is_asked_for(
    bob: Actor, environment: Environment
) -> None:
    build = factories.make_build(environment)
    first, second = create(bob, build), create(bob, build)
    assert first == second
    assert (first["kind"], first["platform"], first["state"]) == ("TAR_ZST", "linux-64", "QUEUED")
    assert first["url"].endswith("/api/envs/research/ml/1/env.tar.zst?platform=linux-64")
    assert Artifact.objects.count() == 1
    finish(Artifact.objects.get())
    shown = ask(bob, LIST)["builds"]["edges"][0]["node"]["artifacts"]
    assert [(one["state"], one["size"]) for one in shown] == [("READY", 7_000_000_000)]


def test_builds_with_the_same_lock_share_a_file_and_other_variables_have_their_own(
    bob: Actor, environment: Environment
) -> None:
    one, two = factories.make_build(environment), factories.make_build(environment)
    text = "dependencies: [python]\nvariables: {SECRET: '1'}"
    other = factories.make_build(environment, text=text)
    assert create(bob, one)["id"] == create(bob, two)["id"] != create(bob, other)["id"]
    found = {edge["node"]["ref"]: edge["node"] for edge in ask(bob, LIST)["builds"]["edges"]}
    assert [len(node["artifacts"]) for node in found.values()] == [1, 1, 1]
    single = "query($id: ID!) { build(id: $id) { artifacts { kind } } }"
    assert len(ask(bob, single, id=str(other.pk))["build"]["artifacts"]) == 1


def test_what_cannot_be_made_is_said(bob: Actor, charlie: Actor, environment: Environment) -> None:
    build = factories.make_build(environment)
    assert create(charlie, build)["code"] == "not-found"
    refused = create(bob, build, platform="osx-arm64")
    assert (refused["code"], refused["where"]) == ("not-found", "platform")
    assert "linux-64" in refused["hint"]


def test_the_files_of_a_list_cost_as_many_queries_for_many_builds_as_for_few(
    bob: Actor, environment: Environment
) -> None:
    def more(number: int) -> None:
        for index in range(number):
            package = factories.make_package("python", f"3.{Build.objects.count()}.{index}")
            build = factories.make_build(environment, lock=factories.make_lock(package))
            finish(Artifact.wanted(build, ArtifactKind.TAR_ZST, "linux-64"))

    more(3)
    ask(bob, LIST, n=3)
    with CaptureQueriesContext(connection) as few:
        ask(bob, LIST, n=3)
    more(27)
    with CaptureQueriesContext(connection) as many:
        edges = ask(bob, LIST, n=30)["builds"]["edges"]
    assert len(many) == len(few), "\n\n".join(one["sql"][:300] for one in many)
    assert len(edges) == 30
    assert all(edge["node"]["artifacts"][0]["sha256"] for edge in edges)


def test_an_admin_says_which_files_every_new_build_is_made_into(
    dora: Actor, environment: Environment
) -> None:
    change = (
        'mutation($kinds: [ArtifactKind!]!) { setEagerArtifacts(namespace: "research",'
        f" kinds: $kinds) {{ ... on Namespace {{ eagerArtifacts }} {ERROR} }} }}"
    )
    created = ask(dora, change, kinds=["TAR_ZST", "SQUASHFS", "TAR_ZST"])["setEagerArtifacts"]
    assert created["eagerArtifacts"] == ["SQUASHFS", "TAR_ZST"]
    environment.namespace.refresh_from_db()
    build = factories.make_build(environment)
    Artifact.wanted_of(build)
    assert set(Artifact.objects.values_list("kind", "state")) == {
        ("TAR_ZST", "QUEUED"),
        ("SQUASHFS", "QUEUED"),
    }
    assert AuditEvent.objects.filter(action="namespace.eager-artifacts").count() == 1


@pytest.fixture(autouse=True)
def _no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    from environments import tasks

    monkeypatch.setattr(tasks.make_artifact, "send", lambda key: None)
