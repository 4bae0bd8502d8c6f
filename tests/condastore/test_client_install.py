"""`pip install condastore` is the client alone: it needs nothing of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.processes import find_program

PROJECT = Path(__file__).parents[2]
LISTING = """
import importlib.util, json
server = ("django", "rattler", "dramatiq", "conda_lock", "strawberry")
print(json.dumps([name for name in server if importlib.util.find_spec(name)]))
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a virtual environment with the client only."""
    folder = tmp_path_factory.mktemp("client")
    uv = find_program("uv", component="uv", install="pip install uv")
    # --no-config: another folder's uv.toml or pyproject.toml has no say here.
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"],
        [uv, "pip", "install", "--quiet", "--python", folder / "venv" / "bin" / "python", PROJECT],
    ):
        subprocess.run(
            [str(part) for part in command],
            check=True,
            cwd=folder,
            env=os.environ | {"UV_HTTP_RETRIES": "8"},  # beside other tests, an index may be slow
        )
    return folder / "venv" / "bin"


def environ(home: Path) -> dict[str, str]:
    kept = {"PATH": os.environ["PATH"], "HOME": str(home), "CONDASTORE_URL": "http://127.0.0.1:9"}
    return kept | {"XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home)}


def test_the_client_runs_without_the_servers_dependencies(client: Path, tmp_path: Path):
    listed = subprocess.run(
        [client / "python", "-c", LISTING], capture_output=True, text=True, check=True
    )
    assert json.loads(listed.stdout) == []
    for arguments in (["--help"], ["env", "build", "--help"], ["version", "--json"]):
        done = subprocess.run(
            [client / "condastore", *arguments],
            env=environ(tmp_path),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
    whoami = subprocess.run(
        [client / "condastore", "whoami"], env=environ(tmp_path), capture_output=True, text=True
    )
    assert whoami.returncode == 5


@pytest.mark.parametrize("command", ["up", "worker", "scheduler", "manage"])
def test_a_servers_command_says_what_to_install(client: Path, tmp_path: Path, command: str):
    done = subprocess.run(
        [client / "condastore", command], env=environ(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'condastore[server]'" in done.stderr


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
