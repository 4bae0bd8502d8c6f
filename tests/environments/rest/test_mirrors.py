"""Mirrors: a remote channel through the rules of a namespace, now and as it was on a day."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from asgiref.sync import async_to_sync
from django.db import connection
from django.test import AsyncClient
from django.utils import timezone
from rattler import Gateway, MatchSpec, install, solve

from accounts.access import Actor
from condastore.databases.sqlite3.base import queue_of
from condastore.errors import AccessDeniedError, ChannelNotAllowedError
from environments import tasks
from environments.engine.channels import mirrors as engine
from environments.jobs import blob_gc, mirrors
from environments.models import AuditEvent, Blob, Mirror, MirrorIndex, MirrorView, Namespace
from environments.operations import mirrors as operations
from environments.operations import queueing
from environments.operations.policies import add_rule, change_rule
from environments.operations.recalls import recall, undo_recall
from environments.operations.tokens import create_token
from environments.rest import mirrors as views
from environments.services import blobs, data_folder_marker
from environments.services import mirrors as services
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageFile, PackageSpec, write_package
from tests.channels.server import ChannelServer, Fault, serving

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read channels here: a process for each takes longer than all that these tests try."""
    monkeypatch.setattr(engine, "MIN_FETCHED_BYTES", 1 << 30)


@pytest.fixture(autouse=True)
def _at_once(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no queue: what would be sent is done by the test, or at once."""
    settings.DISK_RESERVE = 0
    monkeypatch.setattr(tasks.read_mirror, "send", lambda key: None)
    monkeypatch.setattr(tasks.render_mirror_view, "send", mirrors.render)


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    """A small channel, which the test changes."""
    folder = tmp_path / "channel"
    for version in ("1.0", "2.0"):
        write_package(PackageSpec("alpha", version), folder)
    write_package(PackageSpec("alpha", "0.9"), folder, archive_format=".tar.bz2")
    noise = PackageFile("share/noise", random.Random(1).randbytes(400_000))
    write_package(PackageSpec("large-data", "1.0", files=[noise]), folder)
    write_package(PackageSpec("beta", "1.0", noarch="generic", depends=["alpha"]), folder)
    index_channel(folder)
    return folder


@pytest.fixture
def upstream(channel: Path) -> Iterator[ChannelServer]:
    with serving(channel) as server:
        yield server


@pytest.fixture
def mirror(root: Actor, research: Namespace, upstream: ChannelServer) -> Mirror:
    created = operations.create_mirror(
        actor=root, name="small", upstream=upstream.url, namespace=research
    )
    look(created, AT)
    return created


def look(mirror: Mirror, at: datetime | None = None) -> None:
    for index in mirror.indexes.order_by("pk"):
        mirrors.read_upstream(index.pk, at=at)


def publish(channel: Path, name: str, version: str, **options: Any) -> None:
    write_package(PackageSpec(name, version, **options), channel)
    index_channel(channel)


def get(actor: Actor, path: str, **headers: str) -> Any:
    """The answer, with all of its bytes as `body`."""

    async def ask() -> Any:
        client = AsyncClient()
        if actor.signed_in:
            await client.aforce_login(actor.account)
        answer: Any = await client.get(path, headers=headers)
        streamed = answer.streaming
        answer.body = (
            b"".join([part async for part in answer.streaming_content])
            if streamed
            else answer.content
        )
        return answer

    return async_to_sync(ask)()


def listed(actor: Actor, place: str = "small", subdir: str = "linux-64") -> dict[str, Any]:
    answer = get(actor, f"/channel/mirror/{place}/{subdir}/repodata.json")
    assert answer.status_code == 200, answer.body
    document = json.loads(answer.body)
    return {**document["packages"], **document["packages.conda"]}


def versions(records: dict[str, Any], name: str = "alpha") -> set[str]:
    return {record["version"] for record in records.values() if record["name"] == name}


def package(records: dict[str, Any], name: str, version: str = "1.0") -> tuple[str, str]:
    """File name and digest."""
    [(file_name, record)] = (
        (file_name, record)
        for file_name, record in records.items()
        if (record["name"], record["version"]) == (name, version)
    )
    return file_name, record["sha256"]


# --- what is listed -------------------------------------------------------------------------------


def test_a_mirror_lists_what_its_channel_lists(mirror: Mirror, bob: Actor, channel: Path) -> None:
    records = listed(bob)
    original = json.loads((channel / "linux-64" / "repodata.json").read_bytes())
    requested = {**original["packages"], **original["packages.conda"]}
    assert {name: record["sha256"] for name, record in records.items()} == {
        name: record["sha256"] for name, record in requested.items()
    }
    plain = get(bob, "/channel/mirror/small/linux-64/repodata.json")
    packed = get(bob, "/channel/mirror/small/linux-64/repodata.json.zst")
    unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(packed.body)
    assert unpacked == plain.body
    for answer, name in ((plain, "repodata.json"), (packed, "repodata.json.zst")):
        path = f"/channel/mirror/small/linux-64/{name}"
        again = get(bob, path, If_None_Match=answer["ETag"])
        assert (again.status_code, again.body) == (304, b"")
    assert get(bob, "/channel/mirror/small/linux-64/other.json").status_code == 404
    assert get(bob, "/channel/mirror/small/win-64/repodata.json").status_code == 404


def test_shards_are_named_by_their_digest(mirror: Mirror, bob: Actor) -> None:
    location = "/channel/mirror/small/linux-64"
    index = get(bob, f"{location}/repodata_shards.msgpack.zst").body
    digest = msgpack.unpackb(zstandard.decompress(index))["shards"]["alpha"].hex()
    answer = get(bob, f"{location}/shards/{digest}.msgpack.zst")
    assert hashlib.sha256(answer.body).hexdigest() == digest
    shard = msgpack.unpackb(zstandard.decompress(answer.body))
    assert (len(shard["packages"]), len(shard["packages.conda"])) == (1, 2)
    assert get(bob, f"{location}/shards/{'0' * 64}.msgpack.zst").status_code == 404
    assert get(bob, f"{location}/shards/nonsense.msgpack.zst").status_code == 404


def test_what_the_rules_refuse_is_neither_listed_nor_given(
    mirror: Mirror, bob: Actor, dora: Actor
) -> None:
    before = listed(bob)
    denied = add_rule(
        actor=dora,
        namespace=mirror.namespace,
        kind="packages-denied",
        effect="enforce",
        name="old alpha",
        settings={"packages": ["alpha <1"]},
    )
    add_rule(
        actor=dora,
        namespace=mirror.namespace,
        kind="packages-denied",
        effect="ask",
        name="large ones",
        settings={"packages": ["large-data"]},
    )
    records = listed(bob)
    assert versions(records) == {"1.0", "2.0"}
    assert versions(records, "large-data") == set()
    for name, version, rule in (("alpha", "0.9", "old alpha"), ("large-data", "1.0", "large ones")):
        file_name, _ = package(before, name, version)
        answer = get(bob, f"/channel/mirror/small/linux-64/{file_name}")
        assert answer.status_code == 403
        assert f"“{rule}”" in answer.json()["detail"]
    change_rule(actor=dora, rule=denied, settings={"packages": ["alpha <0.5"]})
    assert versions(listed(bob)) == {"0.9", "1.0", "2.0"}


def test_a_recalled_package_is_gone_at_once(mirror: Mirror, bob: Actor, root: Actor) -> None:
    file_name, sha256 = package(listed(bob), "alpha", "2.0")
    assert get(bob, f"/channel/mirror/small/linux-64/{file_name}").status_code == 200
    created = recall(actor=root, sha256=sha256, reason="it leaks")
    assert versions(listed(bob)) == {"0.9", "1.0"}
    answer = get(bob, f"/channel/mirror/small/linux-64/{file_name}")
    assert answer.status_code == 403
    assert "it leaks" in answer.json()["detail"]
    undo_recall(actor=root, recall=created, reason="it does not")
    assert get(bob, f"/channel/mirror/small/linux-64/{file_name}").status_code == 200


def test_a_young_package_is_shown_when_it_is_old_enough(
    mirror: Mirror, bob: Actor, dora: Actor, channel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rule(
        actor=dora,
        namespace=mirror.namespace,
        kind="age",
        effect="enforce",
        name="a week",
        settings={"minimum": "7 days"},
    )
    publish(channel, "alpha", "3.0")
    look(mirror)
    assert versions(listed(bob)) == {"0.9", "1.0", "2.0"}
    later = timezone.now() + timedelta(days=8)
    monkeypatch.setattr("environments.jobs.mirrors.time.time", later.timestamp)
    monkeypatch.setattr("environments.jobs.mirrors.timezone.now", lambda: later)
    assert "3.0" in versions(listed(bob))


def test_a_view_of_older_records_is_served_until_the_newer_is_made(
    mirror: Mirror, bob: Actor, channel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = listed(bob)
    monkeypatch.setattr(services, "LIVE_WINDOW", timedelta(0))
    monkeypatch.setattr(tasks.render_mirror_view, "send", lambda key: None)
    publish(channel, "alpha", "3.0")
    look(mirror, AT + timedelta(days=1))
    assert listed(bob) == records
    for view in MirrorView.objects.filter(made_at=None):
        mirrors.render(view.pk)
    assert "3.0" in versions(listed(bob))


def test_whoever_asks_too_early_is_told_to_ask_again(
    mirror: Mirror, bob: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "WAIT", 0)
    monkeypatch.setattr(tasks.render_mirror_view, "send", lambda key: None)
    answer = get(bob, "/channel/mirror/small/linux-64/repodata.json")
    assert (answer.status_code, answer["Retry-After"]) == (503, "10")


def test_a_channel_that_does_not_answer_is_served_as_it_was(
    mirror: Mirror, bob: Actor, upstream: ChannelServer
) -> None:
    records = listed(bob)
    for fault in (Fault("*", status=500, times=4), Fault("*", cut_after=50, times=4)):
        upstream.faults.clear()
        upstream.faults.add(fault)
        MirrorIndex.objects.update(upstream_state={})  # so that it must send all of it
        look(mirror)
        answer = get(bob, "/channel/mirror/small/linux-64/repodata.json")
        assert answer["X-Stale-Since"] == "Sun, 01 Mar 2026 12:00:00 GMT"
        assert listed(bob) == records
    upstream.faults.clear()
    look(mirror)
    assert not get(bob, "/channel/mirror/small/linux-64/repodata.json").has_header("X-Stale-Since")


def test_a_channel_that_never_answered_is_unavailable_and_not_empty(
    root: Actor, upstream: ChannelServer
) -> None:
    upstream.faults.add(Fault("*", status=502))
    created = operations.create_mirror(actor=root, name="gone", upstream=upstream.url)
    look(created)
    answer = get(root, "/channel/mirror/gone/linux-64/repodata.json")
    assert (answer.status_code, answer.json()["code"]) == (503, "channel-unavailable")


def test_files_that_are_lost_are_made_again(mirror: Mirror, bob: Actor) -> None:
    records = listed(bob)
    for blob in Blob.objects.filter(mirror_repodata__isnull=False):
        blobs.remove(blob)
    assert listed(bob) == records


def test_collection_leaves_what_a_mirror_serves(
    mirror: Mirror, bob: Actor, upstream: ChannelServer, settings: Any
) -> None:
    records = listed(bob)
    file_name, _ = package(records, "large-data")
    path = f"/channel/mirror/small/linux-64/{file_name}"
    whole = get(bob, path).body
    settings.COLLECTION_GRACE = timedelta(0)
    for _ in range(2):
        report = blob_gc.collect(notice=timedelta(0))
    assert report.removed.number == 0
    upstream.faults.add(Fault("*", status=500))
    assert listed(bob) == records
    assert get(bob, path).body == whole


def test_what_a_channel_says_is_read_by_a_process_of_its_own(
    mirror: Mirror, bob: Actor, channel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MIN_FETCHED_BYTES", 0)  # as it is, but in these tests
    publish(channel, "alpha", "9.0")
    look(mirror, AT + timedelta(days=2))
    records = listed(bob)
    assert "9.0" in versions(records)
    monkeypatch.setattr(engine, "MIN_HISTORY_BYTES", 0)
    MirrorView.objects.all().delete()
    assert listed(bob) == records


# --- days -----------------------------------------------------------------------------------------


def test_a_day_shows_what_was_seen_until_its_end_and_always_the_same(
    mirror: Mirror, bob: Actor, channel: Path
) -> None:
    publish(channel, "alpha", "3.0")
    look(mirror, AT + timedelta(days=2))
    for old in (channel / "linux-64").glob("alpha-1.0-*"):
        old.unlink()
    index_channel(channel)
    look(mirror, AT + timedelta(days=4))
    first, then, last = (
        "small@2026-03-01",
        "small@2026-03-03",
        "small@2026-03-06",
    )
    assert versions(listed(bob, first)) == {"0.9", "1.0", "2.0"}
    assert versions(listed(bob, then)) == {"0.9", "1.0", "2.0", "3.0"}
    assert versions(listed(bob, last)) == {"0.9", "2.0", "3.0"} == versions(listed(bob))
    tag = get(bob, f"/channel/mirror/{first}/linux-64/repodata.json")["ETag"]
    number = MirrorView.objects.filter(moment="2026-03-01").count()
    publish(channel, "alpha", "4.0")
    look(mirror, AT + timedelta(days=9))
    answer = get(bob, f"/channel/mirror/{first}/linux-64/repodata.json", If_None_Match=tag)
    assert answer.status_code == 304
    assert MirrorView.objects.filter(moment="2026-03-01").count() == number


def test_a_day_before_the_mirror_shows_what_the_channel_itself_dates(
    mirror: Mirror, bob: Actor, channel: Path, root: Actor, upstream: ChannelServer
) -> None:
    dated = PackageSpec("dated", "1.0", extra_index={"indexed_timestamp": 1_767_225_600_000})
    write_package(dated, channel)
    index_channel(channel)
    created = operations.create_mirror(actor=root, name="later", upstream=upstream.url)
    look(created, AT)
    assert set(listed(root, "later@2026-01-15")) == {f"{dated.stem}.conda"}
    assert versions(listed(root, "later@2026-03-01")) == {"0.9", "1.0", "2.0"}


@pytest.mark.parametrize("day", ["2099-01-01", "2026-02-30", "yesterday", "20260301"])
def test_a_day_that_has_not_begun_or_is_none_is_refused(
    mirror: Mirror, bob: Actor, day: str
) -> None:
    answer = get(bob, f"/channel/mirror/small@{day}/linux-64/repodata.json")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")


def test_a_corrected_record_is_shown_from_the_day_of_its_correction(
    mirror: Mirror, bob: Actor, channel: Path
) -> None:
    file_name, _ = package(listed(bob), "alpha", "2.0")
    patch = {"linux-64": {"packages": {file_name: {"depends": ["beta"]}}}}
    (channel / "channel_patches.json").write_text(json.dumps(patch))
    index_channel(channel)
    look(mirror, AT + timedelta(days=1))
    assert listed(bob, "small@2026-03-01")[file_name]["depends"] == []
    assert listed(bob, "small@2026-03-02")[file_name]["depends"] == ["beta"]


# --- packages -------------------------------------------------------------------------------------


def test_a_package_is_fetched_once_and_stays(
    mirror: Mirror, bob: Actor, upstream: ChannelServer
) -> None:
    file_name, sha256 = package(listed(bob), "large-data")
    path = f"/channel/mirror/small/linux-64/{file_name}"
    whole = get(bob, path)
    assert hashlib.sha256(whole.body).hexdigest() == sha256
    upstream.faults.add(Fault("*", status=500))
    part = get(bob, path, Range="bytes=10-19")
    assert (part.status_code, part.body) == (206, whole.body[10:20])
    assert upstream.requests.count(f"linux-64/{file_name}") == 1
    assert mirror.packages.get().blob == Blob.objects.get(sha256=sha256)


def test_bytes_that_are_kept_for_others_are_not_given_to_a_channel_that_lists_them(
    mirror: Mirror, bob: Actor, upstream: ChannelServer, channel: Path, tmp_path: Path
) -> None:
    file_name, sha256 = package(listed(bob), "large-data")
    copy = shutil.copy(channel / "linux-64" / file_name, tmp_path)
    blobs.add(Path(copy), sha256)
    upstream.faults.add(Fault("*large-data*", status=404))
    answer = get(bob, f"/channel/mirror/small/linux-64/{file_name}")
    assert answer.status_code == 404
    assert not mirror.packages.exists()


def test_a_cut_package_is_continued(mirror: Mirror, bob: Actor, upstream: ChannelServer) -> None:
    file_name, sha256 = package(listed(bob), "large-data")
    upstream.faults.add(Fault("*large-data*", cut_after=100_000, times=1))
    answer = get(bob, f"/channel/mirror/small/linux-64/{file_name}")
    assert hashlib.sha256(answer.body).hexdigest() == sha256
    requested = [request.range for request in upstream.requests if file_name in request.path]
    assert requested == ["", "bytes=100000-"]


def test_a_package_that_the_channel_dropped_is_not_found(
    mirror: Mirror, bob: Actor, upstream: ChannelServer
) -> None:
    file_name, _ = package(listed(bob), "large-data")
    upstream.faults.add(Fault("*large-data*", status=404))
    answer = get(bob, f"/channel/mirror/small/linux-64/{file_name}")
    assert answer.status_code == 404
    assert "no longer exists" in answer.json()["detail"]


def test_wrong_bytes_are_never_given_away(
    mirror: Mirror, bob: Actor, upstream: ChannelServer
) -> None:
    file_name, sha256 = package(listed(bob), "large-data")
    upstream.faults.add(Fault("*large-data*", wrong_bytes=True))
    answer = get(bob, f"/channel/mirror/small/linux-64/{file_name}")
    assert (answer.status_code, answer.json()["code"]) == (503, "download-failed")
    assert not Blob.objects.filter(sha256=sha256).exists()


def test_those_who_ask_at_once_share_one_fetch(
    mirror: Mirror, bob: Actor, upstream: ChannelServer
) -> None:
    file_name, _ = package(listed(bob), "large-data")
    upstream.faults.add(Fault("*large-data*", hang=0.5, hang_after=1000))

    async def ask() -> list[int]:
        client = AsyncClient()
        await client.aforce_login(bob.account)
        path = f"/channel/mirror/small/linux-64/{file_name}"
        answers: list[Any] = await asyncio.gather(*(client.get(path) for _ in range(3)))
        for answer in answers:
            async for _ in answer.streaming_content:
                pass
        return [answer.status_code for answer in answers]

    assert async_to_sync(ask)() == [200, 200, 200]
    assert upstream.requests.count(f"linux-64/{file_name}") == 1


# --- rights and declaring -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repodata.json", "alpha-1.0-h0_0.conda"])
def test_a_mirror_is_not_there_for_those_who_may_not_see_it(
    mirror: Mirror, bob: Actor, charlie: Actor, nobody: Actor, name: str
) -> None:
    path = f"/channel/mirror/small/linux-64/{name}"
    for actor in (charlie, nobody):
        answer = get(actor, path)
        assert (answer.status_code, answer.json()["detail"]) == (404, "There is no mirror 'small'.")
    secret = create_token(actor=bob, name="conda").secret
    assert (
        get(nobody, f"/t/{secret}/channel/mirror/small/linux-64/repodata.json").status_code == 200
    )
    Mirror.objects.update(public=True)
    assert get(nobody, "/channel/mirror/small/linux-64/repodata.json").status_code == 200


def test_only_administrators_declare_mirrors(dora: Actor, mirror: Mirror) -> None:
    for change in (
        lambda: operations.create_mirror(actor=dora, name="x", upstream="conda-forge"),
        lambda: operations.change_mirror(actor=dora, mirror=mirror, namespace=None),
        lambda: operations.delete_mirror(actor=dora, mirror=mirror),
    ):
        with pytest.raises(AccessDeniedError):
            change()


def test_every_change_of_a_mirror_is_in_the_audit_log(mirror: Mirror, root: Actor) -> None:
    operations.change_mirror(actor=root, mirror=mirror, namespace=None, subdirs=["osx-arm64"])
    assert mirror.subdirs == ["osx-arm64", "noarch"]
    gone = [index.pk for index in mirror.indexes.all()]
    operations.delete_mirror(actor=root, mirror=mirror)
    assert not any(mirrors.read_upstream(key) for key in gone)  # a message that came too late
    actions = list(AuditEvent.objects.order_by("position").values_list("action", flat=True))
    assert actions == ["mirror.create", "mirror.change", "mirror.delete"]
    assert not MirrorIndex.objects.exists()


def test_a_platform_that_is_not_mirrored_any_more_is_not_fetched(
    mirror: Mirror, root: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations.change_mirror(actor=root, mirror=mirror, namespace=None, subdirs=["osx-arm64"])
    polls: list[int] = []
    monkeypatch.setattr(tasks.read_mirror, "send", polls.append)
    MirrorIndex.objects.update(not_before=timezone.now(), message_sent_at=None)
    queueing.send_due(MirrorIndex)
    requested = MirrorIndex.objects.filter(pk__in=polls).values_list("subdir", flat=True)
    assert sorted(requested) == ["noarch", "osx-arm64"]


def test_a_channel_that_the_rules_forbid_is_no_mirror(
    mirror: Mirror, root: Actor, bob: Actor, settings: Any
) -> None:
    listed(bob)
    settings.ALLOWED_CHANNELS = ["https://conda.example.org/*"]
    answer = get(bob, "/channel/mirror/small/linux-64/repodata.json")
    assert (answer.status_code, answer.json()["code"]) == (403, "channel-not-allowed")
    with pytest.raises(ChannelNotAllowedError):
        operations.create_mirror(actor=root, name="other", upstream="https://conda.invalid/x")


def test_a_secret_of_the_channel_is_kept_apart(root: Actor, channel: Path) -> None:
    with serving(channel, token="hidden") as server:
        url = server.url.rstrip("/")
        location, _, host = url.partition("://")
        with_token = f"{location}://{host}/t/hidden" if "/t/" not in url else url
        created = operations.create_mirror(actor=root, name="private", upstream=with_token)
        look(created, AT)
        assert versions(listed(root, "private")) == {"0.9", "1.0", "2.0"}
        file_name, _ = package(listed(root, "private"), "alpha")
        answer = get(root, f"/channel/mirror/private/linux-64/{file_name}")
    assert answer.status_code == 200
    assert "hidden" not in created.upstream


def test_a_day_that_was_asked_for_is_shown_by_new_rules_too_when_no_more_are_made(
    mirror: Mirror, bob: Actor, dora: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "MAX_DAYS", 2)
    for day in ("2026-03-01", "2026-03-02"):
        assert versions(listed(bob, f"small@{day}"))
    refused = get(bob, "/channel/mirror/small@2026-03-03/linux-64/repodata.json")
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    add_rule(
        actor=dora,
        namespace=mirror.namespace,
        kind="packages-denied",
        effect="enforce",
        name="old alpha",
        settings={"packages": ["alpha <1"]},
    )
    assert versions(listed(bob, "small@2026-03-02")) == {"1.0", "2.0"}


def test_views_that_nobody_reads_are_forgotten(mirror: Mirror, bob: Actor, channel: Path) -> None:
    listed(bob)
    listed(bob, "small@2026-03-01")
    publish(channel, "alpha", "3.0")
    look(mirror, AT + timedelta(days=1))
    assert MirrorView.objects.filter(moment="").count() == 2
    services.delete_unused_views(now=timezone.now() + timedelta(days=2))
    [view] = MirrorView.objects.all()
    assert (view.moment, view.packages) == ("", 5)


def test_a_client_makes_an_environment_from_a_mirror(
    server: str, mirror: Mirror, bob: Actor, tmp_path: Path
) -> None:
    secret = create_token(actor=bob, name="pixi").secret

    async def make() -> list[Any]:
        records = await solve(
            sources=[f"{server}/t/{secret}/channel/mirror/small@2026-03-01"],
            gateway=Gateway(cache_dir=tmp_path / "repodata"),
            specs=[MatchSpec("beta"), MatchSpec("large-data")],
            platforms=["linux-64", "noarch"],
        )
        prefix, cache = tmp_path / "made", tmp_path / "packages"
        await install(records, prefix, cache_dir=cache, execute_link_scripts=False)
        return records

    assert len(asyncio.run(make())) == 3
    assert (tmp_path / "made" / "share" / "noise").stat().st_size == 400_000


# --- outages --------------------------------------------------------------------------------------


def test_an_outage_of_the_database_is_no_failure_of_a_mirror(
    mirror: Mirror, bob: Actor, channel: Path, upstream: ChannelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    publish(channel, "alpha", "3.0")
    queue = queue_of(str(connection.settings_dict["NAME"]))
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.2)
    connection.close()
    upstream.faults.add(Fault("linux-64/repodata*", hang=0.5, times=1))
    upstream.requests.clear()

    def outage() -> None:
        while not len(upstream.requests):
            time.sleep(0.002)
        queue.acquire(30)
        time.sleep(1.5)
        queue.release()

    thread = threading.Thread(target=outage)
    thread.start()
    look(mirror, AT + timedelta(minutes=1))
    thread.join()
    assert not mirror.indexes.exclude(failure=None).exists()
    look(mirror, AT + timedelta(minutes=2))
    assert "3.0" in versions(listed(bob))


def test_a_blob_store_that_is_away_does_not_cost_a_mirror_its_history(
    mirror: Mirror, channel: Path, data_folder: Path
) -> None:
    data_folder_marker.fault()
    before = set(mirror.indexes.values_list("history", flat=True))
    publish(channel, "alpha", "3.0")
    aside = data_folder.with_name(f"{data_folder.name}-unmounted")
    data_folder.rename(aside)
    data_folder.mkdir()
    look(mirror, AT + timedelta(minutes=1))
    assert set(mirror.indexes.values_list("history", flat=True)) == before
    assert not Blob.objects.exclude(damaged_at=None).exists()
    shutil.rmtree(data_folder)
    aside.rename(data_folder)
    assert all(index.history and blobs.is_intact(index.history) for index in mirror.indexes.all())
