"""The acceptance of what people bring and use: clients that consume every served form."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rattler

from environments.domain.rendering import WITHOUT_PIP
from tests.acceptance import forms
from tests.channels.server import serving
from tests.clients import reading
from tests.clients.real import RealClient, found
from tests.clients.stand_ins import Conda, CondaLock, Micromamba
from tests.environments.registry.conftest import tool
from tests.system import System

# --- clients --------------------------------------------------------------------------------------

#: Stand-ins for conda and micromamba (`tests.clients`), and the programs that this machine has.
CLIENTS: dict[str, Callable[..., Any]] = {
    "stand-in-conda": Conda,
    "stand-in-micromamba": Micromamba,
    **{
        path: lambda folder, path=path, **options: RealClient(path, folder, **options)
        for path in found("conda", "micromamba")
    },
}
PLAIN = "dependencies: [python, numpy]\n"
WHEELS = "dependencies: [python, numpy, {pip: ['tinyplot ~=1.1', tinyname]}]\n"
#: A package of both, and of little weight, where the request is what counts.
SMALL = "libzlib"
IMPORTED = "import zlib, numpy; print(numpy.arange(5).sum())"
WITH_WHEELS = "import zlib, numpy, tinyplot, tinyname; print(numpy.arange(5).sum())"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A system with `admin/plain` (python, numpy) and `admin/wheels` (the same, a pip part)."""

    system: System
    index: str  # URL of the Python index

    def channel(self, path: str) -> str:
        """With the token in the path, as conda's clients have it."""
        return f"{self.system.url}/t/{self.system.token}/channel/{path}"

    def file(self, environment: str, name: str, folder: Path) -> Path:
        """A form of the build: a document as it is answered, an artifact in two parts."""
        if name in forms.FORMS:
            return forms.fetch(self.system, f"admin/{environment}/1", name, folder)
        path = folder / name
        path.write_text(self.system.get(f"/api/envs/admin/{environment}/1/{name}").text)
        return path


@pytest.fixture(scope="module")
def served(
    numpy_channel: Path, simple_index: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("clients") / "data"
    data.mkdir()
    with serving({"": numpy_channel, "pypi": simple_index.parent}) as upstream:
        index = f"{upstream.url}/pypi/{simple_index.name}/"
        # It lives long, and each sweep costs: nothing here dies, to be found by one.
        environ = {"CONDASTORE_SWEEP_INTERVAL": "3"}
        with System(data, channel=upstream.url, pypi=index, environ=environ) as system:
            for name, text in (("plain", PLAIN), ("wheels", WHEELS)):
                system.create(f"admin/{name}")
                system.build(f"admin/{name}", text)
            yield Served(system=system, index=index)


@pytest.fixture(params=[*CLIENTS])
def client(request: pytest.FixtureRequest, served: Served, tmp_path: Path) -> Any:
    environ = {"PIP_INDEX_URL": served.index, "PIP_TRUSTED_HOST": "127.0.0.1"}
    return CLIENTS[request.param](tmp_path / "client", environ=environ)


def runs(prefix: Path, code: str) -> bool:
    return tool(str(prefix / "bin/python"), "-c", code).strip() == "10"


def packages(prefix: Path) -> set[str]:
    return {path.stem for path in (prefix / "conda-meta").glob("*.json")}


def locked(served: Served, environment: str) -> set[str]:
    text = served.system.get(f"/api/envs/admin/{environment}/1/explicit.txt").text
    lines = [line for line in text.splitlines() if line.startswith("http")]
    names = (line.partition("#")[0].rpartition("/")[2] for line in lines)
    return {name.removesuffix(".conda").removesuffix(".tar.bz2") for name in names}


@pytest.mark.parametrize("path", ["admin/plain/1", "admin/plain/current", "admin"])
def test_clients_create_from_a_channel(
    served: Served, client: Any, path: str, tmp_path: Path
) -> None:
    prefix = tmp_path / "env"
    client.create(prefix, "python", "numpy", channels=[served.channel(path)])
    assert packages(prefix) == locked(served, "plain")
    assert runs(prefix, IMPORTED)


def test_clients_take_a_lock_without_pip_as_its_bundle_says(served: Served, tmp_path: Path) -> None:
    system = served.system
    system.run("namespace", "create", "bare")
    system.run("namespace", "add-pip", "bare", "--off")
    system.create("bare/plain")
    system.build("bare/plain", PLAIN)
    channel = served.channel("bare/plain/1")
    for kind in (Conda, Micromamba):
        with pytest.raises(reading.ClientError, match="pip"):
            kind(tmp_path / kind.name).create(tmp_path / "none", "python", channels=[channel])
        variables = dict(each.split("=") for each in WITHOUT_PIP.split())
        told = kind(tmp_path / kind.name, environ=variables)
        prefix = tmp_path / f"env-{kind.name}"
        told.create(prefix, "python", "numpy", channels=[channel])
        assert not any(name.startswith("pip-") for name in packages(prefix))
    forms.fetch(system, "bare/plain/1", "bundle.tar", tmp_path)
    with tarfile.open(tmp_path / "bundle.tar") as archive:
        [readme] = (name for name in archive.getnames() if name.endswith("/README.txt"))
        file = archive.extractfile(readme)
        assert file is not None
        assert WITHOUT_PIP in file.read().decode()


def test_clients_are_let_in_by_every_kind_of_credential(served: Served, tmp_path: Path) -> None:
    system = served.system
    address = f"{system.url}/channel/admin/plain/1"
    host = system.url.removeprefix("http://")
    for number, (channel, bearer) in enumerate(
        (
            (served.channel("admin/plain/1"), ""),
            (f"http://any:{system.token}@{host}/channel/admin/plain/1", ""),
            (address, system.token),
        )
    ):
        for kind in (Conda, Micromamba):
            known = kind(tmp_path / f"{kind.name}-{number}", bearer=bearer)
            prefix = tmp_path / f"env-{kind.name}-{number}"
            known.create(prefix, SMALL, channels=[channel])
            assert packages(prefix) <= locked(served, "plain")
            assert any(name.startswith(f"{SMALL}-") for name in packages(prefix))
    with pytest.raises(reading.ClientError, match="UnavailableInvalidChannel"):
        Conda(tmp_path / "stranger").create(tmp_path / "none", "python", channels=[address])
    wrong = Conda(tmp_path / "wrong", bearer="no-token")
    with pytest.raises(reading.ClientError, match=r"^401 .*token"):
        wrong.create(tmp_path / "none", "python", channels=[address])


def test_clients_read_repodata_once_and_ask_whether_it_changed(
    served: Served, tmp_path: Path
) -> None:
    for kind in (Conda, Micromamba):
        known = kind(tmp_path / kind.name)
        for number in range(2):
            prefix = tmp_path / f"{kind.name}-{number}"
            known.create(prefix, SMALL, channels=[served.channel("admin/plain/1")])
        indexes = [status for path, status in known.network.asked if "repodata.json" in path]
        assert indexes == [200, 200, 304, 304]


def test_clients_create_from_a_mirror_and_a_hosted_channel(
    served: Served, client: Any, tmp_path: Path
) -> None:
    system = served.system
    own = system.environ | {"CONDASTORE_URL": system.url, "CONDASTORE_TOKEN": system.token}
    upstream = own["CONDASTORE_DEFAULT_CHANNELS"]
    name = f"from-{Path(getattr(client, 'program', client.name)).name}"
    system.run("mirror", "create", name, upstream, "--subdir", "linux-64", "--public")
    prefix = tmp_path / "mirrored"
    client.create(prefix, "python", "numpy", channels=[served.channel(f"mirror/{name}")])
    assert runs(prefix, IMPORTED)
    hosted = f"admin/{name}"
    system.run("channel", "create", hosted, "-n", "admin")
    originals = Path(str(tmp_path / "originals"))
    originals.mkdir()
    for line in reading.explicit(served.file("plain", "explicit.txt", tmp_path)):
        (originals / line.file_name).write_bytes(_read(line.url))
    system.run("channel", "upload", hosted, *map(str, originals.iterdir()))
    prefix = tmp_path / "hosted"
    client.create(prefix, "python", "numpy", channels=[served.channel(f"hosted/{hosted}")])
    assert packages(prefix) == locked(served, "plain")


@pytest.mark.parametrize(("environment", "code"), [("plain", IMPORTED), ("wheels", WITH_WHEELS)])
def test_clients_create_from_a_bundle_without_a_network(
    served: Served, client: Any, environment: str, code: str, tmp_path: Path
) -> None:
    with tarfile.open(served.file(environment, "bundle.tar", tmp_path)) as archive:
        archive.extractall(tmp_path / "bundle", filter="data")
    [top] = (tmp_path / "bundle").iterdir()
    prefix = tmp_path / "env"
    specs = reading.requirements(top / "packages.txt")
    client.create(prefix, *specs, channels=[(top / "channel").as_uri()], offline=True)
    assert packages(prefix) == locked(served, environment)
    if wheels := sorted(map(str, (top / "wheels").glob("*.whl"))):  # the second line of README.txt
        tool(str(prefix / "bin/python"), "-m", "pip", "install", "--no-index", "--no-deps", *wheels)
    assert runs(prefix, code)


@pytest.mark.parametrize(("environment", "code"), [("plain", IMPORTED), ("wheels", WITH_WHEELS)])
@pytest.mark.parametrize(
    "kind", ["stand-in-micromamba", "stand-in-conda-lock", *found("micromamba")]
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")
def test_clients_create_from_a_conda_lock_file(
    served: Served, kind: str, environment: str, code: str, tmp_path: Path
) -> None:
    client: Any = (
        CondaLock(Conda(tmp_path / "client"))
        if kind == "stand-in-conda-lock"
        else CLIENTS[kind](tmp_path / "client")
    )
    path = served.file(environment, "conda-lock.yml", tmp_path)
    client.create_from_lock(tmp_path / "env", path)
    assert packages(tmp_path / "env") == locked(served, environment)
    assert runs(tmp_path / "env", code)


def test_clients_create_from_an_explicit_list(served: Served, client: Any, tmp_path: Path) -> None:
    client.create_from_list(tmp_path / "env", served.file("plain", "explicit.txt", tmp_path))
    assert packages(tmp_path / "env") == locked(served, "plain")
    assert runs(tmp_path / "env", IMPORTED)


def test_clients_refuse_an_altered_list(served: Served, client: Any, tmp_path: Path) -> None:
    path = served.file("plain", "explicit.txt", tmp_path)
    lines = path.read_text().splitlines()
    url = next(line for line in lines if line.startswith("http")).partition("#")[0]
    path.write_text(f"@EXPLICIT\n{url}#{'0' * 32}\n")
    with pytest.raises(reading.ClientError):
        client.create_from_list(tmp_path / "env", path)
    assert not packages(tmp_path / "env")


@pytest.mark.parametrize(("environment", "code"), [("plain", IMPORTED), ("wheels", WITH_WHEELS)])
def test_clients_create_from_an_exported_environment_file(
    served: Served, client: Any, environment: str, code: str, tmp_path: Path
) -> None:
    path = served.file(environment, "environment.yml", tmp_path)
    client.create_from_yaml(tmp_path / "env", path)
    assert packages(tmp_path / "env") == locked(served, environment)
    assert runs(tmp_path / "env", code)


def test_clients_create_from_a_pixi_lock(served: Served, tmp_path: Path) -> None:
    path = served.file("wheels", "pixi.lock", tmp_path)
    environment = rattler.LockFile.from_path(path).default_environment()
    assert environment is not None
    [platform] = environment.platforms()
    records = environment.conda_repodata_records_for_platform(platform)
    assert {record.file_name.removesuffix(".conda") for record in records} == locked(
        served, "wheels"
    )
    assert {package.name for package in environment.pypi_packages()["linux-64"]} == {
        "tinyplot",
        "tinyname",
    }


def test_clients_unpack_an_archive_and_pull_an_image(served: Served, tmp_path: Path) -> None:
    """Of the environment with wheels; test_serving.py does it with one that has none."""
    archive = served.file("wheels", "env.tar.zst", tmp_path)
    prefix = tmp_path / "unpacked"
    prefix.mkdir()
    tool("tar", "-xf", archive, "-C", prefix)
    script = f'. "{prefix}/bin/activate" && conda-unpack && python -m pip --version && python -c'
    assert tool("bash", "-c", f'{script} "{WITH_WHEELS}"').split()[-1] == "10"
    shutil.rmtree(prefix)
    forms.pull(served.system, "admin/wheels/1", tmp_path)
    forms.runs_as_image(tmp_path, "1")


def _read(url: str) -> bytes:
    import httpx

    return httpx.get(url).raise_for_status().content
