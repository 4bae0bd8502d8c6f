"""Layers of an image, and how few change with a package."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from environments.domain.images import ALONE, GROUPS, conda_platform, plan_layers
from environments.domain.linking import PythonInfo
from environments.domain.lock import PlatformLock
from environments.domain.records import CondaPackage
from tests.factories import make_package

PYTHON = PythonInfo.of("3.12.1", platform="linux-64")


def sized(name: str, version: str = "1.0") -> CondaPackage:
    """Of a size that is the name's own: many small ones and few large ones, as in real life."""
    size = int(1000 * random.Random(name).paretovariate(0.6))
    depends = ["python"] if random.Random(name).random() < 0.7 else []
    return make_package(name, version, size=min(size, 300_000_000), depends=depends)


def environment(names: Sequence[str], changed: Sequence[str] = ()) -> PlatformLock:
    packages = [sized(name, "2.0" if name in changed else "1.0") for name in names]
    return PlatformLock(platform="linux-64", conda=(make_package("python"), *packages))


def layers(part: PlatformLock) -> dict[str, int]:
    """key: bytes."""
    planned = plan_layers(part, PYTHON)
    assert sum(len(layer.conda) for layer in planned) == len(part.conda)
    return {layer.key: sum(one.size for one in layer.conda) for layer in planned}


NAMES = [f"package-{number}" for number in range(400)]


@pytest.mark.parametrize("count", [1, 50, 86, 87, 88, 89, 150, 399])
def test_an_image_has_few_enough_layers(count: int) -> None:
    assert len(layers(environment(NAMES[:count]))) <= ALONE + GROUPS


def test_in_a_small_environment_each_package_is_a_layer() -> None:
    assert len(layers(environment(NAMES[:60]))) == 61


@pytest.mark.parametrize("count", [60, 150, 390])
def test_one_small_package_that_changes_changes_less_than_a_twentieth(count: int) -> None:
    part = environment(NAMES[:count])
    before = layers(part)
    whole = sum(before.values())
    for package in part.conda[:: max(1, count // 130)]:  # a third of many
        if package.size > 0.01 * whole or package.name == "python":
            continue
        after = layers(environment(NAMES[:count], changed=[package.name]))
        new = sum(size for key, size in after.items() if key not in before)
        assert new < 0.05 * whole, package.name


@pytest.mark.parametrize("count", [60, 150, 350])
def test_environments_that_share_nine_tenths_share_nearly_all_bytes(count: int) -> None:
    first = layers(environment(NAMES[:count]))
    others = [f"other-{number}" for number in range(count // 10)]
    shared, own = NAMES[: count - count // 10], others
    second_part = environment([*shared, *own])
    second = layers(second_part)
    new = sum(size for key, size in second.items() if key not in first)
    its_own = sum(sized(name).size for name in own)
    assert new - its_own < 0.15 * sum(second.values())


def test_a_layer_is_named_by_all_that_its_bytes_depend_on() -> None:
    def key(package: CondaPackage, python: PythonInfo = PYTHON) -> str:
        part = PlatformLock(platform="linux-64", conda=(package,))
        return plan_layers(part, python)[0].key

    plain, pure = make_package("numpy"), make_package("rich", noarch="python")
    other = PythonInfo.of("3.13.0", platform="linux-64")
    assert key(plain) == key(plain, other)
    assert key(pure) != key(pure, other)
    assert key(plain) != key(make_package("numpy", license="GPL-3.0"))  # conda's note has it
    assert key(plain) != key(make_package("numpy", "1.1"))


@pytest.mark.parametrize(
    ("architecture", "variant", "platform"),
    [("amd64", "", "linux-64"), ("arm64", "v8", "linux-aarch64"), ("arm", "v7", "linux-armv7l"),
     ("mips", "", "")],
)  # fmt: skip
def test_platforms_have_their_names(architecture: str, variant: str, platform: str) -> None:
    assert conda_platform(architecture, variant) == platform
