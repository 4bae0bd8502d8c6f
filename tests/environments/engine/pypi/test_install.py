"""Installation of wheels: the same files as an installer writes, shared between prefixes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import stat
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import DownloadError, LeaseLostError, LinkError
from environments.domain.records import PypiPackage
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.prefix.interpreter import Interpreter
from environments.engine.pypi.install import WheelCache, WheelReport, install_wheels
from environments.engine.system.sandbox import can_sandbox
from tests.channels.server import Fault, serving
from tests.channels.simple_index import Distribution, make_wheel
from tests.environments.engine.conftest import Linked

Link = Callable[..., Linked]
CONDA = "hello-noarch"


@pytest.fixture
def cache(tmp_path: Path, shared_cache: Any) -> WheelCache:
    return WheelCache(shared_cache.folder.parent / f"wheels-{tmp_path.name}")


def stored(distribution: Distribution, folder: Path) -> PypiPackage:
    """A wheel as a lock names it, its file in `folder`."""
    folder.mkdir(exist_ok=True)
    path = folder / distribution.file_name
    assert isinstance(distribution.content, bytes)
    path.write_bytes(distribution.content)
    return PypiPackage(
        name=distribution.project,
        version=distribution.version,
        file_name=path.name,
        url=path.as_uri(),
        sha256=distribution.sha256,
        size=distribution.size,
        requires=(),
        requires_python="",
        license="",
    )


def install(made: Linked, cache: WheelCache, *wheels: PypiPackage) -> WheelReport:
    return install_wheels(
        cache.ensure(wheels), target=made.prefix, final_prefix=made.final, python=made.python
    )


@pytest.fixture
def greeter() -> Distribution:
    return make_wheel(
        "greeter",
        "1.2",
        files={
            "greeter/__init__.py": "import sys\ndef main():\n    print('hi from', sys.prefix)\n",
            "greeter/data.txt": "data\n",
            "greeter-1.2.data/scripts/greet-script": "#!python\nimport greeter; greeter.main()\n",
            "greeter-1.2.data/scripts/greet-shell": "#!/bin/sh\necho shell\n",
            "greeter-1.2.data/data/share/greeter/note.txt": "note\n",
        },
        scripts={"greet": "greeter:main"},
    )


def test_modules_data_and_scripts_work_in_the_final_place(
    linked: Link, cache: WheelCache, greeter: Distribution, tmp_path: Path
) -> None:
    created = linked()
    report = install(created, cache, stored(greeter, tmp_path / "index"))
    created.prefix.rename(created.final)
    for script in ("greet", "greet-script"):
        assert run(created.final / "bin" / script) == f"hi from {created.final}"
    assert run(created.final / "bin" / "greet-shell") == "shell"
    assert (created.final / "share" / "greeter" / "note.txt").read_text() == "note\n"
    version = "import importlib.metadata as m; print(m.version('greeter'))"
    assert run(created.final / "bin" / "python", "-c", version) == "1.2"
    assert report.paths == 11  # RECORD and INSTALLER too


def run(*command: Path | str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_record_lists_every_file_with_its_digest(
    linked: Link, cache: WheelCache, greeter: Distribution, tmp_path: Path
) -> None:
    created = linked()
    install(created, cache, stored(greeter, tmp_path / "index"))
    site_packages = created.prefix / created.python.site_packages
    dist_info = site_packages / "greeter-1.2.dist-info"
    assert (dist_info / "INSTALLER").read_text().strip() == "condastore"
    listed = list(csv.reader((dist_info / "RECORD").read_text().splitlines()))
    for path, digest, size in listed:
        content = (site_packages / path).read_bytes()
        if path.endswith("/RECORD"):
            assert (digest, size) == ("", "")
            continue
        found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert (digest, size) == (f"sha256={found}", str(len(content))), path
    assert len(listed) == 11


def test_files_are_shared_between_prefixes(
    linked: Link, cache: WheelCache, greeter: Distribution, tmp_path: Path
) -> None:
    wheel = stored(greeter, tmp_path / "index")
    inodes = []
    for _ in range(2):
        created = linked()
        report = install(created, cache, wheel)
        location = created.prefix / created.python.site_packages / "greeter" / "data.txt"
        inodes.append(location.stat().st_ino)
        assert 0 < report.bytes_unique < report.bytes_apparent
    assert inodes[0] == inodes[1]


def test_a_wheel_is_fetched_once(tmp_path: Path, cache: WheelCache, greeter: Distribution) -> None:
    wheel = stored(greeter, tmp_path / "index")
    with serving(tmp_path / "index") as server:
        wheel = replace(wheel, url=server.url + wheel.file_name)
        assert cache.ensure([wheel]) == cache.ensure([wheel])
        assert len(server.requests) == 1
        [entry] = cache.entries()
        assert entry[0] == wheel.sha256


def test_a_damaged_wheel_is_fetched_again(
    tmp_path: Path, cache: WheelCache, greeter: Distribution
) -> None:
    wheel = stored(greeter, tmp_path / "index")
    for damage in ("missing", "shorter", "note"):
        [cached] = cache.ensure([wheel])
        victim = cached.folder / "greeter" / "data.txt"
        if damage == "missing":
            victim.unlink()
        elif damage == "shorter":
            os.truncate(victim, 1)
        else:
            (cached.folder.parent / "contents.json").write_text("{}")
        cache.ensure([wheel])
        assert victim.read_text() == "data\n", damage


def test_wrong_bytes_are_refused(tmp_path: Path, cache: WheelCache, greeter: Distribution) -> None:
    wheel = stored(greeter, tmp_path / "index")
    with serving(tmp_path / "index") as server:
        server.faults.add(Fault("*.whl", wrong_bytes=True))
        with pytest.raises(DownloadError, match="differs from the lock"):
            cache.ensure([replace(wheel, url=server.url + wheel.file_name)])
    assert not list(cache.entries())


def test_its_files_are_compiled_with_the_rest(
    linked: Link, cache: WheelCache, greeter: Distribution, tmp_path: Path
) -> None:
    created = linked()
    report = install(created, cache, stored(greeter, tmp_path / "index"))
    bytecode = BytecodeCache(cache.folder.with_name(f"{cache.folder.name}-compiled"))
    tag = f"cpython-{created.python.version.replace('.', '')}"
    interpreter = Interpreter.from_packages(created.packages, created.python)
    bytecode.compile(report.sources, interpreter=interpreter, sandboxed=can_sandbox())
    linked_files = bytecode.link(report.sources, interpreter=interpreter, prefix=created.prefix)
    assert linked_files.files == 1
    folder = created.prefix / created.python.site_packages / "greeter" / "__pycache__"
    assert [path.name for path in folder.iterdir()] == [f"__init__.{tag}.pyc"]


def test_a_file_of_a_conda_package_is_never_replaced(
    linked: Link, cache: WheelCache, tmp_path: Path
) -> None:
    created = linked(CONDA)
    module = created.prefix / created.python.site_packages / "hello_noarch" / "__init__.py"
    before = (module.read_bytes(), module.stat())
    script = (created.prefix / "bin" / "hello-noarch").read_bytes()
    wheel = make_wheel(
        "intruder",
        "1",
        files={"hello_noarch/__init__.py": "", "hello_noarch/other.py": ""},
        scripts={"hello-noarch": "x:y"},
    )
    with pytest.raises(LinkError) as caught:
        install(created, cache, stored(wheel, tmp_path / "index"))
    assert "hello_noarch/__init__.py of intruder-1 already exists, from a conda package" in str(
        caught.value
    )
    assert "bin/hello-noarch" in str(caught.value)
    assert len(caught.value.details["faults"]) == 2
    assert module.read_bytes() == before[0]
    assert module.stat().st_mode == before[1].st_mode
    assert (created.prefix / "bin" / "hello-noarch").read_bytes() == script


def test_two_wheels_with_one_path_clash_unless_it_is_the_same_file(
    linked: Link, cache: WheelCache, tmp_path: Path
) -> None:
    def wheel(name: str, shared: str) -> PypiPackage:
        files = {"shared/__init__.py": shared, f"shared/{name}.py": ""}
        return stored(make_wheel(name, "1", files=files), tmp_path / "index")

    created = linked()
    install(created, cache, wheel("one", "same"), wheel("two", "same"))
    with pytest.raises(LinkError, match=r"shared/__init__\.py of four-1 .* from three-1"):
        install(linked(), cache, wheel("three", "1"), wheel("four", "2"))


def crafted(
    folder: Path,
    members: Mapping[str, bytes],
    *,
    record: str | None = None,
    link: str = "",
) -> PypiPackage:
    """A wheel whose members and RECORD are chosen freely."""
    contents = {
        **members,
        "evil-1.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
        "evil-1.dist-info/METADATA": b"Name: evil\nVersion: 1\n",
    }

    def line(path: str, content: bytes) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        return f"{path},sha256={digest},{len(content)}\n"

    listed = "".join(line(*item) for item in contents.items()) if record is None else record
    contents["evil-1.dist-info/RECORD"] = f"{listed}evil-1.dist-info/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in contents.items():
            member = zipfile.ZipInfo(path)
            member.external_attr = (stat.S_IFLNK if path == link else stat.S_IFREG | 0o644) << 16
            archive.writestr(member, content)
    data = buffer.getvalue()
    return stored(
        Distribution(
            project="evil",
            version="1",
            file_name="evil-1-py3-none-any.whl",
            content=data,
            metadata=None,
            requires_python="",
        ),
        folder,
    )


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ({"../outside.py": b"x"}, {}, "leads out of the package"),
        ({"a/../../outside.py": b"x"}, {}, "leads out of the package"),
        ({"/outside.py": b"x"}, {}, "leads out of the package"),
        ({"door": b"/etc"}, {"link": "door"}, "door.*a link or a device"),
        ({"evil.py": b"x"}, {"record": "evil.py,sha256=AAAA,1\n"}, "RECORD"),
        ({"evil.py": b"x"}, {"record": ""}, "RECORD"),
    ],
)
def test_malformed_wheels_are_refused(
    tmp_path: Path,
    cache: WheelCache,
    members: Mapping[str, bytes],
    options: Mapping[str, Any],
    message: str,
) -> None:
    with pytest.raises(LinkError, match=message):
        cache.ensure([crafted(tmp_path / "index", members, **options)])
    assert not list(tmp_path.rglob("outside.py"))
    assert not list(cache.folder.glob(".unpacking-*"))
    assert not list(cache.entries())


def test_data_cannot_leave_the_prefix(linked: Link, cache: WheelCache, tmp_path: Path) -> None:
    wheel = crafted(tmp_path / "index", {"evil-1.data/elsewhere/x": b"x"})
    with pytest.raises(LinkError, match="cannot be installed"):
        install(linked(), cache, wheel)


def test_a_file_that_is_not_a_zip_archive_is_refused(tmp_path: Path, cache: WheelCache) -> None:
    wheel = stored(
        replace(make_wheel("x", "1"), content=b"no archive", file_name="x-1-py3-none-any.whl"),
        tmp_path / "index",
    )
    with pytest.raises(LinkError, match="not a valid wheel"):
        cache.ensure([wheel])


def test_a_cancel_ends_the_installation(
    linked: Link, cache: WheelCache, greeter: Distribution, tmp_path: Path
) -> None:
    created = linked()
    wheels = cache.ensure([stored(greeter, tmp_path / "index")])
    with pytest.raises(LeaseLostError):
        install_wheels(
            wheels,
            target=created.prefix,
            final_prefix=created.final,
            python=created.python,
            cancelled=lambda: True,
        )


def test_partial_entries_of_killed_workers_are_removed(tmp_path: Path) -> None:
    cache = WheelCache(tmp_path)
    for name in (".unpacking-old", ".unpacking-new", "kept"):
        (tmp_path / name / "wheel").mkdir(parents=True)
    for name in (".unpacking-old", "kept"):
        os.utime(tmp_path / name, (1, 1))
    cache.remove_leftovers(older_than=timedelta(days=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unpacking-new", "kept"]
