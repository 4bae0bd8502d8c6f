"""A lock whose packages were listed and kept before builds again while its channel is away."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.domain.rendering import conda_lock_yml, explicit_txt
from environments.jobs import builds
from environments.models import Build, ChannelCredential, CondaRecord
from environments.operations import policies
from environments.operations.builds import submit_build
from environments.services import engine_context
from tests.channels.server import ChannelServer, Fault
from tests.environments.conftest import Submit
from tests.factories import actor, make_environment, make_namespace

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "dependencies: [python, hello-noarch, pip: ['tinyname ~=1.0']]"
AWAY = (Fault("*", status=503), Fault("*", status=404))


def run(build: Build) -> Build:
    builds.run(build.pk)
    return Build.objects.get(pk=build.pk)


@pytest.fixture
def built(submit: Submit, settings: Any) -> Build:
    settings.BUILD_ATTEMPTS = 1
    build = run(submit(TEXT))
    assert build.state == BuildState.READY, build.failure
    return build


def lock_of(build: Build) -> str:
    assert build.lock is not None
    return conda_lock_yml(build.lock.value())


@pytest.mark.parametrize("away", AWAY, ids=["does not answer", "is gone"])
def test_a_kept_lock_needs_no_channel(
    submit: Submit,
    built: Build,
    channel_server: ChannelServer,
    engine: engine_context.Engine,
    away: Fault,
) -> None:
    texts = [lock_of(built), explicit_txt(built.lock.value(), "linux-64")]  # type: ignore[union-attr]
    channel_server.faults.add(away)
    shutil.rmtree(engine.cache)
    for text in texts:
        again = run(submit(text))
        assert again.state == BuildState.READY, again.failure
        assert again.lock is not None
    wheels = Build.objects.get(pk=again.pk - 1).lock
    assert wheels == built.lock, "the same claims: it is the same lock"


def test_a_package_that_was_never_listed_still_needs_its_channel(
    submit: Submit, built: Build, channel_server: ChannelServer
) -> None:
    CondaRecord.objects.filter(name="hello-noarch").update(listed=False)
    channel_server.faults.add(Fault("*", status=503))
    again = run(submit(lock_of(built)))
    assert again.state == BuildState.FAILED
    assert again.failure["code"] == "channel-unavailable"


def test_kept_bytes_are_not_taken_under_another_url_or_digest(
    submit: Submit, built: Build, channel_server: ChannelServer
) -> None:
    """That a package is kept says nothing of a channel that never listed it."""
    text = lock_of(built)
    url = channel_server.url.rstrip("/")
    other = text.replace(url, f"{url}/elsewhere")
    hello = CondaRecord.objects.get(name="hello-noarch")
    lying = text.replace(hello.sha256, CondaRecord.objects.get(name="python").sha256)
    channel_server.faults.add(Fault("*", status=503))
    for forged in (other, lying):
        again = run(submit(forged))
        assert again.state == BuildState.FAILED
        assert again.failure["code"] == "channel-unavailable"
        assert again.lock is None


def test_what_a_private_channel_listed_for_others_is_not_taken(
    submit: Submit, built: Build, channel_server: ChannelServer, alice: Actor
) -> None:
    text = lock_of(built)
    other = make_namespace("other", mallory=Role.DEVELOPER)
    environment = make_environment(other, "ml")
    credential = ChannelCredential(
        namespace=built.environment.namespace,
        url_prefix=channel_server.url.rstrip("/"),
        kind="token",
    )
    credential.seal("secret")
    credential.save()
    channel_server.faults.add(Fault("*", status=503))
    mallory = actor(User.objects.get(username="mallory"))
    again = run(submit_build(actor=mallory, environment=environment, specification=text).build)
    assert again.state == BuildState.FAILED
    assert again.failure["code"] == "channel-unavailable"
    control = run(submit(text))
    assert control.state == BuildState.READY, control.failure


def test_the_rules_judge_a_lock_that_came_without_its_channel(
    submit: Submit, built: Build, channel_server: ChannelServer, root: Actor
) -> None:
    policies.add_rule(
        actor=root,
        namespace=built.environment.namespace,
        kind="packages-denied",
        effect="enforce",
        name="no hello",
        settings={"packages": ["hello-noarch"]},
    )
    channel_server.faults.add(Fault("*", status=503))
    again = run(submit(lock_of(built)))
    assert again.state == BuildState.FAILED
    assert again.failure["code"] == "package-not-approved"
