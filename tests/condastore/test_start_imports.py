"""Imports of a starting server: no programs, no threads, and nothing of the web in a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from condastore.programs import PRELOADED, SHARED

IMPORTS = """
import importlib, json, sys
started = []
sys.addaudithook(lambda event, args: event == "subprocess.Popen" and started.append(args[0]))
import django
django.setup()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
from condastore import forks
print(json.dumps({"started": started, "safe": forks.safe(), "modules": sorted(sys.modules)}))
"""


def imported(modules: tuple[str, ...], data: Path) -> dict[str, object]:
    """What one fresh interpreter did while it imported `modules`."""
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "condastore.settings"}
    environ["CONDASTORE_DATA"] = str(data)
    said = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(modules)],
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    done: dict[str, object] = json.loads(said)
    return done


def test_importing_the_web_server_starts_no_programs(tmp_path: Path):
    """Strawberry's Django types look for GDAL with a compiler and a linker, unless told not to."""
    done = imported(PRELOADED, tmp_path)
    assert done["started"] == []


def test_after_its_imports_the_parent_can_be_copied(tmp_path: Path):
    assert imported((*SHARED, *PRELOADED), tmp_path)["safe"]


def test_a_worker_shares_no_import_of_the_web_server(tmp_path: Path):
    modules = imported(SHARED, tmp_path)["modules"]
    assert isinstance(modules, list)
    assert not {"condastore.schema", "strawberry", "uvicorn"} & set(modules)
