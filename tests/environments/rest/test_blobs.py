"""How kept bytes are given away: whole, in ranges, by redirect, by nginx, to those who may."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient
from django.utils import timezone

from accounts.access import Actor
from condastore.errors import LinkError
from environments import tasks
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.lifecycle import BuildState
from environments.models import Artifact, AuditEvent, Build, Environment, Recall
from environments.services import blobs
from tests import factories
from tests.environments.services.test_blobs import options_of, use
from tests.services import S3Service
from tests.services.processes import wait_for

pytestmark = pytest.mark.django_db
CONTENT = bytes(range(256)) * 10_000
ADDRESS = "/api/envs/research/ml/current/env.tar.zst"


@pytest.fixture
def build(environment: Environment) -> Build:
    return factories.make_build(environment)


@pytest.fixture
def artifact(build: Build, tmp_path: Path) -> Artifact:
    """The archive of the build as if it was made; what is in it does not matter here."""
    (tmp_path / "made").write_bytes(CONTENT)
    row = Artifact.wanted(build, ArtifactKind.TAR_ZST, factories.PLATFORM)
    Artifact.objects.filter(pk=row.pk).update(
        state=ArtifactState.READY, blob=blobs.add(tmp_path / "made")
    )
    row.refresh_from_db()
    return row


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """There is no queue here: the artifacts that workers would have been told of."""
    reported: list[int] = []
    monkeypatch.setattr(tasks.make_artifact, "send", reported.append)
    return reported


class Got:
    """An answer, read to its end."""

    def __init__(self, answer: Any, content: bytes) -> None:
        self.status, self.headers, self.content = answer.status_code, answer.headers, content


def get(actor: Actor, path: str = ADDRESS, *, method: str = "get", **headers: str) -> Got:
    async def ask() -> Got:
        client = AsyncClient()
        if actor.signed_in:
            await client.aforce_login(actor.account)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer: Any = await getattr(client, method)(path, headers=sent)
        if answer.streaming:
            return Got(answer, b"".join([part async for part in answer.streaming_content]))
        return Got(answer, answer.content)

    got: Got = async_to_sync(ask)()
    return got


def test_the_whole_is_streamed_with_its_name_and_digest(artifact: Artifact, bob: Actor) -> None:
    got = get(bob)
    assert (got.status, got.content) == (200, CONTENT)
    assert got.headers["ETag"] == f'"sha256:{hashlib.sha256(CONTENT).hexdigest()}"'
    assert got.headers["Content-Length"] == str(len(CONTENT))
    assert got.headers["Accept-Ranges"] == "bytes"
    assert got.headers["Content-Type"] == "application/zstd"
    assert 'filename="research-ml-1-linux-64-env.tar.zst"' in got.headers["Content-Disposition"]
    head = get(bob, method="head")
    assert (head.status, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(CONTENT))
    assert get(bob, If_None_Match=got.headers["ETag"]).status == 304
    assert AuditEvent.objects.filter(action="build.download").count() == 1


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=100-", 100, len(CONTENT) - 1),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT) - 1),
        ("bytes=5-99999999999", 5, len(CONTENT) - 1),
        ("bytes=-99999999999", 0, len(CONTENT) - 1),
    ],
)
def test_a_range_is_that_part(
    artifact: Artifact, bob: Actor, asked: str, first: int, last: int
) -> None:
    got = get(bob, Range=asked)
    assert (got.status, got.content) == (206, CONTENT[first : last + 1])
    assert got.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    # A resumed range is not a download.
    assert AuditEvent.objects.filter(action="build.download").count() == (first == 0)


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,3-4", "bytes=a-b", "bytes=-", "bytes=9-3", "lines=1-2", "bytes = 0-1"]
)
def test_ranges_that_are_none_are_answered_with_the_whole(
    artifact: Artifact, bob: Actor, asked: str
) -> None:
    got = get(bob, Range=asked)
    assert (got.status, got.content) == (200, CONTENT)


def test_only_a_get_has_ranges(artifact: Artifact, bob: Actor) -> None:
    for requested in ("bytes=0-9", f"bytes={len(CONTENT)}-"):
        head = get(bob, method="head", Range=requested)
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(CONTENT)))
        assert "Content-Range" not in head.headers


@pytest.mark.parametrize(
    ("preferred", "applied"),
    [({"Prefer": "respond-async"}, "respond-async"), ({"Prefer": "wait=0"}, "wait=0"), ({}, None)],
)
def test_only_a_preference_that_was_sent_is_said_to_be_obeyed(
    build: Build, bob: Actor, sent: list[int], preferred: dict[str, str], applied: str | None
) -> None:
    got = get(bob, method="get" if preferred else "head", **preferred)
    assert (got.status, got.headers.get("Preference-Applied")) == (202, applied)


@pytest.mark.parametrize(
    "asked", [f"bytes={len(CONTENT)}-", "bytes=-0", f"bytes={'9' * 5000}-", "bytes=99999999999-"]
)
def test_a_range_beyond_the_end_is_refused_with_the_size(
    artifact: Artifact, bob: Actor, asked: str
) -> None:
    got = get(bob, Range=asked)
    assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")
    assert f"{len(CONTENT)} bytes" in json.loads(got.content)["detail"]


def test_a_download_goes_on_only_with_the_same_bytes(artifact: Artifact, bob: Actor) -> None:
    etag = get(bob, method="head").headers["ETag"]
    assert get(bob, Range="bytes=5-", If_Range=etag).status == 206
    assert get(bob, Range="bytes=5-", If_Range='"other"').content == CONTENT


def test_the_kernel_copies_what_a_server_sends(
    server: str, artifact: Artifact, bob: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    sendfile = os.sendfile

    def counted(*arguments: int) -> int:
        copied.append(sendfile(*arguments))
        return copied[-1]

    monkeypatch.setattr(os, "sendfile", counted)
    header = {"Authorization": f"Bearer {factories.make_token(bob.account)}"}
    with httpx.Client(base_url=server, headers=header, timeout=60) as client:
        got = client.get(ADDRESS)
        assert (got.status_code, got.content) == (200, CONTENT)
        # The client may have the last bytes before they are counted.
        wait_for(lambda: sum(copied) == len(CONTENT))
        assert got.headers["ETag"] == f'"sha256:{hashlib.sha256(CONTENT).hexdigest()}"'
        got = client.get(ADDRESS, headers={"Range": "bytes=7-70006"})
        assert (got.status_code, got.content) == (206, CONTENT[7:70007])
        wait_for(lambda: sum(copied) == len(CONTENT) + 70_000)
        head = client.head(ADDRESS)
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(CONTENT)))
        assert client.get("/api/whoami").json()["username"] == bob.name


def test_nginx_gives_the_file_where_it_is_set_up(
    artifact: Artifact, bob: Actor, settings: Any
) -> None:
    settings.ACCEL_REDIRECT = "/_blobs/"
    got = get(bob)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert got.headers["X-Accel-Redirect"] == f"/_blobs/sha256/{digest[:2]}/{digest}"
    assert got.content == b""


def test_bytes_of_an_object_store_are_passed_on_or_fetched_there(
    build: Build, bob: Actor, settings: Any, s3_service: S3Service, request: pytest.FixtureRequest
) -> None:
    keys = {"access": s3_service.access_key, "secret": s3_service.secret_key}
    client = boto3.client(
        "s3",
        endpoint_url=s3_service.url,
        aws_access_key_id=keys["access"],
        aws_secret_access_key=keys["secret"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="served-blobs")
    use(settings, options_of(s3_service.url, "served-blobs", **keys))
    request.getfixturevalue("artifact")
    settings.BLOBS_SIGNED_URLS = False
    part = get(bob, Range="bytes=10-19")
    assert (part.status, part.content) == (206, CONTENT[10:20])
    assert get(bob).content == CONTENT
    settings.BLOBS_SIGNED_URLS = True
    sent = get(bob)
    assert sent.status == 307
    assert sent.headers["Location"].startswith(f"{s3_service.url}/served-blobs/sha256/")
    assert get(bob, method="head").headers["Content-Length"] == str(len(CONTENT))


def test_a_file_is_not_there_for_those_who_may_not_see_its_build(
    artifact: Artifact, charlie: Actor, nobody: Actor
) -> None:
    absent = "/api/envs/research/none/current/env.tar.zst"
    for actor in (charlie, nobody):
        got = get(actor)
        assert (got.status, got.headers["Content-Type"]) == (404, "application/problem+json")
        assert got.content.replace(b"ml", b"none") == get(actor, absent).content


@pytest.mark.parametrize("state", [BuildState.HELD, BuildState.FAILED])
@pytest.mark.parametrize(
    "path",
    [
        "/api/envs/research/ml/1/env.tar.zst",
        "/api/envs/research/ml/1/image.json",
        "/channel/research/ml/1/noarch/repodata.json",
    ],
)
def test_nothing_of_a_build_that_was_not_approved_is_given_away(
    environment: Environment, bob: Actor, state: BuildState, path: str
) -> None:
    factories.make_build(environment, state)
    got = get(bob, path)
    assert got.status == 409
    assert state.encode() in got.content


def test_a_recall_stops_a_file_that_is_made_already(artifact: Artifact, bob: Actor) -> None:
    recall = Recall.objects.create(spec="python", reason="A hole.")
    recall.locks.create(lock=artifact.lock, packages=["python 1.0"])
    got = get(bob)
    assert got.status == 403
    assert b"A hole." in got.content


@pytest.mark.django_db(transaction=True)  # messages are sent after the commit
def test_bytes_that_are_lost_are_made_again(
    artifact: Artifact, bob: Actor, sent: list[int]
) -> None:
    assert artifact.blob is not None
    path = blobs.local_path(artifact.blob)
    assert path is not None
    path.unlink()
    got = get(bob, Prefer="respond-async")
    assert (got.status, sent) == (202, [artifact.pk])
    artifact.refresh_from_db()
    assert (artifact.state, artifact.blob) == (ArtifactState.QUEUED, None)


@pytest.mark.django_db(transaction=True)  # messages are sent after the commit
def test_who_does_not_want_to_wait_is_told_how_far_it_is(
    build: Build, bob: Actor, sent: list[int]
) -> None:
    got = get(bob, Prefer="respond-async")
    assert (got.status, got.headers["Retry-After"]) == (202, "2")
    assert b'"state": "QUEUED"' in got.content
    assert get(bob, Prefer="wait=1").status == 202
    assert len(sent) == 1  # one making for all who ask


@pytest.mark.django_db(transaction=True)  # messages are sent after the commit
@pytest.mark.parametrize("seconds", ["9", "99999", "999999999999", "-1"])
def test_nobody_waits_longer_than_making_the_file_may_take(
    build: Build, bob: Actor, sent: list[int], settings: Any, seconds: str
) -> None:
    settings.ARTIFACT_TIME_LIMIT = timedelta(seconds=0.1)
    assert get(bob, Prefer=f"wait={seconds}").status == 202


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("current/env.zip", b"Available files: "),
        ("current/env.tar.zst?platform=osx-64", b"no lock for osx-64"),
        ("9/env.tar.zst", b"no build"),
    ],
)
def test_a_file_that_cannot_be_is_told(build: Build, bob: Actor, path: str, says: bytes) -> None:
    got = get(bob, f"/api/envs/research/ml/{path}")
    assert got.status == 404
    assert says in got.content


@pytest.mark.django_db(transaction=True)  # messages are sent after the commit
def test_a_file_that_could_not_be_made_says_why_and_is_tried_again_later(
    build: Build, bob: Actor, sent: list[int]
) -> None:
    row = Artifact.wanted(build, ArtifactKind.TAR_ZST, factories.PLATFORM)
    lease = row.claim("worker", life=timedelta(seconds=30))
    assert lease is not None
    row.fail(LinkError("a and b clash."), lease=lease)
    got = get(bob)
    assert (got.status, sent) == (422, [])
    assert b"a and b clash." in got.content
    long_ago = timezone.now() - timedelta(minutes=2)
    Artifact.objects.filter(pk=row.pk).update(finished_at=long_ago)
    assert get(bob, Prefer="respond-async").status == 202
    assert sent == [row.pk]
