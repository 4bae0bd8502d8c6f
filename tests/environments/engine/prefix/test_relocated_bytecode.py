"""Compiled files of sources with the prefix in their text: per prefix, never shared."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from environments.domain.records import CondaPackage
from environments.engine.packages.cache import PackageCache
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.prefix.interpreter import Interpreter
from environments.engine.prefix.relocated_bytecode import compile_relocated, relocated_sources
from environments.engine.system.sandbox import can_sandbox
from tests.channels.conda_package import PLACEHOLDER, PackageFile, PackageSpec
from tests.environments.engine.conftest import Linked
from tests.environments.engine.package_fixtures import channel_of

Link = Callable[..., Linked]
LIBRARY = "site-packages/placed"


@pytest.fixture
def bytecode(shared_cache: PackageCache, tmp_path: Path) -> BytecodeCache:
    return BytecodeCache(shared_cache.folder.parent / f"placed-{tmp_path.name}")


@pytest.fixture
def placed(tmp_path: Path) -> CondaPackage:
    """A module with the prefix in it, whose compiled form is of another text, and other files."""
    spec = PackageSpec(
        "placed",
        "1.0",
        noarch="python",
        depends=["python"],
        files=[
            PackageFile.text(f"{LIBRARY}/__init__.py", f"PREFIX = '{PLACEHOLDER}'\n"),
            PackageFile.text(f"{LIBRARY}/broken.py", f"print '{PLACEHOLDER}'\n"),
            PackageFile.text(f"{LIBRARY}/plain.py", "VALUE = 1\n"),
            PackageFile(f"{LIBRARY}/__pycache__/__init__.cpython-311.pyc", b"of another text"),
            PackageFile.text("share/placed/example.py", f"PREFIX = '{PLACEHOLDER}'\n"),
        ],
    )
    return channel_of(tmp_path / "channel", spec)["placed"]


def compiled(made: Linked, bytecode: BytecodeCache) -> int:
    interpreter = Interpreter.from_packages(made.packages, made.python)
    assert interpreter is not None
    return compile_relocated(
        bytecode,
        relocated_sources(made.packages, made.python),
        interpreter=interpreter,
        prefix=made.prefix,
        sandboxed=can_sandbox(),
    )


def test_a_module_with_the_prefix_in_it_is_imported_compiled(
    linked: Link, bytecode: BytecodeCache, placed: CondaPackage
) -> None:
    created = linked(placed)
    assert compiled(created, bytecode) > 0
    created.prefix.rename(created.final)
    program = (
        "import sysconfig, placed; sysconfig.get_config_vars(); print(placed.PREFIX)"  # two of them
    )
    said = subprocess.run(
        [created.final / "bin/python", "-B", "-v", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str(created.final)
    loaded = [line for line in said.stderr.splitlines() if line.startswith("# code object from")]
    assert loaded
    assert not [line for line in loaded if line.rstrip("'\"").endswith(".py")]


def test_nothing_of_one_prefix_stays_in_the_shared_cache(
    linked: Link, bytecode: BytecodeCache, placed: CondaPackage
) -> None:
    created = linked(placed)
    compiled(created, bytecode)
    assert [path.name for path in bytecode.folder.iterdir()] == ["interpreters"]
    found = [*created.prefix.glob("lib/python3*/site-packages/placed/__pycache__/*")]
    assert [path.name.partition(".")[0] for path in found] == ["__init__"]
    assert found[0].stat().st_nlink == 1


def test_a_link_that_leads_out_of_the_prefix_is_not_followed(
    linked: Link, bytecode: BytecodeCache, placed: CondaPackage, tmp_path: Path
) -> None:
    created = linked(placed)
    outside = tmp_path / "outside"
    outside.mkdir()
    retained = outside / "__init__.cpython-311.pyc"
    retained.write_bytes(b"of somebody else")
    folder = created.prefix / created.python.site_packages / "placed"
    (folder / "__pycache__/__init__.cpython-311.pyc").unlink()
    (folder / "__pycache__").rmdir()
    (folder / "__pycache__").symlink_to(outside)
    compiled(created, bytecode)
    assert retained.read_bytes() == b"of somebody else"
    assert [*outside.iterdir()] == [retained]


def test_a_source_that_is_a_link_is_not_read(
    linked: Link, bytecode: BytecodeCache, placed: CondaPackage, tmp_path: Path
) -> None:
    created = linked(placed)
    secret = tmp_path / "secret.py"
    secret.write_text("SECRET = 1\n")
    source = created.prefix / created.python.site_packages / "placed/__init__.py"
    source.unlink()
    source.symlink_to(secret)
    compiled(created, bytecode)
    found = created.prefix / created.python.site_packages / "placed/__pycache__"
    assert not any(b"SECRET" in path.read_bytes() for path in found.iterdir())
