"""Invalid input through every interface: refusals name the fault, its location and a hint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.channels.server import ChannelServer
from tests.faults.conftest import Start
from tests.system import SUBMIT, System

REFERENCE = "input/bad"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join([f'*{chr(97 + level)}'] * 9)}]\n"
    for level in range(9)
)
# What is written; the code of the refusal; what its message, place and hint must say.
REFUSED: dict[str, tuple[str, list[str]]] = {
    "broken yaml": ("dependencies: [python\nname: x\n", ["line"]),
    "tabs": ("dependencies:\n\t- python\n", ["line 2"]),
    "yaml bomb": (BOMB + "dependencies: [python]\n", ["alias"]),
    "five megabytes": (f"dependencies: [python]\n#{'x' * 5_000_000}\n", ["5,0", "1,048,576"]),
    "a list": ("- python\n", ["The text is not an environment", "line 1", "dependencies:"]),
    "nothing": ("", ["empty"]),
    "unknown key": ("dependancies: [python]\n", ["dependancies", "write 'dependencies'"]),
    "unknown key of ours": ("dependencies: [python]\ncondastore: {tets: 1}\n", ["tets", "line 2"]),
    "unknown platform": (
        "dependencies: [python]\nplatforms: [linux-65]\n",
        ["linux-65", "linux-64"],
    ),
    "a control character": ("dependencies: ['pyt\\x07hon']\n", ["dependencies"]),
    "a control character in the text": ("name: x\x07\ndependencies: [python]\n", ["line 1"]),
    "a requirement that cannot be read": ("dependencies: ['python >>3']\n", ["python >>3"]),
    "contradiction": (
        "dependencies: [numpy=1.24, numpy=2.3]\n",
        ["numpy 1.24.*", "numpy 2.3.*", "exclude each other"],
    ),
    "local path": ("dependencies: [python, {pip: ['./mine']}]\n", ["./mine"]),
    "file url": ("dependencies: [python, {pip: ['mine @ file:///etc']}]\n", ["file:"]),
    "git url": (
        "dependencies: [python, {pip: ['git+https://example.org/x.git']}]\n",
        ["git+https://example.org/x.git"],
    ),
    "editable": ("dependencies: [python, {pip: ['-e .']}]\n", ["-e"]),
    "requirements file": ("dependencies: [python, {pip: ['-r other.txt']}]\n", ["-r"]),
    "channel with a path trick": (
        "channels: ['https://example.org/../../etc']\ndependencies: [python]\n",
        ["channels", "contains `..`"],
    ),
    "channel that is not allowed": (
        "channels: ['https://elsewhere.example.org/main']\ndependencies: [python]\n",
        ["https://elsewhere.example.org/main"],
    ),
}
NAMES = {
    "../../etc": "is not a valid",
    "a/b": "is not a valid",
    ".hidden": "is not a valid",
    "a\x00b": "U+0000",
    "a\nb": "",
    "a\u202eb": "RIGHT-TO-LEFT OVERRIDE",
    "Caps": "capital",
    "": "empty",
    "x" * 300: "300 characters",
    "..": "is not a valid",
}


@pytest.fixture(scope="module")
def system(start: Start, channel: ChannelServer) -> Iterator[System]:
    allowed = f"{channel.url}* http://127.0.0.1:*"
    with start(ALLOWED_CHANNELS=allowed.replace(" ", ",")) as running:
        running.create(REFERENCE)
        yield running


def _refusal(system: System, text: str) -> str:
    """Return the complete error as the command line prints it."""
    namespace, environment = REFERENCE.split("/")
    answer = system.graphql(
        SUBMIT, namespace=namespace, environment=environment, text=text, force=False
    )["submitBuild"]
    assert answer["__typename"] == "OperationError", answer
    assert answer["hint"], "it says what to do next"
    return json.dumps(answer, ensure_ascii=False)


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_specification_is_refused_with_its_reason(system: System, case: str) -> None:
    text, said = REFUSED[case]
    refusal = _refusal(system, text)
    for part in said:
        assert part in refusal
    assert "Traceback" not in refusal
    assert len(refusal) < 5000


def test_all_faults_of_a_specification_are_reported_together(system: System) -> None:
    refusal = _refusal(
        system,
        "condastore: {tets: 1}\nplatforms: [linux-65]\n"
        "dependencies: ['python >>3', {pip: ['./mine']}]\n",
    )
    for part in ("tets", "linux-65", "python >>3", "./mine", "line 1", "line 2", "line 3"):
        assert part in refusal


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["namespace", "environment"])
def test_a_bad_name_is_refused_with_its_reason(system: System, what: str, name: str) -> None:
    field, variables = {
        "namespace": ("createNamespace(name: $name)", ""),
        "environment": ('createEnvironment(namespace: "input", name: $name)', ""),
    }[what]
    query = f"""mutation($name: String!{variables}) {{ {field} {{
      __typename ... on OperationError {{ code message where hint }} }} }}"""
    [answer] = system.graphql(query, name=name).values()
    assert answer["code"] == "invalid-input", answer
    assert NAMES[name] in answer["message"]
    assert answer["where"] == what


FAILED: dict[str, tuple[str, str, list[str]]] = {
    "unknown package": (
        "dependencies: [no-such-package, python]\n",
        "unsatisfiable",
        ["no-such-package"],
    ),
    "misspelt package": ("dependencies: [hello-noarhc]\n", "unsatisfiable", ["hello-noarch"]),
    "impossible version": ("dependencies: ['libalpha >=99']\n", "unsatisfiable", ["libalpha >=99"]),
    "requirements that exclude each other": (
        "dependencies: [conflict-left, conflict-right]\n",
        "unsatisfiable",
        ["conflict-left", "conflict-right"],
    ),
    "dangling dependency": (
        "dependencies: [dangling]\n",
        "unsatisfiable",
        ["dangling", "package-that-does-not-exist"],
    ),
    "unknown pip package": (
        "dependencies: [python, {pip: [no-such-project]}]\n",
        "pypi-unsatisfiable",
        ["no-such-project"],
    ),
}


@pytest.mark.parametrize("case", FAILED)
def test_a_request_without_an_answer_fails_once_and_explains_it(system: System, case: str) -> None:
    text, code, said = FAILED[case]
    done = system.wait(system.submit(REFERENCE, text))
    assert (done["state"], done["attempt"]) == ("FAILED", 1), done
    assert done["failure"]["code"] == code, done["failure"]
    for part in said:
        assert part in json.dumps(done["failure"]), done["failure"]


def test_a_channel_that_does_not_exist_is_named(system: System, channel: ChannelServer) -> None:
    text = f"channels: ['{channel.url}no-such-channel']\ndependencies: [python]\n"
    done = system.wait(system.submit(REFERENCE, text))
    assert (done["state"], done["attempt"]) == ("FAILED", 1), done
    assert done["failure"]["code"] == "channel-not-found"
    assert "no-such-channel" in done["failure"]["message"]


def test_the_command_line_shows_where_a_specification_is_wrong(system: System) -> None:
    answer = system.run(
        "env",
        "build",
        REFERENCE,
        "-f",
        "-",
        stdin="dependencies: ['python >>3']\n",
        check=False,
    )
    assert answer.returncode not in (0, 1, 2), answer
    assert "python >>3" in answer.stderr
    assert "line 1" in answer.stderr


def _query(system: System, query: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {system.token}"}
    answer = system.http.post("/graphql", json={"query": query}, headers=headers)
    body: dict[str, Any] = answer.json()
    assert body.get("data") is None, body
    [error] = body["errors"][:1]
    return dict(error)


LARGE = {
    "query-too-deep": "{ me { namespaces { namespace { "
    + "environments { edges { node { namespace { " * 12
    + "id"
    + " } } } }" * 12
    + " } } } }",
    "query-too-many-aliases": "{ "
    + " ".join(f'a{n}: namespace(name: "x") {{ id }}' for n in range(40))
    + " }",
    "query-too-wide": "{ environments(first: 100) { edges { node { builds(first: 100) { edges "
    "{ node { environment { builds(first: 100) { edges { node { id } } } } } } } } } } }",
    "query-too-long": "{ " + "me { id } " * 4000 + " }",
}


@pytest.mark.parametrize("code", LARGE)
def test_a_query_that_asks_for_too_much_is_refused_before_it_runs(
    system: System, code: str
) -> None:
    error = _query(system, LARGE[code])
    assert error["extensions"]["code"] == code, error
    assert "allowed" in error["message"]
    assert error["extensions"]["hint"]


def test_a_query_of_fragments_in_fragments_is_refused_at_once(system: System) -> None:
    fragments = "".join(
        f"fragment f{n} on Namespace {{ id ...f{n + 1} ...f{n + 1} }}\n" for n in range(60)
    )
    query = '{ namespace(name: "input") { ...f0 } }\n' + fragments
    error = _query(system, query + "fragment f60 on Namespace { ...f0 }")
    assert error["message"]


def test_an_upload_that_is_too_large_is_refused_with_413(system: System) -> None:
    text = "x" * 27_000_000
    answer = system.http.post(
        "/graphql",
        content=json.dumps({"query": "{ me { username } }", "variables": {"text": text}}),
        headers={
            "Authorization": f"Bearer {system.token}",
            "Content-Type": "application/json",
        },
    )
    assert answer.status_code == 413, answer.text[:500]
    assert "26" in answer.text
    assert system.graphql("{ me { username } }")["me"]["username"] == "admin"
