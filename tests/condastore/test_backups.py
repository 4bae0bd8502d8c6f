"""`condastore backup` and `condastore restore`: what they refuse, continue, find and replace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from tests import prestarted
from tests.migrated import put_database
from tests.system import CONDASTORE, PROJECT

CONTENT = b"a package"
DIGEST = sha256(CONTENT).hexdigest()


class Machine:
    """The commands of a server's machine with a data folder of its own."""

    def __init__(self, folder: Path, name: str = "data") -> None:
        self.data = folder / name
        self.environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "DJANGO_SETTINGS_MODULE": "condastore.settings",
            "CONDASTORE_DATA": str(self.data),
        }

    def run(
        self, *arguments: object, status: int = 0, within: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        if within:
            done = subprocess.run(
                [*within, *CONDASTORE, *map(str, arguments)],
                env=self.environ,
                cwd=PROJECT,
                capture_output=True,
                text=True,
                check=False,
            )
        else:
            command = {"module": "condastore.cli.main", "arguments": [*map(str, arguments)]}
            ended = prestarted.servers(self.environ).run(command, env=self.environ, cwd=PROJECT)
            done = subprocess.CompletedProcess([*map(str, arguments)], *ended)
        assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def execute(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.data / "db.sqlite3")) as rows, rows:
            return rows.execute(sql, values).fetchall()

    def keep(self, content: bytes = CONTENT) -> str:
        """Keep some bytes as the installation does; their digest."""
        digest = sha256(content).hexdigest()
        path = self.data / "blobs" / "sha256" / digest[:2] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.execute(
            "INSERT INTO environments_blob (sha256, size, stored_at, used_at) "
            "VALUES (?, ?, '2026-01-01', '2026-01-01')",
            digest,
            len(content),
        )
        return digest


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    put_database(made.data, administrator=True)
    made.keep()
    return made


@pytest.fixture
def backup(machine: Machine, tmp_path: Path) -> Path:
    machine.run("backup", tmp_path / "backup")
    return tmp_path / "backup"


def blob(backup: Path, digest: str = DIGEST) -> Path:
    return backup / "blobs" / "sha256" / digest[:2] / digest


def test_a_backup_is_restored_into_an_empty_folder(
    machine: Machine, backup: Path, tmp_path: Path
) -> None:
    other = Machine(tmp_path, "other")
    other.run("restore", backup)
    for name in ("secret_key", "audit_key", "encryption_key"):
        ours, theirs = (each.data / "secrets" / name for each in (machine, other))
        assert ours.read_bytes() == theirs.read_bytes()
    assert other.execute("SELECT username FROM accounts_user") == [("admin",)]
    restored = other.data / "blobs" / "sha256" / DIGEST[:2] / DIGEST
    assert restored.read_bytes() == CONTENT
    assert not list(other.data.glob("before-restore-*"))
    assert other.execute("SELECT damaged_at FROM environments_blob") == [(None,)]


def test_only_the_service_reads_a_backup(machine: Machine, backup: Path) -> None:
    for path in (backup, *backup.rglob("*")):
        assert not path.stat().st_mode & 0o077, path


def test_the_second_backup_copies_what_is_new_and_drops_what_is_not_needed(
    machine: Machine, backup: Path
) -> None:
    before = blob(backup).stat()
    machine.execute("DELETE FROM environments_blob WHERE sha256 <> ?", DIGEST)
    new = machine.keep(b"another")
    done = machine.run("backup", backup)
    assert "1 blobs copied" in done.stdout
    assert (blob(backup).stat().st_ino, blob(backup).stat().st_mtime) == (
        before.st_ino, before.st_mtime,
    )  # fmt: skip
    machine.execute("DELETE FROM environments_blob WHERE sha256 = ?", DIGEST)
    machine.run("backup", backup)
    assert not blob(backup).exists()
    assert blob(backup, new).exists()
    assert len(list((backup / "snapshots").iterdir())) == 1


def test_a_backup_that_was_stopped_is_told_and_continued(
    machine: Machine, backup: Path, tmp_path: Path
) -> None:
    [snapshot] = (backup / "snapshots").iterdir()
    snapshot.rename(snapshot.with_name(f"{snapshot.name}.partial"))
    (backup / "manifest.json").unlink()
    refused = Machine(tmp_path, "other").run("restore", backup, status=6)
    assert "not complete" in refused.stderr
    assert "0 blobs copied" in machine.run("backup", backup).stdout
    machine.run("backup", "--verify", backup)


def test_damage_is_found_and_never_restored(machine: Machine, backup: Path, tmp_path: Path) -> None:
    machine.run("backup", "--verify", backup)
    blob(backup).chmod(0o600)
    blob(backup).write_bytes(CONTENT[::-1])
    found = machine.run("backup", "--verify", backup, status=6)
    assert DIGEST in found.stderr
    refused = Machine(tmp_path, "other").run("restore", backup, status=6)
    assert "other bytes" in refused.stderr
    shutil.copyfile(machine.data / "blobs" / "sha256" / DIGEST[:2] / DIGEST, blob(backup))
    [database] = backup.glob("snapshots/*/db.sqlite3")
    with database.open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    assert "db.sqlite3" in machine.run("backup", "--verify", backup, status=6).stderr
    refused = Machine(tmp_path, "third").run("restore", backup, status=6)
    assert "db.sqlite3" in refused.stderr


@pytest.mark.parametrize("path", ["../../../secrets", "/etc", "secrets/../../x", ""])
def test_a_manifest_names_only_files_of_its_backup(
    path: str, machine: Machine, backup: Path, tmp_path: Path
) -> None:
    manifest = backup / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"snapshot": path}))
    refused = Machine(tmp_path, "other").run("restore", backup, status=6)
    assert "not a path inside the backup" in refused.stderr
    document["files"][0]["path"] = path
    manifest.write_text(json.dumps(document))
    refused = Machine(tmp_path, "third").run("restore", backup, status=6)
    assert "not a path inside the backup" in refused.stderr


def test_a_list_of_blobs_names_digests_only(machine: Machine, backup: Path, tmp_path: Path) -> None:
    manifest = backup / "manifest.json"
    document = json.loads(manifest.read_text())
    [listed] = backup.glob("snapshots/*/blobs.txt")
    listed.write_text("../../../../etc/passwd 10\n")
    for entry in document["files"]:
        if entry["path"] == "blobs.txt":
            entry["sha256"] = hashlib.sha256(listed.read_bytes()).hexdigest()
            entry["size"] = listed.stat().st_size
    manifest.write_text(json.dumps(document))
    other = Machine(tmp_path, "other")
    refused = other.run("restore", backup, status=6)
    assert "not a sha256 and a size" in refused.stderr
    assert not (other.data / "db.sqlite3").exists()


def test_a_restore_that_was_stopped_is_finished_by_the_same_command(
    machine: Machine, backup: Path, tmp_path: Path
) -> None:
    other = Machine(tmp_path, "other")
    blob(backup).chmod(0o600)
    blob(backup).write_bytes(CONTENT[::-1])
    other.run("restore", backup, status=6)
    refused = other.run("up", "--port", "0", status=6)
    assert "restored into this data folder in part" in refused.stderr
    blob(backup).write_bytes(CONTENT)
    other.run("restore", backup)
    assert other.execute("SELECT username FROM accounts_user") == [("admin",)]


def test_an_installation_is_replaced_only_on_demand_and_put_aside(
    machine: Machine, backup: Path
) -> None:
    machine.execute("UPDATE accounts_user SET username = 'later'")
    refused = machine.run("restore", backup, status=6)
    assert "--replace" in refused.stderr
    assert machine.execute("SELECT username FROM accounts_user") == [("later",)]
    machine.run("restore", backup, "--replace")
    assert machine.execute("SELECT username FROM accounts_user") == [("admin",)]
    [aside] = machine.data.glob("before-restore-*")
    assert (aside / "db.sqlite3").exists()


def test_bytes_that_are_gone_are_marked_so_that_nobody_counts_on_them(
    machine: Machine, tmp_path: Path
) -> None:
    (machine.data / "blobs" / "sha256" / DIGEST[:2] / DIGEST).unlink()
    told = machine.run("backup", tmp_path / "backup")
    assert f"warning: blob {DIGEST[:12]} is not in the backup" in told.stdout
    machine.run("backup", "--verify", tmp_path / "backup")
    other = Machine(tmp_path, "other")
    other.run("restore", tmp_path / "backup")
    [(damaged_at,)] = other.execute("SELECT damaged_at FROM environments_blob")
    assert damaged_at is not None


def test_a_backup_of_a_newer_version_is_refused(
    machine: Machine, tmp_path: Path, backup: Path
) -> None:
    manifest = json.loads((backup / "manifest.json").read_text())
    manifest["migrations"]["environments"].append("9999_future")
    manifest["version"] = "99.0"
    (backup / "manifest.json").write_text(json.dumps(manifest))
    refused = Machine(tmp_path, "other").run("restore", backup, status=6)
    assert "newer version of condastore (99.0)" in refused.stderr


def test_folders_that_are_not_fit_for_a_backup_are_refused(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").touch()
    for folder, said in (
        (machine.data / "backup", "cannot lie in the data folder"),
        (machine.data.parent, "nor hold it"),
        (tmp_path / "letters", "something that is no backup"),
    ):
        assert said in machine.run("backup", folder, status=6).stderr
    assert "There is no backup" in machine.run("restore", tmp_path / "letters", status=6).stderr


def mounted_read_only(folder: Path) -> list[str]:
    """What runs a command for which `folder` is on a read-only file system."""
    mount = f'mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec "$@"'
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *as_root, "--mount", "sh", "-c", mount, "sh"]


def test_a_destination_that_cannot_be_written_is_named(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "mounted").mkdir()
    for folder, within, said in (
        (tmp_path / "file" / "backup", [], "Not a directory"),
        (Path("/proc/backup"), [], "No such file or directory"),
        (tmp_path / "mounted" / "x", mounted_read_only(tmp_path / "mounted"), "Read-only"),
    ):
        refused = machine.run("backup", folder, status=6, within=within).stderr
        assert "The backup cannot be written" in refused
        assert said in refused
        assert str(folder) in refused
        assert "hint:" in refused


def test_a_backup_on_a_read_only_disk_is_verified_and_restored(
    machine: Machine, backup: Path, tmp_path: Path
) -> None:
    within = mounted_read_only(backup)
    (backup / ".lock").unlink()
    machine.run("backup", "--verify", backup, within=within)
    other = Machine(tmp_path, "other")
    other.run("restore", backup, within=within)
    assert other.execute("SELECT username FROM accounts_user") == [("admin",)]


def test_hard_links_share_the_bytes(machine: Machine, tmp_path: Path) -> None:
    machine.run("backup", "--hard-links", tmp_path / "backup")
    kept = machine.data / "blobs" / "sha256" / DIGEST[:2] / DIGEST
    assert blob(tmp_path / "backup").samefile(kept)
