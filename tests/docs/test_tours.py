"""Every line of the README's tours and of the tutorial runs against a real installation.

Host names and folders of the pages are replaced by those of the test, and so are three programs
that install something: `pip` checks that the distribution is one of ours, `docker pull` copies the
image with skopeo, `conda create` solves and installs with the stand-in of `tests.clients`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.channels.building import index
from tests.channels.conda_package import PackageFile, PackageSpec, write_package
from tests.channels.server import serving
from tests.condastore.running_system import ADMIN, PASSWORD, System, make_system
from tests.docs.pages import PROJECT, lines, tour, without_comment
from tests.services.processes import ComponentMissing, wait_for

HOST, CONDA_FORGE = "condastore.example.org", "https://conda.anaconda.org/conda-forge"
SECONDS = 300  # for one line
#: name, version, dependencies
PACKAGES = (
    ("openssl", "3.0.14", ()),
    ("numpy", "2.1.0", ("openssl >=3",)),
    ("six", "1.16.0", ()),
    ("python-dateutil", "2.9.0", ("six >=1.5",)),
)
DISTRIBUTIONS = r"'?condastore(?:-server)?(?:\[[\w,]+\])?'?"


@dataclass(slots=True, kw_only=True)
class Shell:
    """A person's terminal: a home folder, programs, and what the lines of the page stand for."""

    home: Path
    system: System
    replaced: Mapping[str, str]
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, line: str) -> str:
        """Run a line of a page; it must succeed."""
        text = without_comment(line)
        for one, other in self.replaced.items():
            text = text.replace(one, other)
        if text.startswith("condastore login"):
            return self._typed(text)
        done = subprocess.run(
            ["bash", "-euc", text],
            env=self.environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _typed(self, text: str) -> str:
        """Run a line in a terminal, and type name and password when they are asked for."""
        process, terminal = pty.fork()
        if process == 0:
            os.chdir(self.home)
            os.execvpe("bash", ["bash", "-euc", text], self.environ)  # noqa: S606
        said, answers = "", {"name": ADMIN, "assword": PASSWORD}
        deadline = time.monotonic() + SECONDS
        with contextlib.suppress(OSError):  # the terminal is closed when the program ends
            while time.monotonic() < deadline:
                if not select.select([terminal], [], [], 1)[0]:
                    continue
                said += os.read(terminal, 4096).decode(errors="replace")
                last = said.rpartition("\n")[2]
                for prompt in list(answers):
                    # The space is written once the terminal no longer echoes.
                    if prompt in last and last.endswith(": "):
                        os.write(terminal, f"{answers.pop(prompt)}\n".encode())
                        said += "\n"
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status == 0, said
        return said

    def starts(self, line: str, until: Any) -> None:
        """Run a line that serves until it is stopped."""
        text = without_comment(line)
        for one, other in self.replaced.items():
            text = text.replace(one, other)
        with (self.home / "service.log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-euc", f"exec {text}"],
                env=self.environ,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(until, seconds=SECONDS, what=line)
            assert process.poll() is None, (self.home / "service.log").read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


PROGRAMS = {
    "condastore": "from condastore.cli.main import main\nmain()\n",
    "pip": f"""
import re, sys
assert sys.argv[1] == "install", sys.argv
for name in sys.argv[2:]:
    assert re.fullmatch({DISTRIBUTIONS!r}, name), name
""",
    "docker": """
import os, subprocess, sys
assert sys.argv[1] == "pull", sys.argv
login = ["--src-tls-verify=false", "--src-creds", "x:" + os.environ["TOUR_TOKEN"]]
sys.exit(subprocess.call(["skopeo", "copy", *login, f"docker://{sys.argv[2]}", "dir:image"]))
""",
    "conda": """
import argparse, os, pathlib
from tests.clients.stand_ins import Conda
parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["create"])
parser.add_argument("-n", required=True)
parser.add_argument("-c", action="append", required=True)
parser.add_argument("specs", nargs="+")
asked = parser.parse_args()
client = Conda(pathlib.Path("conda-cache").absolute(), bearer=os.environ["TOUR_TOKEN"])
client.create(pathlib.Path(asked.n).absolute(), *asked.specs, channels=asked.c)
""",
}


@pytest.fixture(scope="module")
def channel(small_channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a channel with Python and the packages that the pages name."""
    folder = tmp_path_factory.mktemp("channel") / "main"
    shutil.copytree(small_channel, folder, symlinks=True)
    for name, version, depends in PACKAGES:
        spec = PackageSpec(
            name,
            version,
            noarch="generic",
            license="MIT",
            depends=list(depends),
            summary=f"stands for {name}",
            files=[PackageFile.text(f"share/{name}", version)],
        )
        write_package(spec, folder)
    index(folder)
    with serving(folder) as server:
        yield server.url.rstrip("/")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short path, for the socket of the queue."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def shell(folder: Path, channel: str, *arguments: str) -> Iterator[Shell]:
    """Start a system, and open a terminal at which nobody is signed in."""
    system = make_system(
        folder,
        {
            "CONDASTORE_DEFAULT_CHANNELS": channel,
            "CONDASTORE_ALLOWED_NETWORKS": "127.0.0.0/8",
        },
    )
    system.arguments = ("--port", "0", *arguments)
    system.start()
    home = folder / "person"
    programs = folder / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        program(programs, name, text)
    parts = urlsplit(system.url)
    environ = {
        **system.person.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "TERM": "dumb",
    }
    try:
        administrator = system.administrator(home)
        created = administrator.does("token", "create", "tour", "--json").succeeded().document
        environ["TOUR_TOKEN"] = token_in(created)
        # Each tour signs in by itself.
        administrator.does("logout").succeeded()
        replaced = {
            f"https://{HOST}": system.url,
            "http://127.0.0.1:8470": system.url,
            HOST: parts.netloc,
            CONDA_FORGE: channel,
            "/srv/envs": str(folder / "envs"),
            "/mnt/backup/condastore": str(folder / "backup"),
        }
        yield Shell(home=home, system=system, replaced=replaced, environ=environ)
    finally:
        system.stop()


def token_in(document: Any) -> str:
    (token,) = re.findall(r"cs-[\w-]{20,}", json.dumps(document))[:1]
    return str(token)


def environment_file(*more: str) -> str:
    """Return the file of the tutorial with lines added, for the channel and Python of the test."""
    text = (PROJECT / "docs" / "tutorial.md").read_text()
    (found,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    here = str(found).replace("channels: [conda-forge]\n", "").replace("python =3.12", "python")
    return here + "".join(f"{one}\n" for one in more)


def shown(name: str) -> list[str]:
    """Return all shell lines of a tour."""
    return [line for language, content in tour(name) if language == "sh" for line in lines(content)]


def test_the_tutorial_runs(folder: Path, channel: str) -> None:
    text = (PROJECT / "docs" / "tutorial.md").read_text()
    added = re.findall(r"Add a line `(  - [\w-]+)` to the file", text)
    with shell(folder, channel) as person:
        file = person.home / "environment.yml"
        file.write_text(environment_file())
        for line in shown("tutorial"):
            if line.startswith("condastore env preview"):
                file.write_text(environment_file(*added))
            said = person.run(line)
            if line.startswith("condastore run"):
                assert "/prefixes/research/" in said
            if line.startswith("condastore env diff"):
                assert "python-dateutil" in said
            if line.startswith("condastore policy simulate"):
                assert "research/ml" in said


def test_every_line_of_the_users_tour_runs(folder: Path, channel: str) -> None:
    if not shutil.which("skopeo"):
        raise ComponentMissing("skopeo", "apt-get install skopeo")
    with shell(folder, channel) as person:
        file = person.home / "environment.yml"
        file.write_text(environment_file())
        (person.home / "train.py").write_text("print('trained')\n")
        spec = PackageSpec("tool", "1.0", noarch="generic", license="MIT")
        write_package(spec, person.home).parent.rename(person.home / "dist")
        for line in shown("user"):
            said = person.run(line)
            if line.startswith("condastore login"):  # what the tour takes for there
                person.run("condastore namespace create research")
                person.run("condastore channel create research/tools -n research")
            elif line.startswith("condastore run"):
                assert "trained" in said
            elif line.startswith("condastore env preview"):
                file.write_text(environment_file("  - python-dateutil"))
                person.run("condastore env build research/ml -f environment.yml")
            elif line.startswith("condastore env why"):
                assert "numpy" in said
        assert (person.home / "image" / "manifest.json").exists()
        assert (person.home / "ml" / "share" / "numpy").exists()


def test_every_line_of_the_administrators_tour_runs(folder: Path, channel: str) -> None:
    first, *others = shown("administrator")
    command, _, arguments = without_comment(first).partition("condastore up")
    assert not command
    with shell(folder, channel, *arguments.split()) as person:
        workers = [name for name in person.system.state["children"] if name.startswith("worker")]
        assert len(workers) == 2
        person.run(f"condastore login https://{HOST}")
        person.run(
            "condastore manage shell -c "
            "'from accounts.models import User; User.objects.create_user(\"alice\")'"
        )
        for line in others:
            if line.startswith("condastore sync"):
                folder_of = Path(person.replaced["/srv/envs"]) / "research" / "ml"
                person.starts(line, folder_of.is_dir)
                continue
            said = person.run(line)
            if line.startswith("condastore namespace create"):
                (person.home / "environment.yml").write_text(environment_file())
                person.run("condastore env build research/ml -f environment.yml")
            elif line.startswith("condastore contains"):
                assert "research/ml" in said
            elif line.startswith("curl"):
                assert json.loads(said)["ready"] is True


def test_the_graphql_tour_runs(folder: Path, channel: str) -> None:
    ((language, text),) = tour("graphql")
    assert language == "graphql"
    mutation, subscription = (
        part if part.startswith("mutation") else f"subscription{part}"
        for part in text.split("\nsubscription")
    )
    with shell(folder, channel) as person:
        headers = {"Authorization": f"Bearer {person.environ['TOUR_TOKEN']}"}
        person.run(f"condastore login https://{HOST}")
        person.run("condastore namespace create research")
        url = f"{person.system.url}/graphql"
        answer = httpx.post(url, json={"query": mutation}, headers=headers, timeout=60).json()
        build = answer["data"]["submitBuild"]["build"]
        assert build["ref"] == "research/ml:1"
        followed = re.sub(r'buildId: "[^"]*"', f'buildId: "{build["id"]}"', subscription)
        headers["Accept"] = "text/event-stream"
        json_body = {"query": followed}
        with httpx.stream("POST", url, json=json_body, headers=headers, timeout=SECONDS) as events:
            reported = "".join(events.iter_text())
        states = re.findall(r'"state": ?"(\w+)"', reported)
        assert states[-1:] == ["READY"], reported
