"""Attacks with digests: a channel that lists somebody's private package and does not have it.

Packages are kept once for all tenants, by their sha256. Knowing one is no right to the bytes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from condastore.errors import DownloadError, SpecificationError
from environments import tasks
from environments.domain.lifecycle import BuildState
from environments.domain.lock import Lock, PlatformLock
from environments.domain.records import CondaPackage
from environments.engine.packages.download_types import Download
from environments.jobs import builds
from environments.models import Build, Environment, Namespace
from environments.operations.builds import submit_build
from environments.services import engine_context, folders, hosted_channels
from environments.services.package_archive import PackageArchive
from environments.services.solving import Listings
from tests import factories
from tests.channels.channel_index import index_channel, write_repodata
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
    monkeypatch.setattr(tasks.run_next_build, "send", lambda key: None)
    monkeypatch.setattr(tasks.tidy, "send", lambda: None)
    listed = tmp_path / "hostile"
    shutil.copytree(private_files, listed, ignore=shutil.ignore_patterns("*.conda"))
    with ExitStack() as stack:
        private = stack.enter_context(serving(private_files, basic=("victim", PASSWORD)))
        hostile = stack.enter_context(serving(listed))
        engine = engine_context.Engine(tmp_path / "engine")
        engine_context.set_engine(engine)
        stack.callback(engine.close)
        stack.callback(engine_context.set_engine, None)
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
        builds.run(build.pk)
        return Build.objects.select_related("environment__namespace", "lock").get(pk=build.pk)

    return do


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cached", [True, False], ids=["extracted", "original package"])
def test_a_channel_that_only_lists_a_private_package_does_not_get_it(
    world: World, submit: Submit, size: str, cached: bool
) -> None:
    victim = submit("victim", world.text(world.private, size))
    assert victim.state == BuildState.READY, victim.failure
    if not cached:
        shutil.rmtree(engine_context.get_engine().packages.folder)
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
    shutil.rmtree(engine_context.get_engine().packages.folder)
    world.hostile.faults.add(Fault("*.conda", status=404))
    build = submit("other", world.text(world.hostile, size))
    assert build.state == BuildState.READY, build.failure


# --- channels that name files of others ---------------------------------------------------------


def relist(world: World, *, base_url: str = "", extension: str = ".conda") -> None:
    """Let the hostile channel list the private packages at other URLs, without their files."""
    folder = world.files / "linux-64"
    repodata = json.loads((folder / "repodata.json").read_text())
    if base_url:
        repodata["info"]["base_url"] = base_url
    repodata["packages.conda"] = {
        name.removesuffix(".conda") + extension: record
        for name, record in repodata["packages.conda"].items()
    }
    write_repodata(folder, repodata)


@pytest.mark.parametrize("cached", [True, False], ids=["extracted", "original package"])
def test_a_conda_package_with_the_name_of_a_wheel_is_refused(
    world: World, submit: Submit, cached: bool
) -> None:
    victim = submit("victim", world.text(world.private, "small"))
    assert victim.state == BuildState.READY, victim.failure
    if not cached:
        shutil.rmtree(engine_context.get_engine().packages.folder)
    relist(world, extension=".whl")
    attack = submit("attacker", world.text(world.hostile, "small"))
    assert attack.state == BuildState.FAILED
    assert attack.failure is not None
    assert attack.failure["code"] == "cannot-link"
    assert re.search(r"secret-small-1\.0-\w+\.whl", attack.failure["message"])
    assert ".tar.bz2" in attack.failure["message"]


def test_the_name_of_a_file_makes_no_wheel_of_it(world: World, submit: Submit) -> None:
    victim = submit("victim", world.text(world.private, "small"))
    assert victim.lock is not None
    [package] = victim.lock.value().platforms[0].conda
    archive = PackageArchive()
    assert archive.delivered([Download.from_package(package)]) == {package.sha256}
    url = f"{world.hostile.url}linux-64/secret-small-1.0-0.whl"
    named = replace(
        package, url=url, channel=world.hostile.url.rstrip("/"), file_name="secret-small-1.0-0.whl"
    )
    assert archive.delivered([Download.from_package(named)]) == set()
    with pytest.raises(DownloadError):
        engine_context.get_engine().packages.ensure([named])


@pytest.mark.parametrize("cached", [True, False], ids=["extracted", "original package"])
def test_a_channel_that_lists_files_of_a_private_channel_does_not_get_them(
    world: World, submit: Submit, cached: bool
) -> None:
    victim = submit("victim", world.text(world.private, "small"))
    assert victim.state == BuildState.READY, victim.failure
    relist(world, base_url=f"{world.private.url}linux-64/")
    if not cached:
        shutil.rmtree(engine_context.get_engine().packages.folder)
    for _ in range(2):
        attack = submit("attacker", world.text(world.hostile, "small"))
        assert attack.state == BuildState.FAILED
        assert attack.failure is not None
        assert attack.failure["code"] == "download-failed", attack.failure
        assert folders.prefix_path(attack) is None
    again = submit("victim", world.text(world.private, "small"))
    assert again.state == BuildState.READY, again.failure


@pytest.mark.parametrize("cached", [True, False], ids=["extracted", "original package"])
def test_nor_after_the_owner_of_the_private_channel_used_that_channel(
    world: World, submit: Submit, cached: bool
) -> None:
    """With the credential the file came through the hostile channel; without it, it does not."""
    relist(world, base_url=f"{world.private.url}linux-64/")
    hostile = world.hostile.url.replace("127.0.0.1", "localhost").rstrip("/")
    both = f"'{hostile}', '{world.private.url_with_credentials}'"
    text = f"channels: [{both}]\ndependencies: [secret-small]\n"
    victim = submit("victim", text)
    assert victim.state == BuildState.READY, victim.failure
    assert victim.lock is not None
    [package] = victim.lock.value().platforms[0].conda
    assert package.channel == hostile
    assert package.url.startswith(world.private.url)
    if not cached:
        shutil.rmtree(engine_context.get_engine().packages.folder)
    attack = submit("attacker", f"channels: ['{hostile}']\ndependencies: [secret-small]\n")
    assert attack.state == BuildState.FAILED
    assert attack.failure is not None
    assert attack.failure["code"] == "download-failed", attack.failure
    again = submit("victim", text)
    assert again.state == BuildState.READY, again.failure


@pytest.mark.parametrize("cached", [True, False], ids=["extracted", "original package"])
def test_a_channel_that_lists_files_of_a_hosted_channel_is_refused(
    world: World, submit: Submit, cached: bool
) -> None:
    assert submit("victim", world.text(world.private, "small")).state == BuildState.READY
    relist(world, base_url=f"{hosted_channels.base_url()}/victim/tools/linux-64/")
    if not cached:
        shutil.rmtree(engine_context.get_engine().packages.folder)
    attack = submit("attacker", world.text(world.hostile, "small"))
    assert attack.state == BuildState.FAILED
    assert attack.failure is not None
    assert attack.failure["code"] == "channel-not-allowed", attack.failure
    assert world.hostile.url.rstrip("/") in attack.failure["message"]


def test_the_url_of_a_hosted_channel_gives_nothing_through_another_channel(
    world: World, submit: Submit
) -> None:
    victim = submit("victim", world.text(world.private, "small"))
    assert victim.lock is not None
    [package] = victim.lock.value().platforms[0].conda
    url = f"{hosted_channels.base_url()}/victim/tools/linux-64/{package.file_name}"
    hostile = replace(package, url=url, channel=world.hostile.url.rstrip("/"))
    archive = PackageArchive()
    assert archive.delivered([Download.from_package(hostile)]) == set()
    ours = replace(package, url=url, channel=f"{hosted_channels.base_url()}/victim/tools")
    assert archive.delivered([Download.from_package(ours)]) == {package.sha256}


def test_a_channel_whose_files_are_on_another_server_works(
    world: World, submit: Submit, private_files: Path
) -> None:
    with serving(private_files) as public:
        relist(world, base_url=f"{public.url}linux-64/")
        build = submit("other", world.text(world.hostile, "small"))
        assert build.state == BuildState.READY, build.failure
        assert public.requests.count("linux-64/secret-small-*") == 1
        shutil.rmtree(engine_context.get_engine().packages.folder)
        public.faults.add(Fault("*.conda", status=404))
        build = submit("other", world.text(world.hostile, "small"))
        assert build.state == BuildState.READY, build.failure


def test_what_a_channel_says_of_a_file_of_another_describes_it_for_nobody_else(
    world: World, submit: Submit, private_files: Path
) -> None:
    with serving(private_files) as public:
        honest = submit("victim", world.text(public, "small"))
        assert honest.lock is not None
        [package] = honest.lock.value().platforms[0].conda
        relist(world, base_url=f"{public.url}linux-64/")
        folder = world.files / "linux-64"
        repodata = json.loads((folder / "repodata.json").read_text())
        for record in repodata["packages.conda"].values():
            record["license"] = "made up by the attacker"
        write_repodata(folder, repodata)
        hostile = submit("attacker", world.text(world.hostile, "small"))
        assert hostile.lock is not None
        [listed] = hostile.lock.value().platforms[0].conda
        assert (listed.url, listed.sha256) == (package.url, package.sha256)
        assert listed.license != package.license
        known = Listings(honest.environment.namespace).records([package])
        described = known[package.url]
        assert isinstance(described, CondaPackage)
        assert (described.channel, described.license) == (package.channel, package.license)
        # A lock that takes the file from both channels would join what they say.
        both = Lock(
            channels=(package.channel, listed.channel),
            platforms=(
                PlatformLock(platform="linux-64", conda=(package,)),
                PlatformLock(platform="linux-aarch64", conda=(listed,)),
            ),
        )
        solver = engine_context.get_engine().solver(())
        with pytest.raises(SpecificationError, match="to 2 channels"):
            solver.complete_lock(both, cancelled=lambda: False, log=lambda text: None)
