"""Attacks with code of packages: it runs in the sandbox or nowhere, and changes no other's bytes.

Each attack has its control: the honest twin that works, or the same attack without the protection.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import (
    PackageInvalidError,
    SmokeTestError,
    StoreError,
    UnavailableError,
    WorkerLostError,
)
from environments.domain.lifecycle import BuildState
from environments.domain.names import Credential
from environments.domain.progress import never
from environments.domain.records import CondaPackage
from environments.domain.unpacking import Limits
from environments.engine.channels import mirror_history, mirrors
from environments.engine.channels.repodata import Channels
from environments.engine.prefix import compilation as compiling
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.prefix.interpreter import Interpreter
from environments.engine.prefix.python_sources import python_sources
from environments.engine.prefix.smoke_tests import run_smoke_tests
from environments.engine.pypi import wheel_conversion
from environments.engine.solve import process
from environments.engine.solve.client import RattlerSolver
from environments.engine.system import processes, sandbox, subprocesses
from environments.engine.system.confinement import can_confine
from environments.engine.system.process_output import read_output
from environments.engine.system.sandbox import can_sandbox
from environments.jobs import builds
from environments.models import Build
from environments.services import folders
from environments.services.engine_context import Engine
from tests.channels.conda_package import PackageFile, PackageSpec
from tests.channels.simple_index import make_wheel
from tests.environments.conftest import engine, shared_engine, shared_server, submit, unsent
from tests.environments.engine.conftest import Linked, linked, shared_cache
from tests.environments.engine.package_fixtures import channel_of
from tests.environments.engine.solver_fixtures import solve

__all__ = ["engine", "linked", "shared_cache", "shared_engine", "shared_server", "submit", "unsent"]

Link = Callable[..., Linked]
needs_sandbox = pytest.mark.skipif(not can_sandbox(), reason="bubblewrap does not work here")
needs_landlock = pytest.mark.skipif(not can_confine(), reason="the kernel has no Landlock")


# --- variables of users and packages --------------------------------------------------------------


def trap(folder: Path) -> dict[str, str]:
    """Variables with which every program that starts writes files `folder`/loaded.PID."""
    return {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": f"{folder}/loaded"}


def try_out(made: Linked, *commands: str, **options: Any) -> list[str]:
    lines: list[str] = []
    run_smoke_tests(
        made.prefix,
        final_prefix=made.final,
        commands=commands,
        time_limit=timedelta(seconds=60),
        on_line=lines.append,
        **options,
    )
    return [line for line in lines if not line.startswith("$ ")]


def carrier(tmp_path: Path, variables: dict[str, str]) -> CondaPackage:
    """A package whose activation sets `variables`."""
    spec = PackageSpec(
        "carrier",
        "1.0",
        files=[PackageFile.text("etc/conda/env_vars.d/carrier.json", json.dumps(variables))],
    )
    return channel_of(tmp_path / "channel", spec)["carrier"]


@needs_sandbox
@pytest.mark.parametrize("source", ["variables", "package"])
def test_variables_change_no_process_outside_the_sandbox(
    linked: Link, tmp_path: Path, source: str
) -> None:
    variables = {**trap(tmp_path), "ANSWER": "42"}
    if source == "variables":
        created = linked(variables=variables)
    else:
        created = linked(carrier(tmp_path, variables))
    said = try_out(created, 'echo "$ANSWER,$LD_DEBUG"')
    assert "42,files" in said
    assert not list(tmp_path.glob("loaded*"))


def test_the_trap_catches_programs_that_run_without_a_sandbox(linked: Link, tmp_path: Path) -> None:
    try_out(linked(variables=trap(tmp_path)), "true", sandboxed=False)
    caught = list(tmp_path.glob("loaded*"))
    assert caught
    guard = [path for path in caught if "-I" in path.read_text(errors="replace")]
    assert not guard  # also then the guard starts without them


@needs_sandbox
@pytest.mark.parametrize(
    "name", ["BASH_ENV", "ENV", "PYTHONSTARTUP", "PYTHONHOME", "LD_AUDIT", "GLIBC_TUNABLES"]
)
def test_a_variable_reaches_the_tests_and_its_file_runs_inside_only(
    linked: Link, tmp_path: Path, name: str
) -> None:
    mark = tmp_path / "mark"
    script = PackageFile.text("etc/evil.sh", f"touch {mark}; echo ran as $$\n")
    package = channel_of(tmp_path / "channel", PackageSpec("evil", "1.0", files=[script]))["evil"]
    created = linked(package)
    value = f"{created.final}/etc/evil.sh"
    state = created.prefix / "conda-meta" / "state"
    state.write_text(json.dumps({"version": 1, "env_vars": {name: value}}))
    said = try_out(created, f'echo "${name}"')
    assert value in said
    assert not mark.exists()


@needs_sandbox
def test_what_is_no_variable_is_left_out(linked: Link, tmp_path: Path) -> None:
    variables = {
        "A=B": "1",
        "": "2",
        "NULL": "a\0b",
        "HALF": "\ud800",
        "LINES": "a\nb",
        "GOOD": "1",
    }
    assert try_out(linked(carrier(tmp_path, variables)), 'echo "$GOOD$LINES"')[-2:] == ["1a", "b"]


# --- the sandbox ----------------------------------------------------------------------------------


@needs_sandbox
def test_code_in_the_sandbox_reaches_nothing_of_the_machine(linked: Link, tmp_path: Path) -> None:
    secret = tmp_path / "secret_key"
    secret.write_text("secret")
    listening = subprocess.Popen(["sleep", "60"])
    held = os.open(secret, os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        said = try_out(
            linked(),
            f"cat {secret} || echo no file",
            "echo open: $(cd /proc/self/fd; echo *)",
            "echo processes: $(ls -d /proc/[0-9]* | wc -l)",
            f"kill -0 {listening.pid} || echo no process",
            "unshare --user true || echo no namespaces",
            "mount -t tmpfs none /tmp/home || echo no mounts",
            "touch /new /dev/new /usr/new || echo no writing",
            "ls /etc/ssl/private /etc/shadow || echo no keys",
            "ulimit -c; ulimit -u; ulimit -d",
            "head -c 2000000000 /dev/zero > big || echo bounded",
            "exec 3<>/dev/tcp/127.0.0.1/9 || echo no network",
            "env | grep -c CONDASTORE || echo no settings",
        )
    finally:
        os.close(held)
        listening.kill()
        listening.wait()
    for sentence in (
        *("no file", "no process", "no namespaces", "no mounts", "no writing", "no keys"),
        *("bounded", "no network", "no settings"),
    ):
        assert sentence in said, said
    assert "open: 0 1 2 3" in said  # 3 is the folder that is listed
    assert int(next(line for line in said if line.startswith("processes")).split()[1]) < 8
    limits = [line for line in said if line.isdecimal()]
    assert limits[0] == "0"
    assert int(limits[1]) < 10_000
    assert int(limits[2]) > 1_000_000  # KiB of memory of one process; not "unlimited"


@needs_sandbox
def test_a_flood_of_output_is_cut_and_ends_with_the_time_limit(linked: Link) -> None:
    lines: list[str] = []
    created = linked()
    with pytest.raises(SmokeTestError, match="took longer"):
        run_smoke_tests(
            created.prefix,
            final_prefix=created.final,
            commands=["yes $(head -c 1000 /dev/zero | tr '\\0' x)"],
            time_limit=timedelta(seconds=2),
            on_line=lines.append,
        )
    assert sum(map(len, lines)) < processes.OUTPUT_LIMIT + 10_000
    assert any("is omitted" in line for line in lines)


# --- where there is no sandbox --------------------------------------------------------------------


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "true"):
        (programs / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    sandbox.check_sandbox.cache_clear()
    yield
    sandbox.check_sandbox.cache_clear()


@needs_sandbox
def test_a_killed_check_of_the_sandbox_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker would else refuse all package code until it is started again."""
    real, program, healed = shutil.which("bwrap"), tmp_path / "bwrap", tmp_path / "healed"
    program.write_text(f'#!/bin/sh\n[ -e {healed} ] && exec {real} "$@"\nkill -9 $$\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sandbox.check_sandbox.cache_clear()
    sandbox._bubblewrap_knows.cache_clear()
    try:
        with pytest.raises(UnavailableError, match="SIGKILL"):
            sandbox.require_sandbox()
        assert "SIGKILL" in sandbox.sandbox_problem()
        healed.touch()
        sandbox.require_sandbox()
        assert sandbox.sandbox_problem() == ""
    finally:
        sandbox.check_sandbox.cache_clear()
        sandbox._bubblewrap_knows.cache_clear()


SPECIFICATION = "dependencies: [python, hello-noarch]\ncondastore: {tests: {commands: ['true']}}\n"


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("without_bubblewrap")
class TestWithoutBubblewrap:
    def test_no_code_of_a_package_runs(
        self, submit: Any, settings: Any, monkeypatch: pytest.MonkeyPatch, channel_server: Any
    ) -> None:
        settings.SANDBOX = "required"
        started: list[Sequence[str]] = []
        start = subprocesses.start_process

        def watched(command: Sequence[str], **options: Any) -> Any:
            started.append(command)
            return start(command, **options)

        for module in (processes, sandbox):
            monkeypatch.setattr(module, "start_process", watched)
        build = run(submit("dependencies: [python, hello-noarch]"))
        assert build.state == BuildState.READY
        prefix = folders.prefix_path(build)
        assert prefix is not None
        assert not list(prefix.rglob("hello_noarch/__pycache__"))
        assert not started
        assert any("are not compiled: this worker has no sandbox" in s for s in build.log_from())
        tested = run(submit(SPECIFICATION))
        assert tested.state == BuildState.FAILED
        assert tested.failure["code"] == "sandbox-unavailable"
        assert "bubblewrap is not installed" in tested.failure["message"]
        assert "administrator" in tested.failure["hint"]
        assert not started

    def test_off_runs_it_and_says_so(self, submit: Any, settings: Any) -> None:
        settings.SANDBOX = "off"
        build = run(submit(SPECIFICATION))
        assert (build.state, build.sandboxed) == (BuildState.READY, False), build.failure


@needs_sandbox
@pytest.mark.django_db(transaction=True)
def test_with_bubblewrap_the_same_build_is_tested_and_compiled(
    submit: Any, settings: Any, tmp_path: Path
) -> None:
    settings.SANDBOX = "required"
    variables = "".join(f"  {name}: {value}\n" for name, value in trap(tmp_path).items())
    build = run(submit(f"{SPECIFICATION}variables:\n{variables}"))
    assert (build.state, build.sandboxed) == (BuildState.READY, True), build.failure
    assert list(folders.prefix_path(build).rglob("hello_noarch/__pycache__/*.pyc"))
    assert not list(tmp_path.glob("loaded*"))


def run(build: Build) -> Build:
    builds.run(build.pk)
    return Build.objects.get(pk=build.pk)


# --- compiled files of others ---------------------------------------------------------------------

#: Part of a `python` that looks like the real one: what it compiles says something else.
_FAKE = """
import builtins
_real = builtins.compile
builtins.compile = lambda source, *rest, **more: _real(b"VALUE = 'poisoned'", *rest, **more)
"""


def faked(made: Linked, work: Path) -> Interpreter:
    """The interpreter of `made`, but for one file of its python; of the same name and version."""
    honest = Interpreter.from_packages(made.packages, made.python)
    assert honest is not None
    packages = []
    for cached in made.packages:
        if cached.package.name == "python":
            folder = work / ("f" * 64) / cached.folder.name
            shutil.copytree(cached.folder, folder, symlinks=True, copy_function=os.link)
            target = folder / made.python.site_packages / "../importlib/__init__.py"
            content = target.read_text()
            target.unlink()
            target.write_text(content + _FAKE)
            compiled = "importlib/__pycache__/__init__"
            files = [file for file in cached.contents.files if compiled not in file.path]
            contents = replace(cached.contents, files=tuple(files))
            cached = replace(cached, folder=folder, contents=contents)
        packages.append(cached)
    fake = Interpreter.from_packages(packages, made.python)
    assert fake is not None
    return fake


@pytest.fixture
def victim(tmp_path: Path) -> CondaPackage:
    file = PackageFile.text("site-packages/victim.py", "VALUE = 'honest'\n")
    spec = PackageSpec("victim", "1.0", noarch="python", depends=["python"], files=[file])
    return channel_of(tmp_path / "channel", spec)["victim"]


def imported(made: Linked) -> str:
    command = [f"{made.prefix}/bin/python", "-B", "-c", "import victim; print(victim.VALUE)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_what_one_tenants_python_compiled_reaches_no_other(
    linked: Link, victim: CondaPackage, tmp_path: Path
) -> None:
    cache = BytecodeCache(linked().prefix.parent / f"bytecode-{tmp_path.name}")
    evil = linked(victim)
    sources = python_sources(evil.packages, evil.python)
    fake = faked(evil, cache.folder.parent / f"fake-{tmp_path.name}")
    cache.compile(sources, interpreter=fake, sandboxed=can_sandbox())
    cache.link(sources, interpreter=fake, prefix=evil.prefix)
    assert imported(evil) == "poisoned"  # the attack works on its own author
    good = linked(victim)
    honest = Interpreter.from_packages(good.packages, good.python)
    assert cache.link(sources, interpreter=honest, prefix=good.prefix).files == 0
    cache.compile(sources, interpreter=honest, sandboxed=can_sandbox())
    assert cache.link(sources, interpreter=honest, prefix=good.prefix).files == 1
    assert imported(good) == "honest"
    twin = linked(victim)
    same = Interpreter.from_packages(twin.packages, twin.python)
    linked_files = cache.link(sources, interpreter=same, prefix=twin.prefix)
    assert (linked_files.files, linked_files.missing) == (1, ())


def test_a_dependency_of_python_counts_and_any_other_package_does_not(
    linked: Link, victim: CondaPackage
) -> None:
    created = linked(victim)
    key = Interpreter.from_packages(created.packages, created.python).key
    alone = [cached for cached in created.packages if cached.package.name != "victim"]
    assert Interpreter.from_packages(alone, created.python).key == key
    needing = [
        replace(cached, package=replace(cached.package, depends=("victim >=1",)))
        if cached.package.name == "python"
        else cached
        for cached in created.packages
    ]
    assert Interpreter.from_packages(needing, created.python).key != key


def test_a_package_that_only_an_md5_names_shares_nothing(linked: Link) -> None:
    created = linked()
    unnamed = [
        replace(cached, folder=cached.folder.parent.with_name("md5-00") / cached.folder.name)
        for cached in created.packages
    ]
    assert Interpreter.from_packages(unnamed, created.python) is None


#: What a program that compiles one package begins with: the number of its pipe.
_PIPE = """
import os, sys
pipe = int(sys.stdin.buffer.read().split(b"\\0")[0])
"""


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (b"\0\0\0\1x", 1),
        (b"\0\0\0\0", 0),
        (b"\x7f\xff\xff\xffx", 0),
        (b"\0\0\0\1x\0\0\0\1y", 0),
        (b"\0\0", 0),
    ],
    ids=["one file", "does not compile", "endless", "one too many", "cut"],
)
def test_what_an_interpreter_answers_is_bounded(
    linked: Link,
    victim: CondaPackage,
    tmp_path: Path,
    answer: bytes,
    accepted: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = BytecodeCache(linked().prefix.parent / f"answers-{tmp_path.name}")
    created = linked(victim)
    sources = python_sources(created.packages, created.python)
    interpreter = Interpreter.from_packages(created.packages, created.python)
    program = f"{_PIPE}os.write(pipe, {answer!r})\n"
    monkeypatch.setattr(compiling, "_COMPILE", program)
    with suppress(UnavailableError):
        cache.compile(sources, interpreter=interpreter, sandboxed=can_sandbox())
    found = cache.link(sources, interpreter=interpreter, prefix=created.prefix)
    assert found.files == accepted
    files = [path for path in cache.folder.rglob("*.pyc") if "interpreters" not in path.parts]
    assert all(path.is_file() and path.stat().st_nlink <= 2 for path in files)


@needs_sandbox
def test_a_compiling_process_sees_the_interpreter_and_its_sources_alone(
    linked: Link, victim: CondaPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BytecodeCache(linked().prefix.parent / f"alone-{tmp_path.name}")
    created = linked(victim)
    sources = python_sources(created.packages, created.python)
    interpreter = Interpreter.from_packages(created.packages, created.python)
    poll = f"""
{_PIPE}
found = [name for name in os.listdir("/") if name not in ("lib", "lib64", "usr", "nix")]
names = []
for path in ("/sources/0/new", "/sources/new", "/interpreter/new", "/new", "/usr/lib/new"):
    try:
        open(path, "w")
        names.append(path)
    except OSError:
        pass
for path in ({os.fspath(cache.folder)!r}, "/usr/bin", "/etc", "/proc/self"):
    if os.path.exists(path):
        names.append(path)
data = repr((sorted(found), names)).encode()
os.write(pipe, len(data).to_bytes(4, "big") + data)
"""
    monkeypatch.setattr(compiling, "_COMPILE", poll)
    cache.compile(sources, interpreter=interpreter)
    [entry] = cache.folder.glob(f"{interpreter.key}/*/*/0.pyc")
    assert entry.read_text() == "(['interpreter', 'sources'], [])"


@needs_sandbox
def test_the_process_of_one_package_changes_nothing_of_another(
    linked: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a fault in Python's parser: the source of `attacker` runs code."""
    specs = [
        PackageSpec(
            name,
            "1.0",
            noarch="python",
            depends=["python"],
            files=[PackageFile.text(f"site-packages/{name}.py", "VALUE = 'honest'\n")],
        )
        for name in ("attacker", "victim")
    ]
    packages = channel_of(tmp_path / "channel", *specs)
    attack = """
    if any("attacker" in place for _, place in pairs):
        wrong = compile("VALUE = 'poisoned'", "", "exec")
        wrong = files._code_to_hash_pyc(wrong, b"12345678", False)
        for other in range(3, 100):
            try:
                posix.write(other, len(wrong).to_bytes(4, "big") + wrong)
            except OSError:
                pass
        for path in (f"/proc/{posix.getppid()}/mem", "/sources/1/new", "/interpreter/new"):
            try:
                posix.open(path, posix.O_RDWR | posix.O_CREAT)
                print("reached", path)
            except OSError:
                pass
        return
"""
    mark = "    out = open(pipe"
    program = compiling._COMPILE.replace("zip(job[2::2]", "[*zip(job[2::2]").replace(
        "job[3::2]))", "job[3::2])])"
    )
    monkeypatch.setattr(compiling, "_COMPILE", program.replace(mark, attack + mark))
    cache = BytecodeCache(linked().prefix.parent / f"forks-{tmp_path.name}")
    created = linked(packages["attacker"], packages["victim"])
    interpreter = Interpreter.from_packages(created.packages, created.python)
    sources = python_sources(created.packages, created.python)
    with suppress(UnavailableError):
        cache.compile(sources, interpreter=interpreter, processes=1)
    cache.link(sources, interpreter=interpreter, prefix=created.prefix)
    assert imported(created) == "honest"
    [victim] = [each for each in sources if each.name == "victim"]
    assert list((cache.folder / interpreter.key / victim.key).glob("*/0.pyc"))


def test_old_entries_and_unused_interpreters_are_removed(
    linked: Link, victim: CondaPackage, tmp_path: Path
) -> None:
    cache = BytecodeCache(linked().prefix.parent / f"old-{tmp_path.name}")
    created = linked(victim)
    sources = python_sources(created.packages, created.python)
    interpreter = Interpreter.from_packages(created.packages, created.python)
    former = cache.folder / f"{sources[0].key}-{interpreter.tag}"  # keyed by the package alone
    former.mkdir(parents=True)
    (former / "0.pyc").write_bytes(b"poisoned")
    (former / "contents.json").write_text('{"version": 1, "files": ["site-packages/victim.py"]}')
    assert cache.link(sources, interpreter=interpreter, prefix=created.prefix).files == 0
    cache.compile(sources, interpreter=interpreter, sandboxed=can_sandbox())
    prefix = cache.folder / "interpreters" / interpreter.key
    cache.remove_leftovers(older_than=timedelta(days=1))
    assert (former.exists(), prefix.exists()) == (False, True)
    day_ago = time.time() - 90_000
    os.utime(prefix, (day_ago, day_ago))
    cache.remove_leftovers(older_than=timedelta(days=1))
    assert not prefix.exists()
    assert cache.link(sources, interpreter=interpreter, prefix=created.prefix).files == 1


# --- processes that parse untrusted bytes ---------------------------------------------------------

#: Ends the process with status 99 where it can read what it must not, just after it is confined.
_PROBE = """
import os
import {module} as module
confine = module.confine
def probe(**given):
    if {confined}:
        confine(**given)
    for path in {secrets}:
        try:
            open(path).close()
        except OSError:
            continue
        os._exit(99)
    if any("canary" in value for value in os.environ.values()):
        os._exit(98)
module.confine = probe
module.main()
"""


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of the service; its environment has secrets too."""
    found = []
    for name in ("secrets/secret_key", "db.sqlite3", "cache/repodata/private-x/state"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
        found.append(os.fspath(path))
    for name in ("CONDASTORE_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "canary")
    return found


Probed = Callable[[Any, bool], None]


@pytest.fixture
def probe(secrets: list[str], monkeypatch: pytest.MonkeyPatch) -> Probed:
    def do(module: Any, confined: bool) -> None:
        program = _PROBE.format(module=module.__name__, confined=confined, secrets=secrets)
        monkeypatch.setattr(module, "_PROGRAM", program)

    return do


def solved(small_channel: Path, tmp_path: Path) -> object:
    cache = tmp_path / "data" / "cache" / "repodata" / "shared"
    solver = RattlerSolver(cache=cache, channels=Channels(cache=cache))
    try:
        return solve(solver, "libalpha", channels=[small_channel.as_uri()])
    finally:
        solver.close()


def converted(small_channel: Path, tmp_path: Path) -> object:
    created = make_wheel("acme-tools", "1.2", files={"acme_tools.py": "x = 1\n"})
    path = tmp_path / "wheel"
    assert isinstance(created.content, bytes)
    path.write_bytes(created.content)
    return wheel_conversion.convert(path, "acme_tools-1.2-py3-none-any.whl", limits=Limits())


def joined(small_channel: Path, tmp_path: Path) -> object:
    folder = tmp_path / "data" / "cache" / "mirrors"
    folder.mkdir(parents=True)
    fetched = folder / "fetched"
    shutil.copyfile(small_channel / "noarch" / "repodata.json", fetched)
    work = mirror_history.Join(
        channel=small_channel.as_uri(),
        subdir="noarch",
        fetched=fetched,
        history=None,
        out=folder / "history",
        minute=1,
    )
    return mirrors.run_in_process(
        work, folder=folder, cancelled=never, time_limit=timedelta(minutes=1)
    )


CHILDREN = pytest.mark.parametrize(
    ("module", "work"),
    [(process, solved), (wheel_conversion, converted), (mirrors, joined)],
    ids=["solver", "wheels", "repodata"],
)
Parse = Callable[[Path, Path], object]


@needs_landlock
@CHILDREN
def test_a_process_that_parses_opens_no_secret_and_does_its_work(
    module: Any, work: Parse, probe: Probed, small_channel: Path, tmp_path: Path
) -> None:
    probe(module, True)
    assert work(small_channel, tmp_path)


@CHILDREN
def test_the_probe_finds_a_process_that_is_not_confined(
    module: Any, work: Parse, probe: Probed, small_channel: Path, tmp_path: Path
) -> None:
    probe(module, False)
    with pytest.raises((WorkerLostError, PackageInvalidError), match="status 99"):
        work(small_channel, tmp_path)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (os.fspath(self.mark),)


@pytest.mark.parametrize("kind", ["pickle", "words", "answer"])
def test_a_solver_that_was_taken_over_runs_no_code_in_the_worker(
    kind: str, monkeypatch: pytest.MonkeyPatch, small_channel: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    messages = {
        "pickle": pickle.dumps(("answer", _Bomb(mark))),
        "words": b'["error", {"type": "__builtins__"}]',
        "answer": b'["answer", [{"platform": "linux-64"}]]',
    }
    program = f"""
import json, os, sys
from multiprocessing.connection import Connection
Connection(json.loads(sys.argv[1])["link"]).send_bytes({messages[kind]!r})
"""
    monkeypatch.setattr(process, "_PROGRAM", program)
    with pytest.raises(WorkerLostError, match="exited unexpectedly"):
        solved(small_channel, tmp_path)
    assert not mark.exists()
    if kind == "pickle":
        pickle.loads(messages[kind])  # noqa: S301 - the control: here it does what it says
        assert mark.exists()


@pytest.mark.parametrize("left", ["link", "hard link", "pipe", "folder"])
def test_what_a_confined_process_leaves_is_read_only_if_it_is_a_file(
    left: str, tmp_path: Path
) -> None:
    secret, output = tmp_path / "secret", tmp_path / "output"
    secret.write_text("secret")
    if left == "link":
        output.symlink_to(secret)
    elif left == "hard link":
        output.hardlink_to(secret)
    elif left == "pipe":
        os.mkfifo(output)
    else:
        output.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        read_output(output, most=100)
    (tmp_path / "honest").write_text("answer")
    assert read_output(tmp_path / "honest", most=100) == b"answer"


def test_errors_cross_the_process_boundary_whole(small_channel: Path, tmp_path: Path) -> None:
    cache = tmp_path / "repodata"
    solver = RattlerSolver(cache=cache, channels=Channels(cache=cache))
    with pytest.raises(StoreError) as apart:
        solve(solver, "no-such-package", channels=[small_channel.as_uri()])
    solver.close()
    alone = RattlerSolver(cache=cache, channels=Channels(cache=cache), isolated=False)
    with pytest.raises(StoreError) as here:
        solve(alone, "no-such-package", channels=[small_channel.as_uri()])
    alone.close()
    assert type(apart.value) is type(here.value)
    for name in ("message", "where", "hint", "details"):
        assert getattr(apart.value, name) == getattr(here.value, name)


def test_caches_of_other_credentials_lie_apart(tmp_path: Path) -> None:
    created = Engine(tmp_path)
    credential = Credential(url_prefix="https://channel.example.org", kind="token", secret="one")
    folders_of = []
    for credentials in ((), (credential,), (replace(credential, secret="two"),)):
        solver = created.solver(credentials)
        folders_of += [solver.channels.cache, getattr(solver._pypi, "_uv_cache")]  # noqa: B009
    created.close()
    assert len(set(folders_of)) == 6
    for one in folders_of:
        assert not any(other != one and other.is_relative_to(one) for other in folders_of)
