"""What all tests share: the people, and a data folder that is empty at the start of each test."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import TransactionTestCase

from accounts.access import ANONYMOUS, Actor
from accounts.roles import Role
from environments.models import Environment, Namespace
from tests import factories
from tests.migrated import copy_database
from tests.services import ComponentMissing

# Imports and collection leave little to free, and many objects to visit.
gc.disable()
# Assertions are rewritten once, not in each process of each run; what tests start is not concerned.
sys.dont_write_bytecode = False

pytest_plugins = [
    "pytester",
    "tests.channels.fixtures",
    "tests.environments.web_server",
    "tests.lane_plugin",
    "tests.processor_time",
    "tests.services.fixtures",
    "tests.spreading",
]


def _test_database() -> Path | None:
    """Its file, on SQLite."""
    from django.conf import settings

    database = settings.DATABASES["default"]
    return Path(database["TEST"]["NAME"]) if database["ENGINE"].endswith("sqlite3") else None


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Whether a database exists to which only newer migrations are applied."""
    return _test_database() is not None


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None,
) -> Iterator[None]:
    file = _test_database()
    if file is None:
        yield
        return
    copy_database(file)
    yield
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """Restore SQLite's pages after a test that commits, instead of emptying each table.

    Django deletes the rows of every table and creates content types and permissions again, which
    takes longer than most of these tests. Rows that migrations insert are there again, too.
    """
    file = _test_database()
    if file is None:
        yield
        return
    with closing(sqlite3.connect(":memory:")) as migrated, pytest.MonkeyPatch.context() as patch:
        with closing(sqlite3.connect(file)) as rows:
            rows.backup(migrated)

        def restore(case: object) -> None:
            connections.close_all()
            with closing(sqlite3.connect(file, timeout=60)) as rows:
                rows.execute("PRAGMA synchronous = OFF")
                migrated.backup(rows)

        patch.setattr(TransactionTestCase, "_fixture_teardown", restore)
        yield


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory, settings: Any) -> Iterator[Path]:
    """Each test has the data folder for itself."""
    folder = tmp_path_factory.mktemp("data")
    settings.DATA = folder
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def research(db: None) -> Namespace:
    """Alice may build, Bob may look, Dora runs it, Charlie holds nothing."""
    factories.make_user("charlie")
    return factories.make_namespace(
        "research", alice=Role.DEVELOPER, bob=Role.VIEWER, anna=Role.APPROVER, dora=Role.ADMIN
    )


def _person(name: str) -> Actor:
    from accounts.models import User

    return factories.actor(User.objects.get(username=name))


@pytest.fixture
def alice(research: Namespace) -> Actor:
    return _person("alice")


@pytest.fixture
def bob(research: Namespace) -> Actor:
    return _person("bob")


@pytest.fixture
def dora(research: Namespace) -> Actor:
    return _person("dora")


@pytest.fixture
def charlie(research: Namespace) -> Actor:
    return _person("charlie")


@pytest.fixture
def root(db: None) -> Actor:
    return factories.actor(factories.make_user("root", superuser=True))


@pytest.fixture
def nobody() -> Actor:
    return ANONYMOUS


@pytest.fixture
def environment(research: Namespace) -> Environment:
    return factories.make_environment(research, "ml")


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C mean to our children what it does at a terminal.

    A shell that starts us in the background has it ignored, and so would they.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the garbage collector from visiting what was imported and collected, again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the data folder that tests/settings.py made; workers of pytest-xdist use the same."""
    folder = Path(os.environ.get("CONDASTORE_DATA", ""))
    if folder.name.startswith("condastore-test-") and not hasattr(config, "workerinput"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _what_is_there():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _what_is_there():
        yield


@contextlib.contextmanager
def _what_is_there() -> Iterator[None]:
    """Leave a test out that needs what is not installed, unless everything is promised."""
    try:
        yield
    except ComponentMissing as missing:
        if os.environ.get("CONDASTORE_TEST_REQUIRE_ALL"):
            raise
        pytest.skip(str(missing))


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:
    """Say what was left out, and fail for it where everything is promised to be there."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get("CONDASTORE_TEST_REQUIRE_ALL"):
        terminalreporter.write_line(
            f"{len(skipped)} tests were skipped; none may be here", red=True
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and os.environ.get("CONDASTORE_TEST_REQUIRE_ALL"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
