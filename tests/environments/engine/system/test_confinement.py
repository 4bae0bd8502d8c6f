"""Confinement: access to the given files and ports only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from environments.engine.system import confinement
from environments.engine.system.confinement import can_confine, child_environment, landlock_abi

pytestmark = pytest.mark.skipif(not can_confine(), reason="the kernel has no Landlock")

#: Answers each attempt with "ok" or the name of the errno, as JSON.
_PROBE = """
import ctypes, errno, json, os, signal, socket, subprocess, sys
given = json.loads(sys.argv[1])
if given["confined"]:
    from pathlib import Path
    from environments.engine.system.confinement import confine
    assert confine(
        readable=[Path(given["readable"]), Path("/does-not-exist")],
        writable=[Path(given["writable"])],
        connect=[given["port"]],
    )
answers = {}

def attempt(name, work):
    try:
        work()
        answers[name] = "ok"
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno, str(error))

def read(path):
    return lambda: open(path, "rb").read(1)

def move():
    folder = given["writable"]
    os.mkdir(folder + "/from")
    os.mkdir(folder + "/to")
    open(folder + "/from/file", "w").write("content")
    os.rename(folder + "/from/file", folder + "/to/file")
    os.link(folder + "/to/file", folder + "/from/linked")
    os.symlink("file", folder + "/to/symlink")
    os.unlink(folder + "/from/linked")

def unix(path):
    def work():
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)
    return work

def tcp(port):
    return lambda: socket.create_connection(("127.0.0.1", port), 5).close()

def call(number, *arguments):
    def work():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")
    return work

attempt("read given", read(given["readable"] + "/file"))
attempt("list given", lambda: os.listdir(given["readable"]))
attempt("change given", lambda: open(given["readable"] + "/file", "a").close())
attempt("read secret", read(given["secret"]))
attempt("read secret through link", read(given["readable"] + "/link"))
attempt("list secret", lambda: os.listdir(os.path.dirname(given["secret"])))
attempt("write beside secret", lambda: open(given["secret"] + ".new", "w").close())
attempt("truncate secret", lambda: os.truncate(given["secret"], 0))
attempt("link secret", lambda: os.link(given["secret"], given["writable"] + "/stolen"))
attempt("work in the writable folder", move)
attempt("lazy import", lambda: __import__("sqlite3"))
attempt("program", lambda: subprocess.run(["true"], check=True))
child = subprocess.run(["cat", given["secret"]], capture_output=True)
answers["child reads secret"] = "ok" if child.returncode == 0 else "EACCES"
attempt("signal parent", lambda: os.kill(os.getppid(), 0))
attempt("signal own child", lambda: subprocess.Popen(["sleep", "9"]).kill())
attempt("environment of parent", read(f"/proc/{os.getppid()}/environ"))
attempt("unix socket", unix(given["socket"]))
attempt("socket pair", lambda: socket.socketpair())
attempt("allowed port", tcp(given["port"]))
attempt("other port", tcp(given["other_port"]))
attempt("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
attempt("own session", lambda: subprocess.run(["true"], start_new_session=True))
attempt("io_uring", call(425, 1, 0))
if given["confined"]:  # it would succeed for root otherwise
    number = 165 if os.uname().machine == "x86_64" else 40
    attempt("mount", call(number, b"none", given["writable"].encode(), b"tmpfs", 0, None))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], dict[str, str]]]:
    def listen() -> socket.socket:
        one = socket.create_server(("127.0.0.1", 0))
        listening.append(one)
        return one

    listening: list[socket.socket] = []
    ports = [listen().getsockname()[1] for _ in range(2)]

    def run(confined: bool) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("probe")
        for name in ("readable", "writable", "secrets"):
            (folder / name).mkdir()
        secret = folder / "secrets" / "secret_key"
        secret.write_text("secret")
        (folder / "readable" / "file").write_text("file")
        (folder / "readable" / "link").symlink_to(secret)
        unix = socket.socket(socket.AF_UNIX)
        listening.append(unix)
        unix.bind(os.fspath(folder / "s"))
        unix.listen()
        given = {
            "confined": confined,
            "readable": os.fspath(folder / "readable"),
            "writable": os.fspath(folder / "writable"),
            "secret": os.fspath(secret),
            "socket": os.fspath(folder / "s"),
            "port": ports[0],
            "other_port": ports[1],
        }
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, json.dumps(given)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: dict[str, str] = json.loads(done.stdout)
        if confined:
            assert secret.read_text() == "secret"
        return answers

    yield run
    for one in listening:
        one.close()


@pytest.fixture(scope="module")
def confined(probe: Callable[[bool], dict[str, str]]) -> dict[str, str]:
    return probe(True)


@pytest.fixture(scope="module")
def unconfined(probe: Callable[[bool], dict[str, str]]) -> dict[str, str]:
    return probe(False)


WORKS = (
    *("read given", "list given", "work in the writable folder", "lazy import", "program"),
    *("signal own child", "socket pair", "allowed port"),
)
REFUSED = (
    *("change given", "read secret", "read secret through link", "list secret"),
    *("write beside secret", "truncate secret", "link secret", "child reads secret"),
    *("environment of parent", "unix socket", "own session", "packets", "io_uring", "mount"),
)


@pytest.mark.parametrize("attempt", WORKS)
def test_ordinary_work_succeeds(confined: dict[str, str], attempt: str) -> None:
    assert confined[attempt] == "ok"


@pytest.mark.parametrize("attempt", REFUSED)
def test_everything_else_is_refused(confined: dict[str, str], attempt: str) -> None:
    assert confined[attempt] in {"EACCES", "EPERM", "EXDEV", "ENOSYS"}


@pytest.mark.parametrize(
    "attempt", [each for each in REFUSED if each not in {"packets", "io_uring", "mount"}]
)
def test_without_confinement_the_same_attempts_succeed(
    unconfined: dict[str, str], attempt: str
) -> None:
    assert unconfined[attempt] == "ok"


@pytest.mark.skipif(landlock_abi() < 4, reason="the kernel restricts no TCP ports")
def test_only_the_named_ports_are_reached(confined: dict[str, str]) -> None:
    assert confined["other port"] == "EACCES"


@pytest.mark.skipif(landlock_abi() < 6, reason="the kernel restricts no signals")
def test_no_other_process_is_signalled(confined: dict[str, str]) -> None:
    assert confined["signal parent"] == "EPERM"


def test_a_process_with_threads_is_refused() -> None:
    program = """
import threading
from environments.engine.system.confinement import confine
release = threading.Event()
threading.Thread(target=release.wait).start()
try:
    confine(readable=[], writable=[])
except RuntimeError:
    print("refused")
finally:
    release.set()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused\n"


def test_without_landlock_it_returns_false_and_work_continues() -> None:
    program = """
from environments.engine.system import confinement
confinement.landlock_abi = lambda: 0
print(confinement.confine(readable=[], writable=[]), open("/etc/passwd").read(1) != "")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n"


@pytest.mark.parametrize(
    "name",
    ["CONDASTORE_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP",
     "GLIBC_TUNABLES", "BASH_ENV", "HTTPS_PROXY", "HOME"],
)  # fmt: skip
def test_a_child_inherits_no_variable_that_is_not_on_the_list(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "value")
    assert name not in child_environment()
    assert child_environment({name: "explicit"})[name] == "explicit"


@pytest.mark.parametrize("name", ["PATH", "LC_ALL", "SSL_CERT_FILE", "TZ"])
def test_a_child_inherits_what_is_harmless(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "value")
    assert child_environment()[name] == "value"


def test_the_folder_of_an_editable_project_is_not_readable_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "project" / "somewhere").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "project")
    module: Any = type(os)("somewhere")
    module.__path__ = [str(tmp_path / "project" / "somewhere")]
    monkeypatch.setitem(sys.modules, "somewhere", module)
    paths = confinement.python_paths()
    assert tmp_path / "project" not in paths
    assert tmp_path / "project" / "somewhere" in paths
