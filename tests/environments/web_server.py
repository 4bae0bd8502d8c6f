"""A web server in a thread, on the test's database, for what only a real connection shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from django.db import connections

from condastore.http.protocol import HttpProtocol
from tests.services.processes import free_ports


@pytest.fixture
def server(transactional_db: None) -> Iterator[str]:
    """Its address."""
    from condastore.asgi import application

    (port,) = free_ports()
    config = uvicorn.Config(
        application,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="off",
        http=HttpProtocol,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started and thread.is_alive():
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(20)
        connections.close_all()
