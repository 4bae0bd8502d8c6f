"""Lanes of the suite: what each proves, what its tests may start, and what it may cost.

A test belongs to the lane of its folder (`FOLDERS`), to that of its file (`FILES`), or to that of
the fixtures it uses (`FIXTURES`): the most expensive of them. A file without a lane is an error of
collection. A test that starts more than its lane allows fails and names this module.

`pytest --lane fast` runs one lane, as `make test-fast` does; see tests/lane_plugin.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One lane; `budget_minutes` of processor time is what all of its tests may take."""

    purpose: str
    allows: str
    budget_minutes: float


#: From the cheapest to the most expensive.
LANES = {
    "fast": Lane(
        purpose="Rules, rows and interfaces, each through its public functions.",
        allows="SQLite.",
        budget_minutes=6,
    ),
    "services": Lane(
        purpose="Builds, and the code with the real programs it talks to, and as a program itself.",
        allows="Channels, the solver, PostgreSQL, brokers, object store, identity providers, git.",
        budget_minutes=9,
    ),
    "system": Lane(
        purpose="Whole installations: faults, databases and brokers, clients, the browser.",
        allows="`condastore up`, and everything that services may start.",
        budget_minutes=12,
    ),
}
FOLDERS = {
    "tests/acceptance/": "system",
    "tests/accounts/": "fast",
    "tests/channels/": "fast",
    "tests/condastore/": "fast",
    "tests/docs/": "fast",
    "tests/environments/": "fast",
    "tests/faults/": "system",
    "tests/matrix/": "system",
    "tests/security/": "fast",
    "tests/services/": "services",
    "tests/test_lanes.py": "fast",
}
#: Files that start more than other files of their folder, and such tests of a file.
FILES = {
    "tests/condastore/test_backups.py": "services",
    "tests/condastore/test_start_imports.py": "services",
    "tests/environments/engine/pypi/test_direct_wheels.py": "services",
    "tests/environments/engine/pypi/test_git_sources.py": "services",
    "tests/environments/jobs/test_blob_gc_under_load.py": "services",
    "tests/condastore/http/test_request_threads.py": "services",
    "tests/condastore/supervisor/test_up.py": "system",
    "tests/condastore/test_cli_up_output.py": "system",
    "tests/condastore/test_nginx.py": "services",
    "tests/condastore/test_redis_wakeup.py": "services",
    "tests/condastore/test_startup_errors.py": "services",
    "tests/condastore/test_web_processes.py": "system",
    "tests/docs/test_screenshots.py": "system",
    "tests/docs/test_site.py": "services",
    "tests/docs/test_tours.py": "system",
    "tests/environments/admin/test_browser.py": "system",
    "tests/environments/console/test_browser.py": "system",
    "tests/environments/console/test_browser_edit.py": "system",
    "tests/environments/console/test_browser_environment.py": "system",
    "tests/environments/models/test_migration_of_leased_work.py": "services",
    "tests/environments/models/test_one_role_per_holder.py": "services",
    "tests/environments/operations/test_approvals.py::"
    "test_people_who_act_at_the_same_moment_leave_nothing_half_done": "services",
    "tests/environments/registry/test_bases.py": "services",
    "tests/environments/registry/test_pushes.py": "services",
    "tests/environments/services/test_data_folder_marker.py": "services",
    "tests/security/test_files.py": "system",
    "tests/security/test_governance.py::test_an_upgrade_knows_who_asked_before_it": "services",
    "tests/security/test_outgoing_requests.py": "system",
    "tests/security/test_package_contents.py": "system",
}
#: Fixtures that start more than a test of the lane `fast` may.
FIXTURES = {
    "channel_server": "services",
    "engine": "services",
    "linked": "services",
    "own_channel": "services",
    "small_channel": "services",
    "solver": "services",
    "debian_postgres_service": "services",
    "ldap_service": "services",
    "openid_service": "services",
    "postgres_service": "services",
    "registry": "services",
    "rabbitmq_service": "services",
    "redis_service": "services",
    "running_server": "system",
    "s3_service": "services",
    "saml_service": "services",
    "valkey_service": "services",
}
#: Ids of parameters that make a test start more.
PARAMETERS = {"s3": "services"}
PROPERTY = "lane"
ORDER = list(LANES)
#: The node ids and lanes of the tests that run: one, or none.
running: list[tuple[str, str]] = []


def lane_of(test: str, fixtures: Iterable[str] = ()) -> str | None:
    """The lane of a test, by its node id, which is relative to the project; None if it has none."""
    folder = next((lane for prefix, lane in FOLDERS.items() if test.startswith(prefix)), None)
    if folder is None:
        return None
    name, _, parameters = test.partition("[")
    found = {folder, FILES.get(name, folder), FILES.get(name.partition("::")[0], folder)}
    found |= {FIXTURES.get(name, folder) for name in fixtures}
    found |= {PARAMETERS.get(part, folder) for part in parameters.rstrip("]").split("-")}
    return max(found, key=ORDER.index)


def require(lane: str, what: str) -> None:
    """Fail the test that runs if its lane does not allow `what`, which needs `lane`."""
    if running and ORDER.index(running[-1][1]) < ORDER.index(lane):
        test, own = running[-1]
        raise AssertionError(
            f"{test} is in the lane {own!r}, which may not start {what}: add its file or its "
            f"fixture to tests/lanes.py, lane {lane!r}."
        )
