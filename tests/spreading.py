"""Pytest plugin: the order of the tests, and their distribution over processes.

By files, as their tests may share what a fixture starts. Files that use one running system share
one process, and thereby the system; the tests of some long files share nothing, and go apart.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

#: Where tests start systems of their own, and wait for them more than they calculate.
WAITING = (
    "tests/faults/",
    "tests/matrix/",
    "tests/acceptance/",
    "tests/condastore/supervisor/test_up.py",
)
#: Seconds that a test of these may take.
PATIENCE = 1200
#: Whose tests share nothing but what every process has.
APART = (
    "tests/environments/graphql/test_permission_matrix.py",
    "tests/environments/test_routes.py",
    "tests/faults/test_lost_services.py",
    "tests/matrix/",
)
#: What is started once for all tests that use it, and costs as long as it runs.
SHARED = "running_server"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files that wait among those that calculate, so that no processor idles.

    First come those that share one system; last, the tests that can be shared out one by one.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    waiting = [name for name in files if name.startswith(WAITING)]
    for name in waiting:
        for item in files[name]:
            item.add_marker(pytest.mark.timeout(PATIENCE), append=True)
    locations = {name: (number + 0.5) / len(waiting) * 0.8 for number, name in enumerate(waiting)}
    before, rest = 0, [name for name in files if name not in locations]
    whole = sum(len(files[name]) for name in rest)
    for name in rest:
        if any(SHARED in getattr(item, "fixturenames", []) for item in files[name]):
            locations[name] = -1.0
        else:
            locations[name] = 2.0 if name.startswith(APART) else before / whole
        before += len(files[name])
    items[:] = [item for name in sorted(files, key=locations.__getitem__) for item in files[name]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Instead of `--dist loadfile`."""
    from xdist.scheduler import LoadFileScheduling

    class Spreading(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(APART):
                return nodeid
            file = nodeid.partition("::")[0]
            return SHARED if _shares(config.rootpath / file) else file

    return Spreading(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def _shares(file: Path) -> bool:
    """Whether a file uses the running system; the process that distributes tests collects none."""
    return SHARED in file.read_text()
