"""Foreign text cannot steer the terminal of its reader.

A namespace's member, a channel's package or another server puts escape sequences wherever a text
is taken; somebody else looks at it with the command line, or reads the server's log.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accounts.access import Actor
from accounts.roles import Role
from condastore import terminal
from environments.domain.lifecycle import BuildState
from environments.models import (
    ApprovalRequest,
    AuditEvent,
    Build,
    BuildEvent,
    Environment,
    Namespace,
    Policy,
    PolicyRule,
    PolicyVersion,
    Recall,
)
from tests import factories
from tests.condastore.command_line import COMMAND, Person
from tests.condastore.scripted_server import Page, answering

PROJECT = Path(__file__).parents[2]
EVIL = "ok\x1b]0;PWNED\x07\x1b[2J\x9b31m\x1b[1A\u202egnp.exe\u2066\u200b\x7f\x08 end"
COLOUR = "\x1b[31mred\x1b[0m"
_OWN = re.compile(r"\x1b\[[0-9;]*m")  # bold heads of tables


def unsafe(text: str) -> set[str]:
    """The characters of `text` that steer a terminal, apart from rich's own colours."""
    plain = _OWN.sub("", text).replace("\r\n", "\n")
    return set(plain) - set(terminal.neutralise(plain)) - set("\n\t")


@pytest.fixture
def person(server: str, tmp_path: Path) -> Person:
    """Alice at a terminal, after somebody has put EVIL wherever a text is taken."""
    research = factories.make_namespace("research", alice=Role.ADMIN)
    alice = factories.make_user("root", superuser=True)
    Namespace.objects.update(description=EVIL)
    environment = factories.make_environment(research, "ml")
    Environment.objects.update(description=EVIL)
    build = factories.make_build(environment, BuildState.FAILED)
    build.append_log([EVIL, COLOUR])
    fault = {"message": EVIL, "where": EVIL, "hint": EVIL, "code": "x"}
    failure = fault | {"details": {"faults": [fault, fault]}}
    Build.objects.update(failure=failure, source=f"# {EVIL}\ndependencies: []")
    BuildEvent.objects.create(build=build, state=BuildState.FAILED, message=EVIL)
    Recall.objects.create(spec=EVIL, reason=EVIL)
    policy = Policy.of(research)
    PolicyRule.objects.create(policy=policy, kind=EVIL[:20], effect="WARN", name=EVIL)
    PolicyVersion.objects.create(policy=policy, number=1, rules=[], change=EVIL, comment=EVIL)
    ApprovalRequest.objects.create(
        namespace=research, subject="spec:x", name=EVIL, version=EVIL, rule=EVIL, reason=EVIL
    )
    AuditEvent.record(Actor(alice), "environment.create", EVIL, {"name": EVIL})
    home = tmp_path / "home"
    home.mkdir()
    return Person(home=home, url=server, token=factories.make_token(alice))


def on_a_terminal(person: Person, *arguments: str) -> str:
    """What the command sends to a terminal."""
    ours, theirs = pty.openpty()
    environ = person.environ | {"TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environ,
        cwd=person.home,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        sent = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end was closed
                break
            if not part:
                break
            sent += part
        process.wait(60)
    os.close(ours)
    return sent.decode()


COMMANDS = (
    "env log research/ml:1",
    "env show research/ml:1",
    "env list",
    "env history research/ml",
    "env wait research/ml:1",
    "namespace list",
    "namespace show research",
    "recall list",
    "policy show research",
    "policy history research",
    "approval list",
    "approval show {request}",
    "audit list",
)


def test_no_command_passes_on_what_steers_a_terminal(person: Person) -> None:
    shown = {}
    request = ApprovalRequest.objects.get().pk
    commands = [command.format(request=request) for command in COMMANDS]
    for command in commands:
        ended = person.does(*command.split())
        shown[command] = ended.out + ended.err
        assert not unsafe(shown[command]), command
        as_json = person.does(*command.split(), "--json")
        assert not unsafe(as_json.out + as_json.err), command
    # They show the texts, and do not leave them out.
    missing = [command for command in commands if "PWNED" not in shown[command]]
    assert not missing, {command: shown[command] for command in missing}


def test_json_holds_the_whole_text(person: Person) -> None:
    found = person.does("env", "log", "research/ml:1", "--json").succeeded().document
    assert found["lines"] == [EVIL, COLOUR]


def test_a_log_and_a_specification_on_a_terminal_hold_no_escape_sequence(person: Person) -> None:
    for command in ("env log research/ml:1", "env specification research/ml:1", "audit export"):
        sent = on_a_terminal(person, *command.split())
        assert "PWNED" in sent, command
        assert not unsafe(sent), command
    assert "red" in on_a_terminal(person, "env", "log", "research/ml:1")


def test_a_specification_written_to_a_file_is_exact(person: Person) -> None:
    ended = person.does("env", "specification", "research/ml:1").succeeded()
    assert ended.out == f"# {EVIL}\ndependencies: []\n"


def test_another_server_steers_no_terminal_by_its_errors(person: Person, tmp_path: Path) -> None:
    error: dict[str, Any] = {"message": EVIL, "extensions": {"code": EVIL, "hint": EVIL}}
    problem = json.dumps({"title": EVIL, "detail": EVIL, "code": EVIL, "hint": EVIL})
    answers = {
        "Environments": lambda _: {"errors": [error]},
        "/api/token": lambda _: Page(status=400, body=problem, kind="application/problem+json"),
    }
    with answering(answers) as other:
        home = Person(home=person.home, url=other.url, token="cs-x")
        for command in (["env", "list"], ["login", other.url, "--username", "x"]):
            ended = (
                home.does(*command, "--password-stdin", says="x\n")
                if "login" in command
                else (home.does(*command))
            )
            assert ended.status != 0
            assert "PWNED" in ended.err, command
            assert not unsafe(ended.out + ended.err), command


def test_only_one_module_of_the_command_line_makes_consoles_or_takes_streams_apart() -> None:
    """The guard of the streams is where text becomes output: nothing goes around it."""
    around = re.compile(
        r"rich\.console|\bConsole\(|sys\.__std|\bos\.write\(|(?<![.\w])print\(|/dev/tty"
    )
    folders = [PROJECT / "condastore" / name for name in ("cli", "agent")]
    found = [
        f"{path.relative_to(PROJECT)}:{number}"
        for folder in folders
        for path in sorted(folder.glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if around.search(line)
    ]
    assert not found


# --- the server's own log -------------------------------------------------------------------------

LOGGING = """
import structlog
from condastore.logs import configure
configure({"level": "INFO", "format": FORMAT})
logger = structlog.get_logger("web")
evil = "a\\n2030-01-01T00:00:00Z [info     ] root signed in\\x1b[2J\\x9b\\u202e"
logger.warning("refused", username=evil)
logger.warning(evil)
try:
    raise ValueError(evil)
except ValueError:
    logger.exception("failed")
"""


@pytest.mark.parametrize("kind", ["console", "json"])
def test_no_value_in_the_servers_log_begins_a_line_or_steers_a_terminal(kind: str) -> None:
    script = LOGGING.replace("FORMAT", repr(kind))
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert not unsafe(run.stderr)
    assert "root signed in" in run.stderr
    begun = [line for line in run.stderr.splitlines() if not line.startswith("    ")]
    assert len(begun) == 3
    assert not [line for line in begun if line.startswith("2030")]
