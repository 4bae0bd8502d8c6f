"""What the log says of an outage, and of an error that happens again and again."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import logging
import structlog
from condastore import log_folding
from condastore.logs import configure
configure({"level": "INFO", "format": "console"})
logger = structlog.get_logger("outage")

def raised(error):
    try:
        raise error
    except Exception:
        logger.exception("it failed")
        logging.getLogger("dramatiq.worker").error("Failed %s", "x", exc_info=True)
"""


def lines_of(script: str) -> list[str]:
    """Return what a process logs."""
    run = subprocess.run(
        [sys.executable, "-c", BEGIN + script], capture_output=True, text=True, check=True
    )
    return run.stderr.splitlines()


def test_an_outage_that_goes_on_is_a_few_lines_a_minute_and_their_number() -> None:
    lines = lines_of("""
for build in range(50):
    logger.warning("database unreachable", build=build)
logger.warning("something else")
log_folding.PERIOD = 0.0  # a minute later
logger.warning("database unreachable", build=51)
""")
    assert ["database unreachable" in line for line in lines[:5]] == [True] * 5
    assert "something else" in lines[5]
    assert "45 more like this were left out: database unreachable" in lines[6]
    assert "build=51" in lines[7]
    assert len(lines) == 8


def test_what_was_left_out_is_said_at_the_end_of_the_process() -> None:
    *_, last = lines_of("for number in range(20): logging.error('no %d', number)")
    assert "15 more like this were left out: no %d" in last


def test_each_line_is_written_of_what_is_no_failure() -> None:
    assert len(lines_of("for number in range(50): logger.info('done', number=number)")) == 50


@pytest.mark.parametrize(
    "error",
    [
        "__import__('redis').ConnectionError('gone')",
        "__import__('pika').exceptions.AMQPConnectionError('gone')",
        "__import__('dramatiq').errors.ConnectionClosed('gone')",
        "__import__('django.db').db.OperationalError('gone')",
        "ConnectionRefusedError('gone')",
    ],
)
def test_a_service_that_is_away_has_no_traceback(error: str) -> None:
    lines = lines_of(f"raised({error})")
    assert len(lines) == 2, lines
    assert all("gone" in line and "Traceback" not in line for line in lines)


def test_a_missing_table_is_no_service_that_is_away() -> None:
    lines = lines_of("""
import sqlite3
from django.db import OperationalError
missing = OperationalError("no such table: words")
missing.__cause__ = sqlite3.OperationalError("no such table: words")
raised(missing)
""")
    assert any("Traceback" in line for line in lines)


def test_of_our_own_faults_a_few_tracebacks_are_written_and_then_their_words() -> None:
    lines = lines_of("for number in range(20): raised(ZeroDivisionError(f'number {number}'))")
    assert sum("Traceback" in line for line in lines) == 10
    assert sum("ZeroDivisionError: number 19" in line for line in lines) == 2
