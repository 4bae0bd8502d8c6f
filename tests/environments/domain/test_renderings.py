"""What other tools read of our lock files, and we of theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from rattler import LockFile
from rattler.explicit_environment import ExplicitEnvironmentSpec

from condastore.errors import ConflictError, NotFoundError, SpecificationError
from environments.domain.lock import Lock
from environments.domain.lockfiles import is_complete, read_conda_lock, read_explicit
from environments.domain.rendering import (
    conda_lock_yml,
    environment_yml,
    explicit_txt,
    pixi_lock,
)
from environments.domain.specification import Defaults
from environments.domain.specification_forms import parse_specification
from tests.environments.domain.packages import (
    CHANNEL,
    conda,
    locks,
    platform_lock,
    pypi,
    small_lock,
)

SPECIFICATION = parse_specification(
    "name: ml\nvariables: {A: '1'}\ndependencies: [python]", defaults=Defaults()
).specification


@settings(max_examples=40, deadline=None)
@given(locks())
def test_a_lock_survives_conda_lock_yml(lock: Lock) -> None:
    again = read_conda_lock(conda_lock_yml(lock))
    assert again.digest == lock.digest
    assert again.channels[: len(lock.channels)] == lock.channels
    for part in lock:
        read = again.on(part.platform)
        assert read is not None
        assert {p.name: sorted(p.depends) for p in read.conda} == {
            p.name: sorted(p.depends) for p in part.conda
        }
        assert [p.name for p in read.conda] == [p.name for p in part.conda]


@settings(max_examples=40, deadline=None)
@given(locks())
def test_a_lock_survives_its_explicit_lists(lock: Lock) -> None:
    for part in lock:
        read = read_explicit(explicit_txt(lock, part.platform), default_platform="linux-64")
        assert read.digest == Lock(channels=(), platforms=(part,)).digest
        assert [p.url for p in read.platforms[0].conda] == [p.url for p in part.conda]


@pytest.mark.parametrize(
    ("version", "escaped"), [("1.0+cu118", "1.0%2Bcu118"), ("1!2.0", "1%212.0")]
)
def test_conda_finds_the_version_in_the_file_name(version: str, escaped: str) -> None:
    """conda does not decode what it reads there (conda/conda-lock#764)."""
    package = conda("torch", version=version)
    package = replace(package, url=package.url.replace(version, escaped))
    assert escaped in package.url
    lock = Lock(channels=(CHANNEL,), platforms=(platform_lock(package),))
    listed = explicit_txt(lock, "linux-64")
    for text in (listed, conda_lock_yml(lock)):
        assert f"/torch-{version}-" in text
        assert escaped not in text
    (read,) = read_explicit(listed, default_platform="linux-64").platforms[0].conda
    assert (read.version, read.sha256) == (version, package.sha256)


@settings(max_examples=40, deadline=None)
@given(locks())
def test_the_same_lock_gives_the_same_bytes(lock: Lock) -> None:
    again = Lock.from_json(lock.to_json())
    assert again == lock
    assert conda_lock_yml(again, SPECIFICATION) == conda_lock_yml(lock, SPECIFICATION)
    assert pixi_lock(again) == pixi_lock(lock)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(locks())
def test_rattler_reads_our_pixi_lock(tmp_path_factory: pytest.TempPathFactory, lock: Lock) -> None:
    path = tmp_path_factory.mktemp("pixi") / "pixi.lock"
    path.write_text(pixi_lock(lock, indexes=["https://pypi.org/simple"]))
    file = LockFile.from_path(path)
    environment = file.default_environment()
    assert environment is not None
    read = {platform.name: environment.packages(platform) or [] for platform in file.platforms()}
    for part in lock:
        assert sorted(p.location for p in read[part.platform]) == sorted(
            [p.url for p in part.conda] + [p.url for p in part.pypi]
        )


def test_rattler_reads_the_channels_own_records_from_our_pixi_lock(
    small_channel: Path, tmp_path: Path
) -> None:
    lock = small_lock(small_channel)
    path = tmp_path / "pixi.lock"
    path.write_text(pixi_lock(lock))
    environment = LockFile.from_path(path).default_environment()
    assert environment is not None
    records = environment.conda_repodata_records()
    for part in lock:
        read = {record.url: record for record in records[part.platform]}
        for package in part.conda:
            record = read[package.url]
            assert record.sha256 is not None
            assert record.sha256.hex() == package.sha256
            assert (record.name.normalized, str(record.version), str(record.build)) == (
                package.name,
                package.version,
                package.build,
            )
            assert record.build_number == package.build_number
            assert tuple(record.depends) == package.depends
            assert tuple(record.constrains) == package.constrains
            assert record.size == package.size
            assert (record.license or "") == package.license
            assert ("python" if record.noarch.python else "") == (
                "python" if package.noarch == "python" else ""
            )
    hashes = [p.hashes for p in environment.pypi_packages()["linux-64"]]
    assert [h.sha256.hex() for h in hashes if h and h.sha256] == [pypi("six").sha256]


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")
def test_conda_lock_reads_ours_and_we_read_what_it_writes(
    small_channel: Path, tmp_path: Path
) -> None:
    from conda_lock.lockfile import parse_conda_lock_file, write_conda_lock_file

    lock = small_lock(small_channel)
    ours, theirs = tmp_path / "conda-lock.yml", tmp_path / "theirs-lock.yml"
    ours.write_text(conda_lock_yml(lock, SPECIFICATION))
    content = parse_conda_lock_file(ours)
    assert [channel.url for channel in content.metadata.channels] == [CHANNEL]
    assert content.metadata.platforms == ["linux-64", "osx-arm64"]
    assert len(content.package) == sum(len(part.conda) + len(part.pypi) for part in lock)
    write_conda_lock_file(content, theirs, metadata_choices=None)
    assert read_conda_lock(theirs.read_text()).digest == lock.digest
    assert read_conda_lock(ours.read_text()).digest == lock.digest


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")
def test_conda_lock_renders_the_same_explicit_list(small_channel: Path, tmp_path: Path) -> None:
    from conda_lock.conda_lock import render_lockfile_for_platform
    from conda_lock.lockfile import parse_conda_lock_file

    lock = small_lock(small_channel)
    path = tmp_path / "conda-lock.yml"
    path.write_text(conda_lock_yml(lock))
    theirs = render_lockfile_for_platform(
        lockfile=parse_conda_lock_file(path),
        extras=set(),
        kind="explicit",
        platform="linux-64",
        include_dev_dependencies=True,
    )
    ours = explicit_txt(lock, "linux-64")
    requested = {line for line in theirs if line.startswith("http")}
    assert {line for line in ours.splitlines() if line.startswith("http")} == requested
    part = lock.on("linux-64")
    assert part is not None
    read = read_explicit("\n".join(theirs), default_platform="osx-64").platforms
    assert sorted(p.url for p in read[0].pypi) == sorted(p.url for p in part.pypi)


def test_rattler_reads_our_explicit_list(small_channel: Path) -> None:
    lock = small_lock(small_channel)
    spec = ExplicitEnvironmentSpec.from_str(explicit_txt(lock, "linux-64"))
    part = lock.on("linux-64")
    assert part is not None
    assert str(spec.platform) == "linux-64"
    assert [p.url.partition("#")[0] for p in spec.packages] == [p.url for p in part.conda]


def test_a_package_without_md5_is_listed_by_its_sha256() -> None:
    package = conda("numpy", md5="")
    lock = Lock(channels=(CHANNEL,), platforms=(platform_lock(package),))
    text = explicit_txt(lock, "linux-64")
    assert f"{package.url}#sha256:{package.sha256}" in text
    assert read_explicit(text, default_platform="win-64").digest == lock.digest
    with pytest.raises(ConflictError, match=r"numpy-1\.0-h0_0\.conda has none"):
        conda_lock_yml(lock)


def test_the_pinned_environment_file_asks_for_exactly_the_lock() -> None:
    other = "https://example.org/own"
    lock = Lock(
        channels=(CHANNEL, other),
        platforms=(
            platform_lock(
                conda("python", "3.11.1"), conda("own", "2.0", channel=other), pypi("six", "1.16")
            ),
        ),
    )
    text = environment_yml(lock, "linux-64", SPECIFICATION)
    specification = parse_specification(text, defaults=Defaults()).specification
    assert specification.channels == lock.channels
    assert "nodefaults" not in text  # conda with the rattler solver asks for such a channel
    assert specification.name == "ml"
    assert specification.variables == {"A": "1"}
    assert specification.dependencies["linux-64"] == (
        'own ==2.0 h0_0[channel="https://example.org/own/"]',
        "pip",
        "python ==3.11.1 h0_0",
    )
    assert specification.pip["linux-64"] == ("six==1.16",)


def test_a_lock_without_pip_says_how_clients_take_it() -> None:
    python, wheel = conda("python", "3.11.1"), pypi("six", "1.16")
    pip = conda("pip", "24.0")
    bare = Lock(channels=(CHANNEL,), platforms=(platform_lock(python),))
    assert "CONDA_ADD_PIP_AS_PYTHON_DEPENDENCY=false" in environment_yml(bare, "linux-64")
    wheels = Lock(channels=(CHANNEL,), platforms=(platform_lock(python, wheel),))
    assert "no pip (linux-64)" in conda_lock_yml(wheels)
    assert read_conda_lock(conda_lock_yml(wheels)).digest == wheels.digest
    complete = Lock(channels=(CHANNEL,), platforms=(platform_lock(python, pip, wheel),))
    assert "no pip" not in conda_lock_yml(complete)
    assert "ADD_PIP" not in environment_yml(complete, "linux-64")


def test_a_platform_that_is_not_locked_is_not_found() -> None:
    lock = Lock(channels=(), platforms=(platform_lock(conda("a")),))
    with pytest.raises(NotFoundError) as caught:
        explicit_txt(lock, "win-64")
    assert caught.value.hint == "It is for: linux-64."


def test_what_a_lock_file_cannot_say_is_known_to_be_missing() -> None:
    lock = Lock(channels=(CHANNEL,), platforms=(platform_lock(conda("a")),))
    (package,) = read_conda_lock(conda_lock_yml(lock)).platforms[0].conda
    assert is_complete(lock.platforms[0].conda[0])
    assert not is_complete(package)


_ENTRY = """\
- {{name: a, version: '1', manager: conda, platform: linux-64, dependencies: {{}},
   url: {url}, hash: {hash}, category: main, optional: false}}
"""


def _lock_text(url: str = f"{CHANNEL}/linux-64/a-1-0.conda", digest: str = "") -> str:
    digest = digest or f"{{md5: {'0' * 32}, sha256: {'0' * 64}}}"
    return (
        "version: 1\nmetadata: {channels: [{url: conda-forge, used_env_vars: []}], "
        "platforms: [linux-64]}\npackage:\n" + _ENTRY.format(url=url, hash=digest)
    )


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        (
            _lock_text().replace("version: 1\n", "version: 2\n"),
            "only version 1 is supported",
            "line 1",
        ),
        (_lock_text(digest="{}"), "No hash", "package[0], line 4"),
        (_lock_text(digest="{md5: xyz}"), "not hexadecimal", "package[0], line 4"),
        (_lock_text().replace("manager: conda, ", ""), "no manager", "package[0], line 4"),
        (
            _lock_text().replace("manager: conda", "manager: npm"),
            "'npm' is not a known package manager",
            "package[0], li",
        ),
        (_lock_text().replace("linux-64, dep", "linux64, dep"), "not a known platform", "line 4"),
        (_lock_text(url=f"{CHANNEL}/win-64/a-1-0.conda"), "for win-64, not", "package[0], line 4"),
        (_lock_text(url=f"{CHANNEL}/linux-64/a.conda"), "not the URL of a conda", "package[0]"),
        (_lock_text(url=f"{CHANNEL}/linux-64/b-1-0.conda"), "is not a 1", "package[0]"),
        (_lock_text(url="../a-1-0.conda"), "not the URL", "line 4"),
        (_lock_text(url="https://h/x/../linux-64/a-1-0.conda"), "contains `..`", "line 4"),
        (
            _lock_text()
            + _ENTRY.format(url=f"{CHANNEL}/noarch/a-1-0.conda", hash=f"{{md5: {'1' * 32}}}"),
            "is listed twice for linux-64",
            "line 6",
        ),
    ],
)
def test_a_fault_of_a_lock_file_is_named(text: str, message: str, where: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        read_conda_lock(text)
    faults = [(f.message, f.where) for f in caught.value.faults]
    assert any(message in said and location.startswith(where) for said, location in faults), faults


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{CHANNEL}/linux-64/a-1-0.conda#abc", "not hexadecimal"),
        (f"{CHANNEL}/win-64/a-1-0.conda#{'0' * 32}", "is for win-64; the list is for linux-64"),
        ("numpy=1.24", "not the URL of a package"),
        ("/home/me/a-1-0.conda", "not the URL of a package"),
        (f"# pip six @ https://h/six-1.16-py3-none-any.whl#md5={'0' * 32}", "no sha256"),
        (f"# pip six @ https://h/six.zip#sha256={'0' * 64}", "Not the URL of a wheel"),
    ],
)
def test_a_fault_of_an_explicit_list_is_named_with_its_line(line: str, message: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        read_explicit(f"# platform: linux-64\n@EXPLICIT\n{line}\n", default_platform="linux-64")
    assert message in caught.value.faults[0].message
    assert "line 3" in caught.value.faults[0].where


def test_credentials_in_a_lock_are_taken_out_of_lock_and_source() -> None:
    text = _lock_text(url="https://me:PASS@h.org/t/TOKEN/own/linux-64/a-1-0.conda")
    submission = parse_specification(text, defaults=Defaults())
    assert submission.specification.kind == "lock"
    assert submission.specification.lock is not None
    assert submission.specification.lock.platforms[0].conda[0].url == (
        "https://h.org/own/linux-64/a-1-0.conda"
    )
    assert {c.kind for c in submission.credentials} == {"basic", "token"}
    for retained in (submission.source, repr(submission), str(submission.specification.to_json())):
        assert "PASS" not in retained
        assert "TOKEN" not in retained
    token = next(c for c in submission.credentials if c.kind == "token")
    assert token.authenticated("https://h.org/own/noarch/x") == (
        "https://h.org/t/TOKEN/own/noarch/x"
    )


def test_an_explicit_list_without_its_platform_is_read_for_the_default_with_a_warning() -> None:
    submission = parse_specification(
        f"@EXPLICIT\n{CHANNEL}/noarch/a-1-0.conda#{'0' * 32}\n",
        defaults=Defaults(platforms=("osx-arm64",)),
    )
    assert submission.specification.kind == "explicit"
    assert submission.specification.platforms == ("osx-arm64",)
    assert "osx-arm64 is assumed" in submission.warnings[0]
