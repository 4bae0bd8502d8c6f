"""Smoke tests of an unpublished prefix, and the messages of failed ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from condastore.errors import LeaseLostError, SmokeTestError
from environments.engine.prefix.smoke_tests import SmokeReport, run_smoke_tests
from environments.engine.system.sandbox import can_sandbox
from tests.environments.engine.conftest import Linked

Link = Callable[..., Linked]


@pytest.fixture(params=["sandboxed", "plain"])
def kind(request: Any, monkeypatch: Any) -> str:
    """Every test with bubblewrap and without."""
    if request.param == "plain":
        monkeypatch.setitem(CHOSEN, "sandboxed", False)
    elif not can_sandbox():
        pytest.skip("bubblewrap is not here, or may not make namespaces")
    return str(request.param)


#: How `try_out` and others call `run_smoke_tests`.
CHOSEN: dict[str, Any] = {"sandboxed": True}


def try_out(made: Linked, lines: list[str] | None = None, **options: Any) -> SmokeReport:
    chosen: dict[str, Any] = {"time_limit": timedelta(seconds=60), **CHOSEN}
    seen = [] if lines is None else lines
    return run_smoke_tests(
        made.prefix, final_prefix=made.final, on_line=seen.append, **(chosen | options)
    )


def test_imports_and_commands_that_work_pass(linked: Link, kind: str) -> None:
    lines: list[str] = []
    created = linked("hello-noarch")
    report = try_out(
        created,
        lines,
        imports=["hello_noarch", "json"],
        commands=["hello-noarch", "python -c 'import sys; print(sys.prefix)'"],
    )
    assert report.tests == 4
    assert report.sandboxed == (kind == "sandboxed")
    assert lines == [
        "import hello_noarch",
        "import json",
        "$ hello-noarch",
        f"hello 2.0 from {created.final}",
        "$ python -c 'import sys; print(sys.prefix)'",
        str(created.final),
    ]
    assert not os.path.lexists(created.final)


def test_all_failed_imports_are_named(linked: Link, kind: str) -> None:
    lines: list[str] = []
    with pytest.raises(SmokeTestError) as caught:
        try_out(linked(), lines, imports=["no_such_module", "json", "nor.this.one"])
    assert "Import no_such_module and import nor.this.one failed" in str(caught.value)
    assert "No module named 'nor'" in str(caught.value)
    assert any("ModuleNotFoundError" in line for line in lines)


def test_an_import_that_crashes_python_is_named(linked: Link, kind: str, tmp_path: Any) -> None:
    created = linked()
    site_packages = created.prefix / created.python.site_packages
    (site_packages / "deadly.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    with pytest.raises(SmokeTestError, match="Import deadly failed"):
        try_out(created, imports=["json", "deadly", "csv"])


def test_a_failed_command_is_reported_with_its_output(linked: Link, kind: str) -> None:
    with pytest.raises(SmokeTestError) as caught:
        try_out(linked(), commands=["true", "echo no such luck; exit 3", "echo never"])
    assert "'echo no such luck; exit 3' failed (status 3)" in str(caught.value)
    assert "no such luck" in str(caught.value)
    assert caught.value.details["status"] == 3


def test_the_prefix_is_activated(linked: Link, kind: str) -> None:
    lines: list[str] = []
    created = linked("activating", variables={"ANSWER": "42", "ACTIVATING_VARIABLE": "mine"})
    try_out(
        created,
        lines,
        commands=['echo "$CONDA_PREFIX,$ACTIVATING_SCRIPT,$ACTIVATING_VARIABLE,$ANSWER"'],
    )
    assert lines[-1] == f"{created.final},active,mine,42"


def test_settings_of_the_server_are_not_seen(linked: Link, kind: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("CONDASTORE_SECRET_KEY", "hidden")
    lines: list[str] = []
    try_out(linked(), lines, commands=["env"])
    assert not any("CONDASTORE" in line for line in lines)


def test_the_time_limit_holds_for_all_tests_together(linked: Link, kind: str) -> None:
    with pytest.raises(SmokeTestError, match=r"'sleep 60' took longer than 2 seconds"):
        try_out(linked(), commands=["sleep 60"], time_limit=timedelta(seconds=2))
    created = linked()
    (created.prefix / created.python.site_packages / "slow.py").write_text(
        "import time; time.sleep(60)\n"
    )
    with pytest.raises(SmokeTestError, match=r"Import slow took longer"):
        try_out(created, imports=["slow"], time_limit=timedelta(seconds=2))


def test_a_cancel_ends_the_tests(linked: Link, kind: str) -> None:
    """They would run for an hour otherwise."""
    created = linked()
    cancel = threading.Event()

    def look(line: str) -> None:
        cancel.set()

    with pytest.raises(LeaseLostError):
        run_smoke_tests(
            created.prefix,
            final_prefix=created.final,
            commands=["sleep 3600"],
            time_limit=timedelta(hours=1),
            cancelled=cancel.is_set,
            on_line=look,
            **CHOSEN,
        )
    assert not os.path.lexists(created.final)


def test_without_tests_nothing_is_run(linked: Link) -> None:
    assert try_out(linked()).tests == 0


@pytest.mark.skipif(not can_sandbox(), reason="bubblewrap is not here, or may not make namespaces")
def test_in_the_sandbox_nothing_can_be_written_or_reached(linked: Link) -> None:
    created = linked()
    lines: list[str] = []
    try_out(
        created,
        lines,
        commands=[
            'touch "$CONDA_PREFIX/new" || echo no write',
            f"ls {created.prefix.parent} || echo no sight of the store",
            "tail -n +3 /proc/net/dev | grep -v lo: || echo no net",
            "touch here && echo scratch",
        ],
    )
    said = [line for line in lines if not line.startswith("$")]
    assert [line for line in ("no write", "no net", "scratch") if line in said] == [
        "no write",
        "no net",
        "scratch",
    ]
    assert not (created.prefix / "new").exists()
    assert created.prefix.name not in said
