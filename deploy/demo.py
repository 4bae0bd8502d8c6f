"""`make demo`: a complete installation with a channel of real packages and one build.

All files are in `demo-data/`; a second run continues with them.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from environments.engine.system.sandbox import sandbox_problem
from tests.channels import building
from tests.channels.server import serving

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "demo-data"
CONDASTORE = [sys.executable, "-m", "condastore.cli.main"]
SPECIFICATION = """\
# What this environment needs: submitted by `make demo`.
name: ml
channels: [demo]
dependencies:
  - python {python}.*
  - numpy
  - pandas
  - scikit-learn
  - ipykernel
  - pip:
      - cowsay
variables:
  OMP_NUM_THREADS: "2"
condastore:
  description: Tables and models, with a kernel for notebooks
  tests:
    imports: [pandas, sklearn, cowsay]
"""
PROOF = (
    "import pandas, sklearn, sys;"
    "print('python', sys.version.split()[0], '| pandas', pandas.__version__,"
    " '| scikit-learn', sklearn.__version__, '| from', sys.prefix)"
)


class Steps:
    """Steps of the demo with their durations, in seconds."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}", flush=True)
        started = time.monotonic()
        yield
        self.done.append((title, time.monotonic() - started))

    def print(self) -> None:
        width = max(len(title) for title, _ in self.done)
        for title, seconds in self.done:
            print(f"  {title:<{width}}  {seconds:6.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the import test")
    once = parser.parse_args().once
    signal.signal(signal.SIGTERM, _stop)
    steps = Steps()
    FOLDER.mkdir(exist_ok=True)
    try:
        with steps.step("A channel of real packages (created at the first run)"):
            building.ensure_demo(FOLDER / "channels" / "demo", work=FOLDER / "downloads")
        with serving(FOLDER / "channels", port=_remembered_port("channel")) as channel:
            return _show(channel.url.rstrip("/"), steps, once=once)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(channels: str, steps: Steps, *, once: bool) -> int:
    password = _remembered("password", secrets.token_urlsafe(9))
    sandbox = _sandbox()
    port = _remembered_port("web")
    address = f"http://127.0.0.1:{port}"
    environ = os.environ | {
        "CONDASTORE_PUBLIC_URL": address,  # locks name hosted channels by it
        "CONDASTORE_DATA": str(FOLDER / "data"),
        "CONDASTORE_CHANNEL_ALIAS": channels,
        "CONDASTORE_DEFAULT_CHANNELS": "demo",
        "CONDASTORE_ALLOWED_CHANNELS": f"{channels}/*,{address}/channel/hosted/*",
        "CONDASTORE_PYPI_INDEX_URLS": f"{channels}/demo/{building.INDEX_FOLDER}/simple/",
        "CONDASTORE_ADMIN_PASSWORD": password,
        "CONDASTORE_SANDBOX": sandbox,
        "CONDASTORE_LOG_LEVEL": "WARNING",
    }
    command = [*CONDASTORE, "up", "--json", "--port", str(port)]
    server = subprocess.Popen(command, env=environ, cwd=PROJECT, stdout=subprocess.PIPE)
    try:
        with steps.step("The system: web, worker, scheduler, queue"):
            url = _ready(server)
        environ |= {"CONDASTORE_URL": url, "CONDASTORE_TOKEN": _token(url, password)}
        with steps.step("An environment: submitted, solved, locked, linked, checked, published"):
            path = FOLDER / "environment.yml"
            path.write_text(SPECIFICATION.format(python=_python()))
            print(f"$ condastore env build admin/ml -f {path.relative_to(PROJECT)}")
            subprocess.run(
                [*CONDASTORE, "env", "build", "admin/ml", "-f", path], env=environ, check=True
            )
        with steps.step("Import test: pandas and sklearn in the finished environment"):
            print("$ condastore run admin/ml -- python -c '...'")
            subprocess.run(
                [*CONDASTORE, "run", "admin/ml", "--", "python", "-c", PROOF],
                env=environ,
                check=True,
            )
        print("\nDone:")
        steps.print()
        folder = FOLDER / "data" / "envs" / "admin" / "ml"
        print(f"\n  folder    {folder}  ->  {folder.readlink()}")
        print(f"  URL       {url}\n  sign-in   admin / {password}")
        if once:
            return 0
        print(
            "\nTry next, in another terminal:\n"
            f"  . {Path(sys.executable).parent / 'activate'} && "
            f"condastore login {url} --username admin     # the password is above\n"
            f"  condastore env preview admin/ml -f {path.relative_to(PROJECT)}"
            "     # after a change of the file: what would change?\n"
            "  condastore env why admin/ml six                # why is this package included?\n"
            "\nServing until Ctrl-C.",
            flush=True,
        )
        server.wait()
        return server.returncode
    except subprocess.CalledProcessError as error:
        print(
            f"\nFailed: `{' '.join(map(str, error.cmd[2:6]))} ...` ended with status "
            f"{error.returncode}. The output of the server is above.",
            file=sys.stderr,
        )
        return 1
    finally:
        server.terminate()
        server.wait(30)


def _sandbox() -> str:
    """Choose CONDASTORE_SANDBOX for this machine and print the choice."""
    problem = sandbox_problem()
    if not problem:
        print("Sandbox: bubblewrap. Code of packages runs only inside it.")
        return "required"
    print(
        f"Sandbox: off. {problem} The packages of this demo were made on this machine and run "
        "without a sandbox. Installations for others need bubblewrap: docs/how-to/sandbox.md."
    )
    return "off"


def _ready(server: subprocess.Popen[bytes]) -> str:
    """Wait until the system is ready; return its URL."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(b"{"):
            answer: dict[str, Any] = json.loads(line)
            return str(answer["url"]).rstrip("/")
    raise SystemExit("condastore did not start; its output is above.")


def _token(url: str, password: str) -> str:
    name = f"demo-{secrets.token_hex(3)}"
    body = json.dumps({"username": "admin", "password": password, "name": name}).encode()
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{url}/api/token", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return str(json.load(answer)["token"])


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _remembered(name: str, value: str) -> str:
    """Return the value that the first run stored; store `value` if there is none."""
    path = FOLDER / name
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(value)
    return path.read_text()


def _remembered_port(name: str) -> int:
    """Return the previous port if it is free, so that URLs in stored locks stay valid."""
    path = FOLDER / f"{name}.port"
    previous = int(path.read_text()) if path.exists() else 0
    for port in (previous, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            free = int(probe.getsockname()[1])
        path.write_text(str(free))
        return free
    raise SystemExit("No port is free.")


if __name__ == "__main__":
    sys.exit(main())
