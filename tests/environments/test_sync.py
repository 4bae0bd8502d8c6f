"""The node agent: another machine has the same folders, whatever happens to it or to the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from accounts.access import Actor
from accounts.models import ApiToken
from condastore.agent.events import Event, Progress
from condastore.agent.folder import Folder
from condastore.agent.in_use import in_use
from condastore.agent.plan import Choice, Name
from condastore.agent.server import Server
from condastore.agent.sync import Agent, Outcome
from condastore.errors import ConflictError
from environments.jobs import builds as building
from environments.models import Build, CondaRecord, Environment
from environments.operations import builds, environments, recalls
from environments.operations.tokens import create_token
from tests import factories
from tests.channels.server import ChannelServer, Fault, serving
from tests.condastore.command_line import Person
from tests.environments.conftest import Submit
from tests.services.processes import wait_for

ML = Name("research", "ml")
NOBODY = "http://127.0.0.1:9"
Built = Callable[..., Build]


@dataclass
class Node:
    """Another machine, and what its agent told."""

    folder: Folder
    server: Server
    events: list[Event] = field(default_factory=list)
    platform: str = ""

    @property
    def link(self) -> Path:
        return self.folder.link(ML)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, subject: str, progress: Progress) -> None:
        assert progress.stage in {"fetching", "linking", "compiling"}

    def once(
        self, *named: Name, namespaces: tuple[str, ...] = ("research",), keep: int = 1
    ) -> Outcome:
        self.events.clear()
        choice = Choice(namespaces=namespaces, named=frozenset(named))
        with self.folder.held(server="the test's"):
            agent = Agent(
                self.folder,
                self.server,
                choice,
                keep=keep,
                told=self,
                stopped=lambda: False,
                platform=self.platform,
            )
            return agent.once()

    def told(self, kind: str) -> list[str]:
        return [event.message for event in self.events if event.kind == kind]

    def numbers(self) -> list[int]:
        """Of the builds whose files are here."""
        return sorted(one.number for one in self.folder.kept())

    def nothing_half_made(self) -> bool:
        assert not list(self.folder.trash.glob("*"))
        return not [*self.folder.prefixes.glob("*/.*"), *self.folder.root.glob("*/.*/*-*")]


@pytest.fixture
def token(bob: Actor) -> str:
    return create_token(actor=bob, name="node").secret


@pytest.fixture
def node(server: str, token: str, tmp_path: Path) -> Iterator[Node]:
    with closing(Server(server, token)) as requested:
        yield Node(folder=Folder(tmp_path / "node"), server=requested)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """Somebody at that machine, who is signed in nowhere."""
    return Person(home=tmp_path, url=NOBODY)


@pytest.fixture
def built(submit: Submit) -> Built:
    def build(text: str = "dependencies: [libalpha]", **options: Any) -> Build:
        row = submit(text, **options)
        building.run(row.pk)
        row.refresh_from_db()
        assert row.state == "READY", row.failure
        return row

    return build


def linked(folder: Path) -> dict[str, str]:
    """The packages of a prefix with their digests."""
    notes = [json.loads(path.read_text()) for path in folder.glob("conda-meta/*.json")]
    return {note["name"]: note["sha256"] for note in notes}


def test_a_folder_is_what_it_is_on_the_server_and_follows_it(
    node: Node,
    built: Built,
    alice: Actor,
    environment: Environment,
    data_folder: Path,
    channel_server: ChannelServer,
) -> None:
    text = "dependencies: [python, hello-noarch, {pip: [tinyname]}]\nvariables: {GREETING: hello}"
    built(text)
    channel_server.faults.add(Fault("*", status=404))  # all of it comes from our own server
    assert node.once().complete
    channel_server.faults.clear()
    theirs = data_folder / "envs" / "research" / "ml"
    assert linked(node.link) == linked(theirs)
    notes = "conda-meta/state", "conda-meta/history", "conda-meta/frozen"
    assert all((node.link / one).read_text() == (theirs / one).read_text() for one in notes)
    assert list(node.link.glob("lib/python*/site-packages/__pycache__/tinyname.*.pyc"))
    code = "import sys, tinyname; print(sys.prefix)"
    said = subprocess.check_output([node.link / "bin" / "python", "-c", code], text=True)
    assert Path(said.strip()).resolve() == node.link.resolve()

    built()
    assert node.once().complete
    assert node.told("current") == ["build 2"]
    assert node.numbers() == [1, 2]
    built("dependencies: [libalpha, libbeta]")
    node.once()
    assert node.numbers() == [2, 3]  # of the builds before, one stays
    assert node.told("dropped") == ["build 1 is removed"]

    environment.refresh_from_db()
    builds.rollback(actor=alice, environment=environment)
    node.once()
    assert node.link.resolve().name.startswith("2-")
    assert node.told("linking") == []
    assert node.once().complete
    assert node.events == []
    assert node.nothing_half_made()


def test_what_was_recalled_or_removed_or_is_not_ones_own_any_more_goes(
    node: Node, built: Built, root: Actor, alice: Actor, dora: Actor, environment: Environment
) -> None:
    other = factories.make_environment(environment.namespace, "other")
    built("dependencies: [libalpha]")
    built("dependencies: [apptool]", environment=other)
    assert len(node.once().present) == 2

    recall = recalls.recall(actor=root, spec="apptool", reason="it leaks")
    assert node.once().complete
    assert node.told("removed") == ["build 1 was recalled: it leaks"]
    assert [one.name.environment for one in node.folder.kept()] == ["ml"]
    assert not (node.link.parent / "other").is_symlink()
    recalls.undo_recall(actor=root, recall=recall, reason="a false alarm")
    node.once()
    assert (node.link.parent / "other" / "conda-meta").is_dir()

    environments.delete_environment(actor=dora, environment=other)
    node.once()
    assert node.told("removed") == ["it was removed or moved, or you may not see it any more"]
    assert (node.link / "conda-meta").is_dir()

    ApiToken.objects.all().delete()
    outcome = node.once()
    assert outcome.worst is not None
    assert outcome.worst.code == "not-signed-in"
    assert node.told("refused") == ["The API token is not valid."]
    assert not node.link.parent.exists()
    assert node.folder.kept() == []


def test_who_does_not_answer_as_the_server_does_removes_nothing(
    node: Node, built: Built, tmp_path: Path
) -> None:
    built()
    node.once()
    before = node.link.resolve()
    with serving(tmp_path) as stranger:
        for url in (NOBODY, stranger.url):
            with closing(Server(url, "secret")) as node.server:
                outcome = node.once()
            assert outcome.unreachable
            assert not outcome.complete
            (said,) = node.told("unreachable")
            assert said.endswith("What is here stays as it is.")
            assert (node.link.resolve(), node.numbers()) == (before, [1])


def test_what_a_process_has_open_stays_until_it_ends(node: Node, built: Built) -> None:
    built()
    node.once()
    used = node.link.resolve()
    with subprocess.Popen(["sleep", "1000"], cwd=used) as process:
        assert in_use([used, used.with_name("1-000000000000-ml")]) == {used}
        built("dependencies: [libbeta]")
        node.once(keep=0)
        assert node.told("in-use") == ["build 1 stays until no process needs it"]
        assert node.numbers() == [1, 2]
        process.kill()
    node.once(keep=0)
    assert node.numbers() == [2]


def test_only_what_was_chosen_comes_and_what_cannot_come_is_said(
    node: Node, built: Built, environment: Environment
) -> None:
    empty = factories.make_environment(environment.namespace, "empty")
    built()
    assert node.once().complete  # nothing is asked of an environment without a build
    outcome = node.once(ML, Name("research", "empty"), Name("research", "ghost"))
    assert outcome.present == [ML]
    assert sorted(error.message for error in outcome.errors) == [
        "There is no environment research/ghost.",
        f"{empty} has no folder: it has no finished build.",
    ]
    outcome = node.once(namespaces=("other",))
    assert node.told("removed") == ["it is not among those to keep any more"]
    assert [error.code for error in outcome.errors] == ["not-found"]

    node.platform = "osx-arm64"
    assert node.once().complete
    assert "build 1 is for linux-64" in node.told("left-out")
    assert [error.code for error in node.once(ML).errors] == ["cannot-link"]

    node.platform = ""
    node.link.mkdir(parents=True)
    (error,) = node.once().errors
    assert error.where == str(node.link)


def test_one_agent_keeps_a_folder_and_from_one_server(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    again = pytest.raises(ConflictError, match=f"process {os.getpid()} on")
    one, two = "https://one.example.org", "https://two.example.org"
    with folder.held(server=one), again, Folder(tmp_path).held(server=one):
        pass
    with pytest.raises(ConflictError, match="kept from https://one"), folder.held(server=two):
        pass


# Django leaves the file of a request's body to the collector where the client hangs up early.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_agent_that_is_killed_leaves_nothing_half_made_and_goes_on(
    channel_server: ChannelServer,
    server: str,
    token: str,
    built: Built,
    node: Node,
    person: Person,
    settings: Any,
) -> None:
    settings.KEEP_PACKAGES = False  # packages come from upstream, which a test can slow down
    built("dependencies: [python, large-data]")
    channel_server.faults.add(Fault("*large-data*", bytes_per_second=20_000))
    person = Person(home=person.home, url=server, token=token)
    command = "sync", "--namespace", "research", "--to", str(node.folder.root)
    with person.start(*command, "--once") as process:
        digest = CondaRecord.objects.get(name="large-data").sha256
        downloads = node.folder.packages.downloads
        wait_for(
            lambda: any(part.stat().st_size for part in downloads.glob(f"{digest}.*.part")),
            seconds=120,
        )
        process.kill()
    assert not os.path.lexists(node.link)
    channel_server.faults.clear()
    with person.start(*command, "--once") as process:
        wait_for(
            lambda: process.poll() is not None or any(node.folder.prefixes.glob("*/*")),
            seconds=120,
        )
        process.kill()
    assert not os.path.lexists(node.link) or (node.link / "conda-meta" / "history").exists()
    assert channel_server.requests.count("*large-data*", status=206)  # it was continued

    with person.start(*command, "--interval", "1", "--json") as process:
        wait_for(lambda: node.link.is_symlink(), seconds=120)
        built("dependencies: [large-data]")
        wait_for(lambda: node.link.resolve().name.startswith("2-"), seconds=120)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert {"linking", "current"} <= {json.loads(line)["event"] for line in out.splitlines()}
    person.does(*command, "--once").succeeded()
    assert node.numbers() == [1, 2]
    assert node.nothing_half_made()


def test_the_status_says_whether_all_is_there(
    server: str, token: str, built: Built, person: Person, tmp_path: Path
) -> None:
    built()
    node = Person(home=person.home, url=server, token=token)
    command = "sync", "--once", "--json", "--to", str(tmp_path / "node")
    ended = node.does(*command, "-e", "research/ml").succeeded()
    assert ended.documents[-1]["present"] == ["research/ml"]
    assert node.does(*command, "-n", "nowhere").status == 4
    assert Person(home=person.home, url=server, token="cs_no").does(*command, "-n", "a").status == 3
    assert person.does(*command, "-n", "research").status == 6  # another server's folder
    away = "sync", "--once", "--to", str(tmp_path / "other"), "-n", "research"
    ended = person.does(*away)
    assert ended.status == 5
    assert "What is here stays as it is." in ended.err
    assert person.does("sync", "--to", str(tmp_path)).status == 2


def test_a_command_runs_in_a_kept_folder_and_counts_as_a_use(
    node: Node,
    built: Built,
    person: Person,
    token: str,
    server: str,
    environment: Environment,
    data_folder: Path,
) -> None:
    built("dependencies: [apptool]")
    assert node.once().complete
    (data_folder / "prefixes").rename(data_folder / "not-on-this-machine")
    Environment.objects.update(used_at=None)
    variables = {"CONDASTORE_ENVS": str(node.folder.root)}
    there = Person(home=person.home, url=server, token=token, variables=variables)
    ended = there.does("run", "research/ml", "--", "apptool").succeeded()
    assert str(node.link.resolve()) in ended.out
    wait_for(lambda: Environment.objects.exclude(used_at=None).exists())
    away = Person(home=person.home, url=NOBODY, token=token, variables=variables)
    assert away.does("run", "research/ml:1", "--", "apptool").succeeded().out == ended.out


SERVER_ONLY = (
    *("django", "strawberry", "dramatiq", "guardian", "psutil", "structlog", "conda_lock"),
    *("conda_pack", "cryptography", "deflate", "environs", "license_expression", "msgpack"),
    *("packaging", "yaml", "psycopg", "uvicorn", "zstandard"),
)


def test_the_agent_needs_none_of_the_servers_parts_and_says_what_it_lacks(
    tmp_path: Path,
) -> None:
    blocked = f"import sys\nfor name in {SERVER_ONLY}: sys.modules[name] = None\n"
    subprocess.run([sys.executable, "-c", f"{blocked}import condastore.agent.sync"], check=True)
    run = (
        "import sys; sys.modules['rattler'] = None\n"
        f"sys.argv = ['condastore', 'sync', '-n', 'research', '--to', {str(tmp_path)!r}]\n"
        "from condastore.cli.main import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "pip install 'condastore[agent]'" in ended.stderr
