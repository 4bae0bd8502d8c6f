"""A running system, and a scientist's machine with nothing but the client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.channels.server import serving
from tests.services.processes import find_program
from tests.system import PROJECT, System


@dataclass(frozen=True, slots=True, kw_only=True)
class Laptop:
    """A virtual environment with the client only, and a home of its own."""

    commands: Path
    home: Path

    def run(
        self, *arguments: str, status: int = 0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.commands / "condastore", *arguments],
            env={
                "PATH": f"{self.commands}:{os.environ['PATH']}",
                "HOME": str(self.home),
                "XDG_CONFIG_HOME": str(self.home),
            },
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def write(self, name: str, text: str) -> str:
        (self.home / name).write_text(text)
        return name


@pytest.fixture(scope="session")
def system(small_channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with serving(small_channel) as channel:
        data = tmp_path_factory.mktemp("acceptance") / "data"
        data.mkdir()
        # It lives long, and each sweep costs: nothing here dies, to be found by one.
        environ = {"CONDASTORE_SWEEP_INTERVAL": "3"}
        with System(data, channel=channel.url, environ=environ) as running:
            yield running


@pytest.fixture(scope="session")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    folder = tmp_path_factory.mktemp("laptop")
    home = folder / "home"
    home.mkdir()
    uv = find_program("uv", component="uv", install="pip install uv")
    python = folder / "venv" / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"],
        [uv, "pip", "install", "--quiet", "--python", python, PROJECT],
    ):
        subprocess.run([str(part) for part in command], check=True, cwd=folder)
    return Laptop(commands=folder / "venv" / "bin", home=home)
