"""Where the web processes of one `condastore up` count together for Prometheus.

prometheus_client reads the variable when it is imported, so it is set before.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: Names the folder in which each process keeps a file of its counts.
SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"


def share_metrics(data: Path) -> None:
    """Count in files below the data folder, from nothing."""
    folder = data / "run" / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    os.environ[SHARED_METRICS] = str(folder)
