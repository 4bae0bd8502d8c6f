"""Pytest plugin: marks each test with its lane, and runs the lanes that are asked for."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.lanes import LANES, PROPERTY, lane_of, running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lane",
        action="append",
        choices=list(LANES),
        help="Run the tests of this lane only; may be given several times.",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name, lane in LANES.items():
        config.addinivalue_line("markers", f"{name}: {lane.purpose}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its lane, and leave out the lanes that were not asked for."""
    homeless = set()
    for item in items:
        lane = lane_of(item.nodeid, getattr(item, "fixturenames", ()))
        if lane is None:
            homeless.add(item.nodeid.partition("::")[0])
        else:
            item.add_marker(lane)
            item.user_properties.append((PROPERTY, lane))
    if homeless:
        files = ", ".join(sorted(homeless))
        raise pytest.UsageError(f"{files}: no lane; add the folder to FOLDERS in tests/lanes.py")
    if chosen := config.getoption("lane"):
        retained = [
            item for item in items if set(chosen) & {mark.name for mark in item.iter_markers()}
        ]
        kept_ids = {id(item) for item in retained}
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept_ids])
        items[:] = retained


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    running.append((item.nodeid, str(dict(item.user_properties)[PROPERTY])))
    try:
        return (yield)
    finally:
        running.pop()
