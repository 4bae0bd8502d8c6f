"""Shell completion: environments, builds, tags, namespaces and formats; silent without a server."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphql import build_schema, parse, validate

from condastore.cli import completion
from tests.condastore.command_line import COMMAND, Ended, Person
from tests.condastore.scripted_server import Answer, answering

SCHEMA = Path(__file__).parents[2] / "schema.graphql"


def edges(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"edges": [{"node": node} for node in nodes]}


ENVIRONMENTS = [("research", "ml"), ("research", "maps"), ("team", "ml")]


def environments(variables: dict[str, Any]) -> dict[str, Any]:
    filters = variables.get("filters") or {}
    found = [
        {"name": name, "namespace": {"name": space}}
        for space, name in ENVIRONMENTS
        if filters.get("namespace", space) == space
    ]
    return {"data": {"environments": edges(*found)}}


ANSWERS: dict[str, Answer] = {
    "CompleteEnvironments": environments,
    "CompleteNamespaces": lambda _: {
        "data": {"namespaces": edges({"name": "research"}, {"name": "team"})}
    },
    "CompleteBuilds": lambda _: {
        "data": {
            "environment": {
                "builds": edges({"number": 12}, {"number": 11}),
                "tags": [{"name": "prod"}],
            }
        }
    },
}


def completed(person: Person, *words: str, under: str = "zsh") -> Ended:
    """Press Tab after the last of `words`."""
    asks = {
        "zsh": {"_TYPER_COMPLETE_ARGS": " ".join(("condastore", *words))},
        "bash": {
            "COMP_WORDS": "\n".join(("condastore", *words)),
            "COMP_CWORD": str(len(words)),
        },
    }[under]
    done = subprocess.run(
        COMMAND,
        env=person.environ | asks | {"_CONDASTORE_COMPLETE": f"complete_{under}"},
        cwd=person.home,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Ended(status=done.returncode, out=done.stdout, err=done.stderr)


def words_in(ended: Ended) -> list[str]:
    """Return the completions that zsh gets."""
    return [
        word.replace("\\\\", "")
        for word in ended.out.replace("_arguments '*: :((", "").replace("))'", "").split('"')
        if word.strip() not in {"", "_files"}  # which zsh completes where we name nothing
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("env", "show", "res"), ["research/ml", "research/maps"]),
        (("env", "history", "research/ma"), ["research/maps"]),
        (("env", "show", "research/ml:"), ["current", "prod", "12", "11"]),
        (("env", "log", "research/ml:1"), ["12", "11"]),
        (("env", "list", "t"), ["team"]),
        (("namespace", "show", "r"), ["research"]),
        (("env", "export", "research/ml", "--format", "tar."), ["tar.gz", "tar.zst"]),
        (("namespace", "eager", "research", "squ"), ["squashfs"]),
    ],
)
def test_names_are_completed(person: Person, words: tuple[str, ...], expected: list[str]):
    with answering(ANSWERS) as server:
        done = completed(replace(person, url=server.url, token="cs-secret"), *words)
    found = [word.rpartition(":")[2] for word in words_in(done)]
    assert found == expected
    assert done.err == ""


def test_bash_gets_what_follows_the_colon_at_which_it_splits_words(person: Person):
    with answering(ANSWERS) as server:
        somebody = replace(person, url=server.url, token="cs-secret")
        after = completed(somebody, "env", "show", "research/ml", ":", "1", under="bash")
        at = completed(somebody, "env", "show", "research/ml", ":", under="bash")
        plain = completed(somebody, "env", "show", "research/m", under="bash")
    assert after.out.split() == ["12", "11"]
    assert at.out.split() == ["current", "prod", "12", "11"]
    assert plain.out.split() == ["research/ml", "research/maps"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_without_a_server_nothing_is_completed_and_nothing_is_said(person: Person, shell: str):
    done = completed(person, "env", "show", "res", under=shell)
    assert words_in(done) == []
    assert done.err == ""


def test_a_server_that_answers_with_an_error_completes_nothing(person: Person):
    refused = {"errors": [{"message": "No.", "extensions": {"code": "not-signed-in"}}]}
    with answering({"CompleteEnvironments": lambda _: refused}) as server:
        done = completed(replace(person, url=server.url), "env", "show", "res")
    assert (words_in(done), done.err) == ([], "")


@pytest.mark.parametrize("document", completion.DOCUMENTS)
def test_the_documents_of_completion_fit_the_schema(document: str):
    assert validate(build_schema(SCHEMA.read_text()), parse(document)) == []
