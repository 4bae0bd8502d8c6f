"""Texts of conflicts: requirements, versions and reasons as users read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import rattler

from condastore.errors import UnsatisfiableError
from environments.engine.solve.match_specs import OR

MAX_SHOWN_VERSIONS = 6
_HINT_ONE_REQUIREMENT = "Change or remove this requirement."
_HINT_SEVERAL = "Correct each of the requirements that the message names."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Requirements that have no solution together, and the reason."""

    requirements: tuple[str, ...]
    reason: str
    chain: tuple[str, ...] = ()


def unsatisfiable(errors: Sequence[UnsatisfiableError]) -> UnsatisfiableError:
    """Combine the errors of several platforms into one; do not repeat what is the same."""
    if len(errors) == 1:
        return errors[0]
    return UnsatisfiableError(
        " ".join(error.message for error in errors),
        hint=_HINT_SEVERAL if len({error.hint for error in errors}) > 1 else errors[0].hint,
        details={
            key: [item for error in errors for item in error.details.get(key, ())]
            for key in ("conflicts", "missing", "policy")
        },
    )


def conflict_error(
    platform: str, missing: Sequence[dict[str, Any]], findings: Sequence[Finding]
) -> UnsatisfiableError:
    """Return the error of one platform's missing packages and conflicts, with the next step."""
    sentences: list[str] = []
    for item in missing:
        sentence = f"No channel has {readable(item['requirement'])}"
        if item["note"]:
            sentence += f": {item['note']}"
        if item["similar"]:
            sentence += f"; did you mean {' or '.join(item['similar'])}?"
        sentences.append(sentence if sentence.endswith("?") else f"{sentence}.")
    sentences += [_sentence(finding.reason) for finding in findings]
    return UnsatisfiableError(
        f"On {platform}: {' '.join(sentences)}",
        hint=_hint(missing, findings),
        details={
            "conflicts": [
                {
                    "requirements": list(finding.requirements),
                    "reason": finding.reason,
                    "chain": list(finding.chain),
                    "platform": platform,
                }
                for finding in findings
            ],
            "missing": list(missing),
        },
    )


def _hint(missing: Sequence[dict[str, Any]], findings: Sequence[Finding]) -> str:
    """Return the next step for these faults: the same for all of them, or a general one."""
    hints = {_hint_for_missing(item) for item in missing} | {
        UnsatisfiableError.hint if len(finding.requirements) > 1 else _HINT_ONE_REQUIREMENT
        for finding in findings
    }
    return hints.pop() if len(hints) == 1 else _HINT_SEVERAL


def _hint_for_missing(item: dict[str, Any]) -> str:
    if item["note"]:
        return "Choose another package, or leave this one out on this platform."
    if item["similar"]:
        return "Correct the name of the package."
    return "Check the name of the package, or add the channel that has it."


def version_range(records: Iterable[rattler.RepoDataRecord]) -> str:
    found = {str(record.version): record.version for record in records}
    ordered = sorted(found, key=lambda text: found[text])
    if len(ordered) <= MAX_SHOWN_VERSIONS:
        return ", ".join(ordered)
    return f"{ordered[0]}, {ordered[1]} ... {', '.join(ordered[-3:])} ({len(ordered)} versions)"


def release_label(records: Sequence[rattler.RepoDataRecord]) -> str:
    """Return "numpy 1.26.4", or the range of versions if there are several."""
    name = records[0].name.normalized
    found = {str(record.version): record.version for record in records}
    ordered = sorted(found, key=lambda text: found[text])
    return f"{name} {ordered[0]}" if len(ordered) == 1 else f"{name} {ordered[0]} to {ordered[-1]}"


def _sentence(text: str) -> str:
    """Capitalize the first word, unless it is the name of a package."""
    return text[0].upper() + text[1:] if text.startswith(("you ask ", "the rule ")) else text


def abbreviated(spec: str) -> str:
    """Return a spec with at most two of its alternatives."""
    either = spec.split(OR)
    return (
        spec if len(either) <= 3 else f"{either[0]}, {either[1]} or one of {len(either) - 2} more"
    )


def readable(spec: str) -> str:
    """Return a spec for messages: without a trailing `*`."""
    return spec.removesuffix(" *")


def joined(items: Iterable[str]) -> str:
    *most, last = [*items]
    return f"{', '.join(most)} and {last}" if most else last
