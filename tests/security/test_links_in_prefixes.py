"""Links of packages against what is written into a prefix later: wheels, compiled files, variables.

A link is judged at the place where it is expected. rattler decides itself where it goes, so both
must read a package in the same way, and whatever follows a link later must not trust it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import LinkError, PackageInvalidError
from environments.domain.linking import PythonInfo
from environments.domain.records import CondaPackage
from environments.domain.unpacking import Limits
from environments.engine.packages import package_validation
from environments.engine.packages.cache import CachedPackage, PackageCache
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.prefix.interpreter import Interpreter
from environments.engine.prefix.linking import link
from environments.engine.prefix.python_sources import python_sources
from environments.engine.prefix.smoke_tests import run_smoke_tests
from environments.engine.pypi.install import WheelCache, install_wheels
from tests.channels.simple_index import make_wheel
from tests.environments.engine.package_fixtures import lock_of
from tests.environments.engine.packing import entry
from tests.environments.engine.pypi.test_install import stored
from tests.security.test_package_contents import Hostile, package, symlink, write

NOARCH_LINK = {"noarch": {"type": "python"}, "package_metadata_version": 1}
PYTHON = Hostile(
    payload=[entry("lib/python3.11/site.py", b"import honest\n"), entry("bin/python", b"x")],
    index={"name": "python", "version": "3.11.7"},
)
#: A link to the root of the package, far down.
ROOT = Hostile(payload=[symlink("d/d/d/d/l", "../../../.."), entry("share/root")])


def trap(**changes: Any) -> Hostile:
    """A link that stays inside where noarch packages go, and leads out where others go."""
    return replace(
        Hostile(
            payload=[symlink("site-packages/l", "../d/d/d/d/l/../../../../victim")],
            needs=["root"],
        ),
        **changes,
    )


def linked(
    folder: Path, *packages: CondaPackage, cached: Sequence[CachedPackage] | None = None
) -> Path:
    """The prefix of `packages`."""
    cache = PackageCache(folder / "data" / "cache")
    target = folder / "data" / "prefixes" / "eve" / "hidden"
    target.parent.mkdir(parents=True, exist_ok=True)
    link(
        lock_of(*packages),
        target=target,
        final_prefix=target.with_name("final"),
        cache=cache,
        packages=cached or cache.ensure(list(packages)),
        requested=[],
        variables={},
        moment=datetime.now(UTC),
        note="test",
    )
    return target


def test_both_documents_of_a_package_say_whether_it_is_noarch(tmp_path: Path) -> None:
    lying = trap(link=NOARCH_LINK)
    packages = [
        package(tmp_path / "channel", name, one)
        for name, one in (("python", PYTHON), ("root", ROOT), ("trap", lying))
    ]
    with pytest.raises(LinkError, match=r"noarch Python package in its info/link\.json"):
        linked(tmp_path, *packages)
    file_name, content, _ = write("trap", lying)
    (tmp_path / file_name).write_bytes(content)
    with pytest.raises(PackageInvalidError) as refused:
        package_validation.read_package(tmp_path / file_name, file_name, limits=Limits())
    assert "noarch is python" in str(refused.value.faults)


def test_a_noarch_package_that_says_so_twice_is_linked(tmp_path: Path) -> None:
    honest = Hostile(
        payload=[entry("site-packages/m.py", b"x = 1\n")],
        index={"noarch": "python", "subdir": "noarch"},
        link=NOARCH_LINK,
    )
    packages = [
        package(tmp_path / "channel", name, one)
        for name, one in (("python", PYTHON), ("honest", honest))
    ]
    target = linked(tmp_path, *packages)
    assert (target / "lib/python3.11/site-packages/m.py").exists()


@pytest.mark.parametrize("version", ["1!3.11.7", "3.11_1.0", "3.011.7", "03.11.7", "3", "3.11a1"])
def test_a_python_whose_minor_version_is_read_in_two_ways_is_refused(version: str) -> None:
    with pytest.raises(LinkError, match=r"does not start like 3\.12"):
        PythonInfo.of(version, platform="linux-64")


@pytest.mark.parametrize("version", ["3.11.7", "3.13.0rc1", "3.12", "2.7.18", "3.14.0.rc2"])
def test_an_ordinary_python_has_its_minor_version(version: str) -> None:
    minor = ".".join(version.split(".")[:2])
    assert PythonInfo.of(version, platform="linux-64").version == minor


def test_a_link_at_another_place_than_it_was_judged_is_refused(tmp_path: Path) -> None:
    """Whatever the cause: here the description of an entry is wrong."""
    inside = Hostile(payload=[entry("site-packages/m"), symlink("site-packages/l", "m")])
    packages = [
        package(tmp_path / "channel", name, one)
        for name, one in (("python", PYTHON), ("inside", inside))
    ]
    cached = PackageCache(tmp_path / "data" / "cache").ensure(packages)
    cached[-1] = replace(cached[-1], contents=replace(cached[-1].contents, noarch_python=True))
    with pytest.raises(LinkError, match="was not created where it was expected"):
        linked(tmp_path, *packages, cached=cached)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "data/prefixes/bob/current"
    (folder / "conda-meta").mkdir(parents=True)
    secret = {"version": 1, "env_vars": {"DB_PASSWORD": "hunter2"}}
    (folder / "conda-meta/state").write_text(json.dumps(secret))
    return folder


@pytest.fixture
def prefix(tmp_path: Path, victim: Path) -> Path:
    """A prefix with a link that leads out, however it came there."""
    channel = tmp_path / "channel"
    module = Hostile(payload=[entry("lib/python3.11/site-packages/foo/x.py", b"x = 1\n")])
    packages = [package(channel, "python", PYTHON), package(channel, "foo", module)]
    target = linked(tmp_path, *packages)
    (target / "out").symlink_to(victim)
    return target


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_writes_nothing_through_a_link_that_leads_out(
    tmp_path: Path, prefix: Path, victim: Path
) -> None:
    wheel = make_wheel("evil", "1", files={"evil-1.data/data/out/activate.d/x.sh": "echo OWNED\n"})
    cached = WheelCache(tmp_path / "data/wheels").ensure([stored(wheel, tmp_path / "index")])
    with pytest.raises(LinkError, match="leads out of the environment"):
        install_wheels(
            cached,
            target=prefix,
            final_prefix=prefix.with_name("final"),
            python=PythonInfo.of("3.11.7", platform="linux-64"),
        )
    assert files(victim) == {"conda-meta/state"}


def test_no_compiled_file_goes_through_a_link(tmp_path: Path, prefix: Path, victim: Path) -> None:
    channel = tmp_path / "channel"
    packages = [
        package(channel / "2", "python", PYTHON),
        package(
            channel / "2",
            "foo",
            Hostile(payload=[entry("lib/python3.11/site-packages/foo/x.py", b"x = 1\n")]),
        ),
    ]
    cached = PackageCache(tmp_path / "data" / "cache").ensure(packages)
    python = PythonInfo.of("3.11.7", platform="linux-64")
    interpreter = Interpreter.from_packages(cached, python)
    assert interpreter is not None
    bytecode = BytecodeCache(tmp_path / "data/bytecode")
    sources = python_sources(cached, python)
    for source in sources:
        compiled = bytecode.folder / interpreter.key / source.key / "part"
        compiled.mkdir(parents=True)
        (compiled / "0.pyc").write_bytes(b"compiled")
        names = {"files": {source.files[0][0]: 8}, "failed": []}
        (compiled / "contents.json").write_text(json.dumps(names))
    location = prefix / "lib/python3.11/site-packages/foo/__pycache__"
    location.symlink_to(victim)
    bytecode.link(sources, interpreter=interpreter, prefix=prefix)
    assert files(victim) == {"conda-meta/state"}
    location.unlink()
    bytecode.link(sources, interpreter=interpreter, prefix=prefix)
    assert os.listdir(location) == ["x.cpython-311.pyc"], "without the link it is linked"  # noqa: PTH208


def test_variables_are_read_from_files_of_the_prefix_only(prefix: Path) -> None:
    variables = prefix / "etc/conda/env_vars.d"
    variables.mkdir(parents=True)
    (variables / "out.json").symlink_to("../../../out/conda-meta/state")
    (variables / "here.json").write_text('{"GREETING": "hello"}')
    said: list[str] = []
    run_smoke_tests(
        prefix,
        final_prefix=prefix.with_name("final"),
        commands=["env"],
        time_limit=timedelta(seconds=30),
        on_line=said.append,
    )
    assert "GREETING=hello" in said
    assert not any("hunter2" in line for line in said)
