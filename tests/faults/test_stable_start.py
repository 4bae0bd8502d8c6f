"""Python started by the path of a build is not affected by a moved pointer."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.faults.conftest import Start
from tests.system import CONDASTORE, PROJECT, System, until

REFERENCE = "stable/start"
#: Imports slowly: it waits for the switch between two imports, as a large stack would be hit.
CODE = """
import os, sys, time
open(sys.argv[1] + ".started", "w").close()
while not os.path.exists(sys.argv[1] + ".switched"):
    time.sleep(0.01)
import hello_noarch, json.tool, csv, sqlite3
print(hello_noarch.__version__, sys.prefix)
"""


def test_a_start_by_the_path_of_a_build_is_stable_across_switches(
    start: Start, tmp_path: Path
) -> None:
    with start() as system:
        system.create(REFERENCE)
        first = system.build(REFERENCE, "dependencies: [python, hello-noarch 1.1]")
        system.build(REFERENCE, "dependencies: [libalpha]")  # without any Python
        system.change("setCurrentBuild", id=first["id"], pin=True)
        link = system.folder(REFERENCE)
        ways = {
            "path": [f"{_path(system)}/bin/python"],
            "readlink": [f"{os.path.realpath(link)}/bin/python"],
            "run": None,
        }
        assert ways["path"] == ways["readlink"]
        for name, command in ways.items():
            system.change("setCurrentBuild", id=first["id"], pin=True)
            mark = str(tmp_path / name)
            answer = _switched(system, command, mark)
            assert answer.split() == ["1.1", first["prefixPath"]], name
        # The control: through the link the imports follow the switch, and fail.
        system.change("setCurrentBuild", id=first["id"], pin=True)
        mark = str(tmp_path / "link")
        assert "No module named 'hello_noarch'" in _switched(system, [f"{link}/bin/python"], mark)


def _path(system: System) -> str:
    build = f"{REFERENCE}:1"
    shown = json.loads(system.run("env", "path", build, "--json").stdout)
    assert shown["build"] == build
    assert system.run("env", "path", build).stdout.strip() == shown["path"]
    return str(shown["path"])


def _switched(system: System, command: list[str] | None, mark: str) -> str:
    """Return the output of a Python that started before a switch and imported after it."""
    if command is None:
        command = [*CONDASTORE, "run", REFERENCE, "--", "python"]
    process = subprocess.Popen(
        [*command, "-c", CODE, mark],
        env=system.environ | {"CONDASTORE_URL": system.url, "CONDASTORE_TOKEN": system.token},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(lambda: Path(f"{mark}.started").exists())
        builds = system.environment(REFERENCE)["builds"]["edges"]
        other = next(edge["node"]["id"] for edge in builds if edge["node"]["number"] == 2)
        system.change("setCurrentBuild", id=other, pin=True)
        Path(f"{mark}.switched").touch()
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return said
