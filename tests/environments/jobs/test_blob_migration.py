"""All kept bytes come to another store and back, however often it is stopped on the way."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from django.core.files.storage import storages
from django.core.management import CommandError, call_command

from environments.jobs.blob_migration import Moved, copy_all
from environments.models import Blob
from environments.services import blobs
from tests.environments.services.test_blobs import bucket, options_of, use  # noqa: F401 - fixtures
from tests.services import S3Service

pytestmark = pytest.mark.django_db


def fill(folder: Path, number: int = 5) -> list[Blob]:
    created = []
    for one in range(number):
        path = folder / "made"
        path.write_bytes(f"moved {one} ".encode() * 50_000)
        created.append(blobs.add(path))
    return created


def migrate(*arguments: str) -> str:
    out = StringIO()
    call_command("storage", "migrate", *arguments, stdout=out)
    return out.getvalue()


def test_from_files_to_an_object_store_and_back(
    tmp_path: Path,
    settings: Any,
    s3_service: S3Service,
    data_folder: Path,
    bucket: str,  # noqa: F811
) -> None:
    created = fill(tmp_path)
    there = options_of(
        s3_service.url, bucket, access=s3_service.access_key, secret=s3_service.secret_key
    )
    options = tmp_path / "options.json"
    options.write_text(json.dumps(there["OPTIONS"]))
    here = settings.STORAGES["default"]
    size = sum(blob.size for blob in created)
    said = migrate("--to", "s3", "--options", str(options))
    assert f"5 of 5 blobs ({size:,} of {size:,} bytes); 5 copied, 0 were there" in said
    fill(tmp_path, 6)  # one more, kept before the setting is switched
    assert "6 of 6 blobs" in (again := migrate("--to", "s3", "--options", str(options)))
    assert "1 copied, 5 were there" in again
    assert "0 copied, 6 were there" in migrate("--to", "s3", "--options", str(options), "--check")
    use(settings, there)
    for blob in created:
        blobs.fetch(blob, tmp_path / "back")
    client = boto3.client(
        "s3",
        endpoint_url=s3_service.url,
        aws_access_key_id=s3_service.access_key,
        aws_secret_access_key=s3_service.secret_key,
        region_name="us-east-1",
    )
    first = blobs.name_of(created[0].sha256)
    client.put_object(Bucket=bucket, Key=first, Body=b"other bytes")
    (data_folder / "blobs").rename(data_folder / "old blobs")
    with pytest.raises(CommandError, match="1 damaged blob was not copied"):
        migrate("--to", "files")
    use(settings, here)
    assert not blobs.storage().exists(first)
    for blob in created[1:]:
        blobs.fetch(blob, tmp_path / "back")
    assert not list(blobs.blobs_folder().iterdir())


def test_what_was_stopped_goes_on_where_it_was_and_mends_what_is_cut(
    tmp_path: Path, settings: Any
) -> None:
    created = fill(tmp_path)
    target = storages.create_storage(
        {
            "BACKEND": "environments.services.blobs.BlobFolder",
            "OPTIONS": {"location": str(tmp_path / "new")},
        }
    )

    def stop(moved: Moved) -> None:
        if moved.copied == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_all(blobs.storage(), target, told=stop)
    cut = tmp_path / "new" / blobs.name_of(created[0].sha256)
    cut.chmod(0o600)
    cut.write_bytes(b"cut")
    found = copy_all(blobs.storage(), target)
    assert (found.copied, found.present, found.damaged) == (4, 1, 0)
    assert cut.stat().st_size == created[0].size
    changed = tmp_path / "new" / blobs.name_of(created[1].sha256)
    changed.chmod(0o600)
    changed.write_bytes(b"x" * created[1].size)
    assert copy_all(blobs.storage(), target).copied == 0
    assert copy_all(blobs.storage(), target, check=True).copied == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "s3", "--options", "nowhere.json"], "Cannot read nowhere.json"),
        (["--to", "ftp"], "invalid choice"),
        ([], "required"),
    ],
)
def test_a_store_that_cannot_be_opened_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        migrate(*arguments)
