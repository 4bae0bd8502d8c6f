"""The two distributions, built and installed in clean virtual environments."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

from condastore import __version__
from tests.services.processes import find_program

PROJECT = Path(__file__).parents[2]
SERVER = PROJECT / "distributions" / "server"
UV = find_program("uv", component="uv", install="pip install uv")
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import condastore
names = [found.name for found in pkgutil.walk_packages(condastore.__path__, "condastore.")]
for name in names: importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
MISSING = """
import importlib.util, json
names = ("django", "rattler", "dramatiq", "conda_lock", "strawberry", "accounts", "environments")
print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""
PROXY = """
import httpx
from condastore.agent._bundled.engine.network import addresses, forward_proxy
with httpx.Client(proxy=forward_proxy.access_for(addresses.guard()).patient_url) as http:
    print(http.get("http://127.0.0.1:9/").status_code)
"""


def run_uv(*arguments: str | Path) -> None:
    # Beside other tests, an index may be slow.
    environ = os.environ | {"UV_HTTP_RETRIES": "8"}
    subprocess.run([UV, *arguments], check=True, env=environ, cwd="/")


def install(folder: Path, *packages: str | Path) -> Path:
    """Make a virtual environment with these packages; return its folder of commands."""
    run_uv("venv", "--quiet", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    # Not compiled: few of the modules are imported, and these are compiled then.
    # Wheels of an earlier run have the same version and may have the same path.
    fresh = ("--refresh-package", "condastore", "--refresh-package", "condastore-server")
    run_uv("pip", "install", "--quiet", *fresh, "--python", python, *packages)
    return folder / "bin"


def run(
    commands: Path, *arguments: str | Path, home: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    program, *rest = arguments
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    environ |= {"XDG_DATA_HOME": str(home), "CONDASTORE_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        [commands / program, *rest],
        env=environ | variables,
        cwd=home,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, by the name of their distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (PROJECT, SERVER):
        run_uv("build", "--quiet", "--wheel", "--out-dir", folder, source)
    return {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def client(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("client") / "venv", wheels["condastore"])


@pytest.fixture(scope="module")
def agent(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = f"{wheels['condastore']}[agent,verify]"
    return install(tmp_path_factory.mktemp("agent") / "venv", wheel)


@pytest.fixture(scope="module")
def server(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's wheel, with its dependencies in the versions of this environment."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "versions.txt").write_text(
        "".join(
            f"{found.name}=={found.version}\n"
            for found in importlib.metadata.distributions()
            if not found.name.startswith("condastore")
        )
    )
    return install(
        folder / "venv",
        *("--constraint", folder / "versions.txt"),
        *("--find-links", wheels["condastore"].parent),
        wheels["condastore-server"],
    )


def records(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        return {row[0] for row in csv.reader(archive.read(name).decode().splitlines())}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


def test_no_file_is_in_both_wheels_and_each_file_of_the_packages_is_in_one(
    wheels: dict[str, Path],
):
    client, server = records(wheels["condastore"]), records(wheels["condastore-server"])
    assert not client & server
    files = {
        str(path.relative_to(PROJECT))
        for package in ("accounts", "condastore", "environments")
        for path in (PROJECT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= client | server
    assert {"condastore/templates/base.html", "condastore/settings.py"} <= server


def test_the_client_has_one_top_level_package_and_no_data_of_the_server(wheels: dict[str, Path]):
    names = records(wheels["condastore"])
    assert {name.partition("/")[0] for name in names} == {
        "condastore",
        f"condastore-{__version__}.dist-info",
    }
    assert {Path(name).suffix for name in names if name.startswith("condastore/")} == {".py"}
    assert wheels["condastore"].stat().st_size < 500_000


def test_the_versions_are_equal_and_the_server_requires_the_client_of_its_version(
    wheels: dict[str, Path],
):
    client, server = metadata(wheels["condastore"]), metadata(wheels["condastore-server"])
    assert client["Version"] == server["Version"] == __version__
    assert f"condastore=={__version__}" in server.get_all("Requires-Dist", [])


def test_the_client_runs_without_the_servers_dependencies(client: Path, tmp_path: Path):
    assert json.loads(run(client, "python", "-c", MISSING, home=tmp_path).stdout) == []
    version = run(client, "condastore", "--version", home=tmp_path)
    assert version.stdout == f"condastore {__version__}\n"
    for arguments in (["--help"], ["-h"], ["env", "build", "--help"], ["version", "--json"]):
        done = run(client, "condastore", *arguments, home=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    whoami = run(client, "condastore", "whoami", home=tmp_path)
    assert whoami.returncode == 5
    assert "cannot be reached" in whoami.stderr


@pytest.mark.parametrize("command", ["up", "worker", "scheduler", "manage"])
def test_a_servers_command_says_what_to_install(client: Path, tmp_path: Path, command: str):
    done = run(client, "condastore", command, home=tmp_path)
    assert done.returncode == 2
    assert "pip install condastore-server" in done.stderr


def sync(commands: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return run(commands, "condastore", "sync", "--once", "--to", home, "-n", "a", home=home)


def test_the_client_alone_says_that_the_agent_is_an_extra(client: Path, tmp_path: Path):
    done = sync(client, tmp_path)
    assert done.returncode == 2
    assert "pip install 'condastore[agent]'" in done.stderr


def test_the_agent_uses_its_copy_of_the_engine_whatever_else_is_called_environments(
    agent: Path, tmp_path: Path
):
    other = tmp_path / "others"
    (other / "environments").mkdir(parents=True)
    (other / "environments" / "__init__.py").write_text("raise ImportError('of another project')")
    done = run(agent, "python", "-c", IMPORT_ALL, home=tmp_path, PYTHONPATH=str(other))
    assert done.returncode == 0, done.stderr
    assert not {"environments", "django", "accounts"} & set(json.loads(done.stdout))
    synced = sync(agent, tmp_path)
    assert synced.returncode == 5
    assert "cannot be reached" in synced.stderr


def test_the_copy_of_the_engine_starts_its_proxy(agent: Path, tmp_path: Path):
    """The proxy is a separate process, which imports the copy by name; it refuses loopback."""
    done = run(agent, "python", "-c", PROXY, home=tmp_path)
    assert (done.stdout, done.returncode) == ("403\n", 0), done.stderr


def test_the_server_is_complete(server: Path, tmp_path: Path):
    variables = {"CONDASTORE_DATA": str(tmp_path / "data")}
    version = run(server, "condastore", "--version", home=tmp_path)
    assert version.stdout == f"condastore {__version__}\n"
    for arguments in (["up", "--help"], ["manage", "check"], ["manage", "migrate", "--plan"]):
        done = run(server, "condastore", *arguments, home=tmp_path, **variables)
        assert done.returncode == 0, done.stderr
    find = "manage", "findstatic", "--first", "console/console.css"
    found = run(server, "condastore", *find, home=tmp_path, **variables)
    assert "site-packages/condastore/static/" in found.stdout


def test_the_server_leaves_without_a_file_of_the_client(server: Path, tmp_path: Path):
    python = server / "python"
    run_uv("pip", "uninstall", "--quiet", "--python", python, "condastore-server")
    (site,) = server.parent.glob("lib/python*/site-packages")
    with (site / f"condastore-{__version__}.dist-info/RECORD").open() as lines:
        assert [row[0] for row in csv.reader(lines) if not (site / row[0]).exists()] == []
    assert run(server, "condastore", "--version", home=tmp_path).returncode == 0
    done = run(server, "condastore", "up", home=tmp_path)
    assert "pip install condastore-server" in done.stderr


def test_each_extra_that_a_text_names_exists():
    extras = {
        name: set(tomllib.loads(path.read_text())["project"]["optional-dependencies"])
        for name, path in {
            "condastore": PROJECT / "pyproject.toml",
            "condastore-server": SERVER / "pyproject.toml",
        }.items()
    }
    texts = [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]
    for package in ("accounts", "condastore", "environments"):
        texts += (PROJECT / package).rglob("*.py")
    named = [
        (path, *found)
        for path in texts
        for found in re.findall(r"(condastore(?:-server)?)\[([a-z0-9,]+)\]", path.read_text())
    ]
    assert len(named) > 5
    for path, distribution, listed in named:
        assert set(listed.split(",")) <= extras[distribution], path


def test_asking_for_help_imports_neither_http_nor_tables():
    """What makes every start slow is imported by the commands that need it."""
    program = (
        "import sys, condastore.cli.main;"
        "print(sorted({'httpx', 'rich', 'pydantic', 'django', 'rattler'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert done.stdout == "[]\n"
