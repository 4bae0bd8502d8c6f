"""What the distribution specification's own conformance tests ask of pulls and of discovery."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.access import Actor
from environments.models import Build, BuildTag, Environment, Namespace
from tests import factories
from tests.environments.registry.conftest import Puller, build_it
from tests.factories import make_environment

pytestmark = pytest.mark.django_db(transaction=True)
Pulling = Callable[[str], Puller]
ML = "/v2/research/ml"
NOTHING = f"sha256:{'0' * 64}"
#: Each code that the specification knows.
CODES = {
    *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID"),
    *("MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID"),
    *("NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
}


def code(answer: Any) -> str:
    """Of the one error, in the form that the specification gives errors."""
    assert answer.headers["Content-Type"] == "application/json"
    document = answer.json()
    assert set(document) == {"errors"}
    [error] = document["errors"]
    assert set(error) <= {"code", "message", "detail"}
    assert re.fullmatch(r"[A-Z_]+", error["code"])
    assert error["code"] in CODES
    return str(error["code"])


def test_pulls(small: Build, pull_as: Pulling) -> None:
    bob = pull_as("bob")
    by_tag = bob.get(f"{ML}/manifests/1")
    digest = by_tag.headers["Docker-Content-Digest"]
    blob = by_tag.json()["layers"][0]
    for method in ("HEAD", "GET"):
        for location in (f"blobs/{NOTHING}", f"manifests/{NOTHING}", "manifests/.INVALID_NAME"):
            assert bob.request(method, f"{ML}/{location}").status_code == 404
        for location, named, size in (
            ("manifests/1", digest, len(by_tag.content)),
            (f"manifests/{digest}", digest, len(by_tag.content)),
            (f"blobs/{blob['digest']}", blob["digest"], blob["size"]),
        ):
            answer = bob.request(method, f"{ML}/{location}")
            assert answer.status_code == 200
            assert answer.headers["Docker-Content-Digest"] == named
            assert answer.headers["Content-Length"] == str(size)
            assert len(answer.content) == (size if method == "GET" else 0)
    assert by_tag.headers["Content-Type"] == by_tag.json()["mediaType"]


MISSING = [
    (f"blobs/{NOTHING}", "BLOB_UNKNOWN"),
    (f"blobs/sha512:{'0' * 128}", "BLOB_UNKNOWN"),
    ("blobs/sha256:12", "BLOB_UNKNOWN"),
    ("blobs/nothing", "BLOB_UNKNOWN"),
    (f"manifests/{NOTHING}", "MANIFEST_UNKNOWN"),
    (f"manifests/blake3:{'0' * 64}", "MANIFEST_UNKNOWN"),
    ("manifests/no-such-tag", "MANIFEST_UNKNOWN"),
    (f"manifests/{'x' * 129}", "MANIFEST_UNKNOWN"),
    ("manifests/%00", "MANIFEST_UNKNOWN"),
    ("manifests/99999999999999999999", "MANIFEST_UNKNOWN"),
    ("manifests/lock-" + "0" * 64, "MANIFEST_UNKNOWN"),
    ("manifests/../../_catalog", "NAME_UNKNOWN"),
    ("nothing", "NAME_UNKNOWN"),
]


def test_what_is_not_there_is_told_in_the_specifications_words(
    small: Build, pull_as: Pulling
) -> None:
    bob = pull_as("bob")
    for location, expected in MISSING:
        # Not as a client writes it, which would take `..` away.
        missing = bob.get(f"{ML}/{location.replace('..', '%2e%2e')}")
        assert (missing.status_code, code(missing)) == (404, expected), location
    for name in ("Research/ml", "research/ML", "re$earch/ml", "research", "a/b/c"):
        missing = bob.get(f"/v2/{name}/tags/list")
        assert missing.status_code == 404, name
        assert code(missing) in {"NAME_UNKNOWN", "NAME_INVALID"}


def test_tags_are_found_in_pages(small: Build, environment: Environment, pull_as: Pulling) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        BuildTag.objects.create(environment=environment, name=name, build=small)
    bob = pull_as("bob")
    everything = bob.get(f"{ML}/tags/list").json()["tags"]
    assert everything == sorted(everything)
    assert {*names, "1", "latest"} < set(everything)
    first = bob.get(f"{ML}/tags/list?n=3")
    assert first.json()["tags"] == everything[:3]
    link = first.headers["Link"]
    assert re.fullmatch(r'</v2/research/ml/tags/list\?n=3&last=[^>]+>; rel="next"', link)
    rest = bob.get(f"{ML}/tags/list?last={everything[2]}")
    assert rest.json()["tags"] == everything[3:]
    assert "Link" not in rest.headers
    nothing = bob.get(f"{ML}/tags/list?n=0")
    assert (nothing.json()["tags"], nothing.headers.get("Link")) == ([], None)
    assert bob.get(f"{ML}/tags/list?n=99999").json()["tags"] == everything
    assert bob.get(f"{ML}/tags/list?n=3&last=zzz").json()["tags"] == []
    for wrong in ("-1", "x", "1.5", "9" * 30):
        assert bob.get(f"{ML}/tags/list?n={wrong}").status_code == 400


def test_repositories_are_found_in_pages(
    small: Build, submit: Callable[..., Build], research: Namespace, pull_as: Pulling
) -> None:
    for name in ("a", "b"):
        build_it(submit("dependencies: [activating]", environment=make_environment(research, name)))
    bob = pull_as("bob")
    first = bob.get("/v2/_catalog?n=2")
    assert first.json() == {"repositories": ["research/a", "research/b"]}
    assert 'last=research%2Fb>; rel="next"' in first.headers["Link"]
    rest = bob.get(first.links["next"]["url"])
    assert (rest.json(), rest.links) == ({"repositories": ["research/ml"]}, {})
    assert bob.get("/v2/_catalog?n=0").json() == {"repositories": []}
    assert bob.get("/v2/_catalog?last=zzz%00").json() == {"repositories": []}
    assert bob.get("/v2/_catalog?n=x").status_code == 400


def test_referrers_are_found_or_there_are_none(small: Build, pull_as: Pulling) -> None:
    bob = pull_as("bob")
    for digest in (NOTHING, f"sha512:{'0' * 128}"):
        none = bob.get(f"{ML}/referrers/{digest}")
        assert none.status_code == 200
        assert none.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json"
        assert none.json() == {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
        }
    for wrong in ("sha256:12", "nothing", "sha256:", f"SHA256:{'0' * 64}"):
        refused = bob.get(f"{ML}/referrers/{wrong}")
        assert (refused.status_code, code(refused)) == (400, "DIGEST_INVALID")
    digest = bob.get(f"{ML}/manifests/1").headers["Docker-Content-Digest"]
    for reported in bob.get(f"{ML}/referrers/{digest}").json()["manifests"]:
        manifest = bob.get(f"{ML}/manifests/{reported['digest']}")
        assert manifest.headers["Content-Type"] == reported["mediaType"]
        assert len(manifest.content) == reported["size"]
        assert manifest.json()["artifactType"] == reported["artifactType"]
        assert manifest.json()["annotations"] == reported["annotations"]
        assert manifest.json()["subject"]["digest"] == digest


RANGES = [
    ("bytes=0-0", 206),
    ("bytes=-1", 206),
    ("bytes=5-", 206),
    ("bytes=0-99999999999999999", 206),
    ("bytes=-99999999999999999", 206),
    ("bytes=99999999-", 416),
    ("bytes=-0", 416),
    (f"bytes={'9' * 400}-", 416),
    (f"bytes=-{'9' * 400}", 416),
    # None of these is obeyed: the whole is a right answer, and no work.
    ("bytes=7-3", 200),
    ("bytes=0-0,1-1,2-2", 200),
    ("bytes=0-,0-,0-", 200),
    ("bytes=" + ",".join(["0-1"] * 500), 200),
    ("bytes=-", 200),
    ("bytes=--1", 200),
    ("bytes=a-b", 200),
    ("lines=0-1", 200),
    ("", 200),
]


def test_a_range_gives_its_bytes_the_whole_or_nothing(small: Build, pull_as: Pulling) -> None:
    bob = pull_as("bob")
    layer = bob.get(f"{ML}/manifests/1").json()["layers"][1]
    content = bob.get(f"{ML}/blobs/{layer['digest']}").content
    for requested, status in RANGES:
        answer = bob.get(f"{ML}/blobs/{layer['digest']}", Range=requested)
        assert answer.status_code == status, requested
        if status == 200:
            assert answer.content == content
        elif status == 416:
            assert answer.headers["Content-Range"] == f"bytes */{len(content)}"
            [error] = answer.json()["errors"]
            assert error["code"] == "SIZE_INVALID"
            assert f"bytes */{len(content)}" in error["message"]
        else:
            reported = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers["Content-Range"])
            assert reported is not None
            first, last, size = map(int, reported.groups())
            assert size == len(content)
            assert answer.content == content[first : last + 1]


def test_what_one_may_not_see_costs_the_work_of_what_is_not_there(
    small: Build, charlie: Actor, pull_as: Pulling
) -> None:
    """Nobody learns from the time of an answer either."""
    bob = pull_as("bob")
    digest = bob.get(f"{ML}/manifests/1").headers["Docker-Content-Digest"]
    client = Client(headers={"Authorization": f"Bearer {factories.make_token(charlie.account)}"})

    def asked(name: str, place: str) -> tuple[int, list[str]]:
        with CaptureQueriesContext(
            connection,
        ) as seen:
            status = client.get(f"/v2/{name}/{place}").status_code
        return status, [re.sub(r"'[^']*'|\d+", "?", one["sql"]) for one in seen]

    asked("research/no", "tags/list")  # the token's first use is noted
    locations = ("manifests/1", f"manifests/{digest}", f"blobs/{digest}", "tags/list")
    for place in (*locations, f"referrers/{digest}", "manifests/lock-" + "0" * 64):
        hidden, absent = asked("research/ml", place), asked("nothing/no", place)
        assert hidden == absent
        assert hidden[0] == 404
