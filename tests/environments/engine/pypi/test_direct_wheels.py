"""Wheels by URL and from Git: fetched or built in the sandbox, and resolved with the rest."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import (
    DownloadError,
    LinkError,
    PypiError,
    SandboxUnavailableError,
    StoreError,
)
from environments.domain.lock import PlatformLock
from environments.domain.names import Credential
from environments.domain.pip_requirements import PipOptions
from environments.domain.progress import never
from environments.domain.records import CondaPackage, PypiPackage
from environments.engine.channels.credentials import CredentialSource, no_credentials
from environments.engine.channels.repodata import Channels
from environments.engine.packages.cache import PackageCache
from environments.engine.packages.download_types import Download
from environments.engine.pypi.direct_wheels import DirectWheels
from environments.engine.pypi.install import WheelCache
from environments.engine.pypi.resolve import PypiResolver
from environments.engine.pypi.wheel_builds import WheelBuilder, read_build_system
from environments.engine.solve.virtual_packages import virtual_packages
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageFile, PackageSpec, write_package
from tests.channels.server import ChannelServer, serving
from tests.channels.simple_index import Distribution, make_wheel, write_simple_index
from tests.environments.engine.package_fixtures import packages_of
from tests.environments.installed_wheels import installed_wheel
from tests.services.git_server import GitServer, git_server

SECRET = "s3cret-of-mine"


class Archive:
    """Packages in a folder, by their sha256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @contextmanager
    def opened(self, digests: Collection[str]) -> Iterator[Archive]:
        yield self

    def delivered(self, downloads: Collection[Download]) -> set[str]:
        return {each.key for each in downloads}

    def has(self, sha256: str) -> bool:
        return (self.folder / sha256).exists()

    def copy_to_file(self, sha256: str, to: Path) -> bool:
        to.write_bytes((self.folder / sha256).read_bytes())
        return True

    def add(self, sha256: str, path: Path) -> None:
        (self.folder / sha256).write_bytes(path.read_bytes())


@pytest.fixture(scope="session")
def setuptools(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return installed_wheel("setuptools", tmp_path_factory.mktemp("setuptools"))


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitServer]:
    with git_server(tmp_path / "git") as server:
        yield server


class Place:
    """A resolver with caches of its own, an index, and wheels beside it."""

    def __init__(self, folder: Path, small_channel: Path, cache: PackageCache) -> None:
        self.folder = folder
        self.archive = Archive(folder / "archive")
        self.wheels = WheelCache(folder / "wheels", archive=self.archive)
        self.channels = Channels(cache=folder / "repodata")
        self.cache = cache
        known = packages_of(small_channel)
        self.part = PlatformLock(platform="linux-64", conda=(known["python"],))
        self.numpy = PlatformLock(
            platform="linux-64", conda=(known["python"], known["hello-noarch-1.1"])
        )
        self.index = ""
        self.log: list[str] = []

    def resolver(
        self, credentials: CredentialSource = no_credentials, *, sandboxed: bool = True
    ) -> PypiResolver:
        builder = WheelBuilder(
            packages=self.cache,
            wheels=self.wheels,
            work=self.cache.folder.parent / "wheel-builds",
            platform="linux-64",
            sandboxed=sandboxed,
            time_limit=timedelta(minutes=2),
        )
        return PypiResolver(
            index_urls=[self.index],
            cache=self.folder / "cache",
            channels=self.channels,
            credentials=credentials,
            direct=DirectWheels(
                folder=self.folder / "direct",
                wheels=self.wheels,
                archive=self.archive,
                builder=builder,
                credentials=credentials,
            ),
        )

    def lock(
        self,
        *requirements: str,
        credentials: CredentialSource = no_credentials,
        part: PlatformLock | None = None,
        sandboxed: bool = True,
        options: PipOptions | None = None,
        host: PlatformLock | None = None,
        **more: Any,
    ) -> dict[str, PypiPackage]:
        part = part or self.part
        resolver = self.resolver(credentials, sandboxed=sandboxed)
        virtual = virtual_packages(part.platform, ())
        given: dict[str, Any] = {
            "virtual_packages": virtual,
            "exclude_newer": more.pop("exclude_newer", None),
            "cancelled": never,
            "log": self.log.append,
            "time_limit": timedelta(minutes=1),
        }
        direct = resolver.provide(requirements, part, host=host or self.part, **given)
        if options is not None:
            given["options"] = options
        found = resolver.lock(requirements, part, direct=direct, **given, **more)
        return {package.name: package for package in found}


@pytest.fixture
def place(
    tmp_path: Path,
    small_channel: Path,
    shared_cache: PackageCache,
    setuptools: Distribution,
) -> Iterator[Place]:
    (tmp_path / "place").mkdir()
    created = Place(tmp_path / "place", small_channel, shared_cache)
    index = write_simple_index(
        tmp_path / "index",
        [
            setuptools,
            make_wheel("dependency", "1.0"),
            make_wheel("dependency", "2.0"),
            make_wheel("versioneer", "1.0"),
            make_wheel("helper", "1.0", files={"helper.py": "WORD = 'helped'\n"}),
        ],
    )
    with serving({"pypi": index.parent}) as server:
        created.index = f"{server.url}pypi/simple/"
        yield created
    created.channels.close()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ChannelServer]:
    """A server of files that no index lists."""
    folder = tmp_path / "files"
    folder.mkdir()
    with serving({"": folder}) as server:
        yield server


def put(tmp_path: Path, distribution: Distribution) -> None:
    assert isinstance(distribution.content, bytes)
    (tmp_path / "files" / distribution.file_name).write_bytes(distribution.content)


BACKEND = """
import os, pathlib, sys
sys.path.insert(0, os.getcwd())
def get_requires_for_build_wheel(config_settings=None):
    return {more}
def build_wheel(folder, config_settings=None, metadata_directory=None):
{body}
    import zipfile, hashlib, base64
    name = "{name}-{version}-{tag}.whl"
    info = "{name}-{version}.dist-info"
    files = {{"{name}.py": "import sys\\nVALUE = %r\\n" % value,
             f"{{info}}/METADATA": "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
             "License-Expression: MIT\\n{metadata}",
             f"{{info}}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: {tag}\\n"}}
    record = ""
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            record += f"{{path}},sha256={{digest.decode().rstrip('=')}},{{len(text)}}\\n"
            wheel.writestr(zipfile.ZipInfo(path), text)
        wheel.writestr(zipfile.ZipInfo(f"{{info}}/RECORD"), record + f"{{info}}/RECORD,,\\n")
    return name
"""


def project(
    name: str = "lib",
    version: str = "1.0",
    *,
    body: str = "    value = 1",
    requires: str = "",
    more: str = "[]",
    metadata: str = "",
    tag: str = "py3-none-any",
) -> dict[str, str]:
    """A project with a backend of its own, which runs `body` and gives a wheel of one module."""
    return {
        "pyproject.toml": f"[build-system]\nrequires = [{requires}]\n"
        'build-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(
            name=name, version=version, body=body, more=more, metadata=metadata, tag=tag
        ),
    }


def value_of(place: Place, package: PypiPackage) -> str:
    [cached] = place.wheels.ensure([package])
    return (cached.folder / f"{package.name}.py").read_text()


# --- Git ------------------------------------------------------------------------------------------


def test_a_commit_becomes_a_wheel_that_is_locked_by_its_digest_with_what_it_needs(
    place: Place, git: GitServer
) -> None:
    repository = git.create("acme/lib", project(metadata="Requires-Dist: dependency<2\\n"))
    commit = repository.head
    found = place.lock(f"lib @ git+{repository.url}@{commit}", "dependency")
    assert {name: package.version for name, package in found.items()} == {
        "lib": "1.0",
        "dependency": "1.0",
    }
    lib = found["lib"]
    assert lib.url == f"git+{repository.url}@{commit}"
    assert (lib.file_name, lib.direct, lib.listed) == ("lib-1.0-py3-none-any.whl", True, False)
    assert lib.requires == ("dependency",)
    assert lib.license == "MIT"
    content = (place.archive.folder / lib.sha256).read_bytes()
    assert hashlib.sha256(content).hexdigest() == lib.sha256
    assert len(content) == lib.size


def test_a_commit_is_built_once_and_installed_without_its_server(
    place: Place, git: GitServer
) -> None:
    repository = git.create("acme/lib", project())
    line = f"lib @ git+{repository.url}@{repository.head}"
    found: list[dict[str, PypiPackage]] = []
    both = [threading.Thread(target=lambda: found.append(place.lock(line))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    requested = len(git.requests)
    assert place.lock(line) == found[0] == found[1]
    assert len(git.requests) == requested
    assert sum("built lib-1.0" in text for text in place.log) == 1
    assert "VALUE = 1" in value_of(place, found[0]["lib"])


def test_a_wheel_that_another_interpreter_built_is_built_again(
    place: Place, git: GitServer, tmp_path: Path
) -> None:
    """The owner of a channel controls the interpreter in it, and so what it builds."""
    [python] = place.part.conda
    minor = ".".join(python.version.split(".")[:2])
    hook = PackageSpec(
        "hook",
        "1.0",
        build="0",
        files=[
            PackageFile.text(
                f"lib/python{minor}/site-packages/hook.pth", "import sys; sys.forged = 'forged'\n"
            )
        ],
    )
    write_package(hook, tmp_path / "evil")
    index_channel(tmp_path / "evil")
    hostile = CondaPackage.from_record(
        {**python.record, "depends": [*python.depends, "hook"]},
        url=python.url,
        channel=python.channel,
        file_name=python.file_name,
    )
    evil = PlatformLock(
        platform="linux-64", conda=(hostile, packages_of(tmp_path / "evil")["hook"])
    )
    body = "    value = getattr(sys, 'forged', 'honest')"
    repository = git.create("acme/lib", project(body=body))
    line = f"lib @ git+{repository.url}@{repository.head}"
    assert "forged" in value_of(place, place.lock(line, host=evil)["lib"])
    assert "honest" in value_of(place, place.lock(line)["lib"])


def test_a_limit_of_age_decides_what_builds_a_wheel(place: Place, git: GitServer) -> None:
    """Old build requirements of one namespace build nothing for another."""
    body = "    import helper\n    value = helper.WORD"
    repository = git.create("acme/lib", project(body=body, requires='"helper"'))
    line = f"lib @ git+{repository.url}@{repository.head}"
    assert place.lock(line)
    with pytest.raises(PypiError):
        place.lock(line, exclude_newer=datetime(2001, 1, 1, tzinfo=UTC))


def test_a_project_with_a_setup_py_only_is_built_by_setuptools(
    place: Place, git: GitServer
) -> None:
    setup = (
        "from setuptools import setup\n"
        "setup(name='old', version='0.3', py_modules=['old'], install_requires=['dependency'],\n"
        "      setup_requires=['helper'])\n"
    )
    repository = git.create(
        "acme/mono", {"python/old/setup.py": setup, "python/old/old.py": "VALUE = 3\n"}
    )
    line = f"old @ git+{repository.url}@{repository.head}#subdirectory=python/old"
    found = place.lock(line)
    assert found["old"].file_name == "old-0.3-py3-none-any.whl"
    assert found["old"].url.endswith("#subdirectory=python/old")
    assert found["dependency"].version == "2.0"
    assert "VALUE = 3" in value_of(place, found["old"])


def test_build_requirements_come_from_the_index_as_wheels(place: Place, git: GitServer) -> None:
    body = "    import helper\n    value = helper.WORD"
    repository = git.create("acme/lib", project(body=body, requires='"helper>=1"'))
    found = place.lock(f"lib @ git+{repository.url}@{repository.head}")
    assert "helped" in value_of(place, found["lib"])
    assert set(found) == {"lib"}  # it is no part of the environment
    dynamic = git.create("acme/dyn", project("dyn", body=body, more="['helper']"))
    assert "helped" in value_of(place, place.lock(f"dyn @ git+{dynamic.url}@{dynamic.head}")["dyn"])
    evil = git.create("acme/evil", project(requires='"x @ https://h.org/x-1-py3-none-any.whl"'))
    with pytest.raises(PypiError, match="from the installation's indexes only"):
        place.lock(f"lib @ git+{evil.url}@{evil.head}")


def test_a_build_reaches_no_network_no_secret_and_no_other_folder(
    place: Place, git: GitServer, tmp_path: Path, files: ChannelServer
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    body = f"""
    import socket, subprocess, glob
    value = []
    for attempt in (
        lambda: socket.create_connection(("127.0.0.1", {files.url.split(":")[2].strip("/")}), 2),
        lambda: socket.create_connection(("1.1.1.1", 53), 2),
        lambda: open({str(secret)!r}).read(),
        lambda: open({str(secret)!r}, "w").write("x"),
        lambda: open("/condastore/source/written", "w").write("x"),
        lambda: open("/condastore/python/lib/written", "w").write("x"),
        lambda: open("/etc/shadow").read(),
        lambda: os.listdir({str(tmp_path)!r}),
    ):
        try:
            attempt()
            value.append("reached")
        except OSError:
            value.append("refused")
    value.append(sorted(key for key in os.environ if "CONDASTORE" in key or "PROXY" in key.upper()))
"""
    repository = git.create("acme/lib", project(body=body))
    found = place.lock(f"lib @ git+{repository.url}@{repository.head}")
    said = value_of(place, found["lib"])
    assert "reached" not in said
    assert said.count("refused") == 8
    assert said.rstrip().endswith("[]]")
    assert secret.read_text() == SECRET
    assert files.requests.count("*") == 0


def test_a_failed_build_reports_its_output(place: Place, git: GitServer) -> None:
    repository = git.create("acme/lib", project(body="    raise RuntimeError('no compiler')"))
    with pytest.raises(PypiError, match=r"(?s)The build of git\+http.* failed.*no compiler"):
        place.lock(f"lib @ git+{repository.url}@{repository.head}")
    broken = git.create("acme/broken", {"pyproject.toml": "[build-system\n"})
    with pytest.raises(PypiError, match="is invalid"):
        place.lock(f"broken @ git+{broken.url}@{broken.head}")


SLASHES = """
    name = 'lib-1.0-1/../../x-py3-none-any.whl'
    os.makedirs(os.path.join(folder, 'lib-1.0-1'))
    open('/tmp/x-py3-none-any.whl', 'wb').close()
    return name
"""


@pytest.mark.parametrize(
    "need",
    [
        "helper; os_name != 'x"
        + chr(10)
        + "--extra-index-url https://example.org/simple"
        + chr(10)
        + "'",
        "helper; " + "(" * 3000,
    ],
)
def test_build_requirements_are_single_lines(need: str) -> None:
    with pytest.raises(PypiError, match="invalid build requirement"):
        read_build_system(f"[build-system]\nrequires = [{json.dumps(need)}]\n", where="lib")


TOO_LARGE = """
    p = os.path.join(folder, 'lib-1.0-py3-none-any.whl')
    with open(p, 'wb') as file:
        file.truncate(300 << 20)
    return os.path.basename(p)
"""
BOMB = """
    import zipfile
    p = os.path.join(folder, 'lib-1.0-py3-none-any.whl')
    with zipfile.ZipFile(p, 'w', zipfile.ZIP_DEFLATED) as bomb:
        for number in range(40):
            bomb.writestr(f'lib/{number}', bytes(30 << 20))
        bomb.writestr('lib-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0')
        bomb.writestr('lib-1.0.dist-info/METADATA', 'Name: lib')
        bomb.writestr('lib-1.0.dist-info/RECORD', '')
    return os.path.basename(p)
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    return '../../x-1-py3-none-any.whl'", "not a wheel|failed"),
        ("    return 'lib-1.0.tar.gz'", "failed"),
        (SLASHES, "not a wheel"),
        (TOO_LARGE, "failed|more than"),
        (BOMB, "unpack|larger|bomb|times"),
    ],
)
def test_the_result_of_a_build_is_not_trusted(
    place: Place, git: GitServer, body: str, message: str
) -> None:
    repository = git.create("acme/lib", project(body=body))
    with pytest.raises((PypiError, LinkError), match=message):
        place.lock(f"lib @ git+{repository.url}@{repository.head}")


def test_a_wheel_of_another_name_or_version_is_refused(place: Place, git: GitServer) -> None:
    repository = git.create("acme/lib", project("other"))
    with pytest.raises(LinkError, match="is the project other, not lib"):
        place.lock(f"lib @ git+{repository.url}@{repository.head}")
    lying = project()
    lying["backend.py"] = lying["backend.py"].replace("Name: lib", "Name: numpy")
    liar = git.create("acme/liar", lying)
    with pytest.raises(LinkError, match="contains"):
        place.lock(f"lib @ git+{liar.url}@{liar.head}")


def test_without_a_sandbox_nothing_is_fetched_or_built(place: Place, git: GitServer) -> None:
    repository = git.create("acme/lib", project())
    git.requests.clear()
    with pytest.raises(SandboxUnavailableError, match="CONDASTORE_SANDBOX is off"):
        place.lock(f"lib @ git+{repository.url}@{repository.head}", sandboxed=False)
    assert git.requests == []


def test_a_wheel_of_a_private_repository_is_for_those_who_can_open_it(
    place: Place, git: GitServer
) -> None:
    repository = git.create("acme/lib", project())
    git.logins["/acme/"] = f"me:{SECRET}"
    known = Credential(url_prefix=repository.url, kind="basic", secret=f"me:{SECRET}")
    line = f"lib @ git+{repository.url}@{repository.head}"
    assert place.lock(line, credentials=lambda url: known if "acme" in url else None)
    with pytest.raises(StoreError, match="requires a login"):
        place.lock(line)
    texts = [path.read_text(errors="replace") for path in (place.folder / "direct").rglob("*")
             if path.is_file()]  # fmt: skip
    assert SECRET not in "".join(texts) + "".join(place.log)


def test_one_wheel_for_all_platforms_serves_those_that_cannot_be_built_for(
    place: Place, git: GitServer
) -> None:
    conda = tuple(package for package in place.part.conda)
    mac = PlatformLock(platform="osx-arm64", conda=conda)
    repository = git.create("acme/lib", project())
    line = f"lib @ git+{repository.url}@{repository.head}"
    assert place.lock(line, part=mac)["lib"].file_name == "lib-1.0-py3-none-any.whl"
    native = git.create("acme/native", project("native", tag="cp311-cp311-linux_x86_64"))
    with pytest.raises(PypiError, match="does not support"):
        place.lock(f"native @ git+{native.url}@{native.head}", part=mac)


def test_the_version_of_a_project_may_come_from_its_tags(place: Place, git: GitServer) -> None:
    body = (
        "    import subprocess\n"
        "    value = subprocess.run(['git', 'describe', '--tags'], cwd='/tmp/source',\n"
        "                           capture_output=True, text=True).stdout.strip()"
    )
    repository = git.create("acme/lib", project(body=body, requires='"versioneer"'))
    repository.commit(tag="v4.2")
    commit = repository.commit({"more": "x"})
    found = place.lock(f"lib @ git+{repository.url}@{commit}")
    assert f"'v4.2-1-g{commit[:7]}'" in value_of(place, found["lib"])


# --- wheels by URL --------------------------------------------------------------------------------


def test_a_wheel_by_url_is_locked_and_resolved_with_all_else(
    place: Place, files: ChannelServer, tmp_path: Path
) -> None:
    wheel = make_wheel("extra-lib", "2.0", requires=["dependency<2", "hello-noarch<2"],
                       extras={"more": ["helper"]})  # fmt: skip
    put(tmp_path, wheel)
    line = f"extra-lib[more] @ {files.url}{wheel.file_name}#sha256={wheel.sha256}"
    found = place.lock(line, part=place.numpy)
    assert set(found) == {"extra-lib", "dependency", "helper"}
    assert found["dependency"].version == "1.0"
    assert found["extra-lib"].requires == ("dependency", "hello-noarch", "helper")
    assert found["extra-lib"].url == f"{files.url}{wheel.file_name}"
    assert found["extra-lib"].size == wheel.size
    with pytest.raises(PypiError, match="dependency"):
        place.lock(line, "dependency>=2", part=place.numpy)


def test_a_dependency_with_its_own_source_requires_a_line_for_it(
    place: Place, files: ChannelServer, tmp_path: Path
) -> None:
    inner = make_wheel("inner", "1.0")
    wheel = make_wheel("outer", "1.0", requires=[f"inner @ {files.url}stolen/{inner.file_name}"])
    put(tmp_path, inner)
    put(tmp_path, wheel)
    line = f"outer @ {files.url}{wheel.file_name}#sha256={wheel.sha256}"
    with pytest.raises(PypiError, match="depends on inner from"):
        place.lock(line)
    own = f"inner @ {files.url}{inner.file_name}#sha256={inner.sha256}"
    found = place.lock(line, own)
    assert found["outer"].requires == ("inner",)
    assert found["inner"].sha256 == inner.sha256
    assert files.requests.count("stolen/*") == 0


@pytest.mark.parametrize(
    "field", ["Requires-Dist: inner\n @ {url}", "requires-dist: inner @ {url}"]
)
def test_no_form_of_metadata_hides_a_source(
    place: Place, files: ChannelServer, tmp_path: Path, git: GitServer, field: str
) -> None:
    inner = make_wheel("inner", "1.0")
    put(tmp_path, inner)
    line = field.format(url=f"{files.url}{inner.file_name}").replace("\n", "\\n") + "\\n"
    repository = git.create("acme/lib", project(metadata=line))
    with pytest.raises(PypiError, match="depends on inner from"):
        place.lock(f"lib @ git+{repository.url}@{repository.head}")
    assert files.requests.count("*") == 0


def test_a_wheel_with_other_bytes_or_another_name_is_refused(
    place: Place, files: ChannelServer, tmp_path: Path
) -> None:
    wheel = make_wheel("lib", "1.0")
    put(tmp_path, wheel)
    with pytest.raises(DownloadError, match="sha256"):
        place.lock(f"lib @ {files.url}{wheel.file_name}#sha256={'0' * 64}")
    lying = make_wheel("numpy", "1.0")
    assert isinstance(lying.content, bytes)
    (tmp_path / "files" / "lib-2.0-py3-none-any.whl").write_bytes(lying.content)
    with pytest.raises(LinkError, match="doesn't match wheel filename") as caught:
        place.lock(f"lib @ {files.url}lib-2.0-py3-none-any.whl#sha256={lying.sha256}")
    assert str(tmp_path) not in str(caught.value)


def test_the_digest_alone_opens_no_wheel_of_another_namespace(
    place: Place, files: ChannelServer, tmp_path: Path
) -> None:
    wheel = make_wheel("lib", "1.0")
    put(tmp_path, wheel)
    with serving({"": tmp_path / "files"}, basic=("me", SECRET)) as private:
        url = f"http://127.0.0.1:{private.server_port}"
        known = Credential(url_prefix=url, kind="basic", secret=f"me:{SECRET}")
        line = f"lib @ {url}/{wheel.file_name}#sha256={wheel.sha256}"
        assert place.lock(line, credentials=lambda url: known)
        with pytest.raises(StoreError):
            place.lock(line)
    assert place.lock(line, credentials=lambda url: known)  # it was opened before


def test_a_conda_distribution_and_a_direct_source_conflict(
    place: Place, files: ChannelServer, tmp_path: Path
) -> None:
    wheel = make_wheel("hello-noarch", "9.0")
    put(tmp_path, wheel)
    line = f"hello-noarch @ {files.url}{wheel.file_name}#sha256={wheel.sha256}"
    with pytest.raises(PypiError, match="conda package hello-noarch"):
        place.lock(line, part=place.numpy)


# --- options --------------------------------------------------------------------------------------


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Serve another index of some distributions; its URL."""
    servers: list[Any] = []

    def make(*distributions: Distribution) -> str:
        folder = tmp_path / f"second-{len(servers)}"
        index = write_simple_index(folder, distributions)
        manager = serving({"pypi": index.parent})
        server = manager.__enter__()
        servers.append(manager)
        return f"{server.url}pypi/simple"

    yield make
    for manager in servers:
        manager.__exit__(None, None, None)


def test_an_extra_index_comes_first_and_no_name_is_taken_from_two(
    place: Place, second: Callable[..., str]
) -> None:
    url = second(make_wheel("dependency", "0.5+cu118"))
    assert place.lock("dependency")["dependency"].version == "2.0"
    options = PipOptions(extra_indexes=(url,))
    assert place.lock("dependency", options=options)["dependency"].version == "0.5+cu118"
    with pytest.raises(PypiError):  # a newer one of the other index is not looked at
        place.lock("dependency>1", options=options)
    only = PipOptions(index=url)
    with pytest.raises(PypiError, match="helper"):
        place.lock("helper", options=only)


def test_pages_of_links_and_prereleases_and_hashes(
    place: Place, files: ChannelServer, tmp_path: Path
) -> None:
    wheel, early = make_wheel("geometric", "1.0"), make_wheel("geometric", "2.0rc1")
    put(tmp_path, wheel)
    put(tmp_path, early)
    links = "".join(
        f'<a href="{each.file_name}#sha256={each.sha256}">{each.file_name}</a>\n'
        for each in (wheel, early)
    )
    (tmp_path / "files" / "torch.html").write_text(f"<html><body>{links}</body></html>")
    page = f"{files.url}torch.html"
    options = PipOptions(find_links=(page,))
    found = place.lock("geometric", options=options)["geometric"]
    assert (found.version, found.sha256) == ("1.0", wheel.sha256)
    newest = PipOptions(find_links=(page,), prereleases=True)
    assert place.lock("geometric", options=newest)["geometric"].version == "2.0rc1"
    held = PipOptions(find_links=(page,), hashes={"geometric": (wheel.sha256,)})
    assert place.lock("geometric", options=held)["geometric"].sha256 == wheel.sha256
    wrong = PipOptions(find_links=(page,), hashes={"geometric": ("0" * 64,)})
    with pytest.raises(PypiError, match="has a hash that the specification names"):
        place.lock("geometric", options=wrong)


def test_a_page_of_links_may_name_no_digests(
    place: Place, files: ChannelServer, tmp_path: Path
) -> None:
    wheel = make_wheel("geometric", "1.0")
    put(tmp_path, wheel)
    page = tmp_path / "files" / "torch.html"
    page.write_text(f'<a href="{wheel.file_name}">{wheel.file_name}</a>')
    options = PipOptions(find_links=(f"{files.url}torch.html",))
    found = place.lock("geometric", options=options)["geometric"]
    assert found.sha256 == wheel.sha256  # uv fetches the file to compute it


def test_cached_build_results_contain_only_the_wheel(place: Place, git: GitServer) -> None:
    repository = git.create("acme/lib", project())
    place.lock(f"lib @ git+{repository.url}@{repository.head}")
    [note] = (place.folder / "direct" / "shared" / "built").glob("*.json")
    assert set(json.loads(note.read_bytes())) == {"file_name", "sha256", "size"}
