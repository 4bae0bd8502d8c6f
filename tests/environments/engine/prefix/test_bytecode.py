"""Compiled Python files: one compilation for all prefixes, used by read-only environments."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from condastore.errors import LeaseLostError
from environments.domain.progress import Progress
from environments.domain.records import CondaPackage
from environments.engine.packages.cache import PackageCache
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.prefix.import_order import imported_by
from environments.engine.prefix.interpreter import Interpreter, bytecode_tag
from environments.engine.prefix.python_sources import python_sources
from environments.engine.system.sandbox import can_sandbox
from tests.channels.conda_package import PLACEHOLDER, PackageFile, PackageSpec
from tests.environments.engine.conftest import Linked
from tests.environments.engine.package_fixtures import channel_of, packages_of

Link = Callable[..., Linked]


@pytest.fixture
def bytecode(shared_cache: PackageCache, tmp_path: Path) -> BytecodeCache:
    return BytecodeCache(shared_cache.folder.parent / f"bytecode-{tmp_path.name}")


@pytest.fixture
def tag(small_channel: Path) -> str:
    tag = bytecode_tag(packages_of(small_channel)["python"])
    assert tag is not None
    return tag


def interpreter_of(made: Linked) -> Interpreter:
    found = Interpreter.from_packages(made.packages, made.python)
    assert found is not None
    return found


@pytest.fixture
def library(tmp_path: Path) -> CondaPackage:
    """A module, a broken one, one with the prefix in it, one that is compiled, and no module."""
    spec = PackageSpec(
        "library",
        "1.0",
        noarch="python",
        depends=["python"],
        files=[
            PackageFile.text("site-packages/library/__init__.py", "VALUE = 1\n"),
            PackageFile.text("site-packages/library/broken.py", "print 'no longer Python'\n"),
            PackageFile.text("site-packages/library/null.py", "VALUE = '\0'\n"),
            PackageFile.text("site-packages/library/placed.py", f"PREFIX = '{PLACEHOLDER}'\n"),
            PackageFile.text("site-packages/library/old.py", "VALUE = 2\n"),
            PackageFile("site-packages/library/old.pyc", b"from long ago"),
            PackageFile.text("share/library/example.py", "VALUE = 3\n"),
        ],
    )
    return channel_of(tmp_path / "channel", spec)["library"]


def test_only_what_needs_it_is_compiled(
    linked: Link, bytecode: BytecodeCache, library: CondaPackage, tag: str
) -> None:
    created = linked(library)
    sources = python_sources(created.packages, created.python)
    before = bytecode.link(sources, interpreter=interpreter_of(created), prefix=created.prefix)
    assert before.files == 0
    assert [each.name for each in before.missing] == ["library"]
    bytecode.compile(before.missing, interpreter=interpreter_of(created), sandboxed=can_sandbox())
    after = bytecode.link(sources, interpreter=interpreter_of(created), prefix=created.prefix)
    assert not after.missing
    folder = created.prefix / created.python.site_packages / "library" / "__pycache__"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"__init__.{tag}.pyc",
        f"old.{tag}.pyc",
    ]
    assert after.files == 2


def test_a_second_prefix_gets_links_to_the_same_files(
    linked: Link, bytecode: BytecodeCache, tag: str
) -> None:
    compiled: list[os.stat_result] = []
    for _ in range(2):
        created = linked("hello-noarch")
        sources = python_sources(created.packages, created.python)
        missing = bytecode.link(
            sources, interpreter=interpreter_of(created), prefix=created.prefix
        ).missing
        assert len(missing) == (0 if compiled else 1)
        bytecode.compile(missing, interpreter=interpreter_of(created), sandboxed=can_sandbox())
        bytecode.link(sources, interpreter=interpreter_of(created), prefix=created.prefix)
        folder = created.prefix / created.python.site_packages / "hello_noarch" / "__pycache__"
        compiled.append((folder / f"__init__.{tag}.pyc").stat())
    assert compiled[0].st_ino == compiled[1].st_ino


def test_python_imports_the_compiled_file_in_the_final_place(
    linked: Link, bytecode: BytecodeCache, tag: str
) -> None:
    created = linked("hello-noarch")
    sources = python_sources(created.packages, created.python)
    bytecode.compile(sources, interpreter=interpreter_of(created), sandboxed=can_sandbox())
    bytecode.link(sources, interpreter=interpreter_of(created), prefix=created.prefix)
    created.prefix.rename(created.final)
    said = subprocess.run(
        [
            *(created.final / "bin" / "python", "-B", "-v", "-c"),
            "import hello_noarch; print(hello_noarch.main.__code__.co_filename)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    cached = created.final / created.python.site_packages / "hello_noarch" / "__pycache__"
    assert f"code object from '{cached}/__init__.{tag}.pyc'" in said.stderr
    assert said.stdout.strip() == str(cached.parent / "__init__.py")


def test_a_compiled_file_stays_valid_when_times_change(
    linked: Link, bytecode: BytecodeCache, tag: str
) -> None:
    """As in an archive or an image, where they are zero."""
    created = linked("hello-noarch")
    sources = python_sources(created.packages, created.python)
    bytecode.compile(sources, interpreter=interpreter_of(created), sandboxed=can_sandbox())
    bytecode.link(sources, interpreter=interpreter_of(created), prefix=created.prefix)
    source = created.prefix / created.python.site_packages / "hello_noarch" / "__init__.py"
    content = source.read_text()
    source.unlink()
    source.write_text(content)
    os.utime(source, (0, 0))
    said = subprocess.run(
        [created.prefix / "bin" / "python", "-B", "-v", "-c", "import hello_noarch"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"hello_noarch/__pycache__/__init__.{tag}.pyc" in said.stderr
    assert "could not" not in said.stderr


def test_existing_compiled_files_are_not_replaced(
    linked: Link, bytecode: BytecodeCache, tag: str
) -> None:
    created = linked("hello-noarch")
    sources = python_sources(created.packages, created.python)
    bytecode.compile(sources, interpreter=interpreter_of(created), sandboxed=can_sandbox())
    bytecode.link(sources, interpreter=interpreter_of(created), prefix=created.prefix)
    [compiled, *_] = created.prefix.rglob(f"*.{tag}.pyc")
    compiled.unlink()
    compiled.write_bytes(b"of the package itself")
    bytecode.link(sources, interpreter=interpreter_of(created), prefix=created.prefix)
    assert compiled.read_bytes() == b"of the package itself"


def test_progress_names_each_package(linked: Link, bytecode: BytecodeCache, tag: str) -> None:
    created = linked("hello-noarch", "hello-plugin")
    seen: list[Progress] = []
    bytecode.compile(
        python_sources(created.packages, created.python),
        interpreter=interpreter_of(created),
        sandboxed=can_sandbox(),
        progress=seen.append,
    )
    assert [(each.done, each.total) for each in seen] == [(1, 2), (2, 2)]
    assert {each.current for each in seen} == {"hello-noarch", "hello-plugin"}


def test_a_cancellation_leaves_no_partial_entry(
    linked: Link, bytecode: BytecodeCache, tag: str
) -> None:
    created = linked("hello-noarch")
    sources = python_sources(created.packages, created.python)
    with pytest.raises(LeaseLostError):
        bytecode.compile(
            sources,
            interpreter=interpreter_of(created),
            sandboxed=can_sandbox(),
            cancelled=lambda: True,
        )
    assert not list(bytecode.folder.rglob("contents.json"))
    assert not list(bytecode.folder.glob(".compiling-*"))


def test_a_package_that_is_compiled_twice_at_once_is_no_harm(
    linked: Link, bytecode: BytecodeCache, tag: str
) -> None:
    created = linked("hello-noarch")
    sources = python_sources(created.packages, created.python)

    def meanwhile(progress: Progress) -> None:
        """Not reached by the second: its entry is there."""

    bytecode.compile(sources, interpreter=interpreter_of(created), sandboxed=can_sandbox())
    bytecode.compile(
        sources, interpreter=interpreter_of(created), sandboxed=can_sandbox(), progress=meanwhile
    )
    assert len(list(bytecode.folder.glob("*/*/*/contents.json"))) == 1


def test_only_cpython_is_compiled_for(small_channel: Path) -> None:
    from dataclasses import replace

    python = packages_of(small_channel)["python"]
    assert bytecode_tag(replace(python, version="3.12.1")) == "cpython-312"
    assert bytecode_tag(replace(python, build="1_73_pypy")) is None


def test_what_is_imported_first_can_be_compiled_alone(
    linked: Link, bytecode: BytecodeCache, tmp_path: Path
) -> None:
    """The rest is another part of the same entry, and nothing is compiled twice."""
    package = PackageSpec(
        "big",
        "1.0",
        noarch="python",
        depends=["python"],
        files=[
            PackageFile.text("site-packages/big/__init__.py", "from . import (\n    used,\n)\n"),
            PackageFile.text("site-packages/big/used.py", "import big.below.deep as deep\n"),
            PackageFile.text("site-packages/big/below/__init__.py", "def f():\n    import big.x\n"),
            PackageFile.text("site-packages/big/below/deep.py", "VALUE = 1\n"),
            PackageFile.text("site-packages/big/x.py", "VALUE = 2\n"),
        ],
    )
    created = linked(channel_of(tmp_path / "channel", package)["big"])
    interpreter = interpreter_of(created)
    sources = python_sources(created.packages, created.python)
    [first] = imported_by(["big"], sources, created.python)
    assert sorted(path for path, _ in first.files) == [
        "site-packages/big/__init__.py",
        "site-packages/big/below/__init__.py",
        "site-packages/big/below/deep.py",
        "site-packages/big/used.py",
    ]
    bytecode.compile([first], interpreter=interpreter, sandboxed=can_sandbox())
    early = bytecode.link(sources, interpreter=interpreter, prefix=created.prefix)
    assert early.files == 4
    assert [each.files for each in early.missing] == [
        (("site-packages/big/x.py", "lib/python3.11/site-packages/big/x.py"),)
    ]
    bytecode.compile(sources, interpreter=interpreter, sandboxed=can_sandbox(), background=True)
    late = bytecode.link(sources, interpreter=interpreter, prefix=created.prefix)
    assert (late.files, late.missing) == (5, ())
    bytecode.remove({first.key})
    assert bytecode.link(sources, interpreter=interpreter, prefix=created.prefix).files == 0
