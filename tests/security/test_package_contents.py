"""Packages against the installation: each attack is made by an ordinary account, beside its twin.

Eve has a personal namespace, a channel of her own on some server, and a hosted channel. The
attacks are built by a whole system, as anybody would submit them; what can be proved without one is
proved at the engine.
"""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from condastore.errors import DiskSpaceError, InvalidInputError, LinkError
from environments.domain.records import CondaPackage, PypiPackage, record_differences
from environments.domain.unpacking import Limits
from environments.engine.images.loading import load
from environments.engine.packages.cache import PackageCache
from environments.engine.packages.download_types import Patience
from environments.engine.packages.extracted_tree import measure
from environments.engine.packages.extraction import ExtractionError, Extractors
from environments.engine.prefix.linking import link
from environments.engine.pypi.install import WheelCache
from environments.engine.system.confinement import can_confine
from tests.channels.channel_index import write_repodata
from tests.channels.server import serving
from tests.channels.simple_index import Distribution, make_wheel, write_simple_index
from tests.environments.engine.package_fixtures import lock_of
from tests.environments.engine.packing import Entry, conda, entry, tar
from tests.system import PROJECT, SUBMIT, System

PASSWORD = "not-the-administrators-1"
ZEROS = bytes(66 << 20)  # more than every archive may unpack to
MOST_FILES = 2_000


def symlink(path: str, target: str) -> Entry:
    return entry(path, b"", type=tarfile.SYMTYPE, linkname=target)


@dataclass(kw_only=True)
class Hostile:
    """A package, what its channel says of it, and what the build must answer."""

    payload: Sequence[Entry] = (entry("share/tool.txt", b"honest"),)
    listed: Sequence[str] | None = None  # paths; those of the payload if None
    index: Mapping[str, Any] = field(default_factory=dict)  # of the package itself
    record: Mapping[str, Any] = field(default_factory=dict)  # what the channel says instead
    more: Sequence[Entry] = ()  # of the archive, beside the listed payload
    compressed: str = ".tar.bz2"
    link: Mapping[str, Any] | None = None
    needs: Sequence[str] = ()
    message: str = ""
    code: str = "cannot-link"


def write_channel(folder: Path, packages: Mapping[str, Hostile]) -> None:
    repodata: dict[str, dict[str, Any]] = {
        subdir: {"info": {"subdir": subdir}, "packages": {}, "packages.conda": {}}
        for subdir in ("linux-64", "noarch")
    }
    for subdir in repodata:
        (folder / subdir).mkdir(parents=True)
    for name, package in packages.items():
        file_name, data, record = write(name, package)
        (folder / record["subdir"] / file_name).write_bytes(data)
        kind = "packages.conda" if file_name.endswith(".conda") else "packages"
        repodata[record["subdir"]][kind][file_name] = record
    for subdir, content in repodata.items():
        write_repodata(folder / subdir, content)


def write(name: str, package: Hostile) -> tuple[str, bytes, dict[str, Any]]:
    """The file, its bytes, and its record in the channel."""
    index = {
        "name": name,
        "version": "1.0",
        "build": "0",
        "build_number": 0,
        "subdir": "linux-64",
        "depends": list(package.needs),
        "license": "MIT",
        **package.index,
    }
    listed = (
        [info.name for info, _ in package.payload] if package.listed is None else package.listed
    )
    paths = [{"_path": path, "path_type": "hardlink"} for path in listed]
    info = [
        entry("info/index.json", json.dumps(index).encode()),
        entry("info/paths.json", json.dumps({"paths": paths, "paths_version": 1}).encode()),
    ]
    if package.link:
        info.append(entry("info/link.json", json.dumps(package.link).encode()))
    payload = [*package.payload, *package.more]
    named = {**index, **package.record}
    stem = f"{named['name']}-{named['version']}-{named['build']}"
    if package.compressed == ".conda":
        data = conda(payload, info=info, stem=stem)
    else:
        data = bz2.compress(tar([*info, *payload]))
    record = index | {
        "md5": hashlib.md5(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        **package.record,
    }
    record = {key: value for key, value in record.items() if value is not None}
    return stem + package.compressed, data, record


def attacks(data: Path) -> dict[str, Hostile]:
    """By name of the package; `data`: the folder of the installation."""
    zeros = [entry("share/zeros", ZEROS)]
    outside = "leads out of the package"
    python = {"name": "python", "version": "3.11.7"}
    return {
        "absolute-link": Hostile(
            payload=[symlink("d", f"{data}/secrets")], listed=["d/secret_key"], message=outside
        ),
        "relative-link": Hostile(
            payload=[symlink("d", "../../../../secrets")], listed=["d/secret_key"], message=outside
        ),
        "link-through-links": Hostile(
            payload=[
                symlink("a/b/here", "."),
                symlink("d", "a/b/here/here/../../../../../../secrets"),
                entry("a/b/c/file"),
            ],
            listed=["d/secret_key", "a/b/c/file"],
            message=outside,
        ),
        "unlisted-link": Hostile(more=[symlink("share/d", f"{data}/secrets")], message=outside),
        "behind-a-link": Hostile(
            payload=[symlink("d", "share"), entry("share/x")],
            listed=["d/x"],
            message="is not a folder",
        ),
        "hard-link": Hostile(
            payload=[
                entry("key", b"", type=tarfile.LNKTYPE, linkname=f"{data}/secrets/secret_key")
            ],
            message="cannot be extracted",
        ),
        "bomb": Hostile(payload=zeros, message="67,108,864"),
        "bomb-of-zstd": Hostile(payload=zeros, compressed=".conda", message="67,108,864"),
        "many-files": Hostile(
            payload=[entry(f"share/{number}", b"") for number in range(MOST_FILES + 10)],
            message="2,000 entries",
        ),
        "deep": Hostile(payload=[entry("a/" * 1500 + "x")], listed=[], message="nests more than"),
        "unwritable-folders": Hostile(
            payload=[
                entry("a", b"", type=tarfile.DIRTYPE, mode=0o500),
                entry("a/x"),
                symlink("b", "/"),
            ],
            message=outside,
        ),
        "other-name": Hostile(index={"name": "numpy"}, record={"name": "other-name"}),
        "other-version": Hostile(index={"version": "0.9"}, record={"version": "1.0"}),
        "other-build": Hostile(index={"build": "1"}, record={"build": "0"}),
        "other-number": Hostile(index={"build_number": 7}, record={"build_number": 0}),
        "other-subdir": Hostile(index={"subdir": "win-64"}, record={"subdir": "linux-64"}),
        "md5-only": Hostile(record={"sha256": None}, message="No sha256"),
        "out-of-site-packages": Hostile(
            payload=[entry("site-packages/evil.py")],
            link={"noarch": {"type": "python"}, "package_metadata_version": 1},
            index={"noarch": "python", "subdir": "noarch"},
            needs=["python 3.11.7 up"],
            message="python_site_packages_path",
        ),
        "abort": Hostile(
            payload=[entry("site-packages/evil.py")],
            link={"noarch": {"type": "python"}, "package_metadata_version": 1},
            index={"noarch": "python", "subdir": "noarch"},
            needs=["python 3.11.7 root"],
            message="python_site_packages_path",
        ),
        "pythonless-entry": Hostile(
            index={"noarch": "python", "subdir": "noarch"},
            link={"noarch": {"type": "python", "entry_points": [7]}, "package_metadata_version": 1},
            message="entry_points",
        ),
        "agpl-in-disguise": Hostile(
            index={"license": "AGPL-3.0-only"},
            record={"license": "MIT"},
            code="package-not-approved",
            message="says of itself that it is under AGPL-3.0-only",
        ),
        # Interpreters, by which the ones above are led astray.
        "up": Hostile(
            index=python | {"build": "up"}, record={"python_site_packages_path": "../../x"}
        ),
        "root": Hostile(
            index=python | {"build": "root"},
            record={"python_site_packages_path": "/tmp/condastore-attack"},
        ),
    }


HONEST: dict[str, Hostile] = {
    "honest": Hostile(payload=[entry("lib/a.1"), symlink("lib/a", "a.1")]),
    # A small package of many zeros; and a file that is listed twice, as tar has it.
    "honest-conda": Hostile(
        payload=[
            entry("share/x", bytes(30 << 20)),
            entry("share/y", b"", type=tarfile.LNKTYPE, linkname="share/x"),
        ],
        compressed=".conda",
    ),
    # Channels correct dependencies and licenses.
    "patched": Hostile(
        index={"depends": ["gone >=2"], "license": "BSD-3-Clause"},
        record={"depends": [], "license": "MIT"},
    ),
}
NAMES = sorted(set(attacks(Path("/data"))) - {"up", "root"})
RULES = {
    "licenses": ("enforce", {"deny": ["AGPL-*"], "missing": "accept", "unknown": "accept"}),
    "install-scripts": ("ask", {}),
}
_PEOPLE = f"""
from environments.models import Policy, PolicyRule
from tests import factories
factories.make_user("eve", password={PASSWORD!r})
policy = Policy.objects.get_or_create(namespace=None)[0]
for number, (kind, (effect, settings)) in enumerate({RULES!r}.items()):
    PolicyRule.objects.create(
        policy=policy, kind=kind, effect=effect, name=kind, settings=settings, position=number
    )
"""


_OWN_NAMESPACE = """mutation { createNamespace(name: "eve") {
    __typename ... on OperationError { message } } }"""


@dataclass(kw_only=True)
class Eve:
    """An account without any role but in its personal namespace."""

    system: System
    token: str
    channel: Path
    small: str

    def submit(self, environment: str, text: str) -> str:
        answer = self.system.graphql(
            SUBMIT, self.token, namespace="eve", environment=environment, text=text, force=True
        )["submitBuild"]
        assert answer["__typename"] == "SubmittedBuild", answer
        return str(answer["build"]["id"])

    def outcome(self, build: str) -> dict[str, Any]:
        return self.system.wait(build, {"READY", "FAILED", "HELD"})


@pytest.fixture(scope="module")
def eve(small_channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eve]:
    folder = tmp_path_factory.mktemp("contents")
    data, index = folder / "data", folder / "index"
    scripted = Hostile(payload=[entry("bin/.scripted-post-link.sh", b"#!/bin/sh\n")])
    write_channel(folder / "channel", attacks(data) | HONEST | {"scripted": scripted})
    write_simple_index(index, [bomb_wheel(), make_wheel("good", "1")])
    folders = {"": folder / "channel", "small": small_channel, "pypi": index}
    with serving(folders) as server:
        system = System(
            data,
            channel=server.url,
            environ={
                "CONDASTORE_MAX_UNPACKED_FILES": str(MOST_FILES),
                "CONDASTORE_PYPI_INDEX_URLS": f"{server.url}/pypi/simple/",
            },
        )
        with system:
            system.manage(_PEOPLE)
            token = system.sign_in("eve", PASSWORD)
            answer = system.graphql(_OWN_NAMESPACE, token)["createNamespace"]
            assert answer["__typename"] != "OperationError", answer
            yield Eve(
                system=system, token=token, channel=folder / "channel", small=f"{server.url}small"
            )


@pytest.fixture(scope="module")
def builds(eve: Eve) -> dict[str, str]:
    """All of them at once: an attack must not harm the builds beside it either."""
    requested = {name: f"dependencies: [{name}]" for name in [*NAMES, *HONEST, "scripted"]}
    small = f"channels: ['{eve.small}']\ndependencies: [python, {{pip: [%s]}}]"
    requested |= {f"wheel-{name}": small % name for name in ("bomb", "good")}
    return {name: eve.submit(name, text) for name, text in requested.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_attacks_is_refused_at_the_first_attempt(
    eve: Eve, builds: Mapping[str, str], name: str
) -> None:
    attack = attacks(eve.system.data)[name]
    done = eve.outcome(builds[name])
    assert done["state"] == "FAILED", done
    assert (done["failure"]["code"], done["attempt"]) == (attack.code, 1), done
    reported = json.dumps(done["failure"])
    assert attack.message in reported
    if attack.record and not attack.message:
        [(key, theirs)] = attack.record.items()
        assert str(theirs) in reported
        assert str(attack.index[key]) in reported
    assert str(eve.system.data) not in reported or "-link" in name
    assert done["failure"]["hint"]


@pytest.mark.parametrize("name", HONEST)
def test_its_honest_twin_is_built(eve: Eve, builds: Mapping[str, str], name: str) -> None:
    done = eve.outcome(builds[name])
    assert done["state"] == "READY", done


def test_a_rule_that_asks_holds_what_the_package_itself_says(
    eve: Eve, builds: Mapping[str, str]
) -> None:
    """Nobody knows of the script before the package is opened."""
    assert eve.outcome(builds["scripted"])["state"] == "HELD"


def test_dependencies_that_only_the_package_names_are_logged(
    eve: Eve, builds: Mapping[str, str]
) -> None:
    eve.outcome(builds["patched"])
    query = "query($id: ID!) { build(id: $id) { log } }"
    log = eve.system.graphql(query, eve.token, id=builds["patched"])["build"]["log"]
    assert any("itself also depends on 'gone >=2'" in line for line in log)


def test_a_wheel_is_held_to_the_same_limits(eve: Eve, builds: Mapping[str, str]) -> None:
    done = eve.outcome(builds["wheel-bomb"])
    assert done["failure"]["code"] == "cannot-link", done
    assert "unpacks to more than 67,108,864 bytes" in done["failure"]["message"]
    assert done["attempt"] == 1
    assert eve.outcome(builds["wheel-good"])["state"] == "READY"


def test_no_attack_left_anything_behind_or_stopped_a_worker(
    eve: Eve, builds: Mapping[str, str]
) -> None:
    workers = [process.pid for process in eve.system.processes("worker")]
    for build in builds.values():
        eve.outcome(build)
    data = eve.system.data
    assert [process.pid for process in eve.system.processes("worker")] == workers
    assert all(path.stat().st_nlink == 1 for path in (data / "secrets").iterdir())
    cached = data / "cache" / "packages"
    assert all(path.is_relative_to(cached) for path in data.parent.rglob("evil.py"))
    assert not Path("/tmp/condastore-attack").exists()
    assert not list((cached / ".extracting").iterdir())
    entries = {path.parent.name for path in cached.glob("*/*/info")}
    assert not {path for path in entries if "link" in path or "bomb" in path}
    assert "Traceback" not in eve.system.log()


def test_a_hosted_channel_takes_none_of_them(eve: Eve) -> None:
    create = """mutation { createHostedChannel(namespace: "eve", name: "eve/eves") {
        __typename ... on OperationError { message } } }"""
    created = eve.system.graphql(create, eve.token)["createHostedChannel"]
    assert created["__typename"] != "OperationError", created
    upload = httpx.Client(
        base_url=eve.system.url, headers={"Authorization": f"Bearer {eve.token}"}, timeout=60
    )
    with upload:
        for name in ("absolute-link", "link-through-links", "bomb", "bomb-of-zstd", "many-files"):
            [file] = eve.channel.glob(f"*/{name}-1.0-0.*")
            answer = upload.put(f"/channel/hosted/eve/eves/{file.name}", content=file.read_bytes())
            assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY, (name, answer.text)
        python = {"name": "python", "python_site_packages_path": "../../x"}
        file_name, data, _ = write("python", Hostile(index=python))
        answer = upload.put(f"/channel/hosted/eve/eves/{file_name}", content=data)
        assert "python_site_packages_path" in answer.text
        file_name, data, _ = write("honest", HONEST["honest"])
        answer = upload.put(f"/channel/hosted/eve/eves/{file_name}", content=data)
        assert answer.status_code == httpx.codes.CREATED, answer.text


def bomb_wheel() -> Distribution:
    return make_wheel("bomb", "1", files={"bomb.py": ZEROS})


# --- at the engine --------------------------------------------------------------------------------


def package(folder: Path, name: str, hostile: Hostile) -> CondaPackage:
    file_name, data, record = write(name, hostile)
    folder.mkdir(exist_ok=True)
    (folder / file_name).write_bytes(data)
    url = (folder / file_name).as_uri()
    return CondaPackage.from_record(record, url=url, channel=folder.as_uri(), file_name=file_name)


def test_a_bomb_is_stopped_while_it_is_extracted(tmp_path: Path) -> None:
    """Not only found afterwards: of 800 MB few are ever on the disk."""
    part = bytes(20 << 20)
    hostile = Hostile(payload=[entry(str(n), part) for n in range(40)], compressed=".conda")
    bomb = package(tmp_path / "channel", "bomb", hostile)
    cache = PackageCache(tmp_path / "cache")
    largest, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.01):
            if (cache.folder / ".extracting").exists():
                largest = max(largest, measure(cache.folder / ".extracting")[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(LinkError, match="67,108,864"):
            cache.ensure([bomb])
    finally:
        ended.set()
        watcher.join()
    assert 0 < largest < 600 << 20
    assert not list((cache.folder / ".extracting").iterdir())


def test_what_ends_the_extracting_process_twice_is_refused(tmp_path: Path) -> None:
    good = package(tmp_path / "channel", "good", HONEST["honest"])
    cache = PackageCache(tmp_path / "cache")
    ended = threading.Event()

    def end_each() -> None:
        while not ended.wait(0.002):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if str(cache.downloads) in child.cmdline():
                        child.kill()

    ending = threading.Thread(target=end_each)
    ending.start()
    try:
        with pytest.raises(LinkError, match="the program that reads it crashes"):
            cache.ensure([good])
    finally:
        ended.set()
        ending.join()
    assert cache.ensure([good])[0].folder.is_dir()


@pytest.mark.skipif(not can_confine(), reason="the kernel has no Landlock")
def test_the_extracting_process_reads_and_writes_its_folders_only(tmp_path: Path) -> None:
    good = package(tmp_path / "channel", "good", HONEST["honest"])
    downloads, work = tmp_path / "downloads", tmp_path / "work"
    extractors = Extractors(readable=downloads, writable=work, limits=Limits())

    def extract(archive: Path, folder: Path) -> Any:
        call = extractors.extract(archive, folder, name="x", packed=lambda: 1 << 20, reserve=0)
        return asyncio.run(call)

    downloads.mkdir()
    inside = downloads / good.file_name
    outside = tmp_path / "channel" / good.file_name
    shutil.copy(outside, inside)
    assert extract(inside, work / "good") == (good.sha256, good.md5)
    with pytest.raises(ExtractionError, match=r"Permission denied|os error 13"):
        extract(outside, work / "other")
    with pytest.raises(ExtractionError, match=r"Permission denied|os error 13"):
        extract(inside, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_the_extracting_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """In the middle of an extraction too: it waits for the rest of an archive in a pipe."""
    program = f"""
import asyncio, os
from pathlib import Path
from environments.domain.unpacking import Limits
from environments.engine.packages.extraction import Extractors
here = Path({os.fspath(tmp_path)!r})
extractors = Extractors(readable=here / "downloads", writable=here / "work", limits=Limits())
extractors.warm_up()
os.mkfifo(here / "downloads" / "a.conda")
print(*[one.process.pid for one in extractors._idle], flush=True)
asyncio.run(extractors.extract(here / "downloads" / "a.conda", here / "work" / "a", name="a",
                               packed=lambda: 0, reserve=0))
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        children = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
        assert children
        starter.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_disk_that_fills_up_stops_downloads_and_extractions(tmp_path: Path) -> None:
    part = bytes(20 << 20)
    hostile = Hostile(payload=[entry(str(n), part) for n in range(3)], compressed=".conda")
    large = package(tmp_path / "channel", "large", hostile)
    cache = PackageCache(tmp_path / "cache")
    with pytest.raises(DiskSpaceError):
        cache.ensure([large], patience=Patience(reserve=1 << 60))
    assert cache.ensure([large])


def test_entries_of_older_releases_are_validated_at_their_next_use(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of somebody else")
    good = package(tmp_path / "channel", "good", HONEST["honest"])
    cache = PackageCache(tmp_path / "cache")
    [cached] = cache.ensure([good])
    contents = cached.folder.parent / "contents.json"

    def as_of_old(listed: Sequence[Sequence[Any]] = ()) -> None:
        document = json.loads(contents.read_text())
        document["version"] = 1
        del document["index"]
        document["files"] += listed
        contents.write_text(json.dumps(document))

    # Prefixes share its files, and one of them was a folder that the list named.
    os.link(cached.folder / "lib" / "a.1", tmp_path / "prefix")
    (cached.folder / "empty").mkdir()
    as_of_old([["empty", "folder", 0, "", "", 0, False]])
    [again] = cache.ensure([good], patience=Patience(attempts=1))
    assert again.folder.stat().st_ino == cached.folder.stat().st_ino
    assert [file.path for file in again.contents.files if file.kind == "folder"] == ["empty"]
    assert json.loads(contents.read_text())["version"] == 3
    # One that was poisoned by such a release is extracted again.
    as_of_old()
    (cached.folder / "d").symlink_to(tmp_path)
    assert cache.extracted(good) is None
    [clean] = cache.ensure([good])
    assert not (clean.folder / "d").is_symlink()
    as_of_old([["d/secret", "file", 16, "", "", 0, False]])
    (cached.folder / "d").symlink_to(tmp_path)
    [clean] = cache.ensure([good])
    assert "d/secret" not in {file.path for file in clean.contents.files}


def test_a_lie_about_a_package_that_is_there_already_is_refused_and_harms_it_not(
    tmp_path: Path,
) -> None:
    cache = PackageCache(tmp_path / "cache")
    good = package(tmp_path / "channel", "good", HONEST["honest"])
    [cached] = cache.ensure([good])
    for change in ({"version": "2.0"}, {"build": "1"}, {"name": "other"}, {"noarch": "generic"}):
        lie = replace(good, **change, record={**good.record, **change})  # type: ignore[arg-type]
        with pytest.raises(LinkError, match="not the package that its record describes"):
            cache.ensure([lie])
    [same] = cache.ensure([good])
    assert same.folder.stat().st_ino == cached.folder.stat().st_ino


def test_a_panic_of_the_installer_is_the_fault_of_a_package(tmp_path: Path) -> None:
    """Should one get past all that is checked before."""
    good = package(tmp_path / "channel", "good", HONEST["honest"])
    cache = PackageCache(tmp_path / "cache")
    [cached] = cache.ensure([good])
    lie = replace(good, name="other", record={**good.record, "name": "other"})
    with pytest.raises(LinkError, match="crashed"):
        link(
            lock_of(lie),
            target=tmp_path / "prefix",
            final_prefix=tmp_path / "final",
            cache=cache,
            packages=[replace(cached, package=lie)],
            requested=[],
            variables={},
            moment=datetime(2026, 1, 1, tzinfo=UTC),
            note="",
        )


@pytest.mark.parametrize(
    ("document", "content"),
    [
        ("info/index.json", b"[" * 100_000),
        ("info/index.json", b" " * (2 << 20)),
        ("info/link.json", b" " * (2 << 20)),
        ("info/paths.json", b'{"paths": [' + b"{}," * 50_000 + b"{}]}"),
        ("info/paths.json", b'{"paths": [{"_path": "\\ud800"}]}'),
    ],
)
def test_documents_that_would_take_memory_or_make_no_sense_are_refused(
    tmp_path: Path, document: str, content: bytes
) -> None:
    hostile = Hostile(more=[entry(document, content)])
    cache = PackageCache(tmp_path / "cache")
    with pytest.raises(LinkError) as caught:
        cache.ensure([package(tmp_path / "channel", "huge", hostile)])
    assert caught.value.message.isprintable()


def test_md5_is_taken_where_an_administrator_allows_it(tmp_path: Path) -> None:
    weak = package(tmp_path / "channel", "weak", Hostile(record={"sha256": None}))
    with pytest.raises(LinkError, match="No sha256 is known for weak-1"):
        PackageCache(tmp_path / "cache").ensure([weak])
    assert PackageCache(tmp_path / "cache", allow_md5=True).ensure([weak])


@pytest.mark.parametrize(
    ("name", "version"), [("harmless", "6.1"), ("cowsay", "1.0"), ("harmless", "1.0")]
)
def test_a_wheel_that_the_lock_calls_by_another_name_is_refused(
    tmp_path: Path, name: str, version: str
) -> None:
    wheel = make_wheel("cowsay", "6.1")
    assert isinstance(wheel.content, bytes)
    file = tmp_path / wheel.file_name
    file.write_bytes(wheel.content)
    honest = PypiPackage(
        name="cowsay",
        version="6.1",
        file_name=wheel.file_name,
        url=file.as_uri(),
        sha256=wheel.sha256,
        size=wheel.size,
        requires=(),
        requires_python="",
        license="",
    )
    cache = WheelCache(tmp_path / "wheels")
    lie = replace(honest, name=name, version=version)
    for _ in ("fetched", "there already"):
        with pytest.raises(LinkError, match=r"contains 'cowsay 6\.1'"):
            cache.ensure([lie])
        [cached] = cache.ensure([replace(honest, version="6.1.0")])
        assert cached.license == "MIT"


@given(
    index=st.fixed_dictionaries(
        {},
        optional={
            key: st.sampled_from(["tool", "1.0", "0", 0, 1, None, True, "noarch", "python", [], {}])
            for key in ("name", "version", "build", "build_number", "subdir", "noarch", "depends")
        },
    )
)
def test_a_difference_is_found_wherever_one_is(index: dict[str, Any]) -> None:
    own = {"name": "tool", "version": "1.0", "build": "0", "subdir": "noarch", "build_number": 0}
    record = CondaPackage.from_record(own, url="u", channel="c", file_name="f")
    changed = own | index
    found = record_differences(record, changed)
    differs = {
        key
        for key in own
        if changed[key] != own[key] or isinstance(changed[key], bool)
        if not (changed[key] is None and key in ("subdir", "build_number"))
        if not (key == "build" and changed[key] == 0 and changed[key] is not True)
    }
    differs |= {"noarch"} if changed.get("noarch") else set()
    differs -= {"build"} if type(changed["build"]) is int and changed["build"] == 0 else set()
    assert {text.split()[1] for text in found} == differs


# --- base images ----------------------------------------------------------------------------------


def docker_archive(path: Path, layer: Sequence[Entry], *, more: Sequence[Entry] = ()) -> Path:
    """As `docker save` writes it, compressed as a whole; each layer is compressed too."""
    content = tar(layer)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "Layers": ["layer.tar"]}]
    members = [
        entry("config.json", json.dumps(config).encode()),
        entry("manifest.json", json.dumps(manifest).encode()),
        entry("layer.tar", gzip.compress(content, 1)),
        *more,
    ]
    path.write_bytes(gzip.compress(tar(members), 1))
    return path


SMALL = Limits(unpacked=1 << 20, entries=50)
ROOT = [
    entry("etc/passwd", b"root"),
    symlink("etc/mtab", "/proc/mounts"),
    entry("dev/null", b"", type=tarfile.CHRTYPE),
    entry("etc/same", b"", type=tarfile.LNKTYPE, linkname="etc/passwd"),
]
IMAGES: dict[str, tuple[Sequence[Entry], Sequence[Entry], str]] = {
    "bomb in a layer": ([entry("zeros", bytes(2 << 20))], (), "more than 1,048,576 bytes"),
    "many in a layer": ([entry(str(n), b"") for n in range(60)], (), "more than 50 entries"),
    "out of a layer": ([entry("a/../../etc/passwd")], (), "leads out of the layer"),
    "hard link out of a layer": (
        [entry("a", b"", type=tarfile.LNKTYPE, linkname="../../etc/shadow")],
        (),
        "leads out of the layer",
    ),
    "disk in a layer": ([entry("dev/sda", b"", type=tarfile.BLKTYPE)], (), "block device"),
    "bomb beside it": (ROOT, [entry("zeros", bytes(2 << 20))], "more than 1,048,576 bytes"),
    "link out of the archive": (ROOT, [symlink("x", "../../../../etc")], "outside the destination"),
    "path out of the archive": (ROOT, [entry("../x")], "leads out of the package"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_a_base_image_that_holds_what_none_may_is_refused(tmp_path: Path, case: str) -> None:
    layer, more, message = IMAGES[case]
    source = docker_archive(tmp_path / "image.tar", layer, more=more)
    with pytest.raises(InvalidInputError, match=message):
        load(source, folder=tmp_path / "work", limits=SMALL)


def test_an_ordinary_base_image_is_loaded(tmp_path: Path) -> None:
    [image] = load(
        docker_archive(tmp_path / "image.tar", ROOT), folder=tmp_path / "work", limits=SMALL
    )
    assert image.platform == "linux-64"
