"""The configuration of nginx that is delivered: what it writes down."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "condastore.conf"
MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {delivered}
}}
"""
SECRET = "cs-a-token-that-nobody-may-read"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx")
def test_the_token_in_a_path_is_not_written_down(tmp_path: Path) -> None:
    port = free_port()
    delivered = CONFIGURATION.read_text()
    for known, here in (
        ("server web:8470;", "server 127.0.0.1:9;"),  # nobody listens: the answer is 502
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("/var/log/nginx/access.log", f"{tmp_path}/access.log"),
    ):
        assert known in delivered
        delivered = delivered.replace(known, here)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(MAIN.format(folder=tmp_path, delivered=delivered))
    command = [
        "nginx",
        "-p",
        str(tmp_path),
        "-c",
        str(configuration),
        "-e",
        f"{tmp_path}/early.log",
    ]
    nginx = subprocess.Popen(command)
    try:
        for path in (f"t/{SECRET}/channel/hosted/tools/noarch/repodata.json", "healthz"):
            assert ask(f"http://127.0.0.1:{port}/{path}").status_code == 502
    finally:
        nginx.terminate()
        nginx.wait(30)
    written = (tmp_path / "access.log").read_text()
    assert "GET /t/***/channel/hosted/tools/noarch/repodata.json HTTP/1.1" in written
    assert "GET /healthz HTTP/1.1" in written
    assert SECRET not in written


def ask(url: str) -> httpx.Response:
    until = time.monotonic() + 30
    while True:
        try:
            return httpx.get(url)
        except httpx.ConnectError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
