"""Attacks with locks: what arrives in a namespace, and what a lock claims of its packages.

Each attack goes through the operations that the interfaces call, over a served channel and a
Python index, and has its control: the honest twin that works.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from condastore.errors import ChannelNotAllowedError, LinkError, PolicyError, SpecificationError
from environments import tasks
from environments.domain.lifecycle import BuildState
from environments.domain.lockfiles import read_conda_lock
from environments.domain.records import CondaPackage, PypiPackage
from environments.engine.pypi.install import WheelCache
from environments.jobs import builds
from environments.models import (
    ApprovalRequest,
    AuditEvent,
    Build,
    ChannelCredential,
    CondaRecord,
    Environment,
    LockRow,
    Namespace,
    PolicyRule,
    PypiRecord,
)
from environments.models.leased_work import Lease
from environments.operations import approvals, images, policies
from environments.operations.builds import archive_build, restore_build, submit_build
from environments.operations.environments import copy_environment, move_environment
from environments.services import engine_context, folders
from environments.services.approval_requests import hold
from environments.services.policies import judge, policy_of
from tests import factories
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageFile, PackageSpec, write_package
from tests.channels.server import ChannelServer, serving
from tests.channels.simple_index import (
    Distribution,
    _record_hash,
    make_wheel,
    write_simple_index,
)
from tests.environments.engine.package_fixtures import packages_of
from tests.environments.graphql.asking import ERROR, ask

#: A worker looks at its lease from a thread of its own.
pytestmark = pytest.mark.django_db(transaction=True)

WHEELS = {"cowsay": "6.1", "moo": "1.0"}
OLD = 1_600_000_000_000  # milliseconds since the epoch: 2020


def package(name: str, version: str = "1.0", content: str = "", **options: Any) -> PackageSpec:
    text = content or f"{name} {version}"
    files = [PackageFile.text(f"share/{name}.txt", text)]
    return PackageSpec(name, version, build="0", license="MIT", files=files, **options)


@dataclass(frozen=True, slots=True)
class World:
    """Two channels and an index on one server; the second channel belongs to the attacker."""

    server: ChannelServer
    folders: Mapping[str, Path]
    wheels: Mapping[str, Distribution]

    @property
    def url(self) -> str:
        return self.server.url.rstrip("/")

    def channel(self, name: str) -> str:
        return f"{self.url}/{name}"

    def packages(self, channel: str) -> Mapping[str, CondaPackage]:
        return packages_of(self.folders[channel], url=self.channel(channel))

    def wheel_url(self, name: str, folder: str = "pypi") -> str:
        return f"{self.url}/{folder}/files/{self.wheels[name].file_name}"

    def unlist(self, channel: str, *names: str) -> None:
        """Take packages out of the list of a channel; their files stay."""
        path = self.folders[channel] / "linux-64" / "repodata.json"
        repodata = json.loads(path.read_text())
        for section in ("packages", "packages.conda"):
            for file_name, record in [*repodata[section].items()]:
                if record["name"] in names:
                    del repodata[section][file_name]
        path.write_text(json.dumps(repodata))
        for other in path.parent.glob("repodata*.zst"):
            other.unlink()

    def list_all(self, channel: str) -> None:
        index_channel(self.folders[channel], shards=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    index = folder / "index"
    for channel, specs in {
        "trusted": (
            package("dep"),
            package("tool", depends=["dep"]),
            package("fresh"),
            # Its own word for what only a channel may state.
            package("pulled", extra_index={"indexed_timestamp": OLD, "timestamp": OLD}),
            package("dropped"),
        ),
        # The same file name, and other bytes.
        "evil": (package("pulled", content="of the attacker"), package("tool", "9.0")),
    }.items():
        (folder / channel / "linux-64").mkdir(parents=True)
        for spec in specs:
            write_package(spec, folder / channel)
        index_channel(folder / channel, shards=False)
    wheels = {name: make_wheel(name, version) for name, version in WHEELS.items()}
    write_simple_index(index, wheels.values())
    served = {"trusted": folder / "trusted", "evil": folder / "evil"}
    with serving({**served, "pypi": index, "elsewhere": index}) as server:
        world = World(server, served, wheels)
        world.unlist("trusted", "pulled")
        yield world


@pytest.fixture
def world(
    made: World, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    settings.DEFAULT_CHANNELS = [made.channel("trusted")]
    settings.PYPI_INDEX_URLS = [f"{made.url}/pypi/simple/"]
    settings.DEFAULT_PLATFORMS = ["linux-64"]
    settings.DISK_RESERVE = 0
    settings.CHANNEL_STATE_TTL = timedelta(0)
    monkeypatch.setattr(tasks.run_next_build, "send", lambda key: None)
    monkeypatch.setattr(tasks.tidy, "send", lambda: None)
    engine = engine_context.Engine(tmp_path / "engine")
    engine_context.set_engine(engine)
    yield made
    engine_context.set_engine(None)
    engine.close()


@pytest.fixture
def own(alice: Actor, research: Namespace) -> Namespace:
    """A namespace that Alice alone runs: what an ordinary account has."""
    return factories.make_namespace("alice", alice=Role.ADMIN)


Submit = Callable[..., Build]


@pytest.fixture
def submit(world: World, alice: Actor, own: Namespace) -> Submit:
    """Submit as Alice, and run the build to where it stops."""

    def do(text: str, *, into: Namespace = own, name: str = "env") -> Build:
        found = Environment.objects.filter(namespace=into, name=name).first()
        environment = found or factories.make_environment(into, name)
        return run(submit_build(actor=alice, environment=environment, specification=text).build)

    return do


def run(build: Build) -> Build:
    builds.run(build.pk)
    return Build.objects.select_related("environment__namespace", "lock").get(pk=build.pk)


def rule(
    actor: Actor, namespace: Namespace | None, kind: str, effect: str, **settings: Any
) -> PolicyRule:
    return policies.add_rule(
        actor=actor, namespace=namespace, kind=kind, effect=effect, name=kind, settings=settings
    )


def explicit(*packages: CondaPackage, pip: str = "") -> str:
    lines = [f"{one.url}#sha256:{one.sha256}" for one in packages]
    return "\n".join(["@EXPLICIT", "# platform: linux-64", *lines, pip])


def pip_line(name: str, url: str, sha256: str) -> str:
    return f"# pip {name} @ {url}#sha256={sha256}"


# --- what arrives in a namespace ------------------------------------------------------------------

COPY = (
    "mutation($id: ID!) { copyEnvironment(environmentId: $id, namespace: "
    f'"research", name: "copied") {{ __typename {ERROR} }} }}'
)
MOVE = (
    "mutation($id: ID!) { moveEnvironment(environmentId: $id, namespace: "
    f'"research") {{ __typename {ERROR} }} }}'
)
TOOL = "dependencies: [tool]"


@pytest.mark.parametrize("mutation", [COPY, MOVE])
def test_what_a_namespace_denies_is_neither_copied_nor_moved_into_it(
    submit, alice, dora, research, mutation
) -> None:
    rule(dora, research, "packages-denied", "enforce", packages=["dep"])
    built = submit(TOOL)
    assert built.state == BuildState.READY, "the source namespace allows it"
    [answer] = ask(alice, mutation, id=str(built.environment_id)).values()
    assert answer["code"] == "package-not-approved"
    assert "dep 1.0 is denied" in answer["message"]
    assert answer["details"]["verdicts"][0]["package"]["name"] == "dep"
    assert not Environment.objects.filter(namespace=research).exists()
    assert not (folders.data() / "envs" / "research").exists()
    allowed = submit("dependencies: [fresh]", name="other")
    [answer] = ask(alice, mutation, id=str(allowed.environment_id)).values()
    assert answer["__typename"] == "Environment"
    [arrived] = Environment.objects.filter(namespace=research)
    assert arrived.current.state == BuildState.READY
    assert folders.link_path("research", arrived.name).is_symlink()


def test_a_copy_that_needs_an_approval_serves_nothing_before_and_goes_on_after_it(
    submit, alice, bob, dora, research
) -> None:
    rule(dora, research, "packages-denied", "ask", packages=["dep"])
    built = submit(TOOL)
    copy = copy_environment(
        actor=alice, environment=built.environment, namespace=research, name="copied"
    )
    [held] = copy.builds.all()
    assert (held.state, held.prefix, held.requested_by) == (BuildState.HELD, None, alice.account)
    assert copy.current is None
    assert not folders.link_path("research", "copied").is_symlink()
    client = Client()
    client.force_login(bob.account)
    served = "/api/envs/research/copied/1"
    for path in ("conda-lock.yml", "explicit.txt", "env.tar.zst", "sbom.cdx.json"):
        assert client.get(f"{served}/{path}").status_code == 409, path
    assert images.tags(bob, copy) == []
    channel = "/channel/research/copied/1/linux-64/repodata.json"
    assert client.get(channel).status_code == 409
    assert "dep-" not in client.get("/channel/research/linux-64/repodata.json").content.decode()
    [request] = ApprovalRequest.objects.undecided()
    assert (request.namespace, request.name, request.package.name) == (research, "dep", "dep")
    anna = factories.actor(research_user("anna"))
    approvals.decide(actor=anna, requests=[request], approve=True, reason="looked at")
    held.refresh_from_db()
    assert held.state == BuildState.QUEUED
    done = run(held)
    assert done.state == BuildState.READY
    assert done.prefix != built.prefix, "it is linked for itself"
    copy.refresh_from_db()
    assert copy.current == done
    assert folders.link_path("research", "copied").is_symlink()
    assert client.get(f"{served}/explicit.txt").status_code == 200
    assert client.get(channel).status_code == 200
    assert "1" in images.tags(bob, copy)


def research_user(name: str) -> User:
    return User.objects.get(username=name)


def test_a_rejected_copy_is_never_served(submit, alice, dora, research) -> None:
    rule(dora, research, "packages-denied", "ask", packages=["dep"])
    copy = copy_environment(
        actor=alice, environment=submit(TOOL).environment, namespace=research, name="copied"
    )
    [request] = ApprovalRequest.objects.undecided()
    anna = factories.actor(research_user("anna"))
    approvals.decide(actor=anna, requests=[request], approve=False, reason="no")
    assert copy.builds.get().state == BuildState.FAILED
    assert copy.builds.get().failure["code"] == "package-rejected"


def test_a_move_that_needs_an_approval_says_to_copy(submit, alice, dora, research) -> None:
    rule(dora, research, "packages-denied", "ask", packages=["dep"])
    built = submit(TOOL)
    with pytest.raises(PolicyError, match="needs an approval") as caught:
        move_environment(actor=alice, environment=built.environment, namespace=research)
    assert "Copy" in caught.value.hint
    built.refresh_from_db()
    assert built.environment.namespace.name == "alice"


@pytest.mark.parametrize("effect", ["enforce", "ask"])
def test_older_builds_that_are_not_allowed_stay_behind(
    submit, alice, dora, research, effect
) -> None:
    """A copy leaves them out; a move, which takes everything, is refused, deleted ones included."""
    rule(dora, research, "packages-denied", effect, packages=["dep"])
    old = submit(TOOL)
    new = submit("dependencies: [fresh]")
    copy = copy_environment(
        actor=alice, environment=new.environment, namespace=research, name="copied"
    )
    assert [build.number for build in copy.builds.all()] == [new.number]
    assert copy.current.number == new.number
    assert AuditEvent.objects.get(action="environment.copy").changes["left_out"] == [old.number]
    Build.objects.filter(pk=old.pk).update(deleted_at=timezone.now())
    with pytest.raises(PolicyError, match=f"because of build {old.number}"):
        move_environment(actor=alice, environment=new.environment, namespace=research)
    Build.objects.filter(pk=old.pk).update(deleted_at=timezone.now() - timedelta(days=400))
    moved = move_environment(actor=alice, environment=new.environment, namespace=research)
    assert moved.current == new


def test_a_copy_within_a_namespace_brings_nothing_new_into_it(submit, alice, own, root) -> None:
    built = submit(TOOL)
    rule(alice, own, "packages-denied", "enforce", packages=["dep"])
    copy = copy_environment(actor=alice, environment=built.environment, namespace=own, name="two")
    assert copy.current.prefix == built.prefix


def test_an_archived_build_that_is_restored_is_judged_by_the_rules_of_now(
    submit, alice, own
) -> None:
    built = submit(TOOL)
    submit("dependencies: [fresh]")
    archive_build(actor=alice, build=built)
    rule(alice, own, "packages-denied", "enforce", packages=["dep"])
    restored = run(restore_build(actor=alice, build=Build.objects.get(pk=built.pk)))
    assert restored.state == BuildState.ARCHIVED
    assert restored.failure["code"] == "package-not-approved"


# --- wheels of a lock -----------------------------------------------------------------------------

CONDA_LOCK = """
version: 1
metadata:
  content_hash: {{linux-64: "0"}}
  channels: []
  platforms: [linux-64]
  sources: [environment.yml]
package:
- name: {name}
  version: {version}
  manager: pip
  platform: linux-64
  dependencies: {{}}
  url: {url}
  hash: {{sha256: {sha256}}}
  category: main
  optional: false
"""
COWSAY = "https://files.pythonhosted.org/packages/ab/cowsay-6.1-py3-none-any.whl"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({}, ""),
        ({"name": "Cow_Say", "url": COWSAY.replace("cowsay", "cow_say")}, ""),
        ({"version": "6.1.0"}, ""),
        ({"name": "harmless"}, "is not harmless 6.1"),
        ({"version": "1.0"}, "is not cowsay 1.0"),
        ({"version": "what"}, "is not cowsay what"),
        ({"url": COWSAY.replace("cowsay", "harmless"), "name": "cowsay"}, "is not cowsay 6.1"),
        ({"url": COWSAY.replace("-py3-none-any.whl", ".tar.gz")}, "Not the URL of a wheel"),
        ({"url": COWSAY.replace("-py3-", "-1%2F..%2F..%2Fx-py3-")}, "Not the URL of a wheel"),
        ({"url": COWSAY.replace("https://", "file:///")}, "not a file of a Python index"),
        ({"url": "/srv/cowsay-6.1-py3-none-any.whl"}, "not the URL of a package"),
    ],
)
@pytest.mark.django_db(transaction=False)
def test_a_wheel_bears_the_name_and_version_of_its_file(claim, message) -> None:
    said = {"name": "cowsay", "version": "6.1", "url": COWSAY, "sha256": "0" * 64} | claim
    text = CONDA_LOCK.format(**said)
    if not message:
        [wheel] = read_conda_lock(text).platforms[0].pypi
        assert wheel.version == "6.1"
        return
    with pytest.raises(SpecificationError) as caught:
        read_conda_lock(text)
    assert message in caught.value.message


def test_a_wheel_is_taken_only_as_an_index_links_to_it(submit, world, root) -> None:
    rule(root, None, "packages-denied", "enforce", packages=["pypi:cowsay"])
    moo, cow = world.wheels["moo"], world.wheels["cowsay"]
    dep = world.packages("trusted")["dep"]
    honest = submit(explicit(dep, pip=pip_line("moo", world.wheel_url("moo"), moo.sha256)))
    assert honest.state == BuildState.READY
    [row] = PypiRecord.objects.all()
    assert (row.name, row.version, row.listed, row.size) == ("moo", "1.0", True, moo.size)
    assert row.uploaded == int(moo.uploaded.timestamp() * 1000), "by the index's clock"
    denied = submit(explicit(dep, pip=pip_line("cowsay", world.wheel_url("cowsay"), cow.sha256)))
    assert denied.failure["code"] == "package-not-approved"
    renamed = world.wheel_url("cowsay").replace("cowsay-6.1", "moo-1.0")
    for line, reason in (
        (pip_line("moo", world.wheel_url("moo", "elsewhere"), moo.sha256), "must not come from"),
        (pip_line("moo", world.wheel_url("moo"), cow.sha256), "differs from the one"),
        (pip_line("moo", renamed, cow.sha256), "differs from the one"),
        (pip_line("harmless", renamed.replace("moo-", "harmless-"), cow.sha256), "No Python index"),
        (pip_line("moo", world.wheel_url("moo").replace("-1.0-", "-2.0-"), cow.sha256), "not list"),
    ):
        refused = submit(explicit(dep, pip=line))
        assert refused.state == BuildState.FAILED, line
        assert reason in json.dumps(refused.failure), line
        assert cow.sha256 not in json.dumps(refused.failure)


def test_without_an_index_no_wheel_of_a_lock_is_taken(submit, world, settings) -> None:
    settings.PYPI_INDEX_URLS = []
    engine_context.get_engine()._solvers.clear()
    dep, moo = world.packages("trusted")["dep"], world.wheels["moo"]
    refused = submit(explicit(dep, pip=pip_line("moo", world.wheel_url("moo"), moo.sha256)))
    assert "installs no packages from a Python index" in json.dumps(refused.failure)


@pytest.mark.django_db(transaction=False)
def test_a_wheel_whose_metadata_bears_another_name_is_not_installed(tmp_path: Path) -> None:
    honest = make_wheel("cowsay", "6.1")
    lying = _with_metadata(make_wheel("harmless", "1.0"), "Name: cowsay\nVersion: 6.1\n")
    for wheel, fits in ((honest, True), (lying, False)):
        path = tmp_path / wheel.file_name
        assert isinstance(wheel.content, bytes)
        path.write_bytes(wheel.content)
        requested = PypiPackage(
            name=wheel.project,
            version=wheel.version,
            file_name=wheel.file_name,
            url=path.as_uri(),
            sha256=wheel.sha256,
            size=0,
            requires=(),
            requires_python="",
            license="",
        )
        cache = WheelCache(tmp_path / "wheels")
        for _ in range(2):  # also when it lies in the cache already
            if fits:
                [found] = cache.ensure([requested])
                assert found.package == requested
            else:
                with pytest.raises(LinkError, match=r"contains .*cowsay 6\.1"):
                    cache.ensure([requested])


def _with_metadata(wheel: Distribution, metadata: str) -> Distribution:
    """The same wheel with another METADATA, and a RECORD that holds."""
    assert isinstance(wheel.content, bytes)
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    [at] = [name for name in contents if name.endswith("/METADATA")]
    contents[at] = f"Metadata-Version: 2.1\n{metadata}".encode()
    [record] = [name for name in contents if name.endswith("/RECORD")]
    lines = [
        f"{name},{_record_hash(data)},{len(data)}"
        for name, data in contents.items()
        if name != record
    ]
    contents[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return replace(wheel, content=buffer.getvalue())


# --- packages that their channel does not list ----------------------------------------------------


def pulled(world: World) -> CondaPackage:
    """The trusted channel's package that is not listed, as an honest lock names it."""
    path = world.folders["trusted"] / "linux-64"
    [file] = path.glob("pulled-*.conda")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    listed = world.packages("trusted")["fresh"]
    return replace(
        listed,
        name="pulled",
        file_name=file.name,
        url=f"{world.channel('trusted')}/linux-64/{file.name}",
        sha256=digest,
    )


def test_a_package_that_its_channel_does_not_list_waits_for_a_decision(
    submit, world, root, own
) -> None:
    listed = world.packages("trusted")["fresh"]
    assert submit(explicit(listed), name="control").state == BuildState.READY
    text = explicit(pulled(world))
    held = submit(text)
    assert held.state == BuildState.HELD
    [verdict] = held.verdicts
    assert (verdict["rule"], verdict["effect"]) == ("unlisted-packages", "ask")
    assert "is not listed by" in verdict["reason"]
    row = CondaRecord.objects.get(name="pulled")
    assert row.listed is False
    assert "indexed_timestamp" not in row.record, "only the channel may state it"
    # An administrator may say otherwise for the installation; a namespace can only tighten it.
    allow = rule(root, None, "unlisted-packages", "enforce", allow=[world.channel("trusted")])
    assert run(Build.objects.get(pk=held.pk)).state == BuildState.READY
    policies.change_rule(actor=root, rule=allow, settings={})
    assert submit(text, name="enforced").failure["code"] == "package-not-approved"
    policies.change_rule(actor=root, rule=allow, effect="warn")
    assert submit(text, name="warned").state == BuildState.READY


def test_the_age_of_a_package_does_not_rest_on_its_own_word_nor_on_its_spelling(
    submit, world, root
) -> None:
    rule(root, None, "unlisted-packages", "warn")
    rule(root, None, "age", "enforce", minimum="30 days")
    fresh = world.packages("trusted")["fresh"]
    for one in (pulled(world), fresh, replace(fresh, url=fresh.url.replace("fresh", "%66resh"))):
        refused = submit(explicit(one))
        assert refused.state == BuildState.FAILED
        assert "30 days are required" in refused.failure["message"], one.url
    [row] = CondaRecord.objects.filter(name="fresh")
    assert (row.url, row.listed) == (fresh.url, True), "both spellings are one resource"
    CondaRecord.objects.filter(name="fresh").update(
        first_seen_at=timezone.now() - timedelta(days=40)
    )
    assert submit(explicit(fresh)).state == BuildState.READY


def test_that_a_file_was_seen_in_one_channel_makes_it_no_older_in_another(
    submit, world, root
) -> None:
    """A publisher could let an installation see a file long before the release of it."""
    source = world.folders["trusted"] / "linux-64"
    [file] = source.glob("fresh-*.conda")
    copied = world.folders["evil"] / "linux-64" / file.name
    copied.write_bytes(file.read_bytes())
    world.list_all("evil")
    try:
        submit(explicit(world.packages("evil")["fresh"]), name="before")
        CondaRecord.objects.update(first_seen_at=timezone.now() - timedelta(days=400))
        rule(root, None, "age", "enforce", minimum="30 days")
        refused = submit(explicit(world.packages("trusted")["fresh"]))
        assert "30 days are required" in refused.failure["message"]
        known = submit(explicit(world.packages("evil")["fresh"]), name="control")
        assert known.state == BuildState.READY
    finally:
        copied.unlink()
        world.list_all("evil")


def test_what_a_channel_was_seen_to_list_counts_as_listed_when_it_drops_it(
    submit, world, own, alice, research
) -> None:
    dropped = world.packages("trusted")["dropped"]
    built = submit(explicit(dropped))
    [file] = (world.folders["trusted"] / "linux-64").glob("dropped-*.conda")
    content = file.read_bytes()
    world.unlist("trusted", "dropped")
    file.unlink()
    try:
        again = submit(explicit(dropped), name="again")
        assert again.state == BuildState.READY
        assert again.lock == built.lock, "the record that the channel gave then"
        other = submit(explicit(dropped), into=research, name="elsewhere")
        assert other.state == BuildState.READY
        # What another namespace knows by its credential is not told to one that has none.
        secret = factories.make_namespace("secret")
        ChannelCredential.objects.create(
            namespace=secret, url_prefix=world.channel("trusted"), kind="basic", sealed=""
        )
        private = submit(explicit(dropped), name="private")
        assert private.state == BuildState.FAILED
        assert "no longer exists at" in json.dumps(private.failure)
    finally:
        file.write_bytes(content)
        world.list_all("trusted")
        world.unlist("trusted", "pulled")


def test_bytes_of_one_channel_are_not_passed_off_as_those_of_another(submit, world, root) -> None:
    """They lie in the cache under their digest, which says nothing of where they come from."""
    evil = world.packages("evil")["pulled"]
    assert submit(explicit(evil), name="first").state == BuildState.READY
    passed_off = replace(pulled(world), sha256=evil.sha256)
    refused = submit(explicit(passed_off))
    assert refused.state == BuildState.FAILED
    assert "differs from the hash" in json.dumps(refused.failure)
    assert pulled(world).sha256 not in json.dumps(refused.failure)


def test_a_denied_channel_is_denied_however_a_lock_spells_it(submit, world, root, own) -> None:
    rule(root, None, "channels", "enforce", deny=[world.channel("evil")])
    evil = world.packages("evil")["tool"]
    host, _, port = world.url.removeprefix("http://").partition(":")
    assert host == "127.0.0.1"
    for spelt in (
        world.url + "/%65vil",
        world.url + "//evil",
        f"http://127.1:0{port}/evil",
        f"http://2130706433:{port}/evil",
        f"http://user:pass@0x7f.0.0.1:{port}/t/tk-1/evil",
        f"HTTP://[::ffff:7f00:1]:{port}/evil/",
    ):
        url = evil.url.replace(world.channel("evil"), spelt.rstrip("/"))
        with pytest.raises(ChannelNotAllowedError):
            submit(explicit(replace(evil, url=url)))
        with pytest.raises(ChannelNotAllowedError):
            submit(f"channels: ['{spelt}']\ndependencies: [tool]")
    control = submit(explicit(world.packages("trusted")["dep"]), name="control")
    assert control.state == BuildState.READY


# --- what one lock claims labels no other ---------------------------------------------------------


def test_the_same_file_is_described_by_each_lock_for_itself(submit, world, research, root) -> None:
    """First unlisted, for one tenant; then the channel lists it, for another."""
    before = submit(explicit(pulled(world)))
    assert before.state == BuildState.HELD
    world.list_all("trusted")
    try:
        after = submit(explicit(pulled(world)), into=research, name="after")
        assert after.state == BuildState.READY
        assert before.lock.digest == after.lock.digest
        assert before.lock != after.lock
        rows = CondaRecord.objects.filter(name="pulled").order_by("pk")
        assert [row.listed for row in rows] == [False, True]
    finally:
        world.unlist("trusted", "pulled")


@pytest.mark.django_db(transaction=False)
def test_claims_of_equal_bytes_are_kept_apart_and_rows_of_older_releases_are_taken_over() -> None:
    honest = factories.make_package("numpy", license="BSD-3-Clause")
    lying = factories.make_package("numpy", license="AGPL-3.0-only")
    one, two = factories.make_lock(honest), factories.make_lock(lying)
    assert one.digest == two.digest
    assert LockRow.store(one).value().platforms[0].conda[0].license == "BSD-3-Clause"
    assert LockRow.store(two).value().platforms[0].conda[0].license == "AGPL-3.0-only"
    assert LockRow.store(one) == LockRow.store(one)
    assert CondaRecord.objects.count() == LockRow.objects.count() == 2
    # As an older release left them: without claims.
    retained = LockRow.store(one)
    LockRow.objects.exclude(pk=retained.pk).delete()
    CondaRecord.objects.exclude(locked__lock=retained).delete()
    LockRow.objects.update(claims="")
    CondaRecord.objects.update(claim="", listed=None)
    assert LockRow.store(one) == retained
    assert LockRow.store(two) != retained
    wider = factories.make_lock(honest, factories.make_package("scipy"))
    LockRow.store(wider)
    assert CondaRecord.objects.filter(license="BSD-3-Clause").count() == 1
    assert CondaRecord.objects.get(license="BSD-3-Clause").claim == honest.claim


@pytest.mark.django_db(transaction=False)
def test_a_request_shows_the_package_as_the_builds_own_lock_describes_it(
    research, dora, alice
) -> None:
    other = factories.make_namespace("other")
    foreign = factories.make_package("numpy", license="MIT")
    own = factories.make_package("numpy", license="AGPL-3.0-only")
    rule(dora, research, "packages-denied", "ask", packages=["numpy"])
    environment = factories.make_environment(research)
    build = factories.make_build(
        environment, BuildState.FETCHING, lock=factories.make_lock(own), current=False
    )
    factories.make_build(factories.make_environment(other), lock=factories.make_lock(foreign))
    specification = factories.make_specification("dependencies: [numpy]").value()
    verdicts = judge(policy_of(research), build.lock.value(), specification)
    lease = Lease(owner="", token=build.lease_token)
    assert hold(build, verdicts, lease=lease)
    assert ApprovalRequest.objects.get().conda.license == "AGPL-3.0-only"


@pytest.mark.django_db(transaction=False)
def test_what_a_lock_claims_is_part_of_its_specification(research, world, alice) -> None:
    url = "https://h.org/main/linux-64/a-1-0.conda"
    environment = factories.make_environment(research)

    def digest(md5: str) -> str:
        text = f"@EXPLICIT\n# platform: linux-64\n{url}#{md5}"
        build = submit_build(actor=alice, environment=environment, specification=text).build
        return str(build.specification.digest)

    assert digest("0" * 32) == digest("0" * 32)
    assert digest("0" * 32) != digest("1" * 32)
