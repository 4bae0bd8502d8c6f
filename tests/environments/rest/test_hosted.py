"""Hosted channels over HTTP: what is taken, what is refused and why, what clients read."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from asgiref.sync import async_to_sync
from django.test import AsyncClient

from accounts.access import ANONYMOUS, Actor
from condastore.asgi import application
from environments.jobs import blob_gc, cleanup
from environments.models import AuditEvent, Blob, HostedChannel, HostedPackage, Namespace
from environments.operations import hosted_channels, recalls
from environments.operations.tokens import create_token
from environments.rest.hosted import uploads_folder
from environments.services import blobs
from tests import factories
from tests.channels.simple_index import make_wheel
from tests.environments.engine.packing import conda, entry, named

TOOLS = "/channel/hosted/research/tools"


@pytest.fixture
def tools(dora: Actor, research: Namespace) -> HostedChannel:
    return hosted_channels.create_channel(actor=dora, namespace=research, name="research/tools")


def ask(actor: Actor, method: str, path: str, content: bytes = b"", **headers: str) -> Any:
    async def send() -> Any:
        client = AsyncClient()
        if actor.signed_in:
            await client.aforce_login(actor.account)
        kind = headers.pop("content_type", "application/octet-stream")
        answer: Any = await client.generic(
            method, path, content, content_type=kind, headers=headers
        )
        if answer.streaming:
            parts = [part async for part in answer.streaming_content]
            answer.body = b"".join(parts)
        else:
            answer.body = answer.content
        return answer

    return async_to_sync(send)()


def put(actor: Actor, file: tuple[str, bytes], folder: str = TOOLS, **headers: str) -> Any:
    return ask(actor, "PUT", f"{folder}/{file[0]}", file[1], **headers)


def listed(actor: Actor, subdir: str = "noarch") -> set[str]:
    document = json.loads(ask(actor, "GET", f"{TOOLS}/{subdir}/repodata.json").body)
    return set(document["packages.conda"]) | set(document["packages"])


def nothing_is_left() -> bool:
    return not [*uploads_folder().iterdir()]


def test_a_package_is_taken_listed_and_given_back_as_it_came(
    tools: HostedChannel, alice: Actor, bob: Actor
) -> None:
    file = name, content = named("1.0")
    answer = put(alice, file)
    reported = answer.json()
    assert answer.status_code == 201, reported
    assert (reported["subdir"], reported["name"], reported["warnings"]) == ("noarch", "tool", [])
    assert reported["sha256"] == hashlib.sha256(content).hexdigest()
    document = json.loads(ask(bob, "GET", f"{TOOLS}/noarch/repodata.json").body)
    record = document["packages.conda"][name]
    assert record["md5"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert (record["sha256"], record["size"]) == (reported["sha256"], len(content))
    assert record["indexed_timestamp"] > record["timestamp"]
    assert ask(bob, "GET", f"{TOOLS}/noarch/{name}").body == content
    part = ask(bob, "GET", f"{TOOLS}/noarch/{name}", range="bytes=2-5")
    assert (part.status_code, part.body) == (206, content[2:6])
    assert json.loads(ask(bob, "GET", f"{TOOLS}/linux-64/repodata.json").body)["packages"] == {}
    assert nothing_is_left()
    [event] = AuditEvent.objects.filter(action="channel.upload")
    assert event.username == "alice"


def test_the_same_again_is_fine_and_other_bytes_are_refused(
    tools: HostedChannel, alice: Actor
) -> None:
    file = name, _ = named("1.0")
    assert put(alice, file).status_code == 201
    again = put(alice, file, f"{TOOLS}/noarch")
    assert (again.status_code, again.json()["created"]) == (200, False)
    other = put(alice, (name, named("1.0", license="BSD-3-Clause")[1]))
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert HostedPackage.objects.count() == 1
    assert nothing_is_left()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-checksum-sha256": "RIGHT"}, 201),
        ({"content-digest": "md5=:AAAA:, sha-256=:RIGHT64:"}, 201),
        ({"repr-digest": "sha-256=:RIGHT64:", "x-checksum-sha256": "RIGHT"}, 201),
        ({"x-checksum-sha256": "0" * 64}, 400),
        ({"content-digest": f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"}, 400),
        ({"x-checksum-sha256": "RIGHT", "content-digest": "sha-256=:AAAA:"}, 400),
        ({"x-checksum-sha256": "short"}, 400),
        ({"content-encoding": "gzip"}, 400),
        ({"content-range": "bytes 0-1/2"}, 400),
        ({"content_type": "multipart/form-data; boundary=x"}, 400),
    ],
)
def test_headers_are_obeyed_or_refused(
    headers: dict[str, str], status: int, tools: HostedChannel, alice: Actor
) -> None:
    name, content = named("1.0")
    digest = hashlib.sha256(content)
    words = {"RIGHT64": base64.b64encode(digest.digest()).decode(), "RIGHT": digest.hexdigest()}
    for word, value in words.items():
        headers = {key: text.replace(word, value) for key, text in headers.items()}
    answer = put(alice, (name, content), **headers)
    assert answer.status_code == status, answer.body
    assert HostedPackage.objects.exists() is (status == 201)
    assert nothing_is_left()


@pytest.mark.parametrize(
    ("name", "content", "status", "code"),
    [
        ("tool-1.0-0.conda", b"", 422, "package-invalid"),
        ("tool-1.0-0.conda", conda([entry("../x")]), 422, "package-invalid"),
        ("tool-1.1-0.conda", conda(), 422, "package-invalid"),
        ("tool-1.0-0.zip", b"x", 422, "package-invalid"),
        ("tool%0a-1.0-0.conda", conda(), 422, "package-invalid"),
        ("%2e%2e", b"x", 422, "package-invalid"),
        ("linux-64/tool-1.0-0.conda", conda(), 400, "invalid-input"),
        ("tool-1.0-0.conda", bytes(70_000), 413, "too-large"),
    ],
)
def test_a_bad_upload_is_told_why_and_leaves_nothing(
    name: str,
    content: bytes,
    status: int,
    code: str,
    tools: HostedChannel,
    alice: Actor,
    settings: Any,
) -> None:
    settings.MAX_UPLOAD_BYTES = 65_536
    answer = put(alice, (name, content))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert not HostedPackage.objects.exists()
    assert not Blob.objects.exists()
    assert nothing_is_left()


# --- through the server's own entry -------------------------------------------------------------


def through_asgi(
    token: str, messages: list[dict[str, Any]], path: str, *headers: tuple[bytes, bytes]
) -> tuple[int, int]:
    """The status of the answer (0: none), and how many of the messages were taken."""

    async def run() -> tuple[int, int]:
        taken, status = 0, 0
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal taken
            if taken < len(messages):
                taken += 1
                return messages[taken - 1]
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "PUT",
            "path": f"/t/{token}{path}",
            "query_string": b"",
            "headers": [(b"host", b"testserver"), *headers],
            "client": ("127.0.0.1", 1),
        }
        await application(scope, receive, send)
        return status, taken

    return async_to_sync(run)()


def message(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.django_db(transaction=True)
def test_the_body_is_read_as_it_comes_and_only_of_those_who_may_send_it(
    tools: HostedChannel, alice: Actor, bob: Actor, settings: Any
) -> None:
    name, content = named("1.0")
    parts = [message(content[:100]), message(content[100:]), message(b"", more=False)]
    path = f"{TOOLS}/{name}"
    tokens = {actor.name: factories.make_token(actor.account) for actor in (alice, bob)}
    assert through_asgi(tokens["bob"], parts, path) == (403, 0)
    assert through_asgi("wrong", parts, path) == (401, 0)
    cut = [message(content[:100]), {"type": "http.disconnect"}]
    through_asgi(tokens["alice"], cut, path)
    assert not HostedPackage.objects.exists()
    assert nothing_is_left()
    settings.MAX_UPLOAD_BYTES = 150
    assert through_asgi(tokens["alice"], [message(bytes(100))] * 50, path) == (413, 2)
    announced = (b"content-length", b"5000")
    assert through_asgi(tokens["alice"], parts, path, announced) == (413, 0)
    assert nothing_is_left()
    settings.MAX_UPLOAD_BYTES = 10**6
    assert through_asgi(tokens["alice"], parts, path) == (201, 3)


def test_what_a_killed_server_left_is_removed_later(data_folder: Path) -> None:
    old, fresh = (uploads_folder() / name for name in ("old.upload", "fresh.upload"))
    folder = uploads_folder() / "wheel"
    folder.mkdir()
    for path in (old, fresh):
        path.write_bytes(b"part")
    for path in (old, folder):
        os.utime(path, (0, 0))
    cleanup.drop_leftovers()
    assert [*uploads_folder().iterdir()] == [fresh]


# --- who may ------------------------------------------------------------------------------------


def test_each_role_does_what_it_may(
    tools: HostedChannel, alice: Actor, bob: Actor, charlie: Actor, nobody: Actor
) -> None:
    file = named("1.0")
    statuses = [put(actor, file).status_code for actor in (nobody, charlie, bob, alice)]
    assert statuses == [404, 404, 403, 201]
    for actor, status in ((nobody, 404), (charlie, 404), (bob, 200)):
        for name in ("repodata.json", "repodata.json.zst", file[0]):
            assert ask(actor, "GET", f"{TOOLS}/noarch/{name}").status_code == status
    HostedChannel.objects.update(public=True)
    assert listed(nobody) == {file[0]}
    assert put(charlie, named("2.0")).status_code == 403
    assert put(nobody, named("2.0")).status_code == 401


def test_a_token_in_the_path_opens_it(tools: HostedChannel, alice: Actor, bob: Actor) -> None:
    name, content = named("1.0")
    token = factories.make_token(alice.account)
    assert put(ANONYMOUS, (name, content), f"/t/{token}{TOOLS}").status_code == 201
    reading = factories.make_token(bob.account)
    assert ask(ANONYMOUS, "GET", f"/t/{reading}{TOOLS}/noarch/{name}").body == content


def test_a_token_of_another_namespace_opens_nothing(tools: HostedChannel, alice: Actor) -> None:
    factories.make_namespace("other", public=True)
    HostedChannel.objects.update(public=True)
    created = create_token(actor=alice, name="narrow", namespaces=["other"])
    headers = {"authorization": f"Bearer {created.secret}"}
    assert put(ANONYMOUS, named("1.0"), **headers).status_code == 404


def test_a_namespace_that_is_full_takes_no_more(
    tools: HostedChannel, alice: Actor, research: Namespace
) -> None:
    first = named("1.0")
    assert put(alice, first).status_code == 201
    Namespace.objects.filter(pk=research.pk).update(max_bytes=len(first[1]) + 10)
    answer = put(alice, named("2.0"))
    assert (answer.status_code, answer.json()["code"]) == (409, "quota-exceeded")
    assert nothing_is_left()


# --- what clients read --------------------------------------------------------------------------


def test_a_client_that_has_the_index_is_told_so_until_it_changes(
    tools: HostedChannel, alice: Actor, dora: Actor
) -> None:
    put(alice, named("1.0"))
    path = f"{TOOLS}/noarch/repodata.json.zst"
    etag = ask(alice, "GET", path)["ETag"]
    assert ask(alice, "GET", path, **{"if-none-match": etag}).status_code == 304
    put(alice, named("2.0"))
    changed = ask(alice, "GET", path, **{"if-none-match": etag})
    assert changed.status_code == 200
    plain = json.loads(zstandard.decompress(changed.body))
    assert set(plain["packages.conda"]) == {named("1.0")[0], named("2.0")[0]}


def test_one_upload_changes_the_shard_of_one_name(tools: HostedChannel, alice: Actor) -> None:
    def shards() -> dict[str, str]:
        body = ask(alice, "GET", f"{TOOLS}/noarch/repodata_shards.msgpack.zst").body
        index = msgpack.unpackb(zstandard.decompress(body))
        return {name: digest.hex() for name, digest in index["shards"].items()}

    put(alice, named("1.0"))
    put(alice, named("1.0", name="other"))
    before = shards()
    put(alice, named("2.0"))
    after = shards()
    assert before["other"] == after["other"]
    assert before["tool"] != after["tool"]
    body = ask(alice, "GET", f"{TOOLS}/noarch/shards/{after['tool']}.msgpack.zst").body
    shard = msgpack.unpackb(zstandard.decompress(body))
    assert set(shard["packages.conda"]) == {named("1.0")[0], named("2.0")[0]}


def test_what_is_yanked_is_not_listed_and_still_given(
    tools: HostedChannel, alice: Actor, dora: Actor
) -> None:
    name, content = named("1.0")
    put(alice, (name, content))
    package = HostedPackage.objects.get()
    hosted_channels.yank(actor=dora, package=package, reason="It deletes files.")
    assert listed(alice) == set()
    assert ask(alice, "GET", f"{TOOLS}/noarch/{name}").body == content
    hosted_channels.unyank(actor=dora, package=package)
    assert listed(alice) == {name}


def test_what_is_recalled_is_neither_listed_nor_given(
    tools: HostedChannel, alice: Actor, root: Actor
) -> None:
    names = [named(version)[0] for version in ("1.0", "2.0")]
    for version in ("1.0", "2.0"):
        put(alice, named(version))
    assert listed(alice) == set(names)
    recall = recalls.recall(actor=root, manager="conda", spec="tool <2", reason="It is bad.")
    assert listed(alice) == {names[1]}
    answer = ask(alice, "GET", f"{TOOLS}/noarch/{names[0]}")
    assert (answer.status_code, answer.json()["code"]) == (403, "recalled")
    recalls.undo_recall(actor=root, recall=recall, reason="It is good.")
    assert listed(alice) == set(names)


def test_the_bytes_stay_until_the_channel_goes(
    tools: HostedChannel, alice: Actor, dora: Actor, settings: Any
) -> None:
    put(alice, named("1.0"))
    settings.COLLECTION_GRACE = timedelta(0)
    for _ in range(2):
        blob_gc.collect(notice=timedelta(0))
    assert blobs.is_intact(Blob.objects.get())
    hosted_channels.delete_channel(actor=dora, channel=tools)
    assert ask(alice, "GET", f"{TOOLS}/noarch/repodata.json").status_code == 404
    for _ in range(2):
        blob_gc.collect(notice=timedelta(0))
    assert not Blob.objects.exists()


def test_a_damaged_package_is_not_given(tools: HostedChannel, alice: Actor) -> None:
    name, _ = named("1.0")
    put(alice, (name, named("1.0")[1]))
    blobs.record_damage(Blob.objects.get(), "a test says so")
    assert ask(alice, "GET", f"{TOOLS}/noarch/{name}").status_code == 503


def test_a_wheel_is_converted_once(tools: HostedChannel, alice: Actor) -> None:
    created = make_wheel("acme-tools", "1.2", requires=["tomli; python_version<'3.11'"])
    assert isinstance(created.content, bytes)
    file = (created.file_name, created.content)
    first = put(alice, file)
    reported = first.json()
    assert first.status_code == 201, reported
    assert (reported["file_name"], reported["subdir"]) == ("acme-tools-1.2-py_0.conda", "noarch")
    assert "tomli" in reported["warnings"][0]
    assert put(alice, file).status_code == 200
    assert listed(alice) == {reported["file_name"]}
    assert nothing_is_left()


def test_an_index_is_rendered_once_for_each_change(
    tools: HostedChannel, alice: Actor, django_assert_num_queries: Callable[..., Any]
) -> None:
    put(alice, named("1.0"))
    one = HostedPackage.objects.get()
    rows = []
    for number in range(200):
        one.pk, one.name, one.file_name = None, f"many-{number}", f"many-{number}-1.0-0.conda"
        rows.append(HostedPackage(**{f.attname: getattr(one, f.attname) for f in one._meta.fields}))
    HostedPackage.objects.bulk_create(rows)
    HostedPackage.objects.update(revision=tools.next_revision())
    readable = hosted_channels.read_channel(actor=alice, channel=tools)
    first = readable.document("noarch", "repodata.json")
    with django_assert_num_queries(2):  # recalls, and the last change
        assert readable.document("noarch", "repodata.json").content is first.content
