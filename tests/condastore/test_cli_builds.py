"""Following a build, explaining its end, and the statuses that scripts rely on."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from typing import Any

import pytest

from tests.condastore.command_line import Person
from tests.condastore.scripted_server import Events, Page, answering

REF = "research/ml:3"


def live(state: str, **more: Any) -> dict[str, Any]:
    finished = state in {"READY", "FAILED", "CANCELLED"}
    progress = {
        "stage": state,
        "done": 1,
        "total": 2,
        "bytesDone": 10,
        "bytesTotal": 20,
        "current": "numpy",
    }
    return {
        "id": "77",
        "number": 3,
        "ref": REF,
        "state": state,
        "finished": finished,
        "attempt": 1,
        "progress": progress,
    } | more


def full(state: str = "READY", **more: Any) -> dict[str, Any]:
    return live(state) | {
        "isCurrent": True,
        "createdAt": "2030-01-01T10:00:00+00:00",
        "startedAt": "2030-01-01T10:00:01+00:00",
        "finishedAt": "2030-01-01T10:00:09+00:00",
        "requestedBy": "alice",
        "prefixPath": "/store/prefixes/research/3-abc-ml",
        "apparentSize": "512000000",
        "uniqueSize": "1000",
        "linkScripts": [],
        "tags": [],
        "environment": {"name": "ml", "namespace": {"name": "research"}},
        "lock": {"digest": "abc", "packageCount": 50, "platforms": ["linux-64"]},
        "timings": [{"stage": "SOLVING", "seconds": 0.5}],
        "failure": None,
        **more,
    }


def event(state: str, *lines: str, next_line: int) -> dict[str, Any]:
    return {"buildProgress": {"build": live(state), "newLines": list(lines), "nextLine": next_line}}


def submitted(variables: dict[str, Any]) -> dict[str, Any]:
    payload = {
        "__typename": "SubmittedBuild",
        "created": True,
        "warnings": ["pip is not pinned"],
        "build": live("QUEUED"),
    }
    return {"data": {"submitBuild": payload}}


def progress_of(log: list[str]) -> Any:
    """What asking gives, when the build is READY and `log` is all that it said."""

    def answer(variables: dict[str, Any]) -> dict[str, Any]:
        start = variables["start"]
        build = live("READY", logLines=len(log), log=log[start : start + variables["limit"]])
        return {"data": {"build": build}}

    return answer


def ended(**build: Any) -> Any:
    return lambda _: {"data": {"build": full(**build)}}


LOG = ["solving", "fetching", "linking"]


@pytest.fixture
def file(person: Person) -> str:
    (person.home / "environment.yml").write_text("dependencies: [python]\n")
    return "environment.yml"


BUILD = ("env", "build", "research/ml", "-f")


def test_a_build_is_followed_by_events_and_summed_up(person: Person, file: str):
    answers = {
        "SubmitBuild": submitted,
        "Follow": lambda _: Events(
            data=[
                event("SOLVING", "solving", next_line=1),
                event("LINKING", "fetching", "linking", next_line=3),
                event("READY", next_line=3),
            ]
        ),
        "Progress": progress_of(LOG),
        "BuildById": ended(),
    }
    with answering(answers) as server:
        done = replace(person, url=server.url).does(*BUILD, file).succeeded()
        assert (
            server.asked_for("SubmitBuild")[0].variables["specification"].startswith("dependencies")
        )
    lines = done.out.splitlines()
    assert [line for line in lines if line in LOG] == LOG
    assert "research/ml:3: LINKING" in lines
    assert "research/ml:3 is READY after 0.5 s" in lines
    assert "  50 packages, 512.0 MB, of which 1.0 kB are its own" in lines
    assert "  use it: condastore run research/ml -- python" in lines
    assert done.err == "warning: pip is not pinned\n"


def test_events_that_are_cut_lose_and_repeat_no_line_of_the_log(person: Person, file: str):
    first = Events(data=[event("SOLVING", "solving", next_line=1)], cut=True)
    streams = iter([first])
    answers = {
        "SubmitBuild": submitted,
        "Follow": lambda _: next(streams),
        "Progress": progress_of(LOG),
        "BuildById": ended(),
    }
    with answering(answers) as server:
        done = replace(person, url=server.url).does(*BUILD, file).succeeded()
        assert server.asked_for("Progress")[0].variables["start"] == 1
    assert [line for line in done.out.splitlines() if line in LOG] == LOG


def test_a_server_that_cannot_stream_is_asked_instead(person: Person, file: str):
    answers = {
        "SubmitBuild": submitted,
        "Follow": lambda _: Page(status=406, body="no"),
        "Progress": progress_of(LOG),
        "BuildById": ended(),
    }
    with answering(answers) as server:
        done = replace(person, url=server.url).does(*BUILD, file).succeeded()
    assert [line for line in done.out.splitlines() if line in LOG] == LOG


def test_a_request_whose_answer_was_lost_is_sent_again_with_its_key(person: Person, file: str):
    answered: list[Any] = [None, submitted({})]
    answers = {"SubmitBuild": lambda _: answered.pop(0)}
    with answering(answers) as server:
        replace(person, url=server.url).does(*BUILD, file, "--no-wait").succeeded()
        first, second = server.asked_for("SubmitBuild")
    assert first.variables["idempotencyKey"]
    assert first.variables == second.variables


def test_json_is_one_document_a_line_and_nothing_else(person: Person, file: str):
    answers = {
        "SubmitBuild": submitted,
        "Follow": lambda _: Events(data=[event("READY", *LOG, next_line=3)]),
        "Progress": progress_of(LOG),
        "BuildById": ended(),
    }
    with answering(answers) as server:
        done = replace(person, url=server.url).does(*BUILD, file, "--json").succeeded()
    documents = done.documents
    assert documents[0]["event"] == "submitted"
    assert documents[-1]["event"] == "finished"
    assert documents[-1]["build"]["state"] == "READY"
    told = [line for one in documents[1:-1] for line in one["newLines"]]
    assert told == LOG


FAILURE = {
    "code": "unsatisfiable",
    "message": "There is no solution.",
    "where": "",
    "hint": "Loosen one of them.",
    "faults": [],
    "conflicts": [
        {
            "requirements": ["numpy 1.24", "pandas >=3"],
            "reason": "pandas 3 needs numpy >=2",
            "chain": ["pandas 3.0", "numpy >=2"],
        }
    ],
    "missing": [{"requirement": "nunpy", "channels": ["forge"], "similar": ["numpy", "numpyro"]}],
}


def test_a_failed_build_is_explained_on_stderr_with_status_1(person: Person, file: str):
    answers = {
        "SubmitBuild": submitted,
        "Follow": lambda _: Page(status=406, body="no"),
        "Progress": lambda _: {"data": {"build": live("FAILED", logLines=0, log=[])}},
        "BuildById": ended(state="FAILED", failure=FAILURE),
    }
    with answering(answers) as server:
        done = replace(person, url=server.url).does(*BUILD, file)
    assert done.status == 1
    for part in (
        "error: There is no solution.",
        "    - numpy 1.24\n    - pandas >=3\n",
        "because pandas 3 needs numpy >=2",
        "pandas 3.0 -> numpy >=2",
        "no package for nunpy in forge",
        "similar names: numpy, numpyro",
        "hint: Loosen one of them.",
        "condastore env log research/ml:3",
    ):
        assert part in done.err
    assert "error" not in done.out


def test_ctrl_c_leaves_the_build_alone_and_says_how_to_go_on(person: Person, file: str):
    following = threading.Event()

    def running(_: object) -> dict[str, Any]:
        following.set()
        return {"data": {"build": live("LINKING", logLines=0, log=[])}}

    answers = {
        "SubmitBuild": submitted,
        "Follow": lambda _: Page(status=406, body="no"),
        "Progress": running,
    }
    with (
        answering(answers) as server,
        replace(person, url=server.url).start(*BUILD, file) as process,
    ):
        try:
            assert following.wait(60)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()  # where the signal is ignored, as it is in the background of a shell
    assert process.returncode == 130
    assert "research/ml:3 continues" in err
    assert "condastore env cancel research/ml:3" in err
    assert not server.asked_for("CancelBuild")


def refused(code: str, **more: Any) -> dict[str, Any]:
    payload = {"__typename": "OperationError", "code": code, "message": "It is so.", "where": ""}
    return {"data": {"submitBuild": payload | {"hint": "", "details": {}, "faults": []} | more}}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("not-signed-in", 3),
        ("access-denied", 3),
        ("token-invalid", 3),
        ("not-found", 4),
        ("conflict", 6),
        ("specification-invalid", 6),
        ("a-code-of-a-later-server", 6),
        ("internal-error", 1),
    ],
)
def test_the_status_says_what_kind_of_error_it_was(
    person: Person, file: str, code: str, status: int
):
    with answering({"SubmitBuild": lambda _: refused(code)}) as server:
        done = replace(person, url=server.url, token="cs-secret").does(*BUILD, file)
    assert (done.status, done.out) == (status, "")
    assert done.err == "error: It is so.\n"


def test_each_fault_stands_on_its_line_with_its_place(person: Person, file: str):
    faults = [
        {
            "message": "numpy twice",
            "where": "dependencies[1], line 4",
            "code": "",
            "hint": "Drop one.",
        },
        {"message": "no such platform", "where": "platforms[0], line 2", "code": "", "hint": ""},
    ]
    answer = refused("specification-invalid", faults=faults, hint="Correct it.")
    with answering({"SubmitBuild": lambda _: answer}) as server:
        person = replace(person, url=server.url)
        assert person.does(*BUILD, file).err.splitlines() == [
            "error: 2 things are wrong",
            "  dependencies[1], line 4: numpy twice",
            "      Drop one.",
            "  platforms[0], line 2: no such platform",
            "  hint: Correct it.",
        ]
        for_programs = json.loads(person.does(*BUILD, file, "--json").err)
    assert [fault["where"] for fault in for_programs["error"]["faults"]] == [
        "dependencies[1], line 4",
        "platforms[0], line 2",
    ]


def test_a_refused_token_is_told_from_a_refused_permission(person: Person):
    body = json.dumps({"code": "token-invalid", "detail": "The API token is not valid.",
                       "hint": "Make a new one.", "status": 401})  # fmt: skip
    page = Page(status=401, body=body, kind="application/problem+json")
    with answering({"Me": lambda _: page}) as server:
        done = replace(person, url=server.url).does("whoami")
    assert done.status == 3
    assert done.err.splitlines() == [
        "error: The API token is not valid.",
        "  hint: Make a new one.",
    ]


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (Page(status=200, body="<html>hello"), "does not answer like a condastore server"),
        (Page(status=502, body="bad gateway"), "is not ready: HTTP status 502"),
        (Page(status=404, body="nothing"), "answered 404"),
    ],
)
def test_something_else_at_the_address_is_recognised(person: Person, page: Page, text: str):
    with answering({"Me": lambda _: page}) as server:
        done = replace(person, url=server.url).does("whoami")
    assert done.status in {4, 5}
    assert text in done.err


def test_a_server_that_is_not_there_ends_with_5_and_says_how_to_start_one(person: Person):
    done = person.does("whoami", "--json")
    assert done.status == 5
    assert "condastore up" in json.loads(done.err)["error"]["hint"]


def test_no_traceback_reaches_a_person_unless_asked_for(person: Person):
    odd = {"data": {"me": {"username": "alice"}}}  # fields are missing: a mistake of ours
    with answering({"Me": lambda _: odd}) as server:
        person = replace(person, url=server.url)
        done = person.does("whoami")
        assert done.status == 1
        assert "Traceback" not in done.err
        assert "CONDASTORE_DEBUG=1" in done.err
        asked = replace(person, variables={"CONDASTORE_DEBUG": "1"}).does("whoami")
    assert "Traceback" in asked.err


def test_what_the_log_says_does_not_steer_the_terminal(person: Person, file: str):
    nasty = "\x1b[2Jcleared\x07"
    answers = {
        "SubmitBuild": submitted,
        "Follow": lambda _: Events(data=[event("READY", nasty, next_line=1)]),
        "Progress": progress_of([nasty]),
        "BuildById": ended(),
    }
    with answering(answers) as server:
        done = replace(person, url=server.url).does(*BUILD, file).succeeded()
    assert "\x1b" not in done.out
    assert "cleared" in done.out


def test_a_file_that_cannot_be_read_is_named(person: Person):
    done = person.does(*BUILD, "absent.yml")
    assert done.status == 6
    assert "absent.yml" in done.err


def test_what_cannot_be_undone_wants_a_yes(person: Person):
    done = person.does("env", "delete", "research/ml")
    assert done.status == 2
    assert "--yes" in done.err
    assert done.err.startswith("error: Delete research/ml and all its builds?")


def test_all_pages_of_a_list_are_read(person: Person):
    def page(variables: dict[str, Any]) -> dict[str, Any]:
        last = variables["after"] is not None
        node = {
            "name": "second" if last else "first",
            "personal": False,
            "public": False,
            "environments": {"totalCount": 1},
            "description": "",
        }
        info = {"hasNextPage": not last, "endCursor": None if last else "there"}
        return {
            "data": {"namespaces": {"totalCount": 2, "pageInfo": info, "edges": [{"node": node}]}}
        }

    with answering({"Namespaces": page}) as server:
        done = replace(person, url=server.url).does("namespace", "list", "--json").succeeded()
    assert [one["name"] for one in done.document] == ["first", "second"]


def test_a_restore_prints_the_new_part_of_the_log_and_the_time_of_its_own_attempt(person: Person):
    log = ["solving", "linking", "restoring"]

    def progress(variables: dict[str, Any]) -> dict[str, Any]:
        start = variables["start"]
        return {"data": {"build": live("READY", logLines=len(log), log=log[start:])}}

    restored = {"__typename": "Build"} | full("QUEUED", logLines=2)
    answers = {
        "Build": lambda _: {"data": {"build": full("ARCHIVED", logLines=2)}},
        "RestoreBuild": lambda _: {"data": {"restoreBuild": restored}},
        "Follow": lambda _: Events(data=[]),
        "Progress": progress,
        "BuildById": ended(timings=[{"stage": "LINKING", "seconds": 1.0}]),
    }
    with answering(answers) as server:
        somebody = replace(person, url=server.url, token="cs-secret")
        done = somebody.does("env", "restore", REF).succeeded()
    lines = done.out.splitlines()
    assert "restoring" in lines
    assert "solving" not in lines
    assert f"{REF} is READY after 1.0 s" in lines
