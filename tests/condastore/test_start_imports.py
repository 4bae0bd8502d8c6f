"""Imports of a starting server: no programs, no threads, and nothing of the web in a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from condastore.supervisor.programs import PRELOADED, SHARED

IMPORTS = """
import importlib, json, sys
started = []
sys.addaudithook(lambda event, args: event == "subprocess.Popen" and started.append(args[0]))
from environments.domain.optional_packages import import_without_rich
import_without_rich("structlog", "httpx")
import django
django.setup()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
from condastore.supervisor import fork
print(json.dumps({"started": started, "safe": fork.safe(), "modules": sorted(sys.modules)}))
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


def test_a_server_does_not_import_optional_packages_that_it_does_not_use(tmp_path: Path):
    """httpx and structlog would import rich, Strawberry's Django types psycopg, with SQLite."""
    modules = imported((*SHARED, *PRELOADED, "condastore.supervisor.supervise"), tmp_path)[
        "modules"
    ]
    assert isinstance(modules, list)
    assert not {"rich", "pygments", "psycopg", "httpx._main"} & set(modules)


def test_packages_that_were_left_out_of_an_import_can_be_imported_later():
    program = """
from environments.domain.optional_packages import import_without_rich
import_without_rich("structlog", "httpx", "not_installed_at_all")
import structlog, httpx
assert structlog.dev.rich is None
import rich.console, click
"""
    subprocess.run([sys.executable, "-c", program], check=True)
