"""Throughput and memory of serving a large artifact, relative to nginx.

`python -m tests.benchmarks.serving PORT...` is the web, in a process and data folder of its own: it
puts the artifact there, and serves it on the first port itself and on the second one through nginx.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import httpx
import psutil

from tests.benchmarks.channels import PROJECT
from tests.benchmarks.measure import (
    MEGABYTE,
    Clock,
    Measure,
    cpu_seconds,
    median,
    memory_of,
    peak_memory,
    scratch,
)
from tests.services.processes import find_program, free_ports

SIZE = 1_000_000_000  # bytes
ROUNDS = 5
CONNECTIONS = (1, 4, 16)
ADDRESS = "/api/envs/research/ml/current/env.tar.zst"
_START_WAIT = 120  # seconds
_CURL = ("curl", "-sf", "-o", "/dev/null", "-w", "%{size_download}")
#: As deploy/nginx has it: what condastore names is read from the folder of blobs.
_NGINX = """\
{user}daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1;
events {{}}
http {{
    access_log off; sendfile on;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{web}; proxy_set_header Host $http_host; }}
        location /_blobs/ {{ internal; alias {folder}/blobs/; }}
    }}
}}
"""


def serving() -> Iterator[Measure]:
    alone, behind, front = free_ports(3)
    with scratch() as folder, ExitStack() as stack:
        put = {**os.environ, "CONDASTORE_DATA": str(folder), "CONDASTORE_LOG_LEVEL": "ERROR"}
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.serving", str(SIZE)],
            cwd=PROJECT,
            env=put,
            check=True,
        )
        values = {"folder": folder, "port": front, "web": behind}
        values["user"] = "user root; " if os.geteuid() == 0 else ""  # the folder is this user's
        (folder / "nginx.conf").write_text(_NGINX.format(**values))
        nginx = find_program("nginx", component="nginx", install="apt-get install nginx-light")
        web = stack.enter_context(_web(alone, put))
        command = [str(nginx), "-c", str(folder / "nginx.conf")]
        others = [
            stack.enter_context(_web(behind, put | {"CONDASTORE_ACCEL_REDIRECT": "/_blobs/"})),
            stack.enter_context(_running(command, put, front)),
        ]
        before = memory_of(web).rss
        found: list[Measure] = []
        for number in CONNECTIONS:
            ours, theirs, costs = [], [], []
            for _ in range(ROUNDS):
                begun = cpu_seconds(web), sum(map(cpu_seconds, others))
                ours.append(_seconds(alone, number))
                theirs.append(_seconds(front, number))
                costs.append(
                    (cpu_seconds(web) - begun[0], sum(map(cpu_seconds, others)) - begun[1])
                )
            over = "" if number == 1 else f" over {number} connections"
            name = f"1 GB{over} from the web process itself / from nginx by X-Accel-Redirect"
            speeds = [f"{SIZE / MEGABYTE / median(each):.0f} MB/s" for each in (ours, theirs)]
            cost = " / ".join(f"{median(each):.2f} s" for each in zip(*costs, strict=True))
            note = f"{' / '.join(speeds)} of curl, in turns; {cost} of a processor"
            value = median(ours) / median(theirs)
            found.append(Measure(name=name, value=value, unit="x", ceiling=1.25, note=note))
        most = peak_memory(web.pid)
    yield from found
    yield Measure(
        name="memory that the web process takes on while it serves 1 GB",
        value=(most - before) / MEGABYTE,
        unit="MB",
        ceiling=20,
    )


def _seconds(port: int, connections: int) -> float:
    """Of curls that fetch the artifact, each a part of it."""
    clock = Clock()
    part = SIZE // connections
    curls = [
        subprocess.Popen(
            [*_CURL, "-r", f"{start}-{start + part - 1}", f"http://127.0.0.1:{port}{ADDRESS}"],
            stdout=subprocess.PIPE,
        )
        for start in range(0, SIZE, part)
    ]
    got = [int(curl.communicate()[0]) for curl in curls]
    seconds = clock.seconds
    assert (sum(got), len(got)) == (SIZE, connections)
    return seconds


@contextmanager
def _web(port: int, environ: Mapping[str, str]) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "uvicorn", "condastore.asgi:application"]
    command += ["--http", "condastore.http.protocol:HttpProtocol"]
    with _running([*command, "--port", str(port), "--lifespan", "off"], environ, port) as process:
        yield process


@contextmanager
def _running(command: list[str], environ: Mapping[str, str], port: int) -> Iterator[psutil.Process]:
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env=dict(environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + _START_WAIT
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    httpx.head(f"http://127.0.0.1:{port}{ADDRESS}", timeout=60).raise_for_status()
                except httpx.TransportError:
                    time.sleep(0.1)
                else:
                    break
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def _put(size: int) -> None:
    """A public environment with a file of `size` bytes, as if it had been made."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    django.setup()
    from django.core.management import call_command

    from environments.domain.artifacts import ArtifactKind, ArtifactState
    from environments.models import Artifact
    from environments.services import blobs
    from tests import factories

    call_command("migrate", verbosity=0)
    namespace = factories.make_namespace("research", public=True)
    build = factories.make_build(factories.make_environment(namespace, "ml"))
    path = blobs.blobs_folder() / "made"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for _ in range(size // MEGABYTE):
            file.write(os.urandom(1000) * 1000)
    row = Artifact.wanted(build, ArtifactKind.TAR_ZST, factories.PLATFORM)
    created = {"state": ArtifactState.READY, "blob": blobs.add(path)}
    Artifact.objects.filter(pk=row.pk).update(**created)


if __name__ == "__main__":
    _put(int(sys.argv[1]))
