"""`condastore scheduler`: periodic sweep for lost and due work; of several, one is the leader."""

from __future__ import annotations

import os
import signal
import threading

import django
import structlog
from django.conf import settings

from condastore.private_files import PRIVATE_UMASK
from condastore.supervisor.startup import prepare_folder, prepare_process
from condastore.worker import process_name

logger = structlog.get_logger(__name__)


def run() -> None:
    """Sweep at each interval until SIGTERM or SIGINT; outages are logged."""
    os.umask(PRIVATE_UMASK)
    prepare_folder(settings.DATA)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    django.setup()
    prepare_process()
    logger.info("scheduler started", name=process_name())
    while not stop.is_set():
        sweep_once()
        stop.wait(settings.SWEEP_INTERVAL.total_seconds())


def sweep_once() -> None:
    from django.db import close_old_connections

    from condastore import outages
    from environments.models import Leader
    from environments.operations import upkeep

    close_old_connections()
    try:
        # Another scheduler takes over from a dead leader after three intervals, 15 s at least.
        life = max(3 * settings.SWEEP_INTERVAL, settings.LEASE / 2)
        if Leader.lead("scheduler", process_name(), life=life):
            upkeep.sweep()
    except Exception as error:
        # The cause (such as a full disk) may be gone at the next round.
        if outages.unavailable(error) is None:
            logger.exception("a sweep failed", hint=outages.migration_hint(error))
            return
        upkeep.outage()
        logger.warning("database unreachable", error=str(error))
    finally:
        close_old_connections()
