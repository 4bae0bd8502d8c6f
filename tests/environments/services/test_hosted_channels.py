"""A build takes packages from a hosted channel: as its submitter may, and by the rules."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Role
from condastore.errors import ChannelNotFoundError, ConflictError, InvalidInputError
from environments.domain.lifecycle import BuildState
from environments.jobs import builds as building
from environments.models import (
    Build,
    Channel,
    ChannelCredential,
    Environment,
    HostedChannel,
    HostedPackage,
    Namespace,
)
from environments.operations import builds, hosted_channels, previews
from environments.operations.policies import add_rule
from environments.services import hosted_channels as hosting
from environments.services.policies import policy_of
from tests import factories
from tests.environments.conftest import Submit
from tests.environments.engine.packing import named

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "channels: [hosted/research/tools]\ndependencies: [tool]\n"


@pytest.fixture(autouse=True)
def address(settings: Any) -> None:
    """Nobody listens there: a worker reads hosted channels without asking any server."""
    settings.PUBLIC_URL = "https://store.example.org"


@pytest.fixture
def tools(research: Namespace, dora: Actor, alice: Actor, tmp_path: Path) -> HostedChannel:
    channel = hosted_channels.create_channel(actor=dora, namespace=research, name="research/tools")
    for version in ("1.0", "2.0"):
        add(alice, channel, named(version), tmp_path)
    return channel


def add(
    actor: Actor, channel: HostedChannel, file: tuple[str, bytes], folder: Path
) -> HostedPackage:
    path = folder / "upload"
    path.write_bytes(file[1])
    md5 = hashlib.md5(file[1], usedforsecurity=False).hexdigest()
    return hosted_channels.upload(
        actor=actor,
        channel=channel,
        file_name=file[0],
        path=path,
        sha256=hashlib.sha256(file[1]).hexdigest(),
        md5=md5,
    ).package


def finished(build: Build) -> Build:
    building.run(build.pk)
    build.refresh_from_db()
    return build


def versions(build: Build) -> dict[str, str]:
    assert build.lock is not None
    return {one.package.name: one.package.version for one in build.lock.conda.all()}


def test_a_build_has_a_hosted_package_and_its_lock_names_our_address(
    tools: HostedChannel, submit: Submit, bob: Actor, settings: Any
) -> None:
    settings.KEEP_PACKAGES = False  # uploads are kept all the same
    build = finished(
        submit("channels: [hosted/research/tools]\ndependencies: ['tool', 'hello-noarch']\n")
    )
    assert build.state == BuildState.FAILED  # hosted/research/tools alone has no hello-noarch
    build = finished(submit(TEXT))
    assert build.state == BuildState.READY, build.failure
    assert versions(build) == {"tool": "2.0"}
    assert build.prefix is not None
    found = Path(settings.DATA) / build.prefix.path / "share" / "tool.txt"
    assert found.read_text() == "2.0"
    assert build.lock is not None
    [package] = build.lock.value().platforms[0].conda
    assert (
        package.url
        == "https://store.example.org/channel/hosted/research/tools/noarch/tool-2.0-0.conda"
    )
    assert package.channel == "https://store.example.org/channel/hosted/research/tools"
    assert not Channel.objects.filter(url__contains="hosted").exists()  # not for search


def test_channels_are_mixed_and_keep_their_order(
    tools: HostedChannel, submit: Submit, shared_server: Any, tmp_path: Path, alice: Actor
) -> None:
    small_url = shared_server.url.rstrip("/")
    add(alice, tools, named("0.1", name="hello-noarch"), tmp_path)
    text = "channels: [{}]\ndependencies: [tool, hello-noarch, libalpha]\n"
    ours = finished(submit(text.format(f"hosted/research/tools, {small_url}")))
    assert versions(ours)["hello-noarch"] == "0.1"
    theirs = finished(submit(text.format(f"{small_url}, hosted/research/tools")))
    assert versions(theirs)["hello-noarch"] != "0.1"
    assert versions(theirs)["tool"] == "2.0"


def test_an_upload_and_a_yank_are_seen_by_the_next_build(
    tools: HostedChannel, submit: Submit, alice: Actor, dora: Actor, tmp_path: Path
) -> None:
    first = finished(submit(TEXT))
    again = finished(submit(TEXT))
    assert first.lock == again.lock
    newest = add(alice, tools, named("3.0"), tmp_path)
    assert versions(finished(submit(TEXT))) == {"tool": "3.0"}
    hosted_channels.yank(actor=dora, package=newest, reason="It deletes files.")
    assert versions(finished(submit(TEXT))) == {"tool": "2.0"}


def test_a_lock_that_names_a_yanked_package_is_still_built(
    tools: HostedChannel, submit: Submit, dora: Actor
) -> None:
    yanked = HostedPackage.objects.get(version="2.0")
    hosted_channels.yank(actor=dora, package=yanked, reason="It deletes files.")
    url = hosting.url_of(tools) + f"/noarch/{yanked.file_name}#{yanked.md5}"
    build = finished(submit(f"# platform: linux-64\n@EXPLICIT\n{url}\n"))
    assert build.state == BuildState.READY, build.failure
    assert versions(build) == {"tool": "2.0"}


def test_a_lock_that_names_what_is_not_there_is_told_so(
    tools: HostedChannel, submit: Submit
) -> None:
    url = hosting.url_of(tools) + f"/noarch/tool-9.0-0.conda#{'0' * 32}"
    build = finished(submit(f"# platform: linux-64\n@EXPLICIT\n{url}\n"))
    assert build.state == BuildState.FAILED
    assert "has no noarch/tool-9.0-0.conda" in build.failure["message"]


def test_a_wheel_is_added_to_an_environment_with_a_hosted_package(
    tools: HostedChannel, submit: Submit, shared_server: Any, alice: Actor, tmp_path: Path
) -> None:
    """uv gets what the conda packages contain; a hosted package is on no server."""
    add(
        alice,
        tools,
        named("1.0", name="pytool", noarch="python", depends=["python"]),
        tmp_path,
    )
    build = finished(
        submit(
            f"channels: [hosted/research/tools, {shared_server.url.rstrip('/')}]\n"
            "dependencies: [pytool, python, {pip: [tinyname]}]\n"
        )
    )
    assert build.state == BuildState.READY, build.failure
    assert versions(build)["pytool"] == "1.0"


def test_one_who_may_not_read_a_channel_builds_nothing_from_it(
    tools: HostedChannel, research: Namespace
) -> None:
    lab = factories.make_namespace("lab", olga=Role.DEVELOPER)
    environment = factories.make_environment(lab)
    olga = factories.actor(lab.user_grants.get().user)
    package = HostedPackage.objects.get(version="2.0")
    url = f"{hosting.url_of(tools)}/noarch/{package.file_name}#{package.md5}"
    for text in (
        TEXT,
        TEXT.replace("hosted/research/tools", "hosted/absent"),
        "dependencies: ['hosted/research/tools::tool']\nchannels: [hosted/research/tools]\n",
        f"channels: ['{hosting.url_of(tools)}']\ndependencies: [tool]\n",
        f"# platform: linux-64\n@EXPLICIT\n{url}\n",
    ):
        with pytest.raises(ChannelNotFoundError, match="There is no channel at"):
            builds.submit_build(actor=olga, environment=environment, specification=text)
        with pytest.raises(ChannelNotFoundError):
            previews.preview_solve(actor=olga, namespace=lab, environment=None, specification=text)
    HostedChannel.objects.update(public=True)
    created = builds.submit_build(actor=olga, environment=environment, specification=TEXT).build
    HostedChannel.objects.update(public=False)  # and the right is gone before a worker looks
    build = finished(created)
    assert build.state == BuildState.FAILED
    assert build.failure["code"] == "channel-not-found"


def test_a_token_in_the_address_is_kept_nowhere(
    tools: HostedChannel, submit: Submit, environment: Environment
) -> None:
    text = TEXT.replace(
        "hosted/research/tools", "https://store.example.org/t/SECRET/channel/hosted/research/tools"
    )
    build = submit(text)
    assert "SECRET" not in build.source
    assert not ChannelCredential.objects.exists()
    assert versions(finished(build)) == {"tool": "2.0"}


def test_a_rule_about_age_goes_by_the_time_of_the_upload(
    tools: HostedChannel, submit: Submit, dora: Actor, research: Namespace
) -> None:
    """The publisher's own timestamp says 2023."""
    add_rule(
        actor=dora,
        namespace=research,
        kind="age",
        effect="enforce",
        name="old",
        settings={"minimum": "7 days"},
    )
    assert policy_of(research).ages
    refused = finished(submit(TEXT))
    assert "is known for 0" in refused.failure["message"], refused.failure
    old = HostedPackage.objects.get(version="1.0")
    moment = int((timezone.now() - timedelta(days=8)).timestamp() * 1000)
    reported = old.record.replace(str(int(old.uploaded_at.timestamp() * 1000)), str(moment))
    HostedPackage.objects.filter(pk=old.pk).update(record=reported, revision=tools.next_revision())
    assert versions(finished(submit(TEXT))) == {"tool": "1.0"}


def test_a_rule_about_channels_holds_for_hosted_ones(
    tools: HostedChannel, submit: Submit, dora: Actor, research: Namespace
) -> None:
    add_rule(
        actor=dora,
        namespace=research,
        kind="channels",
        effect="enforce",
        name="ours",
        settings={"deny": ["hosted/research/tools"]},
    )
    with pytest.raises(Exception, match="hosted/research/tools"):
        submit(TEXT)


# --- channels themselves ------------------------------------------------------------------------


def test_a_name_never_comes_to_mean_the_packages_of_others(
    dora: Actor, root: Actor, research: Namespace
) -> None:
    other = factories.make_namespace("other")
    tools = hosted_channels.create_channel(actor=root, namespace=research, name="tools")
    with pytest.raises(ConflictError):
        hosted_channels.create_channel(actor=root, namespace=other, name="tools")
    hosted_channels.delete_channel(actor=dora, channel=tools)
    with pytest.raises(ConflictError):
        hosted_channels.create_channel(actor=root, namespace=other, name="tools")
    again = hosted_channels.create_channel(actor=root, namespace=research, name="tools")
    assert again.pk == tools.pk
    assert not again.packages.exists()


@pytest.mark.parametrize("name", ["linux-64", "Tools", "a/b", "..", "", "new"])
def test_a_name_that_leads_elsewhere_is_refused(
    name: str, dora: Actor, root: Actor, research: Namespace
) -> None:
    with pytest.raises(InvalidInputError):
        hosted_channels.create_channel(actor=root, namespace=research, name=name)
    with pytest.raises(InvalidInputError):
        hosted_channels.create_channel(actor=dora, namespace=research, name=f"research/{name}")
