"""The queue: Redis, Valkey or RabbitMQ by the address of `CONDASTORE_BROKER_URL`."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import dramatiq
from django.conf import settings
from django.db import close_old_connections
from dramatiq import Broker, MessageProxy, Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    TimeLimit,
)

from condastore import row_changes

#: Of dramatiq's Redis broker, in milliseconds: a worker that is silent for so long is dead.
HEARTBEAT = 15_000
#: Unix sockets have short paths: 108 bytes on Linux, 104 elsewhere.
LONGEST_SOCKET = 100


class DatabaseConnections(Middleware):
    """Drop database connections that have gone stale, before and after each message."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        close_old_connections()

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        close_old_connections()

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        close_old_connections()

    def before_worker_thread_shutdown(self, broker: Broker, thread: object) -> None:
        close_old_connections()


class Backlog(Middleware):
    """Knows whether this process has fetched messages that no thread has begun with."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._worker = worker

    @property
    def is_empty(self) -> bool:
        return self._worker is None or self._worker.work_queue.empty()


backlog = Backlog()


def embedded_socket(data: Path) -> Path:
    """Where the Valkey of `condastore up` listens: in the data folder, or in a short private one.

    The same for every process on this folder, so that a worker started by hand finds it too.
    """
    usual = data / "valkey" / "valkey.sock"
    if len(os.fsencode(usual)) <= LONGEST_SOCKET:
        return usual
    name = f"condastore-{os.getuid()}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / name / "valkey.sock"


def broker_url() -> str:
    """The configured address, or that of the Valkey which `condastore up` embeds."""
    return settings.BROKER_URL or f"unix://{embedded_socket(settings.DATA)}?db=0"


def make_broker(url: str) -> Broker:
    middleware: list[Middleware] = [
        DatabaseConnections(),
        backlog,
        AgeLimit(),
        TimeLimit(),
        ShutdownNotifications(notify_shutdown=True),
        Callbacks(),
        Pipelines(),
        Retries(),
        CurrentMessage(),
    ]
    if url.startswith("stub:"):
        return StubBroker(middleware=middleware)
    if url.startswith(("amqp:", "amqps:")):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=url, middleware=middleware)
    from condastore.redis_wakeup import WakingBroker

    return WakingBroker(
        url=url,
        middleware=middleware,
        # With the defaults the message of a killed worker waits for minutes.
        heartbeat_timeout=HEARTBEAT,
        maintenance_chance=1_000_000,
        socket_connect_timeout=5,
    )


def _row_notices(broker: Broker) -> row_changes.Transport | None:
    """Return what carries notices of rows; RabbitMQ carries none."""
    if not isinstance(broker, RedisBroker):
        return None
    from condastore.redis_wakeup import RowNotices, WakingBroker

    return RowNotices(broker) if isinstance(broker, WakingBroker) else None


def configure() -> Broker:
    """Make the broker of this process; importing `environments.tasks` calls it first."""
    broker = make_broker(broker_url())
    dramatiq.set_broker(broker)
    row_changes.set_transport(_row_notices(broker))
    return broker
