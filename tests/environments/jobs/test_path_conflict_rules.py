"""Builds whose packages replace files of others: warned by default, held or refused by a rule."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from condastore.errors import PolicyError
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.lifecycle import BuildState
from environments.domain.policy import Effect
from environments.jobs import artifacts, builds
from environments.models import Build, LockConflicts, LockRow
from environments.operations import queueing
from environments.operations.approvals import decide
from environments.operations.artifacts import create_artifact
from environments.operations.policies import add_rule
from environments.operations.policy_simulation import Draft, simulate
from environments.operations.provenance import provenance
from environments.services import folders
from environments.services.policies import judge_arrivals
from tests.factories import make_build, make_environment, make_namespace

pytestmark = pytest.mark.django_db(transaction=True)
CLOBBERING = "dependencies: [clobber-one, clobber-two]"
PATH = "share/clobber/shared.txt"


def run(build: Build) -> Build:
    builds.run(build.pk)
    return Build.objects.get(pk=build.pk)


def rule(actor: Any, namespace: Any, effect: str, **settings: Any) -> None:
    add_rule(
        actor=actor,
        namespace=namespace,
        kind="path-conflicts",
        effect=effect,
        name="our files",
        settings=settings,
    )


def test_by_default_the_build_is_ready_and_says_what_was_replaced(submit, environment, dora):
    build = run(submit(CLOBBERING))
    assert build.state == BuildState.READY, build.failure
    prefix = folders.prefix_path(build)
    assert (prefix / PATH).read_text() == "from clobber-two\n"
    [verdict] = build.verdicts
    assert verdict["effect"] == Effect.WARN.value
    assert verdict["rule"] == "path-conflicts"
    assert "clobber-two" in verdict["subject"]
    assert f"replaces '{PATH}' of clobber-one-1.0" in verdict["reason"]
    assert any(line for line in build.log_from() if "replaces" in line and PATH in line)


def test_the_provenance_names_each_replaced_file(submit, dora):
    build = run(submit(CLOBBERING))
    envelope = json.loads(provenance(actor=dora, build=build))
    statement = json.loads(base64.b64decode(envelope["payload"]))
    [conflict] = statement["predicate"]["buildDefinition"]["internalParameters"]["pathConflicts"]
    assert conflict["path"] == PATH
    assert conflict["winner"].startswith("clobber-two-1.0")
    [replaced] = conflict["replaced"]
    assert replaced.startswith("clobber-one-1.0")


def test_a_build_without_conflicts_records_none(submit, dora):
    build = run(submit("dependencies: [libalpha]"))
    assert build.verdicts == []
    assert not LockConflicts.objects.exists()
    assert (
        "pathConflicts"
        not in base64.b64decode(json.loads(provenance(actor=dora, build=build))["payload"]).decode()
    )


def test_a_rule_refuses(submit, environment, dora):
    rule(dora, environment.namespace, "enforce")
    build = run(submit(CLOBBERING))
    assert build.state == BuildState.FAILED
    assert build.failure["code"] == "package-not-approved"
    assert "our files" in build.failure["message"]
    assert PATH in build.failure["message"]


@pytest.mark.parametrize(("exempt", "state"), [("one", "FAILED"), ("two", "READY")])
def test_a_rule_exempts_packages_that_may_replace(submit, environment, dora, exempt, state):
    rule(dora, environment.namespace, "enforce", **{"except": [f"clobber-{exempt}"]})
    assert run(submit(CLOBBERING)).state == state


def test_a_rule_holds_until_people_decide(submit, environment, dora):
    rule(dora, environment.namespace, "ask")
    build = run(submit(CLOBBERING))
    assert build.state == BuildState.HELD
    [request] = environment.namespace.approval_requests.all()
    assert request.name == "clobber-two"
    decide(actor=dora, requests=[request], approve=True, reason="known")
    assert run(build).state == BuildState.READY


def test_a_copy_into_a_namespace_is_judged_by_its_rule(submit, environment, dora, root):
    build = run(submit(CLOBBERING))
    other = make_namespace("other")
    rule(root, other, "enforce")
    [arrival] = judge_arrivals(other, [build])
    assert arrival.refusal is not None
    assert PATH in arrival.refusal.message


def test_the_image_has_the_file_of_the_prefix(submit) -> None:
    """Layers of an image hide each other: the winner's has to come last."""
    from environments.models import Artifact
    from environments.services.image_builder import ImagePlan

    build = run(submit("dependencies: [clobber-one, clobber-two, libalpha]"))
    requested = ImagePlan.of(Artifact.wanted(build, ArtifactKind.IMAGE, "linux-64"))
    [*_, last] = requested.layers
    assert [package.name for package in last.conda] == ["clobber-one", "clobber-two"]


def test_a_simulation_finds_the_environments_that_a_rule_would_refuse(submit, environment, dora):
    run(submit(CLOBBERING))
    for exempt, hits in (([], 1), (["clobber-two"], 0)):
        draft = Draft(
            kind="path-conflicts", effect="enforce", name="ours", settings={"except": exempt}
        )
        found = simulate(actor=dora, namespace=environment.namespace, drafts=[draft])
        reported = [hit for affected in found.affected for hit in affected.hits]
        assert len(reported) == hits
        assert all("replaces" in hit.reason for hit in reported)


@pytest.fixture
def other_platform(submit, environment) -> Build:
    """READY on this platform, and locked for another where one package replaces a file."""
    build = run(submit("dependencies: [libalpha]"))
    lock = build.lock.value()
    [part] = run(submit(CLOBBERING)).lock.value().platforms
    both = replace(lock, platforms=(*lock.platforms, replace(part, platform="linux-aarch64")))
    Build.objects.filter(pk=build.pk).update(lock=LockRow.store(both))
    return Build.objects.get(pk=build.pk)


@pytest.mark.parametrize("effect", ["enforce", "ask", "warn"])
def test_an_archive_for_another_platform_is_judged_when_it_is_made(
    other_platform, environment, dora, effect, monkeypatch
):
    monkeypatch.setattr(queueing, "queue", lambda artifact: None)
    rule(dora, environment.namespace, effect)
    requested = partial(
        create_artifact,
        actor=dora,
        build=other_platform,
        kind=ArtifactKind.BUNDLE,
        platform="linux-aarch64",
    )
    created = requested()
    artifacts.make(created.pk)
    created.refresh_from_db()
    if effect == "warn":
        assert created.state == ArtifactState.READY, created.failure
        assert requested() == created
        return
    assert created.state == ArtifactState.FAILED
    assert created.failure["code"] == "package-not-approved"
    assert PATH in created.failure["message"]
    with pytest.raises(PolicyError, match="replaces"):
        requested()


def test_a_namespace_without_the_rule_still_gets_the_archive_for_another_platform(
    other_platform, environment, dora, root, monkeypatch
):
    monkeypatch.setattr(queueing, "queue", lambda artifact: None)
    rule(dora, environment.namespace, "enforce")
    other = make_environment(make_namespace("other"))
    theirs = make_build(other, lock=other_platform.lock.value())
    created = create_artifact(
        actor=root, build=theirs, kind=ArtifactKind.BUNDLE, platform="linux-aarch64"
    )
    artifacts.make(created.pk)
    created.refresh_from_db()
    assert created.state == ArtifactState.READY, created.failure
    with pytest.raises(PolicyError, match="replaces"):
        create_artifact(
            actor=dora, build=other_platform, kind=ArtifactKind.BUNDLE, platform="linux-aarch64"
        )
