"""The bill of materials: valid for scanners, complete, and the same bytes for the same lock."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from packageurl import PackageURL

from condastore.errors import NotFoundError
from environments.domain.lock import Lock
from environments.domain.sbom import cyclonedx
from tests.environments.domain.packages import (
    CHANNEL,
    conda,
    locks,
    platform_lock,
    pypi,
    small_lock,
)


@cache
def validator() -> Any:
    """Imported here: its grammars take seconds, in each process that collects the tests."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def assert_valid(text: str) -> None:
    assert validator().validate_str(text) is None


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(locks())
def test_every_lock_gives_a_valid_document_with_all_of_its_packages(lock: Lock) -> None:
    for part in lock:
        text = cyclonedx(lock, part.platform)
        assert_valid(text)
        found = json.loads(text)
        assert len(found["components"]) == len(part.conda) + len(part.pypi)
        urls = [component["purl"] for component in found["components"]]
        assert [PackageURL.from_string(url).name for url in urls] == [
            component["name"].lower() for component in found["components"]
        ]
        refs = {component["bom-ref"] for component in found["components"]}
        for entry in found["dependencies"][1:]:
            assert entry["ref"] in refs
            assert set(entry["dependsOn"]) <= refs
        again = Lock.from_json(lock.to_json())
        assert cyclonedx(again, part.platform) == text


def test_the_packages_of_a_real_channel_are_described(small_channel: Path) -> None:
    lock = small_lock(small_channel)
    for part in lock:
        assert_valid(cyclonedx(lock, part.platform))


def test_package_urls_licenses_hashes_and_needs_are_told() -> None:
    numpy = conda(
        "numpy",
        "2.1",
        build="py312_0",
        depends=("python >=3.12", "libblas"),
        license="BSD-3-Clause AND (MIT OR Apache-2.0)",
        timestamp=1_700_000_000_000,
    )
    odd = conda("odd", "1!2.0+a", channel="https://my.example.org/a b", license="Do what you like")
    python = conda("python", "3.12.1", license="")
    wheel = pypi("six", requires=("numpy",))
    lock = Lock(channels=(CHANNEL,), platforms=(platform_lock(numpy, python, odd, wheel),))
    text = cyclonedx(lock, "linux-64")
    assert_valid(text)
    found = json.loads(text)
    components = {component["name"]: component for component in found["components"]}
    url = "pkg:conda/numpy@2.1?build=py312_0&channel=conda-forge&subdir=linux-64&type=conda"
    assert components["numpy"]["purl"] == url
    assert PackageURL.from_string(components["odd"]["purl"]).qualifiers == {
        "build": "h0_0",
        "channel": "https://my.example.org/a b",
        "subdir": "linux-64",
        "type": "conda",
    }
    assert components["odd"]["licenses"] == [{"license": {"name": "Do what you like"}}]
    assert components["numpy"]["licenses"] == [
        {"expression": "BSD-3-Clause AND (MIT OR Apache-2.0)"}
    ]
    assert "licenses" not in components["python"]
    assert {"alg": "SHA-256", "content": numpy.sha256} in components["numpy"]["hashes"]
    needs = {entry["ref"]: entry["dependsOn"] for entry in found["dependencies"]}
    assert needs[url] == [components["python"]["purl"]]
    assert needs["pkg:pypi/six@1.0"] == [url]
    assert set(found["dependencies"][0]["dependsOn"]) == {
        "pkg:pypi/six@1.0",
        components["odd"]["purl"],
    }
    assert found["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"


def test_a_platform_that_the_lock_does_not_have_is_refused() -> None:
    lock = Lock(channels=(CHANNEL,), platforms=(platform_lock(conda("a")),))
    with pytest.raises(NotFoundError, match="win-64"):
        cyclonedx(lock, "win-64")
