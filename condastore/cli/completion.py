"""Shell completion of environments, builds, tags and namespaces.

A shell waits for the answer at each Tab: a server that does not answer soon completes nothing, and
nothing is printed about it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

#: Names that are completed at most.
LIMIT = 200
_BASH = "complete_bash"


def environments(incomplete: str) -> list[str]:
    """Complete NAMESPACE/ENV."""
    return _silent(lambda: _environments(incomplete))


def builds(incomplete: str) -> list[str]:
    """Complete NAMESPACE/ENV, and after a colon the numbers and tags of its builds."""
    if ":" not in incomplete:
        return environments(incomplete)
    return _starting(incomplete, _silent(lambda: _builds(incomplete.partition(":")[0])))


def namespaces(incomplete: str) -> list[str]:
    """Complete NAMESPACE."""
    return _silent(lambda: _starting(incomplete, _names(_NAMESPACES, "namespaces", {})))


def run(complete: Callable[[], Any]) -> None:
    """Run `complete`, which prints completions; in bash, words are split at colons."""
    if os.environ.get("_CONDASTORE_COMPLETE") != _BASH:
        complete()
        return
    prefix = _join_words_of_bash()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            complete()
    finally:
        # bash replaces what follows the last colon.
        for line in printed.getvalue().splitlines():
            sys.stdout.write(line.removeprefix(prefix) + "\n")


def _join_words_of_bash() -> str:
    """Join the words of the line that bash has split at colons.

    Returns:
        The current word up to its last colon; empty if it has none.
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")
    try:
        current = int(os.environ.get("COMP_CWORD", ""))
    except ValueError:
        return ""
    joined: list[str] = []
    for word in words[: current + 1]:
        if joined and (word == ":" or joined[-1].endswith(":")):
            joined[-1] += word
        else:
            joined.append(word)
    if current >= len(words):
        joined.append("")  # a new word, after a space
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(len(joined) - 1)
    before, colon, _ = joined[-1].rpartition(":")
    return before + colon


_NAMESPACES = """
query CompleteNamespaces($first: Int) { namespaces(first: $first) { edges { node { name } } } }
"""
_ENVIRONMENTS = """
query CompleteEnvironments($first: Int, $filters: EnvironmentFilter) {
  environments(first: $first, filters: $filters) {
    edges { node { name namespace { name } } }
  }
}
"""
_BUILDS = """
query CompleteBuilds($namespace: String!, $name: String!) {
  environment(namespace: $namespace, name: $name) {
    builds(first: 20) { edges { node { number } } }
    tags { name }
  }
}
"""
DOCUMENTS = (_NAMESPACES, _ENVIRONMENTS, _BUILDS)


def _silent(find: Callable[[], list[str]]) -> list[str]:
    with contextlib.suppress(Exception):
        return find()
    return []


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _names(document: str, field: str, filters: dict[str, str]) -> list[str]:
    from condastore.cli.client import connect

    variables = {"filters": filters} if filters else {}
    found = connect(impatient=True).ask(document, first=LIMIT, **variables)[field]
    nodes = [edge["node"] for edge in found["edges"]]
    return [
        f"{node['namespace']['name']}/{node['name']}" if "namespace" in node else node["name"]
        for node in nodes
    ]


def _environments(incomplete: str) -> list[str]:
    namespace, slash, name = incomplete.partition("/")
    filters = {"namespace": namespace} if slash else {}
    if slash and name:
        filters["search"] = name
    return _starting(incomplete, _names(_ENVIRONMENTS, "environments", filters))


def _builds(text: str) -> list[str]:
    from condastore.cli.client import connect
    from condastore.cli.lookup import reference

    api = connect(impatient=True)
    ref = reference(api, text)
    found = api.ask(_BUILDS, namespace=ref.namespace, name=ref.environment)["environment"]
    numbers = [str(edge["node"]["number"]) for edge in found["builds"]["edges"]]
    names = ["current", *(tag["name"] for tag in found["tags"]), *numbers]
    return [f"{text}:{name}" for name in names]
