"""The real conda and micromamba, where the machine has them on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients.reading import ClientError


class RealClient:
    """A program that creates environments, with folders of its own."""

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.program = Path(program).name, program
        self.environ = {
            **{key: value for key, value in os.environ.items() if "CONDA" not in key},
            "HOME": str(folder),
            "MAMBA_ROOT_PREFIX": str(folder / "root"),
            "CONDA_PKGS_DIRS": str(folder / "pkgs"),
            "CONDARC": os.devnull,
            **(environ or {}),
        }

    def create(
        self, prefix: Path, *specs: str, channels: Sequence[str], offline: bool = False
    ) -> None:
        locations = [part for channel in channels for part in ("-c", channel)]
        options = ["--offline"] if offline else []
        self._run("create", "-y", "-p", prefix, *options, "--override-channels", *locations, *specs)

    def create_from_list(self, prefix: Path, path: Path) -> None:
        self._run("create", "-y", "-p", prefix, "--file", path)

    def create_from_yaml(self, prefix: Path, path: Path, *, offline: bool = False) -> None:
        options = ["--offline"] if offline else []
        words = ["env", "create"] if self.name == "conda" else ["create"]
        self._run(*words, "-y", "-p", prefix, *options, "--file", path)

    def create_from_lock(self, prefix: Path, path: Path) -> None:
        self._run("create", "-y", "-p", prefix, "--file", path)

    def _run(self, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self.program, *map(str, arguments)],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise ClientError(f"{done.stdout}\n{done.stderr}")


def found(*names: str) -> list[str]:
    """Those of the programs that are on PATH."""
    return [path for name in names if (path := shutil.which(name))]
