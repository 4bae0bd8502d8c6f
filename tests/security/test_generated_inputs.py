"""Properties of what is read from strangers: it is refused in our words, or it is harmless."""

from __future__ import annotations

import contextlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import event, given, note

from condastore.errors import SpecificationError, StoreError
from environments.domain.lock import Lock
from environments.domain.lockfiles import read_conda_lock, read_explicit
from environments.domain.specification import Specification
from environments.domain.specification_forms import parse_specification
from environments.domain.unpacking import DEFAULT_LIMITS
from environments.domain.urls import canonical_url
from environments.engine.packages.cache import PackageCache
from environments.engine.packages.package_validation import read_package
from environments.engine.prefix.linking import link
from tests import factories
from tests.environments.engine.package_fixtures import lock_of
from tests.security.strategies import (
    conda_locks,
    environment_files,
    explicit_lists,
    generated,
    packages,
)
from tests.security.test_package_contents import Hostile, package

SECRET = b"of the installation"


class Place:
    """A cache, and a folder beside it that packages must not reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outside = folder / "outside"
        self.outside.mkdir()
        (self.outside / "secret_key").write_bytes(SECRET)
        self.cache = PackageCache(folder / "cache")
        self.number = 0

    def beside(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Everything that lies beside the cache and the channels, with links, modes and content."""
        found = {}
        for root, _, names in os.walk(self.outside):
            for name in names:
                path = Path(root, name)
                status = path.lstat()
                found[str(path)] = (
                    status.st_nlink,
                    status.st_mode,
                    status.st_ino,
                    path.read_bytes(),
                )
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("generated"))


def assert_holds_nothing_from_outside(tree: Path, own: Path) -> None:
    """Only files, folders and links; each link ends in the tree, no file is the secret."""
    for root, folders, names in os.walk(tree):
        for name in (*folders, *names):
            path = Path(root, name)
            if path.is_symlink():
                end = Path(os.path.normpath(Path(root) / path.readlink()))
                assert end.is_relative_to(own), path
                # Nor by way of other links, whatever they end at.
                assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(own)), path
            elif path.is_file():
                assert SECRET not in path.read_bytes(), path
                assert not path.stat().st_mode & 0o6022, (path, oct(path.stat().st_mode))
            else:
                assert path.is_dir(), path


def test_a_generated_package_is_refused_or_reaches_nothing(place: Place) -> None:
    """By the package cache and, of the same bytes, by the reader of uploads."""
    linked = 0

    @generated(120)
    @given(packages(str(place.outside), Hostile))
    def check(hostile: Hostile) -> None:
        nonlocal linked
        place.number += 1
        folder = place.folder / f"channel-{place.number}"
        try:
            record = package(folder, "tool", hostile)
        except (ValueError, OSError, LookupError, TypeError, AttributeError):
            return  # no archive holds it, or no channel lists it
        archive = folder / record.file_name
        before = place.beside()
        try:
            uploaded = read_package(archive, record.file_name, limits=DEFAULT_LIMITS)
        except StoreError:
            uploaded = None
        note(str([(info.name, info.type, info.linkname) for info, _ in hostile.payload]))
        prefix = place.folder / f"prefix-{place.number}"
        refused = ""
        try:
            [cached] = place.cache.ensure([record])
        except StoreError as error:
            refused = error.message
            assert refused
        # What the cache refuses no hosted channel takes.
        assert uploaded is None or not refused, (refused, uploaded)
        if not refused:
            assert_holds_nothing_from_outside(cached.folder, cached.folder)
            with contextlib.suppress(StoreError):  # such as a path that is conda's own
                link(
                    lock_of(record),
                    target=prefix,
                    final_prefix=prefix,
                    cache=place.cache,
                    packages=[cached],
                    requested=[],
                    variables={},
                    moment=datetime(2026, 1, 1, tzinfo=UTC),
                    note="",
                )
                linked += 1
            assert_holds_nothing_from_outside(prefix, prefix)
        assert place.beside() == before
        shutil.rmtree(folder)
        shutil.rmtree(prefix, ignore_errors=True)

    check()
    assert linked > 5, "too few packages were good: nothing was tried"


def names_and_urls_are_canonical(lock: Lock) -> None:
    for part in lock:
        for record in part.conda:
            assert canonical_url(record.url) == record.url
            assert record.file_name == record.url.rsplit("/", 1)[1]
            assert record.name == record.name.lower()
            assert record.file_name.startswith(f"{record.name}-{record.version}-{record.build}.")
            assert canonical_url(record.channel) == record.channel
        for wheel in part.pypi:
            assert canonical_url(wheel.url) == wheel.url
            assert wheel.name == wheel.name.lower().replace("_", "-")
            assert wheel.file_name.endswith(".whl")
            assert len(wheel.sha256) == 64


@generated(150)
@given(explicit_lists())
def test_a_generated_explicit_list_is_refused_or_canonical(text: str) -> None:
    try:
        lock = read_explicit(text, default_platform="linux-64")
    except StoreError as error:
        says_where(error)
        return
    event("read")
    names_and_urls_are_canonical(lock)


@generated(150)
@given(conda_locks())
def test_a_generated_conda_lock_is_refused_or_canonical(text: str) -> None:
    try:
        lock = read_conda_lock(text)
    except StoreError as error:
        says_where(error)
        return
    event("read")
    names_and_urls_are_canonical(lock)


@generated(150)
@given(environment_files())
def test_a_generated_environment_file_is_refused_or_reads_the_same_again(text: str) -> None:
    try:
        submission = parse_specification(text, defaults=factories.DEFAULTS)
    except StoreError as error:
        says_where(error)
        return
    event("read")
    found = submission.specification
    assert Specification.from_json(found.to_json()).digest == found.digest
    again = parse_specification(submission.source, defaults=factories.DEFAULTS)
    assert again.specification == found
    assert not again.credentials
    for channel in found.channels:
        assert canonical_url(channel) == channel


def says_where(error: StoreError) -> None:
    """Each fault has a message and, unless the whole text is meant, its place."""
    assert error.message
    faults = error.faults if isinstance(error, SpecificationError) else [error]
    assert faults
    for fault in faults:
        assert fault.message
        assert "Traceback" not in fault.message
