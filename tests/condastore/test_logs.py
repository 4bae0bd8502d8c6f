"""What the log says of an outage."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import structlog
from condastore.logs import OnceAMinute, configure
configure({"level": "INFO", "format": "console"})
logger = structlog.get_logger("outage")
for build in range(50):
    logger.warning("database unreachable", build=build)
logger.warning("something else")
OnceAMinute.PAUSE = 0.0  # a minute later
logger.warning("database unreachable", build=51)
"""


def test_an_outage_that_goes_on_is_one_line_a_minute() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, other, later = run.stderr.splitlines()
    assert "database unreachable" in first
    assert "something else" in other
    assert "unsaid=49" in later
