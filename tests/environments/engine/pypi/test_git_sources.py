"""Checkout of Git commits from a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import (
    AddressRefusedError,
    ChannelNotAllowedError,
    ChannelUnavailableError,
    PypiError,
    StoreError,
)
from environments.domain.names import Credential
from environments.domain.pip_requirements import DirectReference
from environments.domain.progress import never
from environments.engine.network import addresses
from environments.engine.pypi.git_sources import Checkout, GitLimits, Repository
from tests.services.git_server import GitServer, git, git_server

SECRET = "s3cret-of-mine"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with git_server(tmp_path / "git") as server:
        yield server


def fetch(url: str, commit: str, folder: Path, **options: Any) -> Checkout:
    folder.mkdir(parents=True, exist_ok=True)
    reference = DirectReference(kind="git", url=url, commit=commit)
    given = {"cancelled": never, "log": lambda line: None, **options}
    return Repository(reference, folder, **given).checkout()


def test_a_commit_is_fetched_as_its_files_without_those_of_other_commits(
    server: GitServer, tmp_path: Path
) -> None:
    repository = server.create("acme/lib", {"pkg/__init__.py": "one\n", "run": "x"})
    first = repository.head
    repository.commit({"pkg/__init__.py": "two\n"})
    found = fetch(repository.url, first, tmp_path / "one")
    assert (found.folder / "pkg" / "__init__.py").read_text() == "one\n"
    assert found.committed == 1705320000
    assert not found.submodules
    assert git("rev-list", "--all", "--count", cwd=found.folder) in ("0", "1")


def test_a_commit_is_not_found_after_it_is_gone(server: GitServer, tmp_path: Path) -> None:
    repository = server.create("acme/lib")
    first = repository.head
    git("commit", "--quiet", "--amend", "--message", "Rewritten", cwd=repository.work)
    repository.publish()
    with pytest.raises(PypiError, match="not in a branch or tag"):
        fetch(repository.url, first, tmp_path / "one")
    git("reflog", "expire", "--expire=now", "--all", cwd=repository.folder)
    git("gc", "--quiet", "--prune=now", cwd=repository.folder)
    with pytest.raises(PypiError, match=f"has no commit {first}"):
        fetch(repository.url, first, tmp_path / "two")


@pytest.mark.parametrize("filters", [False, True])
@pytest.mark.parametrize("reference", ["refs/pull/1/head", ""])
def test_a_commit_of_a_fork_is_not_one_of_the_repository(
    server: GitServer, tmp_path: Path, reference: str, filters: bool
) -> None:
    repository = server.create("acme/lib", {"setup.py": "of its owners\n"})
    git("config", "uploadpack.allowFilter", str(filters).lower(), cwd=repository.folder)
    old = repository.head
    repository.commit({"a": "1"}, tag="v1")
    tagged = repository.commit({"a": "2"})
    git("checkout", "--quiet", "-b", "fork", cwd=repository.work)
    (repository.work / "setup.py").write_text("of the attacker\n")
    git("commit", "--quiet", "--all", "--message", "Fork", cwd=repository.work)
    # As hosts that keep the objects of all forks together.
    location = reference or "refs/kept/1"
    git("push", "--quiet", str(repository.folder), f"HEAD:{location}", cwd=repository.work)
    fork = repository.head
    if not reference:
        git("update-ref", "-d", location, cwd=repository.folder)
    with pytest.raises(PypiError, match=f"{fork} is not in a branch or tag"):
        fetch(repository.url, fork, tmp_path / "fork")
    for number, commit in enumerate((old, tagged)):
        assert fetch(repository.url, commit, tmp_path / str(number)).committed


def test_a_tree_or_a_tag_is_no_commit(server: GitServer, tmp_path: Path) -> None:
    repository = server.create("acme/lib")
    git("tag", "--annotate", "--message", "One", "v1", cwd=repository.work)
    repository.publish()
    for name in ("v1", "HEAD^{tree}"):
        other = git("rev-parse", name, cwd=repository.work)
        with pytest.raises(PypiError, match="has no commit"):
            fetch(repository.url, other, tmp_path / other)


def test_a_plain_server_without_a_protocol_of_git_gives_a_commit_too(
    server: GitServer, tmp_path: Path
) -> None:
    repository = server.create("acme/lib", {"a": "1"})
    first = repository.head
    repository.commit({"a": "2"})
    git("update-server-info", cwd=repository.folder)
    server.dumb = True
    assert (fetch(repository.url, first, tmp_path / "x").folder / "a").read_text() == "1"


def test_a_login_opens_its_repository_and_is_written_nowhere(
    server: GitServer, tmp_path: Path
) -> None:
    repository = server.create("acme/private")
    server.logins["/acme/private.git"] = f"me:{SECRET}"
    with pytest.raises(ChannelNotAllowedError, match="requires a login"):
        fetch(repository.url, repository.head, tmp_path / "without")
    wrong = Credential(url_prefix=repository.url, kind="basic", secret=f"me:not-{SECRET}")
    with pytest.raises(ChannelNotAllowedError, match="refuses the stored one") as caught:
        fetch(repository.url, repository.head, tmp_path / "wrong", credentials=lambda url: wrong)
    assert SECRET not in repr(caught.value.__dict__)
    right = Credential(url_prefix=repository.url, kind="basic", secret=f"me:{SECRET}")
    folder = tmp_path / "right"
    assert fetch(repository.url, repository.head, folder, credentials=lambda url: right)
    retained = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in retained


def test_a_login_is_not_sent_after_a_redirect(server: GitServer, tmp_path: Path) -> None:
    repository = server.create("acme/private")
    with git_server(tmp_path / "other") as other:
        server.redirects["/acme/"] = f"{other.url}/stolen/"
        known = Credential(url_prefix=repository.url, kind="basic", secret=f"me:{SECRET}")
        with pytest.raises(StoreError, match="redirects to another server"):
            fetch(repository.url, repository.head, tmp_path / "x", credentials=lambda url: known)
        assert other.requests == []


def test_a_redirect_to_a_moved_repository_is_followed(server: GitServer, tmp_path: Path) -> None:
    repository = server.create("acme/lib")
    server.redirects["/old/"] = f"{server.url}/acme/"
    assert fetch(f"{server.url}/old/lib.git", repository.head, tmp_path / "x").committed


@pytest.mark.parametrize("redirected", [False, True])
def test_private_addresses_are_refused_also_after_a_redirect(
    server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redirected: bool
) -> None:
    repository = server.create("acme/lib")
    with git_server(tmp_path / "inside") as inside:
        secret = inside.create("acme/lib")
        port = server.url.rpartition(":")[2] if redirected else "1"
        only = addresses.Guard.from_settings(allowed=[f"127.0.0.1:{port}"])
        monkeypatch.setattr(addresses, "_current", lambda: only)
        server.redirects["/"] = f"{inside.url}/"
        url = repository.url if redirected else secret.url
        expected = StoreError if redirected else AddressRefusedError
        with pytest.raises(expected) as caught:
            fetch(url, secret.head, tmp_path / "x")
        assert inside.requests == []
        assert not isinstance(caught.value, ChannelUnavailableError) or redirected


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ext::sh -c 'touch {trace}'",
        "--upload-pack=touch {trace}",
        "ssh://-oProxyCommand=touch {trace}/x",
        "/tmp",
    ],
)
def test_other_protocols_and_options_run_nothing(url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(StoreError):
        fetch(url.format(trace=trace), "a" * 40, tmp_path / "x")
    assert not trace.exists()


def test_nothing_in_a_repository_is_run_or_fetched(server: GitServer, tmp_path: Path) -> None:
    inner = server.create("acme/inner")
    repository = server.create(
        "acme/lib",
        {
            ".gitattributes": "* filter=lfs\n*.py filter=evil\n",
            ".gitmodules": f'[submodule "x"]\n\tpath = x\n\turl = {inner.url}\n',
            "a.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        },
    )
    entry = f"160000 {inner.head}\tx"
    git("update-index", "--index-info", cwd=repository.work, stdin=entry + "\n")
    git("commit", "--quiet", "--message", "A submodule", cwd=repository.work)
    commit = repository.publish()
    before = server.count("inner")
    found = fetch(repository.url, commit, tmp_path / "x")
    assert found.submodules
    assert (found.folder / "a.bin").read_text().startswith("version https://git-lfs")
    assert server.count("inner") == before
    assert not list((found.folder / ".git" / "hooks").glob("*"))


def test_bombs_are_refused_before_they_are_written(server: GitServer, tmp_path: Path) -> None:
    repository = server.create("acme/bomb")
    blob = git("hash-object", "-w", "--stdin", cwd=repository.work, stdin="boom\n")
    kind, mode, key = "blob", "100644", blob
    for _ in range(8):  # ten to the eighth files in some kilobytes
        lines = "".join(f"{mode} {kind} {key}\tf{number}\n" for number in range(10))
        key = git("mktree", cwd=repository.work, stdin=lines)
        kind, mode = "tree", "040000"
    commit = git("commit-tree", "-m", "Bomb", key, cwd=repository.work)
    git("reset", "--quiet", "--soft", commit, cwd=repository.work)
    repository.publish()
    with pytest.raises(PypiError, match="has more than"):
        fetch(repository.url, commit, tmp_path / "x")
    large = server.create("acme/large", {"zeros": bytes(3 << 20)})
    with pytest.raises(PypiError, match="has more than"):
        fetch(large.url, large.head, tmp_path / "y", limits=GitLimits(tree_bytes=2 << 20))
    noise = server.create("acme/noise", {"noise": os.urandom(3 << 20)})
    with pytest.raises(PypiError, match="is larger than"):
        fetch(noise.url, noise.head, tmp_path / "z", limits=GitLimits(received_bytes=1 << 20))


def test_a_silent_git_server_is_disconnected_in_time(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"
        with pytest.raises(StoreError, match="could not be fetched within 1 seconds"):
            fetch(url, "a" * 40, tmp_path / "x", limits=GitLimits(time=timedelta(seconds=1)))


def test_a_missing_repository_or_commit_is_reported(server: GitServer, tmp_path: Path) -> None:
    with pytest.raises(PypiError, match="There is no Git repository at"):
        fetch(f"{server.url}/acme/none.git", "a" * 40, tmp_path / "x")


def test_a_tree_whose_paths_fill_the_listing_is_refused_before_it_is_written(
    server: GitServer, tmp_path: Path
) -> None:
    repository = server.create("acme/bomb")
    blob = git("hash-object", "-w", "--stdin", cwd=repository.work, stdin="boom\n")
    lines = "".join(f"100644 blob {blob}\t{number:03}{'x' * 250}\n" for number in range(1000))
    key = git("mktree", cwd=repository.work, stdin=lines)
    for _ in range(14):
        key = git("mktree", cwd=repository.work, stdin=f"040000 tree {key}\t{'d' * 250}\n")
    lines = "".join(f"040000 tree {key}\t{number:03}\n" for number in range(40))
    long = git("mktree", cwd=repository.work, stdin=lines)
    zeros = repository.work / "zeros"
    zeros.write_bytes(bytes(3 << 20))
    large = git("hash-object", "-w", "zeros", cwd=repository.work)
    lines = f"040000 tree {long}\ta\n100644 blob {large}\tz\n"
    key = git("mktree", cwd=repository.work, stdin=lines)
    commit = git("commit-tree", "-m", "Bomb", key, cwd=repository.work)
    git("reset", "--quiet", "--soft", commit, cwd=repository.work)
    repository.publish()
    with pytest.raises(PypiError, match="has more than"):
        fetch(repository.url, commit, tmp_path / "x", limits=GitLimits(tree_bytes=2 << 20))
