"""Probes of container engines and Kubernetes reach a real server by whatever address they use."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client

from accounts.models import User
from tests import factories
from tests.condastore.running_system import System


def answer(system: System, path: str, host: str | None) -> tuple[int, str]:
    """Return status and body of a request with this Host header, or without one (HTTP/1.0)."""
    parts = urlsplit(system.url)
    version = "1.0" if host is None else "1.1"
    lines = [f"GET {path} HTTP/{version}", "Connection: close"]
    lines += [] if host is None else [f"Host: {host}"]
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("host", ["10.1.2.3:8470", "web", "_not a host_", "", None])
def test_probes_accept_any_host_and_other_addresses_do_not(
    running_server: System, host: str | None
) -> None:
    assert answer(running_server, "/healthz", host) == (200, "ok\n")
    status, body = answer(running_server, "/readyz", host)
    found = json.loads(body[body.index("{") : body.rindex("}") + 1])
    assert status == 200
    assert found["ready"] is True
    if host is not None:  # without the header the host is the address of the server itself
        for path in ("/api/whoami", "/", "/metrics", "/healthz/"):
            assert answer(running_server, path, host)[0] == 400


def test_readiness_says_that_nobody_can_administer_the_installation(
    client: Client, db: None, settings: Any
) -> None:
    def check() -> Any:
        return client.get("/readyz").json()["checks"]["administrator"]

    assert check() == {
        "ok": False,
        "wrong": "There is no administrator. Create one: condastore manage prepare.",
    }
    settings.ADMIN_GROUPS = ["ldap:it"]
    assert check()["ok"]
    settings.ADMIN_GROUPS = []
    factories.make_user("root", superuser=True)
    assert check()["ok"]
    User.objects.update(is_active=False)
    assert not check()["ok"]


def test_probes_answer_head_and_keep_their_name_in_the_metrics(client: Client, db: None) -> None:
    answered = client.head("/healthz")
    assert (answered.status_code, answered.content) == (200, b"")
    assert answered.resolver_match.view_name == "alive"
