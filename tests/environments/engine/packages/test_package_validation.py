"""Validation of uploaded packages and wheels, with the reason of each refusal."""

from __future__ import annotations

import io
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from condastore.errors import PackageInvalidError
from environments.domain.unpacking import Limits
from environments.engine.packages.package_validation import read_package
from environments.engine.pypi.wheel_conversion import convert
from tests.channels.simple_index import make_wheel
from tests.environments.engine.packing import (
    INDEX,
    STEM,
    conda,
    entry,
    info_entries,
    tar,
    tar_bz2,
)

LIMITS = Limits(unpacked=80 << 20, entries=1_000)


def read(tmp_path: Path, content: bytes, name: str = f"{STEM}.conda") -> dict[str, Any]:
    path = tmp_path / "upload"
    path.write_bytes(content)
    return read_package(path, name, limits=LIMITS)


def refusal(tmp_path: Path, content: bytes, name: str = f"{STEM}.conda") -> str:
    with pytest.raises(PackageInvalidError) as caught:
        read(tmp_path, content, name)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "name"),
    [(conda([entry("a/b")]), f"{STEM}.conda"), (tar_bz2([entry("a/b")]), f"{STEM}.tar.bz2")],
)
def test_a_valid_package_gives_its_record_and_nothing_else(
    content: bytes, name: str, tmp_path: Path
) -> None:
    assert read(tmp_path, content, name) == INDEX


def test_every_package_of_the_test_channel_is_accepted(small_channel: Path) -> None:
    for path in sorted(small_channel.glob("noarch/*.*")):
        if path.name.endswith((".conda", ".tar.bz2")):
            assert read_package(path, path.name, limits=Limits())["name"]


def link(path: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Any:
    return entry(path, b"", type=kind, linkname=target)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([entry("../out")], "leads out"),
        ([entry("a/../../out")], "leads out"),
        ([entry("/etc/passwd")], "leads out"),
        ([entry("C:/windows")], "leads out"),
        ([entry("a\\..\\b")], "leads out"),
        ([entry("a\nb")], "cannot be printed"),
        ([entry("a" * 300)], "too long"),
        ([entry("a"), entry("a")], "twice"),
        ([entry("a"), entry("./a")], "twice"),
        ([entry("a"), entry("a/b")], "which is a file"),
        ([link("a", "/etc"), entry("a/b")], "leads out of the package"),
        ([link("b/a", "../../etc")], "leads out of the package"),
        ([link("a", "")], "leads out of the package"),
        ([link("x/y/a", "../.."), link("c", "x/y/a/../secret")], "leads out of the package"),
        ([link("a", "b"), link("b", "a")], "leads out of the package"),
        ([link("d", "share"), entry("d/x")], "which is a file"),
        ([link("a", "/etc/passwd", tarfile.LNKTYPE)], "earlier file of the package"),
        ([link("a", "later", tarfile.LNKTYPE), entry("later")], "earlier file of the package"),
        ([link("s", "x"), link("a", "s", tarfile.LNKTYPE)], "earlier file of the package"),
        ([entry("a", b"", type=tarfile.CHRTYPE)], "only files, links and folders"),
        ([entry("a", b"", type=tarfile.FIFOTYPE)], "only files, links and folders"),
        ([entry("info/index.json", b"{}")], "twice"),
        ([entry("conda-meta/history")], "reserved for conda"),
        ([entry("conda-meta")], "reserved for conda"),
    ],
)
@pytest.mark.parametrize("kind", ["conda", "tar.bz2"])
def test_what_no_package_may_hold_is_refused(
    bad: list[Any], why: str, kind: str, tmp_path: Path
) -> None:
    info = info_entries()
    content = conda(bad, info=info) if kind == "conda" else tar_bz2(bad, info=info)
    assert why in refusal(tmp_path, content, f"{STEM}.{kind}")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "other"}, "The metadata is for other-1.0-0.conda"),
        ({"version": "1.1"}, "The metadata is for"),
        ({"build": "1"}, "The metadata is for"),
        ({"name": None}, "name is missing"),
        ({"subdir": None}, "subdir is missing"),
        ({"subdir": "moon-64"}, "not a supported platform"),
        ({"subdir": "linux-64"}, "must use subdir noarch, not linux-64"),
        ({"noarch": "lua"}, "noarch must be python or generic"),
        ({"name": "../x"}, "not a valid package name"),
        ({"version": ["1"]}, "version must be a text"),
        ({"build": "0/1"}, "not a valid build string"),
        ({"build_number": -1}, "build_number"),
        ({"timestamp": "today"}, "timestamp"),
        ({"depends": "python"}, "must be a list"),
        ({"depends": ["python >=3,<<"]}, "is not a valid requirement"),
        ({"license": "x" * 2000}, "license must be a text"),
    ],
)
def test_an_index_that_is_wrong_is_refused(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    index = {key: value for key, value in {**INDEX, **changes}.items() if value is not None}
    assert why in refusal(tmp_path, conda(info=info_entries(index=index)))


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    index = {**INDEX, "subdir": "moon-64", "depends": ["<<"], "build_number": "x"}
    reported = refusal(tmp_path, conda([entry("../a")], info=info_entries(index=index)))
    assert "leads out" in reported
    reported = refusal(tmp_path, conda(info=info_entries(index=index)))
    assert all(one in reported for one in ("moon-64", "<<", "build_number"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a readable package"),
        (b"PK\x05\x06", "not a readable package"),
        (b"no archive at all" * 1000, "not a readable package"),
        (conda(info=[]), "no such file"),
        (conda(info=info_entries(index=b"[" * 100_000)), "must be a JSON object"),
        (conda(info=info_entries(index=b"\xff")), "must be a JSON object"),
        (conda(info=info_entries([entry("gone")])), "is not in the package"),
        (conda(stem="other-1.0-0"), "one info- part and one pkg- part only"),
        (conda(more={"extra": b""}), "one info- part and one pkg- part only"),
        (conda(compression=zipfile.ZIP_DEFLATED), "compressed again"),
        (conda(tar([entry("a")], end=False)), "truncated"),
        (conda(tar([entry("a", b"y" * 5000)])[:3000]), "truncated"),
        (conda(tar([entry("a"), entry("b")])[:1024] + b"garbage" * 200), "truncated or damaged"),
        (conda(tar([entry("a")]) + b"more"), "follows its end"),
        (conda([entry(f"f{n}") for n in range(1_001)]), "more than 1,000 entries"),
    ],
)
def test_truncated_and_malformed_files_are_refused(
    content: bytes, why: str, tmp_path: Path
) -> None:
    assert why in refusal(tmp_path, content)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    content = bytearray(conda([entry("a", bytes(range(256)) * 50)]))
    content[len(content) // 4] ^= 1
    assert "not a readable package" in refusal(tmp_path, bytes(content))


def zeros(size: int, *, header: tarfile.TarInfo) -> bytes:
    """A tar of one entry of `size` zeros, compressed to next to nothing."""
    header.size = size
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=1).stream_writer(out, closefd=False) as writer:
        writer.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            writer.write(bytes(1 << 20))
        writer.write(bytes(1024))
    return out.getvalue()


def packed(part: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr(f"pkg-{STEM}.tar.zst", part)
        archive.writestr(f"info-{STEM}.tar.zst", zstandard.compress(tar(info_entries())))
    return out.getvalue()


def extended(kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo("pax")
    header.type = kind
    return header


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (tarfile.TarInfo("large"), "unpacks to more than"),
        # tarfile keeps the whole of these in memory.
        (extended(tarfile.XHDTYPE), "too long"),
        (extended(tarfile.GNUTYPE_LONGNAME), "too long"),
    ],
)
def test_a_bomb_is_refused_before_it_takes_memory(
    header: tarfile.TarInfo, why: str, tmp_path: Path
) -> None:
    content = packed(zeros(200 << 20, header=header))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert why in refusal(tmp_path, content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_a_directory_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    content = bytearray(conda() + bytes(16 << 20) + conda())
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 20] = (10 << 20).to_bytes(4, "little") + (100).to_bytes(4, "little")
    assert "too long" in refusal(tmp_path, bytes(content))


# --- wheels -------------------------------------------------------------------------------------


def wheel(tmp_path: Path, **changes: Any) -> Path:
    created = make_wheel("acme-tools", "1.2", files={"acme_tools.py": "x = 1\n"}, **changes)
    path = tmp_path / "wheel"
    assert isinstance(created.content, bytes)
    path.write_bytes(created.content)
    return path


def test_a_pure_wheel_becomes_a_package_whose_dependencies_have_condas_names(
    tmp_path: Path,
) -> None:
    path = wheel(tmp_path, requires=["torch>=2", "tomli; python_version<'3.11'"])
    created = convert(path, "acme_tools-1.2-py3-none-any.whl", limits=Limits())
    assert created.path.parent == tmp_path
    record = read_package(created.path, created.file_name, limits=Limits())
    assert (record["name"], record["version"], record["noarch"]) == ("acme-tools", "1.2", "python")
    assert "pytorch >=2" in record["depends"]
    assert any("tomli" in warning for warning in created.warnings)  # conda cannot say it
    assert created.file_name == "acme-tools-1.2-py_0.conda"
    # The same name, converted at the same time for another team, is another file.
    again = convert(path, "acme_tools-1.2-py3-none-any.whl", limits=Limits())
    assert (again.file_name, again.path != created.path) == (created.file_name, True)
    assert set(tmp_path.iterdir()) == {path, created.path, again.path}


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("acme_tools-1.2-cp311-cp311-linux_x86_64.whl", lambda path: path, "not pure Python"),
        ("acme.whl", lambda path: path, "not a valid wheel file name"),
        (
            "acme_tools-1.2-py3-none-any.whl",
            lambda path: path.write_bytes(b"x"),
            "not a readable zip archive",
        ),
        ("acme_tools-1.2-py3-none-any.whl", lambda path: with_entry(path, "../x"), "leads out"),
        ("other-1.2-py3-none-any.whl", lambda path: path, "other"),
    ],
)
def test_other_wheels_are_refused(
    name: str, change: Callable[[Path], Any], why: str, tmp_path: Path
) -> None:
    path = wheel(tmp_path)
    change(path)
    with pytest.raises(PackageInvalidError, match=why):
        convert(path, name, limits=Limits())
    assert [one.name for one in tmp_path.iterdir()] == ["wheel"]


def with_entry(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
