"""What is missing at a start is named, with the next step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from django.db import OperationalError

from condastore import startup_errors
from tests.services import postgres
from tests.services.processes import free_ports
from tests.services.storage import seaweed_s3
from tests.system import CONDASTORE, PROJECT

UNREACHABLE, INVALID = 5, 6
FAULT = """
import django; django.setup()
from condastore import object_store
found = object_store.fault()
print(f"{found} {found.hint}" if found else "none")
"""


def run(
    data: Path, *command: str, within: Sequence[str] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CONDASTORE_")}
    return subprocess.run(
        [*within, *command],
        env=clean
        | {"DJANGO_SETTINGS_MODULE": "condastore.settings", "CONDASTORE_DATA": str(data)}
        | {f"CONDASTORE_{name}": value for name, value in environ.items()},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_named(
    answer: subprocess.CompletedProcess[str], message: str, hint: str, status: int = UNREACHABLE
) -> None:
    assert answer.returncode == status, answer.stderr
    for words in (message, hint):
        assert words in " ".join(answer.stderr.split()), answer.stderr
    assert "unexpected" not in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("command", [("up", "--port", "0"), ("worker",), ("scheduler",)])
def test_a_read_only_data_folder_is_named(tmp_path: Path, command: Sequence[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mount = f'mount -t tmpfs -o ro none {data} && exec "$@"'
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    within = ["unshare", *as_root, "--mount", "sh", "-c", mount, "sh"]
    answer = run(data, *CONDASTORE, *command, within=within)
    assert_named(answer, "Read-only file system", "CONDASTORE_DATA", INVALID)


def test_a_data_folder_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = run(tmp_path / "file" / "data", *CONDASTORE, "up", "--port", "0")
    assert_named(answer, "Not a directory", "CONDASTORE_DATA", INVALID)


def test_a_database_server_that_is_away_is_named(tmp_path: Path) -> None:
    [port] = free_ports()
    url = f"postgresql://me:secret@127.0.0.1:{port}/store"
    for command in (("up", "--port", "0"), ("manage", "migrate")):
        answer = run(tmp_path, *CONDASTORE, *command, DATABASE_URL=url)
        assert_named(answer, "The database does not answer.", "CONDASTORE_DATABASE_URL")
        assert f"127.0.0.1:{port}/store" in answer.stderr
        assert "secret" not in answer.stderr


def test_a_missing_database_is_named(tmp_path: Path) -> None:
    with postgres() as server:
        url = server.url.rpartition("/")[0] + "/absent"
        for command in (("up", "--port", "0"), ("manage", "migrate")):
            answer = run(tmp_path, *CONDASTORE, *command, DATABASE_URL=url)
            assert_named(answer, "The database does not exist", "createdb --owner ACCOUNT absent")


def test_a_sqlite_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/absent/db.sqlite3"
    answer = run(tmp_path / "data", *CONDASTORE, "up", "--port", "0", DATABASE_URL=url)
    assert_named(answer, "The SQLite database cannot be opened.", "own its folder")


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ('password authentication failed for user "me"', "refuses the account", "me in CONDASTORE"),
        ('FATAL: role "me" does not exist', "does not know the account", "createuser"),
        ("fe_sendauth: no password supplied", "asks for a password", "USER:PASSWORD"),
        ("could not translate host name “x” to address", "has no address", "host name"),
        ("sorry, too many clients already", "no connection left", "max_connections"),
        ("server closed the connection unexpectedly", "does not answer", "Start it"),
        ("attempt to write a readonly database", "is read-only", "writable mount"),
        ("something new", "cannot be used", "something new"),
    ],
)
def test_what_a_database_says_is_named(said: str, message: str, hint: str) -> None:
    found = startup_errors.explain(OperationalError(said))
    assert found is not None
    assert message in str(found)
    assert hint in found.hint


def test_what_is_no_fault_of_the_start_has_no_name() -> None:
    assert startup_errors.explain(ZeroDivisionError()) is None
    assert startup_errors.explain(FileNotFoundError(2, "no such file", "/somewhere/else")) is None


def test_faults_of_an_object_store_are_named(tmp_path: Path) -> None:
    with seaweed_s3() as store:
        good = {
            "bucket_name": "absent",
            "endpoint_url": store.url,
            "access_key": store.access_key,
            "secret_key": store.secret_key,
            "region_name": "us-east-1",
        }
        [port] = free_ports()
        cases: tuple[tuple[dict[str, str], str], ...] = (
            ({}, "The bucket of the object store does not exist."),
            ({"secret_key": "wrong"}, "The object store refuses"),
            ({"access_key": "wrong"}, "The object store refuses"),
            ({"endpoint_url": f"http://127.0.0.1:{port}"}, "The object store does not answer."),
        )
        for change, message in cases:
            options = json.dumps(good | change)
            answer = run(tmp_path, sys.executable, "-c", FAULT, BLOBS="s3", BLOBS_OPTIONS=options)
            assert message in answer.stdout, (change, answer.stdout, answer.stderr)
            assert "CONDASTORE_BLOBS_OPTIONS" in answer.stdout


def test_a_worker_ends_with_a_named_error_while_rabbitmq_is_away(tmp_path: Path) -> None:
    [port] = free_ports()
    url = f"amqp://me:sesame@127.0.0.1:{port}"
    answer = run(tmp_path, *CONDASTORE, "worker", BROKER_URL=url)
    assert_named(answer, "The queue does not answer.", "correct CONDASTORE_BROKER_URL")
    assert "sesame" not in answer.stderr


@pytest.mark.parametrize(("store", "module"), [("s3", "boto3"), ("gcs", "google.cloud")])
def test_an_object_store_without_its_extra_is_named(
    tmp_path: Path, store: str, module: str
) -> None:
    start = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from condastore.cli.main import main\n"
        "sys.argv[1:] = ['up', '--port', '0']\n"
        "main()"
    )
    answer = run(tmp_path, sys.executable, "-c", start, BLOBS=store)
    assert_named(
        answer, f"CONDASTORE_BLOBS={store} needs", f"condastore-server[{store}]", status=INVALID
    )
