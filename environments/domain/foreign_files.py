"""Files of other kinds that people submit in the place of an environment file."""

from __future__ import annotations

import re

from environments.domain.yaml_text import Node

#: What to do instead, where a file of another kind was recognised.
FOREIGN_HINT = (
    "Submit an environment.yml, a conda-lock.yml, or an explicit list. Each build has all of them: "
    "`condastore env export`."
)
#: Keys that a document of a kind has, and what it is.
_KINDS = (
    ({"environments", "packages"}, "a pixi.lock, which is not read"),
    ({"bomFormat", "specVersion"}, "a bill of materials (CycloneDX)"),
    ({"spdxVersion", "packages"}, "a bill of materials (SPDX)"),
    ({"payloadType", "payload", "signatures"}, "a signed statement (DSSE), such as a provenance"),
    ({"predicateType", "subject"}, "a statement (in-toto), such as a provenance"),
)
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^\]]*\]\s*)?(?:(?:[=~!<>]=|[<>@;]).*)?"
)
#: Lines that are looked at: the kind of a file shows at its start.
_LINES = 200


def foreign_kind(root: Node) -> str:
    """What a mapping is, with its article, if it is a file of another kind; else ""."""
    keys = {name.text for name, _ in root.pairs}
    return next((kind for wanted, kind in _KINDS if wanted <= keys), "")


def text_hint(text: str) -> str:
    """What to do with a text that holds no keys."""
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
