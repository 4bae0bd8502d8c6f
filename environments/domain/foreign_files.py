"""Recognition of other kinds of files that people submit as environment files."""

from __future__ import annotations

import re

from environments.domain.yaml_text import Node

#: Hint for a recognized file of another kind.
FOREIGN_HINT = (
    "Submit an environment.yml, a conda-lock.yml or an explicit list. Each build has all three: "
    "`condastore env export`."
)
#: Keys that a document of a kind has, and what it is.
_KINDS = (
    ({"environments", "packages"}, "a pixi.lock, which is not supported"),
    ({"bomFormat", "specVersion"}, "a bill of materials (CycloneDX)"),
    ({"spdxVersion", "packages"}, "a bill of materials (SPDX)"),
    ({"payloadType", "payload", "signatures"}, "a signed statement (DSSE), such as a provenance"),
    ({"predicateType", "subject"}, "a statement (in-toto), such as a provenance"),
)
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^\]]*\]\s*)?(?:(?:[=~!<>]=|[<>@;]).*)?"
)
#: Number of lines that are examined.
_LINES = 200


def foreign_kind(root: Node) -> str:
    """Return the kind of a foreign file, with its article; else ""."""
    keys = {name.text for name, _ in root.pairs}
    return next((kind for requested, kind in _KINDS if requested <= keys), "")


def text_hint(text: str) -> str:
    """Return the hint for a text without keys."""
    start = text.lstrip()[:200].lower()
    if start.startswith(("<!doctype html", "<html")):
        return "This is a web page: submit the file that it should have been."
    if start.startswith("# packages in environment at"):
        return (
            "`conda list` prints this for people: submit what `conda list --export` or "
            "`conda env export` writes."
        )
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()[:_LINES]]
    lines = [line for line in lines if line and not line.startswith("#")]
    found = [line for line in lines if _REQUIREMENT.fullmatch(line)]
    if found and all(line in found or line.startswith("-") for line in lines):
        return (
            "For a requirements.txt write `dependencies: [python, {pip: [...]}]` with its lines in "
            "the inner list; or submit a conda-lock.yml or an @EXPLICIT list."
        )
    return "Start it with 'dependencies:', or submit a conda-lock.yml or an @EXPLICIT list."
