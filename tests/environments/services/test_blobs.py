"""Bytes kept by digest: in a folder, in SeaweedFS, and in a store that misbehaves."""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from condastore.blob_storage import blob_storage
from condastore.errors import DamagedError, UnavailableError
from environments.models import Blob
from environments.services import blobs
from tests.services import S3Service, free_ports

pytestmark = pytest.mark.django_db
TEXT = b"the same bytes " * 1000
DIGEST = hashlib.sha256(TEXT).hexdigest()


def options_of(url: str, bucket: str, *, access: str = "", secret: str = "") -> dict[str, Any]:
    return {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "querystring_auth": True,
            "querystring_expire": 3600,
            "endpoint_url": url,
            "bucket_name": bucket,
            "access_key": access or "any",
            "secret_key": secret or "any",
            "region_name": "us-east-1",
            "addressing_style": "path",
            "signature_version": "s3v4",
        },
    }


def use(settings: Any, storage: dict[str, Any]) -> None:
    settings.STORAGES = settings.STORAGES | {"default": storage}


@pytest.fixture(scope="module")
def bucket(s3_service: S3Service) -> str:
    client = boto3.client(
        "s3",
        endpoint_url=s3_service.url,
        aws_access_key_id=s3_service.access_key,
        aws_secret_access_key=s3_service.secret_key,
        region_name="us-east-1",
    )
    name = f"blobs-{secrets.token_hex(8)}"  # the service serves other modules, too
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["files", "s3"])
def store(request: pytest.FixtureRequest, settings: Any) -> str:
    """Each kind of store that a test can have on this machine."""
    if request.param == "s3":
        service: S3Service = request.getfixturevalue("s3_service")
        bucket: str = request.getfixturevalue("bucket")
        use(
            settings,
            options_of(service.url, bucket, access=service.access_key, secret=service.secret_key),
        )
    return str(request.param)


def written(tmp_path: Path, content: bytes = TEXT) -> Path:
    path = tmp_path / "made"
    path.write_bytes(content)
    return path


def test_bytes_are_kept_once_and_given_back(store: str, tmp_path: Path) -> None:
    first = blobs.add(written(tmp_path))
    assert (first.sha256, first.size) == (DIGEST, len(TEXT))
    assert not (tmp_path / "made").exists()
    assert blobs.add(written(tmp_path)).pk == first.pk
    blobs.fetch(first, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == TEXT
    first.refresh_from_db()
    assert first.checked_at is not None


def test_a_file_with_other_bytes_is_found_out_and_healed_by_keeping_it_again(
    tmp_path: Path,
) -> None:
    blob = blobs.add(written(tmp_path))
    path = blobs.local_path(blob)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(TEXT.replace(b"same", b"fake"))
    with pytest.raises(DamagedError, match="does not match its digest"):
        blobs.fetch(blob, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    blob.refresh_from_db()
    assert blob.damaged_at is not None
    healed = blobs.add(written(tmp_path))
    assert (healed.pk, healed.damaged_at) == (blob.pk, None)
    blobs.fetch(healed, tmp_path / "back")


def test_bytes_that_are_gone_are_reported(store: str, tmp_path: Path) -> None:
    blob = blobs.add(written(tmp_path, b"soon gone from " + store.encode()))
    blobs.storage().delete(blobs.name_of(blob.sha256))
    with pytest.raises(DamagedError, match="missing"):
        blobs.fetch(blob, tmp_path / "back")
    assert Blob.objects.exclude(damaged_at=None).filter(pk=blob.pk).exists()


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_signed_url_gives_ranges_under_a_name_and_nothing_without_its_signature(
    store: str, tmp_path: Path
) -> None:
    blob = blobs.add(written(tmp_path))
    url = blobs.signed_url(blob, file_name="env.tar.gz", content_type="application/gzip")
    answer = httpx.get(url, headers={"Range": "bytes=4-7"})
    assert (answer.status_code, answer.content) == (206, b"same")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="env.tar.gz"'
    assert httpx.get(url.split("?")[0]).status_code == 403
    changed = url.replace("X-Amz-Signature=", "X-Amz-Signature=0")
    assert httpx.get(changed).status_code == 403
    store_: Any = blobs.storage()
    expired = store_.url(blobs.name_of(blob.sha256), expire=1)
    time.sleep(2.1)
    assert httpx.get(expired).status_code == 403


class _Misbehaving(BaseHTTPRequestHandler):
    """An S3 server that fails as `server.manner` says."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_error(500)

    def do_GET(self) -> None:
        if self.server.manner == "500":  # type: ignore[attr-defined]
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT[:100])  # and then it vanishes
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT  # noqa: N815 - as the library names them

    def log_message(self, *args: Any) -> None:
        """Nothing to say."""


@contextmanager
def misbehaving(manner: str) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Misbehaving)
    server.manner = manner  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("manner", ["500", "vanishes", "refuses"])
def test_a_store_that_fails_loses_nothing_and_says_so(
    settings: Any, tmp_path: Path, manner: str
) -> None:
    blob = Blob.objects.create(sha256=DIGEST, size=len(TEXT))
    with misbehaving(manner) as url:
        if manner == "refuses":
            url = f"http://127.0.0.1:{free_ports(1)[0]}"
        use(settings, options_of(url, "any"))
        if manner != "vanishes":
            with pytest.raises(UnavailableError, match="did not accept"):
                blobs.add(written(tmp_path, b"other bytes"))
            assert (tmp_path / "made").read_bytes() == b"other bytes"
            assert not Blob.objects.exclude(pk=blob.pk).exists()
        with pytest.raises(UnavailableError, match="does not respond"):
            blobs.fetch(blob, tmp_path / "back")
    blob.refresh_from_db()
    assert blob.damaged_at is None  # nobody knows


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("ftp", "", "there are: files, s3, gcs, azure"),
        ("s3", "{", "no JSON"),
        ("s3", "[]", "JSON object"),
        ("gcs", "", r"pip install 'condastore-server\[gcs\]'"),
    ],
)
def test_a_store_that_cannot_be_is_refused_at_start(kind: str, options: str, says: str) -> None:
    from django.core.exceptions import ImproperlyConfigured

    with pytest.raises(ImproperlyConfigured, match=says):
        blob_storage(kind, options)
