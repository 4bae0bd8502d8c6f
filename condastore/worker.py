"""`condastore worker`: consume the queues and run their actors in threads."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import django
import structlog
from django.conf import settings

from condastore.cli.errors import CommandError, Status
from condastore.private_files import SHARED_UMASK
from condastore.supervisor.startup import prepare_folder, prepare_process

logger = structlog.get_logger(__name__)
#: Interval of the worker's heartbeat; `Worker.LIFE` is how long one lasts.
ANNOUNCE = timedelta(seconds=5)
#: A worker of these queues alone may have a data folder of its own, with an object store.
WITHOUT_SHARED_FOLDER = frozenset({"artifacts"})
#: Seconds to give running builds back when it stops; then it ends whatever they do.
GRACE, HARD_END = 8.0, 12.0
#: gc.set_threshold(): allocations before a generation-0 collection. A build records tens of
#: thousands of files and keeps them to its end; collecting more often costs more than linking.
GC_THRESHOLDS = (10_000, 10, 10)


def process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def run(*, queues: Sequence[str], threads: int | None = None) -> None:
    """Work until SIGTERM or SIGINT; builds that run then are requeued."""
    os.umask(SHARED_UMASK)  # whatever it was before: users of environments read linked files
    prepare_folder(settings.DATA)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    django.setup()
    prepare_process(links_folders=set(queues) != WITHOUT_SHARED_FOLDER)
    import dramatiq

    from environments import tasks  # noqa: F401 - makes the broker and registers the actors
    from environments.engine.network import addresses, forward_proxy
    from environments.services import thread_bounds
    from environments.services.engine_context import pace

    forward_proxy.use_pace(pace)
    # Before there are threads: it changes the environment of the process.
    forward_proxy.access_for(addresses.guard()).use_in_this_process()

    broker = dramatiq.get_broker()
    known = broker.get_declared_queues()
    if unknown := sorted(set(queues) - known):
        raise CommandError(
            f"There is no queue {unknown[0]!r}.",
            status=Status.USAGE,
            code="invalid-input",
            where="--queues",
            hint=f"Choose among {', '.join(sorted(known))}.",
        )
    broker.emit_after("process_boot")
    threads = threads or settings.WORKER_THREADS
    thread_bounds.set_threads(threads)
    worker = dramatiq.Worker(
        broker,
        queues=set(queues) or known,
        worker_threads=threads,
        worker_timeout=200,  # ms: idle, it looks so often, where nothing wakes it
    )
    worker.start()
    from environments.services import isolation

    for kind, sentence in isolation.problems().items():
        logger.warning(sentence, kind=kind)
    logger.info("worker started", name=process_name(), queues=sorted(queues))
    for background in (_preload, lambda: _announce(list(queues), stop), _serve_metrics):
        threading.Thread(target=background, daemon=True).start()
    stop.wait()
    _end_within(HARD_END)
    logger.info("worker stops", name=process_name())
    worker.stop(timeout=int(GRACE * 1000))
    broker.close()
    _say_gone(list(queues))
    _leave(0)


def _announce(queues: list[str], stop: threading.Event) -> None:
    while True:
        _say(queues)
        if stop.wait(ANNOUNCE.total_seconds()):
            return


def _say(queues: list[str], life: timedelta | None = None) -> None:
    from django.db import Error, close_old_connections

    from condastore import outages
    from environments.models import Worker
    from environments.services import isolation
    from environments.services.platforms import own_platform

    close_old_connections()
    try:
        Worker.announce(
            process_name(),
            platform=own_platform(),
            queues=queues,
            life=Worker.LIFE if life is None else life,
            unprotected=isolation.problems(),
        )
    except Error as error:
        if outages.unavailable(error) is None:
            logger.exception("a worker cannot announce itself", hint=outages.migration_hint(error))
        else:
            logger.warning("database unreachable", error=str(error))
    finally:
        close_old_connections()


def _say_gone(queues: list[str]) -> None:
    _say(queues, timedelta(0))


def _preload() -> None:
    """Import what every build needs, so that the first one does not wait."""
    started = time.monotonic()
    importlib.import_module("environments.jobs.builds")
    engine = importlib.import_module("environments.services.engine_context").get_engine()
    engine.solver().warm_up()
    engine.packages.warm_up()
    # gc.freeze(): what is imported by now stays, so that no collection visits it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    logger.debug("preloaded", seconds=round(time.monotonic() - started, 2))


def _serve_metrics() -> None:
    if not settings.WORKER_METRICS_PORT:
        return
    from prometheus_client import start_http_server

    try:
        start_http_server(settings.WORKER_METRICS_PORT, addr=settings.WORKER_METRICS_HOST)
    except OSError as error:
        port = settings.WORKER_METRICS_PORT
        logger.warning("no metrics", port=port, error=error.strerror)


def _end_within(seconds: float) -> None:
    """Exit after `seconds` even if work still blocks: its lease expires, and it is requeued."""
    timer = threading.Timer(seconds, lambda: _leave(1))
    timer.daemon = True
    timer.start()


def _leave(status: int) -> None:
    """Exit at once: native threads of the solver may crash in the interpreter's own shutdown."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
