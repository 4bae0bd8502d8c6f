"""Downloads: verified bytes, resuming, retries and limits, whatever the server sends."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import DiskSpaceError, DownloadError, LeaseLostError, LinkError
from environments.domain.names import Credential
from environments.domain.progress import Progress
from environments.engine.packages.download_types import Download, Patience
from environments.engine.packages.downloads import discard, download_all, remove_leftovers
from environments.engine.packages.file_lock import FileLock
from tests.channels.server import ChannelServer, Fault, serving
from tests.environments.engine.package_fixtures import packages_of

#: Enough to see every kind of patience run out without waiting for it.
SHORT = Patience(
    connect=timedelta(seconds=2),
    read=timedelta(seconds=0.5),
    attempts=3,
    longest_pause=timedelta(seconds=0.05),
    stalled=timedelta(seconds=0.5),
)
SIZE = 400_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChannelServer]:
    """A file that does not compress, and three small ones."""
    channel = tmp_path / "channel"
    channel.mkdir()
    (channel / "large.conda").write_bytes(os.urandom(SIZE))
    for number in range(3):
        (channel / f"small-{number}.conda").write_bytes(b"%d" % number * 1000)
    with serving(channel) as server:
        yield server


def download_of(server: ChannelServer, name: str = "large.conda") -> Download:
    content = (server.folders[""] / name).read_bytes()
    return Download(
        name=name,
        url=server.url + name,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


class Taken:
    """What was handed over, as {name: bytes}."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    async def use(self, download: Download, path: Path) -> None:
        self.files[download.name] = path.read_bytes()

    def present(self, download: Download) -> bool:
        return download.name in self.files


def fetch(folder: Path, *downloads: Download, **options: Any) -> dict[str, bytes]:
    taken = Taken()
    chosen: dict[str, Any] = {"present": taken.present, "use": taken.use, "patience": SHORT}
    download_all(list(downloads), folder=folder, **(chosen | options))
    return taken.files


def test_files_arrive_with_the_bytes_of_the_lock(server: ChannelServer, folder: Path) -> None:
    requested = [download_of(server, f"small-{number}.conda") for number in range(3)]
    files = fetch(folder, download_of(server), *requested)
    assert len(files) == 4
    assert files["small-1.conda"] == b"1" * 1000
    assert not list(folder.iterdir()), "nothing stays in the folder"


def test_present_files_are_not_requested(server: ChannelServer, folder: Path) -> None:
    assert fetch(folder, download_of(server), present=lambda download: True) == {}
    assert len(server.requests) == 0


def test_an_interrupted_download_is_resumed(server: ChannelServer, folder: Path) -> None:
    server.faults.add(Fault("large.conda", cut_after=150_000, times=1))
    assert len(fetch(folder, download_of(server))["large.conda"]) == SIZE
    first, second = server.requests
    assert first.range == ""
    assert 0 < int(second.range.removeprefix("bytes=").removesuffix("-")) <= 150_000


def test_a_partial_file_of_a_killed_worker_is_resumed(server: ChannelServer, folder: Path) -> None:
    download = download_of(server)
    folder.mkdir()
    content = (server.folders[""] / "large.conda").read_bytes()
    (folder / f"{download.stem}.part").write_bytes(content[:100_000])
    assert fetch(folder, download)["large.conda"] == content
    assert [request.range for request in server.requests] == ["bytes=100000-"]


def test_a_partial_file_with_wrong_bytes_costs_one_more_request(
    server: ChannelServer, folder: Path
) -> None:
    download = download_of(server)
    folder.mkdir()
    (folder / f"{download.stem}.part").write_bytes(b"\0" * 100_000)
    assert len(fetch(folder, download)["large.conda"]) == SIZE
    assert [request.range for request in server.requests] == ["bytes=100000-", ""]


def test_a_complete_leftover_file_is_not_fetched(server: ChannelServer, folder: Path) -> None:
    download = download_of(server)
    folder.mkdir()
    (folder / f"{download.stem}.part").write_bytes(
        (server.folders[""] / "large.conda").read_bytes()
    )
    assert len(fetch(folder, download)["large.conda"]) == SIZE
    assert len(server.requests) == 0


def test_a_partial_file_of_another_server_is_not_used(server: ChannelServer, folder: Path) -> None:
    """Its digest is what this one only claims: the bytes may be somebody's private package."""
    download = download_of(server)
    folder.mkdir()
    other = replace(download, url="http://127.0.0.1:9/large.conda")
    (folder / f"{other.stem}.part").write_bytes((server.folders[""] / "large.conda").read_bytes())
    fetch(folder, download)
    assert server.requests.count("large.conda") == 1


def test_a_server_without_ranges_is_read_from_the_start(folder: Path) -> None:
    content = os.urandom(SIZE)
    with plain_server(content) as url:
        download = Download(
            name="x.conda", url=url, sha256=hashlib.sha256(content).hexdigest(), size=SIZE
        )
        folder.mkdir()
        (folder / f"{download.stem}.part").write_bytes(content[:1000])
        assert fetch(folder, download) == {"x.conda": content}


def test_503_is_retried_until_200(server: ChannelServer, folder: Path) -> None:
    server.faults.add(Fault("large.conda", status=503, times=2))
    assert len(fetch(folder, download_of(server))["large.conda"]) == SIZE
    assert server.requests.count("large.conda") == 3


def test_permanent_503_is_a_download_error_with_the_status(
    server: ChannelServer, folder: Path
) -> None:
    server.faults.add(Fault("large.conda", status=503))
    with pytest.raises(DownloadError, match=r"large\.conda .*3 attempts: .*503") as caught:
        fetch(folder, download_of(server))
    assert caught.value.transient


def test_retry_after_is_respected(server: ChannelServer, folder: Path) -> None:
    server.faults.add(Fault("large.conda", status=429, retry_after=1, times=1))
    started = time.monotonic()
    fetch(folder, download_of(server), patience=replace(SHORT, longest_pause=timedelta(seconds=5)))
    assert time.monotonic() - started >= 1


def test_a_hanging_server_is_retried(server: ChannelServer, folder: Path) -> None:
    server.faults.add(Fault("large.conda", hang=30, hang_after=1000, times=1))
    assert len(fetch(folder, download_of(server))["large.conda"]) == SIZE
    assert server.requests.count("large.conda") == 2


def test_wrong_bytes_once_are_fetched_again(server: ChannelServer, folder: Path) -> None:
    server.faults.add(Fault("large.conda", wrong_bytes=True, times=1))
    assert len(fetch(folder, download_of(server))["large.conda"]) == SIZE


def test_wrong_bytes_twice_name_the_package_and_the_digest_of_the_lock_alone(
    server: ChannelServer, folder: Path
) -> None:
    server.faults.add(Fault("large.conda", wrong_bytes=True))
    download = download_of(server)
    with pytest.raises(DownloadError, match=r"large\.conda differs from the lock") as caught:
        fetch(folder, download)
    assert caught.value.details == {"expected": download.sha256}
    assert not re.search("[0-9a-f]{32}", str(caught.value))
    assert server.requests.count("large.conda") == 2
    assert not list(folder.glob("*.part"))


def test_an_announced_size_other_than_the_locks_is_refused_unread(
    server: ChannelServer, folder: Path
) -> None:
    download = replace(download_of(server), size=10)
    with pytest.raises(DownloadError, match="400000 bytes instead of 10"):
        fetch(folder, download)


def test_an_endless_file_of_unknown_size_is_stopped(server: ChannelServer, folder: Path) -> None:
    download = replace(download_of(server), size=0)
    with pytest.raises(DownloadError, match="CONDASTORE_MAX_DOWNLOAD_BYTES"):
        fetch(folder, download, patience=replace(SHORT, largest=100_000))


def test_a_file_of_unknown_size_is_fetched(server: ChannelServer, folder: Path) -> None:
    assert len(fetch(folder, replace(download_of(server), size=0))["large.conda"]) == SIZE


def test_md5_is_compared_if_there_is_no_sha256(server: ChannelServer, folder: Path) -> None:
    content = (server.folders[""] / "large.conda").read_bytes()
    right = replace(download_of(server), sha256="", md5=hashlib.md5(content).hexdigest())
    assert fetch(folder, right)
    with pytest.raises(DownloadError, match="md5"):
        fetch(folder, replace(right, md5="0" * 32))


def test_a_package_without_any_digest_is_refused(small_channel: Path) -> None:
    package = packages_of(small_channel)["libalpha"]
    with pytest.raises(LinkError, match="has no digest"):
        Download.from_package(replace(package, sha256="", md5=""))


def test_a_missing_file_is_reported_as_gone(server: ChannelServer, folder: Path) -> None:
    download = download_of(server)
    (server.folders[""] / "large.conda").unlink()
    with pytest.raises(DownloadError, match="no longer exists in its channel"):
        fetch(folder, download)
    assert server.requests.count("large.conda") == 1


def test_a_file_url_is_fetched_too(server: ChannelServer, folder: Path) -> None:
    path = server.folders[""] / "large.conda"
    download = replace(download_of(server), url=path.as_uri())
    assert fetch(folder, download) == {"large.conda": path.read_bytes()}
    path.unlink()
    with pytest.raises(DownloadError, match="no longer exists"):
        fetch(folder, download)


def test_credentials_are_sent_to_their_server_only(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "channel").mkdir()
    (tmp_path / "channel" / "a.conda").write_bytes(b"content")
    with serving(tmp_path / "channel", basic=("robot", "hunter22")) as server:
        download = Download(
            name="a.conda",
            url=server.url + "a.conda",
            sha256=hashlib.sha256(b"content").hexdigest(),
        )
        with pytest.raises(DownloadError, match="denies access") as caught:
            fetch(folder, download)
        assert "hunter22" not in repr(caught.value)
        credential = Credential(url_prefix=server.url, kind="basic", secret="robot:hunter22")
        assert fetch(folder, download, credentials=lambda url: credential)


def test_a_cancellation_ends_a_hanging_download(server: ChannelServer, folder: Path) -> None:
    """It would hang for an hour otherwise."""
    server.faults.add(Fault("large.conda", hang=3600, hang_after=1000))
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(LeaseLostError):
        fetch(
            folder,
            download_of(server),
            cancelled=cancel.is_set,
            patience=replace(SHORT, read=timedelta(hours=1)),
        )


def test_a_server_below_the_minimum_rate_is_disconnected(
    server: ChannelServer, folder: Path
) -> None:
    """Each byte comes in time, and the file would take an hour."""
    server.faults.add(Fault("large.conda", bytes_per_second=100))
    started = time.monotonic()
    with pytest.raises(DownloadError, match="CONDASTORE_DOWNLOAD_MIN_RATE"):
        fetch(folder, download_of(server), patience=replace(SHORT, rate=1000))
    assert time.monotonic() - started < 20
    assert fetch(folder, download_of(server, "small-0.conda"), patience=replace(SHORT, rate=1000))


def test_all_files_together_have_a_time_limit(server: ChannelServer, folder: Path) -> None:
    server.faults.add(Fault("large.conda", bytes_per_second=20_000))
    with pytest.raises(DownloadError, match="not fetched within 1 s"):
        fetch(folder, download_of(server), patience=replace(SHORT, total=timedelta(seconds=1)))


def test_progress_counts_files_and_bytes(server: ChannelServer, folder: Path) -> None:
    seen: list[Progress] = []
    requested = [download_of(server), download_of(server, "small-0.conda")]
    fetch(folder, *requested, progress=seen.append)
    assert (seen[-1].done, seen[-1].total) == (2, 2)
    assert seen[-1].bytes_done == seen[-1].bytes_total == SIZE + 1000
    assert {each.stage for each in seen} == {"fetching"}


def test_a_full_disk_is_reported_and_leaves_no_files(server: ChannelServer, folder: Path) -> None:
    async def full(download: Download, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskSpaceError, match="The disk is full"):
        fetch(folder, download_of(server), download_of(server, "small-0.conda"), use=full)
    assert not list(folder.iterdir())


def test_two_processes_fetch_a_file_once(server: ChannelServer, folder: Path) -> None:
    """The second waits for the first, and then finds the file present."""
    download = download_of(server)
    server.faults.add(Fault("large.conda", bytes_per_second=SIZE))
    script = f"""
import asyncio, shutil
from pathlib import Path
from environments.engine.network import addresses
addresses.install(lambda: addresses.UNRESTRICTED)
from environments.engine.packages.downloads import Download, download_all
kept = Path({str(folder)!r}).parent / "kept"
async def use(download, path):
    shutil.copy(path, kept)
download_all([Download(name="large.conda", url={download.url!r}, sha256={download.sha256!r},
             size={download.size})], folder=Path({str(folder)!r}), use=use,
             present=lambda download: kept.exists())
"""
    # Without the proxy of this process, which earlier tests may have set by `os.putenv`.
    environ = dict(os.environ)
    workers = [subprocess.Popen([sys.executable, "-c", script], env=environ) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert server.requests.count("large.conda") == 1


def test_a_stopped_worker_does_not_hold_up_the_others(server: ChannelServer, folder: Path) -> None:
    folder.mkdir()
    download = download_of(server)
    held = FileLock(folder / f"{download.stem}.lock")
    assert held.acquire()
    part = folder / f"{download.stem}.part"
    part.write_bytes(b"of the stopped worker")
    assert len(fetch(folder, download)["large.conda"]) == SIZE
    assert part.read_bytes() == b"of the stopped worker"
    held.release()


def test_a_lock_is_free_again_when_its_holder_is_killed(folder: Path) -> None:
    folder.mkdir()
    path = folder / "x.lock"
    script = f"""
import time
from pathlib import Path
from environments.engine.packages.downloads import FileLock
assert FileLock(Path({str(path)!r})).acquire()
print("held", flush=True)
time.sleep(100)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    lock = FileLock(path)
    assert not lock.acquire()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert lock.acquire()
    lock.release()
    assert not path.exists()


def test_old_partial_files_are_removed_unless_in_use(server: ChannelServer, folder: Path) -> None:
    folder.mkdir()
    old, new = folder / "old.part", folder / "new.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    remove_leftovers(folder, older_than=timedelta(hours=1))
    assert not old.exists()
    assert new.exists()
    download = download_of(server)
    part = folder / f"{download.stem}.part"
    part.write_bytes(b"x")
    held = FileLock(folder / f"{download.stem}.lock")
    assert held.acquire()
    discard(folder, download)
    assert part.exists()
    held.release()
    discard(folder, download)
    assert not part.exists()


class plain_server:  # noqa: N801  # used as a context manager
    """A server that answers every request with the whole of `content`."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __enter__(self) -> str:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        content = self.content

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}/x.conda"

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
