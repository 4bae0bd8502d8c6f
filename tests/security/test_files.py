"""What another local user of the machine reaches of a data folder: public namespaces, no more."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import stat
import tarfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.access import Actor
from accounts.roles import Role
from condastore import checks, private_files
from condastore.cli.errors import CommandError
from condastore.env import SECRET_FILES
from condastore.supervisor.startup import prepare_folder
from environments.domain.records import CondaPackage
from environments.engine.packages.cache import PackageCache
from environments.engine.packages.file_modes import shared_mode
from environments.engine.prefix import linking
from environments.jobs import cleanup
from environments.models import Build
from environments.operations.environments import copy_environment, move_environment
from environments.services import blobs, folder_access, folders
from tests import factories
from tests.channels.server import serving
from tests.environments.engine.package_fixtures import lock_of
from tests.migrated import put_database
from tests.security.local_user import answer_to_stranger, folder_for_all, reached, written
from tests.system import System

SMALL = "dependencies: [activating, libbeta ==1.2]"
#: Groups that nobody is in, to map namespaces to; without root one's own is the only one.
TEAM, OTHERS = (65200, 65201) if os.geteuid() == 0 else (os.getegid(), os.getegid())
needs_two_groups = pytest.mark.skipif(TEAM == OTHERS, reason="only root gives folders away")
#: Without the powers of root: what a service account, which is in the group, may do.
AS_SERVICE_ACCOUNT: Sequence[str] = (
    ("setpriv", "--securebits=+noroot,+noroot_locked", "--inh-caps=-all", "--bounding-set=-all")
    if os.geteuid() == 0
    else ()
)
IN_TEAM = [f"--groups={TEAM}"] if AS_SERVICE_ACCOUNT else []
HIDDEN = ("secretlab", "team")


# --- a running system ---------------------------------------------------------------------------


def make_old_folder(data: Path) -> None:
    """A data folder as releases left it that set no modes."""
    data.mkdir()
    put_database(data, administrator=True)
    for name in (*private_files.PRIVATE, private_files.BLOBS, "valkey", "envs/old", "prefixes/old"):
        (data / name).mkdir(parents=True)
        (data / name / "note").write_text("of an earlier release")
    (data / "db.sqlite3.copy").write_text("a copy of the rows")
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture(scope="module")
def system(small_channel: Path) -> Iterator[System]:
    """On an old folder, started where nothing that is created is for others: neither may matter."""
    with folder_for_all() as base, serving(small_channel) as server:
        make_old_folder(base / "data")
        assert "db.sqlite3.copy" in reached(base / "data"), "the stranger is no straw man"
        with System(
            base / "data",
            channel=server.url,
            environ={"CONDASTORE_NAMESPACE_GROUPS": f"team={TEAM}"},
            within=[*AS_SERVICE_ACCOUNT, *IN_TEAM, "sh", "-c", 'umask 077; exec "$@"', "sh"],
        ) as running:
            running.change("createNamespace", name="open", description="", public=True)
            for namespace in ("open", *HIDDEN):
                running.create(f"{namespace}/ml")
            for build in [running.submit(f"{name}/ml", SMALL) for name in ("open", *HIDDEN)]:
                assert running.wait(build)["state"] == "READY", running.show(build)
            yield running


def namespaces_of(paths: set[str]) -> set[str]:
    """Of paths such as `prefixes/open/1-abc-ml/conda-meta`."""
    return {path.split("/")[1] for path in paths if "/" in path}


def test_a_stranger_reaches_the_public_namespace_and_nothing_else(system: System) -> None:
    found = reached(system.data) - {"."}  # the old folder's own mode is its administrator's
    assert {path.split("/")[0] for path in found} == {"envs", "prefixes"}, found
    assert namespaces_of(found) == {"open"}
    assert "envs/open/ml" in found
    prefix = Path(system.environment("open/ml")["current"]["prefixPath"])
    assert (prefix / "conda-meta" / "history").relative_to(system.data).as_posix() in found
    everything = {path.relative_to(system.data) for path in prefix.rglob("*")}
    missing = {path for path in everything if path.as_posix() not in found}
    assert not missing, "every file of a public environment is for everybody"


def test_a_member_of_its_group_reaches_a_private_namespace(system: System) -> None:
    found = reached(system.data, groups=[TEAM])
    assert namespaces_of(found) == {"open", "team"}
    assert "envs/team/ml" in found
    assert any(path.endswith("conda-meta/history") for path in found if "/team/" in path)


def test_nobody_else_changes_anything(system: System) -> None:
    assert written(system.data, groups=[TEAM]) == set()


def test_the_service_uses_what_it_has_closed(system: System) -> None:
    shown = system.run("run", "secretlab/ml", "--", "sh", "-c", "echo $CONDASTORE_BUILD")
    assert shown.stdout.strip() == "secretlab/ml:1"


def test_no_process_shows_a_secret_and_only_the_web_server_listens(system: System) -> None:
    keys = [path.read_text().strip() for path in (system.data / "secrets").glob("*_key*")]
    assert len(keys) >= 4
    hidden = [*keys, system.token, system.environ["CONDASTORE_ADMIN_PASSWORD"]]
    ports = set()
    for process in system.everything():
        try:
            words = " ".join(process.cmdline())
            connections = process.net_connections("tcp")
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
        assert not any(secret in words for secret in hidden), words
        ports |= {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    web = int(system.url.rpartition(":")[2])
    assert web in ports
    for port in ports - {web}:
        assert answer_to_stranger(port, f"{system.url}/healthz")[:1] in (b"", b"4"), port


def test_a_namespace_that_changes_its_visibility_is_closed_and_opened_at_once(
    system: System,
) -> None:
    change = (
        "from environments.models import Namespace; n = Namespace.objects.get(name='secretlab');"
        "n.public = {}; n.save()"
    )
    try:
        system.manage(change.format(True))
        assert "secretlab" in namespaces_of(reached(system.data))
    finally:
        system.manage(change.format(False))
    assert "secretlab" not in namespaces_of(reached(system.data))


# --- one namespace and another -------------------------------------------------------------------


@pytest.fixture
def data(settings: Any) -> Iterator[Path]:
    """A data folder on a way that others may go."""
    with folder_for_all() as base:
        settings.DATA = base / "data"
        prepare_folder(settings.DATA)
        yield settings.DATA


def on_disk(build: Build) -> Build:
    """Make the folder of a build, as the worker publishes it."""
    assert build.prefix is not None
    namespace = build.environment.namespace
    folder_access.create_folder(folders.PREFIXES, namespace)
    prefix = folders.data() / build.prefix.path
    prefix.mkdir(0o700)
    folder_access.set_mode(prefix, folder_access.mode_of(namespace))
    (prefix / "history").write_text("what is in it")
    (prefix / "history").chmod(0o644)
    folders.follow_environment(build.environment)
    return build


def history_of(build: Build) -> str:
    assert build.prefix is not None
    return f"{build.prefix.path}/history"


@pytest.mark.django_db(transaction=True)
def test_what_moves_into_a_private_namespace_is_closed_and_out_of_it_opened(
    data: Path, root: Actor
) -> None:
    closed = factories.make_namespace("closed", root=Role.ADMIN)
    public = factories.make_namespace("public", public=True)
    build = on_disk(factories.make_build(factories.make_environment(public)))
    assert history_of(build) in reached(data)
    move_environment(actor=root, environment=build.environment, namespace=closed)
    assert namespaces_of(reached(data)) <= {"public"}
    assert history_of(build) not in reached(data)
    hidden = on_disk(factories.make_build(factories.make_environment(closed, "other")))
    move_environment(actor=root, environment=hidden.environment, namespace=public)
    found = reached(data)
    assert history_of(hidden) in found
    assert "envs/public/other" in found
    assert "prefixes/closed" not in found, "it can be passed through, and not listed"


@pytest.mark.django_db(transaction=True)
def test_a_copy_is_reached_by_those_of_both_namespaces(data: Path, root: Actor) -> None:
    closed = factories.make_namespace("closed", root=Role.ADMIN)
    public = factories.make_namespace("public", public=True)
    build = on_disk(factories.make_build(factories.make_environment(closed)))
    secret = on_disk(factories.make_build(factories.make_environment(closed, "secret")))
    assert reached(data) == set()
    copy_environment(actor=root, environment=build.environment, namespace=public, name="copy")
    found = reached(data)
    assert {history_of(build), "envs/public/copy"} <= found
    assert history_of(secret) not in found


@pytest.mark.django_db
@needs_two_groups
def test_a_folder_that_two_groups_share_is_that_of_the_namespace_that_made_it(
    data: Path, root: Actor, settings: Any
) -> None:
    settings.NAMESPACE_GROUPS = [f"one={TEAM}", f"two={OTHERS}"]
    one = factories.make_namespace("one")
    build = on_disk(factories.make_build(factories.make_environment(one)))
    copy_environment(
        actor=root,
        environment=build.environment,
        namespace=factories.make_namespace("two"),
        name="copy",
    )
    folder_access.apply()
    assert history_of(build) in reached(data, groups=[TEAM])
    assert history_of(build) not in reached(data, groups=[OTHERS])
    assert reached(data) == set()


@pytest.mark.django_db
def test_the_upkeep_puts_right_what_was_opened_by_hand(data: Path) -> None:
    build = on_disk(factories.make_build(factories.make_environment(factories.make_namespace())))
    strange = data / "prefixes" / "of-no-namespace"
    strange.mkdir()
    for path in (strange, data / "envs", data / "prefixes", *(data / "prefixes").rglob("*")):
        if path.is_dir():
            path.chmod(0o777)
    assert history_of(build) in reached(data)
    folder_access.apply()
    assert reached(data) == set()
    assert written(data) == set()


@pytest.mark.django_db
def test_an_administrator_opens_all_namespaces_or_a_group_by_its_name(
    data: Path, settings: Any
) -> None:
    build = on_disk(factories.make_build(factories.make_environment(factories.make_namespace())))
    settings.NAMESPACE_GROUPS = ["*=*"]
    folder_access.apply()
    assert {history_of(build), "envs", "prefixes"} <= reached(data)
    settings.NAMESPACE_GROUPS = ["re*={namespace}-users-that-are-not-there"]
    folder_access.apply()
    assert reached(data) == set(), "an unknown group opens nothing"
    settings.NAMESPACE_GROUPS = [f"re*={TEAM}"]
    folder_access.apply()
    assert reached(data) == set()
    found = reached(data, groups=[TEAM])
    assert {history_of(build), "envs/research/ml"} <= found
    status = (data / "envs" / "research").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o2750, TEAM)


# --- files of packages ---------------------------------------------------------------------------


@given(st.integers(0, 0o7777))
def test_every_file_of_a_package_is_for_everybody_to_read_and_for_its_owner_to_write(
    mode: int,
) -> None:
    shared = shared_mode(stat.S_IFREG | mode)
    assert shared in (0o444, 0o555, 0o644, 0o755)
    assert bool(shared & 0o200) == bool(mode & 0o200)
    assert bool(shared & 0o111) == bool(mode & 0o111)
    assert shared_mode(stat.S_IFREG | shared) == shared
    assert shared_mode(stat.S_IFDIR | mode) == 0o755


def careless_package(folder: Path) -> CondaPackage:
    """One whose archive lets everybody write, or nobody but the owner read, what is in it."""
    files = {
        "bin/tool": (b"#!/bin/sh\n", 0o777),
        "lib/closed.txt": (b"closed", 0o600),
        "lib/open.txt": (b"open", 0o666),
        "lib/patched.txt": (b"root=/old/prefix/that/is/long/enough", 0o666),
        "lib/fixed.txt": (b"fixed", 0o444),
    }
    listed = [
        {
            "_path": path,
            "path_type": "hardlink",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_in_bytes": len(content),
        }
        for path, (content, _) in files.items()
    ]
    listed[3] |= {"prefix_placeholder": "/old/prefix/that/is/long/enough", "file_mode": "text"}
    index = {"name": "careless", "version": "1.0", "build": "0", "build_number": 0, "depends": []}
    info = {
        "info/index.json": (json.dumps(index).encode(), 0o666),
        "info/paths.json": (json.dumps({"paths": listed, "paths_version": 1}).encode(), 0o666),
    }
    archive = folder / "careless-1.0-0.tar.bz2"
    with tarfile.open(archive, "w:bz2") as tar:
        lib = tarfile.TarInfo("lib")
        lib.type, lib.mode = tarfile.DIRTYPE, 0o777
        tar.addfile(lib)
        for path, (content, mode) in (info | files).items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    data = archive.read_bytes()
    record = index | {"subdir": "noarch", "sha256": hashlib.sha256(data).hexdigest()}
    return CondaPackage.from_record(
        record | {"size": len(data)},
        url=archive.as_uri(),
        channel=folder.as_uri(),
        file_name=archive.name,
    )


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_what_a_package_says_of_modes_opens_and_closes_nothing(data: Path, umask: int) -> None:
    """A file that others may write would be written in all prefixes, and in the cache."""
    package = careless_package(data.parent)
    before = os.umask(umask)
    try:
        cache = PackageCache(data / "cache" / "packages")
        cached = cache.ensure([package])
        hidden, final = data / "prefixes" / ".hidden", data / "prefixes" / "1-final"
        os.umask(private_files.SHARED_UMASK)  # as workers have it
        linking.link(
            lock_of(package),
            target=hidden,
            final_prefix=final,
            cache=cache,
            packages=cached,
            requested=[],
            variables={},
            moment=datetime.now(UTC),
            note="a test",
        )
        linking.publish_prefix(hidden, final)
    finally:
        os.umask(before)
    files = {
        path.relative_to(final).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in final.rglob("*")
        if path.is_file() and "conda-meta" not in path.parts
    }
    assert files == {
        "bin/tool": 0o755,
        "lib/closed.txt": 0o644,
        "lib/fixed.txt": 0o444,
        "lib/open.txt": 0o644,
        "lib/patched.txt": 0o644,
    }
    assert written(data) == set()
    everything = {path.relative_to(data).as_posix() for path in final.rglob("*")}
    assert everything <= reached(data)
    for path in cached[0].folder.rglob("*"):
        assert not path.stat().st_mode & 0o022, path


@pytest.mark.django_db
def test_the_upkeep_takes_write_access_from_files_of_older_releases(data: Path) -> None:
    public = factories.make_namespace("public", public=True)
    build = on_disk(factories.make_build(factories.make_environment(public)))
    assert build.prefix is not None
    prefix = data / build.prefix.path
    cached = data / "cache" / "packages" / "digest" / "lib"
    cached.mkdir(parents=True)
    (cached / "shared").write_text("one inode")
    (cached / "shared").chmod(0o666)
    (prefix / "shared").hardlink_to(cached / "shared")
    (prefix / "outside").symlink_to(data.parent / "of-others")
    (data.parent / "of-others").write_text("not ours")
    (data.parent / "of-others").chmod(0o666)
    assert f"{build.prefix.path}/shared" in written(data)
    assert cleanup.repair_file_modes() == 1
    assert written(data) == set()
    assert f"{build.prefix.path}/shared" in reached(data)
    assert stat.S_IMODE((data.parent / "of-others").stat().st_mode) == 0o666
    (cached / "shared").chmod(0o666)
    assert cleanup.repair_file_modes() == 0, "once is enough"


# --- the data folder ----------------------------------------------------------------------------


def test_every_folder_of_the_service_is_closed_whatever_the_umask(
    data: Path, settings: Any
) -> None:
    settings.DATA, settings.DATABASE_URL = data.parent / "new", ""
    before = os.umask(0)
    try:
        prepare_folder(settings.DATA)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in settings.DATA.iterdir()}
    assert modes.pop("envs") == modes.pop("prefixes") == 0o711
    assert modes.pop("db.sqlite3") == 0o600
    assert set(modes.values()) == {0o700}
    assert stat.S_IMODE(settings.DATA.stat().st_mode) == 0o711


def test_a_database_file_in_another_folder_is_closed_too(
    data: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = data.parent / "rows.sqlite3"
    database.write_text("")
    database.chmod(0o644)
    settings.DATABASE_URL = f"sqlite:///{database}"
    monkeypatch.setitem(settings.DATABASES["default"], "ENGINE", "django.db.backends.sqlite3")
    monkeypatch.setitem(settings.DATABASES["default"], "NAME", str(database))
    assert "condastore.E030" in {message.id for message in checks.check(None)}
    prepare_folder(data)
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert "condastore.E030" not in {message.id for message in checks.check(None)}


def test_nginx_reads_the_blobs_folder_by_its_group_and_nobody_else_does(
    data: Path, settings: Any, tmp_path: Path
) -> None:
    settings.BLOBS_GROUP = str(TEAM)
    prepare_folder(data)
    before = os.umask(0o077)
    try:
        content = tmp_path / "content"
        content.write_bytes(secrets.token_bytes(10))
        blobs.BlobFolder().adopt(content, "sha256/ab/abcd")
    finally:
        os.umask(before)
    assert "blobs/sha256/ab/abcd" in reached(data, groups=[TEAM])
    assert reached(data) == set()
    assert written(data, groups=[TEAM]) == set()
    settings.BLOBS_GROUP = ""
    prepare_folder(data)
    assert reached(data, groups=[TEAM]) == set()


def test_a_group_that_is_not_there_is_named(data: Path, settings: Any) -> None:
    settings.BLOBS_GROUP = "no-such-group"
    with pytest.raises(CommandError, match="no-such-group"):
        prepare_folder(data)
    settings.NAMESPACE_GROUPS = ["research=no-such-group", "team"]
    messages = "\n".join(str(one) for one in checks.check(None))
    assert "no-such-group" in messages
    assert "'team'" in messages


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a file of another account")
def test_what_belongs_to_another_account_is_an_error_at_start(data: Path) -> None:
    os.chown(data / "secrets", 65123, 65123)
    with pytest.raises(CommandError, match="secrets belongs to another account"):
        prepare_folder(data)
    assert "condastore.E030" in {message.id for message in checks.check(None)}
    os.chown(data / "secrets", 0, 0)
    prepare_folder(data)
    assert "condastore.E030" not in {message.id for message in checks.check(None)}


def test_a_data_folder_that_everybody_may_write_is_reported(data: Path) -> None:
    data.chmod(0o777)
    (data / "cache").chmod(0o755)
    wrong = "\n".join(str(one) for one in private_files.still_open(data))
    assert f"{data} can be written by everybody" in wrong
    assert f"{data / 'cache'} is open to other accounts" in wrong
    prepare_folder(data)
    assert list(private_files.still_open(data)) == []


def test_a_file_with_a_secret_that_everybody_reads_is_reported(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data.parent / "key"
    path.write_text("k" * 60)
    path.chmod(0o644)
    monkeypatch.setitem(SECRET_FILES, "CONDASTORE_AUDIT_KEY_FILE", path)
    assert "condastore.W034" in {message.id for message in checks.check(None)}
    path.chmod(0o640)
    assert "condastore.W034" not in {message.id for message in checks.check(None)}
