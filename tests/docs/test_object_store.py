"""The options of S3 that the documentation shows work with a real object store."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import Any

import boto3
import pytest

from condastore.blob_storage import blob_storage
from environments.services import blobs
from tests.docs.pages import PROJECT
from tests.services import S3Service

PAGE = PROJECT / "docs" / "how-to" / "object-store.md"


@pytest.mark.django_db
def test_blobs_are_stored_with_the_options_of_the_page(
    s3_service: S3Service, settings: Any, tmp_path: Path
) -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    options = json.loads(shown)
    for name, here in (("endpoint_url", s3_service.url), ("bucket_name", secrets.token_hex(8))):
        assert name in options
        options[name] = here
    assert options["access_key"] == options["secret_key"] == "..."
    options |= {"access_key": s3_service.access_key, "secret_key": s3_service.secret_key}
    boto3.client(
        "s3",
        endpoint_url=s3_service.url,
        aws_access_key_id=s3_service.access_key,
        aws_secret_access_key=s3_service.secret_key,
        region_name="us-east-1",
    ).create_bucket(Bucket=options["bucket_name"])
    settings.STORAGES = settings.STORAGES | {"default": blob_storage("s3", json.dumps(options))}
    (tmp_path / "made").write_bytes(b"bytes")
    blob = blobs.add(tmp_path / "made")
    blobs.fetch(blob, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"bytes"
