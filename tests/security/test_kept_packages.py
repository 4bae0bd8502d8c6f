"""Attacks with digests: a channel that lists somebody's private package and does not have it.

Packages are kept once for all tenants, by their sha256. Knowing one is no right to the bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from environments import building, folders, tasks, tools
from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment, Namespace
from environments.operations.builds import submit_build
from tests import factories
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageFile, PackageSpec, write_package
from tests.channels.server import ChannelServer, Fault, serving

pytestmark = pytest.mark.django_db(transaction=True)
PASSWORD = "pa55-w0rd-of-the-victim"
#: Small, and large enough that it is extracted while it arrives.
SIZES = {"small": 100, "large": 1_000_000}
Submit = Callable[..., Build]


@dataclass(frozen=True, slots=True)
class World:
    """The victim's private channel, and the attacker's, which lists the same packages."""

    private: ChannelServer
    hostile: ChannelServer
    files: Path  # of the hostile channel

    def text(self, server: ChannelServer, size: str) -> str:
        return f"channels: ['{server.url_with_credentials}']\ndependencies: [secret-{size}]\n"

    def bring_files(self, folder: Path) -> None:
        """Let the hostile channel have the bytes, as an honest mirror does."""
        for path in (folder / "linux-64").glob("*.conda"):
            shutil.copy(path, self.files / "linux-64")


@pytest.fixture(scope="module")
def private_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    for name, size in SIZES.items():
        files = [PackageFile("share/secret.txt", b"secret " * (size // 7))]
        write_package(PackageSpec(f"secret-{name}", "1.0", files=files), folder)
    index_channel(folder, shards=False)
    return folder


@pytest.fixture
def world(
    private_files: Path, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    settings.DEFAULT_PLATFORMS = ["linux-64"]
    settings.DISK_RESERVE = 0
    settings.CHANNEL_STATE_TTL = timedelta(0)
    settings.BUILD_ATTEMPTS = 1
    monkeypatch.setattr(tasks.build_environment, "send", lambda key: None)
    monkeypatch.setattr(tasks.tidy, "send", lambda: None)
    listed = tmp_path / "hostile"
    shutil.copytree(private_files, listed, ignore=shutil.ignore_patterns("*.conda"))
    with ExitStack() as stack:
        private = stack.enter_context(serving(private_files, basic=("victim", PASSWORD)))
        hostile = stack.enter_context(serving(listed))
        engine = tools.Tools(tmp_path / "engine")
        tools.use(engine)
        stack.callback(engine.close)
        stack.callback(tools.use, None)
        yield World(private, hostile, listed)


@pytest.fixture
def submit(world: World) -> Submit:
    """Submit as the administrator of a namespace, and run the build to where it stops."""

    def do(who: str, text: str) -> Build:
        namespace = Namespace.objects.filter(name=who).first()
        if namespace is None:
            roles: Any = {who: Role.ADMIN}
            namespace = factories.make_namespace(who, **roles)
        user = User.objects.get(username=who)
        found = Environment.objects.filter(namespace=namespace, name="env").first()
        environment = found or factories.make_environment(namespace, "env")
        actor: Actor = factories.actor(user)
        build = submit_build(
            actor=actor, environment=environment, specification=text, force_solve=True
        ).build
        building.run(build.pk)
        return Build.objects.select_related("environment__namespace", "lock").get(pk=build.pk)

    return do


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cached", [True, False], ids=["extracted", "kept as it came"])
def test_a_channel_that_only_lists_a_private_package_does_not_get_it(
    world: World, submit: Submit, size: str, cached: bool
) -> None:
    victim = submit("victim", world.text(world.private, size))
    assert victim.state == BuildState.READY, victim.failure
    if not cached:
        shutil.rmtree(tools.tools().packages.folder)
    attack = submit("attacker", world.text(world.hostile, size))
    assert attack.state == BuildState.FAILED
    assert attack.failure is not None
    assert attack.failure["code"] == "download-failed"
    assert folders.prefix_path(attack) is None
    # What failed leaves nothing with which the next attempt succeeds.
    assert submit("attacker", world.text(world.hostile, size)).state == BuildState.FAILED
    again = submit("victim", world.text(world.private, size))
    assert again.state == BuildState.READY, again.failure


@pytest.mark.parametrize("size", SIZES)
def test_a_channel_that_has_the_package_is_asked_once(
    world: World, submit: Submit, private_files: Path, size: str
) -> None:
    assert submit("victim", world.text(world.private, size)).state == BuildState.READY
    world.bring_files(private_files)
    for _ in range(2):
        build = submit("other", world.text(world.hostile, size))
        assert build.state == BuildState.READY, build.failure
    assert world.hostile.requests.count(f"linux-64/secret-{size}-*") == 1
    # From then on the kept bytes are enough, on every worker.
    shutil.rmtree(tools.tools().packages.folder)
    world.hostile.faults.add(Fault("*.conda", status=404))
    build = submit("other", world.text(world.hostile, size))
    assert build.state == BuildState.READY, build.failure
