"""The corpus of texts that people submit: each is accepted or refused as its case says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from condastore.errors import SpecificationError
from environments.domain.specification import Defaults, Submission
from environments.domain.specification_forms import parse_specification
from environments.operations.builds import read_submission
from tests import factories
from tests.corpus_text import content_of, corpus_cases

CASES = corpus_cases()


def seen(submission: Submission) -> dict[str, Any]:
    """What a case states of a text that is accepted: only what is not empty or usual."""
    specification = submission.specification
    found: dict[str, Any] = {"channels": list(specification.channels)}
    if specification.kind != "environment":
        found["kind"] = specification.kind
    if specification.lock is None:
        for key, requested in (
            ("dependencies", specification.dependencies),
            ("pip", {name: texts for name, texts in specification.pip.items() if texts}),
        ):
            found[key] = {platform: list(texts) for platform, texts in requested.items()}
    else:
        found["packages"] = {
            part.platform: [each.file_name for each in part.conda]
            + [each.file_name for each in part.pypi]
            for part in specification.lock
        }
    found["variables"] = dict(specification.variables)
    found["name"], found["description"] = specification.name, specification.description
    found["credentials"] = [f"{each.kind} {each.url_prefix}" for each in submission.credentials]
    found["warnings"] = list(submission.warnings)
    always = ("channels", "dependencies")
    return {key: value for key, value in found.items() if value or key in always}


def expected(case: dict[str, Any]) -> dict[str, Any]:
    accepted: dict[str, Any] = case["accepted"]
    return {key: value for key, value in accepted.items() if value or key != "packages"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "accepted" in case])
def test_a_text_of_the_corpus_is_accepted_with_its_meaning(name: str) -> None:
    submission = parse_specification(content_of(CASES[name]), defaults=Defaults())
    found = seen(submission)
    if "dependencies" not in CASES[name]["accepted"]:
        found.pop("dependencies", None)
    assert found == expected(CASES[name])
    again = parse_specification(submission.source, defaults=Defaults())
    assert again.specification == submission.specification
    assert not again.credentials


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "refused" in case])
def test_a_text_of_the_corpus_is_refused_with_these_words(name: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_specification(content_of(CASES[name]), defaults=Defaults())
    found = [
        {
            key: text
            for key, text in (("where", each.where), ("message", each.message), ("hint", each.hint))
            if text
        }
        for each in caught.value.faults
    ]
    assert found == CASES[name]["refused"]


def test_the_corpus_is_large_enough() -> None:
    count = Counter(name.partition(":")[0] for name in CASES)
    environments = count.total() - count["locks"] - count["explicit"]
    assert environments >= 150
    assert count["locks"] >= 20
    assert count["explicit"] >= 20


@pytest.mark.django_db
@pytest.mark.parametrize("name", list(CASES))
def test_a_submission_gives_the_same_verdict(name: str, settings: Any) -> None:
    settings.DEFAULT_CHANNELS = ["conda-forge"]
    settings.CHANNEL_ALIAS = "https://conda.anaconda.org"
    settings.DEFAULT_PLATFORMS = ["linux-64"]
    namespace = factories.make_namespace("corpus")
    text = content_of(CASES[name])
    accepted = True
    try:
        read_submission(namespace, text)  # type: ignore[arg-type]
    except SpecificationError:
        accepted = False
    assert accepted is ("accepted" in CASES[name])
