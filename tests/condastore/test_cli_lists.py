"""Lists of the command line: width, limits, empty lists, and what somebody signed out sees."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.condastore.command_line import Person
from tests.condastore.scripted_server import Answer, answering
from tests.condastore.terminals import at_terminal

LONG = "climate-research-group/quarterly-forecast-models"


def page(field: str, *nodes: dict[str, Any], total: int | None = None) -> Answer:
    """Answer every request for a page with the first `first` nodes."""

    def answer(variables: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": node} for node in nodes[: variables["first"]]]
        info = {"hasNextPage": len(edges) < len(nodes), "endCursor": "x"}
        count = len(nodes) if total is None else total
        return {"data": {field: {"totalCount": count, "pageInfo": info, "edges": edges}}}

    return answer


def build(number: int, state: str = "READY", recalled: str | None = None) -> dict[str, Any]:
    return {"number": number, "state": state, "recalled": recalled, "tags": []}


def environment(name: str, **more: Any) -> dict[str, Any]:
    space, _, own = name.partition("/")
    hour_ago = (datetime.now(UTC) - timedelta(hours=3, minutes=1)).isoformat()
    return {
        "name": own,
        "namespace": {"name": space},
        "description": "Models of the quarterly forecast, with their notebooks",
        "pinned": False,
        "updatedAt": hour_ago,
        "lastUsedAt": hour_ago,
        "current": build(4),
        "latest": build(4),
    } | more


def signed_in(person: Person, url: str) -> Person:
    return replace(person, url=url, token="cs-secret")


def test_no_name_of_a_list_is_broken_at_80_columns(person: Person):
    names = ["research/ml", LONG]
    answers = {"Environments": page("environments", *map(environment, names))}
    with answering(answers) as server:
        shown = at_terminal(signed_in(person, server.url), "env", "list").succeeded()
    lines = shown.out.splitlines()
    assert [name for name in names if any(line.startswith(f"{name} ") for line in lines)] == names
    assert max(map(len, lines)) <= 80
    assert "READY" in shown.out
    # The names fill the line; the times and the descriptions are what is left out.
    assert lines[0].split() == ["environment", "current", "state"]


def test_free_text_wraps_at_words_beside_the_other_columns(person: Person):
    text = "Models of the quarterly forecast, with their notebooks and the reports of last year"
    one = environment("research/ml", description=text)
    with answering({"Environments": page("environments", one)}) as server:
        shown = at_terminal(signed_in(person, server.url), "env", "list").succeeded()
    lines = shown.out.splitlines()
    start = lines[0].index("description")
    end = lines[0].index("changed")
    assert " ".join(line[start:end].strip() for line in lines[1:]) == text
    assert max(map(len, lines)) <= 80


def test_times_are_relative_at_a_terminal_and_absolute_elsewhere(person: Person):
    answers = {"Environments": page("environments", environment("a/b", description=""))}
    with answering(answers) as server:
        somebody = signed_in(person, server.url)
        assert "3 h ago" in at_terminal(somebody, "env", "list").out
        assert datetime.now().astimezone().strftime("%Y-") in somebody.does("env", "list").out


def test_a_list_of_packages_has_one_line_for_each_at_80_columns(person: Person):
    packages = [
        {
            "name": name,
            "version": "2.3.4",
            "build": "py311h17560f4_0",
            "kind": "CONDA",
            "channel": "https://packages.example.org/mirrors/conda-forge",
            "platform": "linux-64",
            "size": "8123456",
            "license": "BSD-3-Clause AND MIT",
        }
        for name in ("numpy", "ipython-pygments-lexers")
    ]
    found = page("packages", *packages)

    def answer(variables: dict[str, Any]) -> dict[str, Any]:
        return {"data": {"build": {"lock": found(variables)["data"]}}}

    with answering({"Packages": answer}) as server:
        shown = at_terminal(signed_in(person, server.url), "env", "packages", "research/ml")
    assert len(shown.succeeded().out.splitlines()) == 3
    assert "mirrors/conda-forge" in shown.out
    assert "packages.example.org" not in shown.out


def test_a_list_says_how_many_more_there_are_and_all_lifts_the_limit(person: Person):
    many = [environment(f"research/e{number:03}") for number in range(60)]
    with answering({"Environments": page("environments", *many)}) as server:
        somebody = signed_in(person, server.url)
        limited = somebody.does("env", "list").succeeded()
        few = somebody.does("env", "list", "--limit", "2").succeeded()
        everything = somebody.does("env", "list", "--all").succeeded()
        document = somebody.does("env", "list", "--json").succeeded().document
    assert limited.out.count("research/e") == 50
    assert limited.err == "10 more are not shown; --all shows all.\n"
    assert few.out.count("research/e") == 2
    assert few.err == "58 more are not shown; --all shows all.\n"
    assert (everything.out.count("research/e"), everything.err) == (60, "")
    assert len(document) == 60


def test_an_environment_whose_current_build_is_recalled_is_not_listed_as_ready(person: Person):
    recalled = environment("research/ml", current=build(4, recalled="it leaks"))
    older = environment("research/old", current=build(3, recalled="it leaks"), latest=build(4))
    answers = {
        "Environments": page("environments", recalled, older),
        "Environment": lambda _: {
            "data": {
                "environment": recalled
                | {
                    "current": recalled["current"] | {"createdAt": "2030-01-01T10:00:00+00:00"},
                    "tags": [],
                    "folder": "",
                    "createdAt": "2030-01-01T10:00:00+00:00",
                    "createdBy": "alice",
                }
            }
        },
    }
    with answering(answers) as server:
        somebody = signed_in(person, server.url)
        listed = somebody.does("env", "list").succeeded().out.splitlines()
        shown = somebody.does("env", "show", "research/ml").succeeded().out
    assert "RECALLED" in listed[1]
    assert "READY" not in listed[1]
    assert "recalled" in listed[2]
    assert "4 RECALLED" in shown
    assert "it leaks" in shown


LISTS = {
    ("env", "list"): ("Environments", "environments", "condastore env build"),
    ("namespace", "list"): ("Namespaces", "namespaces", "condastore env build"),
    ("channel", "list"): ("HostedChannels", "hostedChannels", "condastore channel create"),
    ("mirror", "list"): ("Mirrors", "mirrors", "condastore mirror create"),
    ("webhook", "list"): ("Webhooks", "webhooks", "condastore webhook add"),
    ("credential", "list"): ("ChannelCredentials", "channelCredentials", "condastore credential"),
    ("image", "push-rule", "list"): ("PushRules", "pushRules", "condastore image push-rule add"),
    ("policy", "list"): ("Policies", "policies", "condastore policy add"),
    ("retention", "holds"): ("LegalHolds", "legalHolds", "condastore retention hold"),
}


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_an_empty_list_says_what_to_do_first(person: Person, command: tuple[str, ...]):
    operation, field, step = LISTS[command]
    with answering({operation: page(field)}) as server:
        somebody = signed_in(person, server.url)
        shown = somebody.does(*command).succeeded()
        assert somebody.does(*command, "--json").succeeded().document == []
    assert " yet." in shown.out or "No legal holds." in shown.out
    assert step in shown.out
    assert "There is no" not in shown.out


def test_a_filter_that_matches_nothing_does_not_claim_that_there_is_nothing(person: Person):
    with answering({"Environments": page("environments")}) as server:
        shown = signed_in(person, server.url).does("env", "list", "--search", "x").succeeded()
    assert shown.out == "No environment matches.\n"


@pytest.mark.parametrize(
    "command",
    [*LISTS, ("approval", "list"), ("recall", "list"), ("audit", "list"), ("search", "numpy")],
    ids=" ".join,
)
def test_a_list_is_refused_to_somebody_who_is_not_signed_in(
    person: Person, command: tuple[str, ...]
):
    more = {
        "approval": ("ApprovalRequests", "approvalRequests"),
        "recall": ("Recalls", "recalls"),
        "audit": ("AuditEvents", "auditEvents"),
        "search": ("Packages", "packages"),
    }
    operation, field = (LISTS[command] if command in LISTS else more[command[0]])[:2]
    with answering({operation: page(field)}) as server:
        refused = replace(person, url=server.url).does(*command)
        assert (refused.status, refused.out) == (3, "")
        assert "not signed in" in refused.err
        assert f"condastore login {server.url}" in refused.err


@pytest.mark.parametrize(
    ("channels", "advice"),
    [
        ([{"name": "forge", "indexedAt": "2030-01-01T10:00:00+00:00"}], ""),
        ([{"name": "forge", "indexedAt": None}], "The index of forge is still being read"),
        ([], "The index is still being read"),
    ],
)
def test_a_search_without_a_result_says_whether_an_index_is_still_being_read(
    person: Person, channels: list[dict[str, Any]], advice: str
):
    answers = {"Packages": page("packages"), "Channels": page("channels", *channels)}
    with answering(answers) as server:
        said = signed_in(person, server.url).does("search", "panda").succeeded().out
    assert "No package matches 'panda'." in said
    assert ("still being read" in said) == bool(advice)
    assert advice in said


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 GB", 10**9),
        ("1.5GB", 1_500_000_000),
        ("2 GiB", 2 * 1024**3),
        ("500MB", 500_000_000),
        ("12", 12),
        ("0", 0),
        ("default", None),
    ],
)
def test_a_quota_of_bytes_takes_units_and_quotas_are_shown_as_sizes(
    person: Person, text: str, size: int | None
):
    quotas = [
        {"kind": "BYTES", "used": "115467184", "limit": "100000000", "near": True},
        {"kind": "ENVIRONMENTS", "used": 9, "limit": 10, "near": True},
        {"kind": "BUILDS_AT_ONCE", "used": 3, "limit": 3, "near": True},
        {"kind": "BUILDS_A_DAY", "used": 3, "limit": None, "near": False},
    ]
    changed = {"__typename": "Namespace", "id": "1", "name": "lab", "quotas": quotas}
    with answering({"SetQuota": lambda _: {"data": {"setQuota": dict(changed)}}}) as server:
        somebody = signed_in(person, server.url)
        shown = somebody.does("namespace", "quota", "lab", "--bytes", text).succeeded()
        [sent] = server.asked_for("SetQuota")
    assert sent.variables["bytes"] == size
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[1:] == [
        "size 115.5 MB 100.0 MB over quota",
        "environments 9 10 nearly full",
        "builds at once 3 3 full",
        "builds a day 3 no limit",
    ]


@pytest.mark.parametrize("option", ["--bytes", "--environments"])
def test_what_is_no_quota_is_refused_with_an_example(person: Person, option: str):
    refused = person.does("namespace", "quota", "lab", option, "much")
    assert refused.status == 2
    assert "hint: Write a" in refused.err
    assert person.does("namespace", "quota", "lab", "--environments", "1 GB").status == 2


def test_somebody_signed_out_sees_what_is_public(person: Person):
    with answering({"Environments": page("environments", environment("open/ml"))}) as server:
        shown = replace(person, url=server.url).does("env", "list").succeeded()
    assert "open/ml" in shown.out


@pytest.mark.parametrize(
    "command",
    [
        ("env", "show", "research/ml"),
        ("env", "log", "research/ml"),
        ("env", "build", "research/ml", "-f", "environment.yml"),
        ("namespace", "show", "research"),
        ("retention", "show", "research"),
        ("policy", "show", "research"),
        ("channel", "show", "research/tools"),
        ("mirror", "show", "forge"),
        ("approval", "show", "3"),
        ("run", "research/ml", "--", "true"),
        ("recall", "hits", "3"),
    ],
    ids=" ".join,
)
def test_what_is_hidden_from_somebody_signed_out_says_to_sign_in(
    person: Person, command: tuple[str, ...]
):
    (person.home / "environment.yml").write_text("dependencies: [python]\n")
    missing = {"__typename": "OperationError", "code": "not-found", "message": "No namespace."}
    hidden = {
        "message": "There is no such recall.",
        "extensions": {"code": "not-found"},
    }
    answers: dict[str, Answer] = {
        "SubmitBuild": lambda _: {"data": {"submitBuild": dict(missing)}},
        "RecallHits": lambda _: {"errors": [hidden]},
    }
    for operation, field in {
        "Environment": "environment",
        "Build": "build",
        "Prefix": "build",
        "Namespace": "namespace",
        "Retention": "namespace",
        "Policy": "policy",
        "HostedChannel": "hostedChannel",
        "Mirror": "mirror",
        "Approval": "approvalRequest",
    }.items():
        answers[operation] = lambda _, field=field: {"data": {field: None}}  # type: ignore[misc]
    with answering(answers) as server:
        out = replace(person, url=server.url).does(*command)
        signed = signed_in(person, server.url).does(*command)
    assert out.status == 3
    assert "not signed in" in out.err
    assert f"condastore login {server.url}" in out.err
    assert signed.status == 4
    assert "not signed in" not in signed.err
