"""The `condastore` command of a person: a process of its own, with its own settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import prestarted

PROJECT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "condastore.cli.main")
#: Commands of the server, which start as an operator starts them.
SERVERS = {"up", "worker", "scheduler", "manage"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def succeeded(self) -> Ended:
        assert self.status == 0, f"status {self.status}\n{self.out}\n{self.err}"
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody at a terminal, with a home folder and a server."""

    home: Path
    url: str = ""
    token: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CONDASTORE_") and name != "DJANGO_SETTINGS_MODULE"
        }
        kept |= {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "share"),
            "PYTHONPATH": str(PROJECT),
        }
        if self.url:
            kept["CONDASTORE_URL"] = self.url
        if self.token:
            kept["CONDASTORE_TOKEN"] = self.token
        return kept | dict(self.variables)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environ,
            cwd=self.home,
            text=True,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def does(self, *arguments: str, says: str | None = None, seconds: float = 120) -> Ended:
        """Run the command to its end."""
        if arguments[0] not in SERVERS:
            status, out, err = prestarted.commands().run(
                {"module": "condastore.cli.main", "arguments": arguments},
                env=self.environ,
                cwd=self.home,
                says=says or "",
                seconds=seconds,
            )
            return Ended(status=status, out=out, err=err)
        stdin = subprocess.DEVNULL if says is None else subprocess.PIPE
        with self.start(*arguments, stdin=stdin) as process:
            try:
                out, err = process.communicate(says, timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Ended(status=process.returncode, out=out, err=err)


def lines(text: str) -> Sequence[str]:
    return [line.rstrip() for line in text.splitlines()]
