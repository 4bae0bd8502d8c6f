"""An empty mount point in the place of the data folder is named, and nothing else is done."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.models import InstallationKey
from condastore.errors import UnavailableError
from environments.domain.lifecycle import BuildState
from environments.jobs import builds, cleanup, folder_restores
from environments.models import Blob, Build, Environment, FolderRestore
from environments.services import blobs, data_folder_marker, folders
from tests.services.databases import postgres
from tests.system import CONDASTORE, PROJECT

pytestmark = pytest.mark.django_db(transaction=True)


def unmount(data: Path) -> Path:
    """What is seen of a data folder whose file system is away; returns where it is kept."""
    aside = data.with_name(f"{data.name}-unmounted")
    data.rename(aside)
    for name in (folders.ENVS, folders.PREFIXES, "run"):
        (data / name).mkdir(parents=True)
    return aside


def test_the_first_process_makes_the_marker_and_the_others_find_it(data_folder: Path) -> None:
    assert data_folder_marker.fault() == ""
    marker = (data_folder / data_folder_marker.FILE).read_text()
    assert data_folder_marker.fault() == ""
    assert (data_folder / data_folder_marker.FILE).read_text() == marker
    assert (data_folder / data_folder_marker.FILE).stat().st_mode & 0o777 == 0o600


def test_upkeep_does_nothing_while_the_folder_is_not_mounted(
    submit: Any, environment: Environment, data_folder: Path
) -> None:
    build = submit("dependencies: [libalpha]")
    builds.run(build.pk)
    cleanup.tidy()
    aside = unmount(data_folder)
    cleanup.tidy()
    assert not FolderRestore.objects.exists()
    assert not list((data_folder / folders.PREFIXES).iterdir())
    assert not list((data_folder / folders.ENVS).iterdir())
    shutil.rmtree(data_folder)
    aside.rename(data_folder)
    cleanup.tidy()
    assert not FolderRestore.objects.exists()
    build = Build.objects.get(pk=build.pk)
    assert build.state == BuildState.READY
    assert folders.link_path("research", environment.name).resolve().is_dir()


def test_a_lost_folder_that_is_due_is_not_linked_into_a_mount_point(
    submit: Any, data_folder: Path
) -> None:
    build = submit("dependencies: [libalpha]")
    builds.run(build.pk)
    cleanup.tidy()
    shutil.rmtree(data_folder / Build.objects.get(pk=build.pk).prefix.path)
    cleanup.tidy()
    assert FolderRestore.objects.missing().count() == 1
    unmount(data_folder)
    assert folder_restores.restore_next() is None
    assert not list((data_folder / folders.PREFIXES).iterdir())


def test_kept_bytes_are_not_taken_for_lost_while_the_folder_is_not_mounted(
    db: None, data_folder: Path
) -> None:
    cleanup.tidy()
    created = data_folder / "made"
    created.write_bytes(b"bytes")
    blob = blobs.add(created)
    aside = unmount(data_folder)
    with pytest.raises(UnavailableError, match="not mounted"):
        blobs.is_intact(blob)
    assert not Blob.objects.exclude(damaged_at=None).exists()
    shutil.rmtree(data_folder)
    aside.rename(data_folder)
    assert blobs.is_intact(blob)


def test_a_folder_that_was_lost_for_good_is_accepted(submit: Any, data_folder: Path) -> None:
    build = submit("dependencies: [libalpha]")
    builds.run(build.pk)
    cleanup.tidy()
    unmount(data_folder)
    with pytest.raises(CommandError, match="--accept"):
        call_command("data_folder")
    said = io.StringIO()
    call_command("data_folder", accept=True, stdout=said)
    assert "now belongs to the installation" in said.getvalue()
    assert data_folder_marker.fault() == ""
    cleanup.tidy()
    assert FolderRestore.objects.missing().count() == 1


def test_the_folder_of_another_installation_is_named(data_folder: Path) -> None:
    data_folder_marker.fault()
    InstallationKey.objects.filter(name=data_folder_marker.ROW).update(fingerprint="f" * 64)
    assert "another installation" in data_folder_marker.fault()


def test_a_start_on_an_empty_mount_point_is_refused_with_the_next_step(tmp_path: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        variables = {"DATA": tmp_path / "data", "DATABASE_URL": server.url}
        # Keys from settings: those in the data folder would be missed before.
        keys = ("SECRET_KEY", "AUDIT_KEY", "ENCRYPTION_KEY", "REGISTRY_KEY")
        variables |= dict.fromkeys(keys, "k" * 50)
        environ = {f"CONDASTORE_{name}": str(value) for name, value in variables.items()}
        return subprocess.run(
            [*CONDASTORE, *command],
            cwd=PROJECT,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=300,
        )

    with postgres() as server:
        assert run("manage", "prepare").returncode == 0
        assert (tmp_path / "data" / data_folder_marker.FILE).is_file()
        shutil.rmtree(tmp_path / "data")
        for command in (("up", "--port", "0"), ("worker",)):
            answer = run(*command)
            assert answer.returncode == 6, answer.stderr
            assert "no marker of this installation" in answer.stderr
            assert "condastore manage data_folder --accept" in answer.stderr
            assert not list((tmp_path / "data" / "prefixes").iterdir())
