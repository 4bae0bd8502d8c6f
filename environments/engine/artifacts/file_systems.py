"""Mountable file systems of an environment: squashfs, and Apptainer images (SIF).

squashfs-tools read from a pipe the same archive that others unpack: nothing is on the disk twice,
and no prefix is linked. The environment in it is for `/opt/env`: the file system is mounted there,
or is the root of an Apptainer image that has it there.

The bytes are the same for the same version of squashfs-tools and its zstd library, whatever the
number of processors.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path

from condastore.errors import ArtifactFailedError, DiskSpaceError, InvalidInputError
from environments.domain.artifacts import STANDARD_PREFIX
from environments.domain.progress import Progress
from environments.engine.artifacts.archives import removed_on_failure
from environments.engine.artifacts.sif import ARCHITECTURES, write_sif
from environments.engine.artifacts.staging import Material
from environments.engine.artifacts.tar import END, Entry, chunks, tar_stream, with_folders
from environments.engine.artifacts.tree import parts_of
from environments.engine.artifacts.variables import exports, variables_of
from environments.engine.system.processes import Confinement, run_tool

INSTALL = "apt-get install squashfs-tools"
_TIME_LIMIT = timedelta(hours=6)
_POLL = 0.02  # seconds
_OPTIONS = [
    *("-comp", "zstd", "-Xcompression-level", "6", "-b", "256K"),
    *("-reproducible", "-all-root", "-no-xattrs", "-exit-on-error"),
    *("-root-mode", "755", "-quiet", "-no-progress"),
]
_FROM_PIPE = ["/bin/sh", "-c", 'pipe=$1; shift; exec "$@" <"$pipe"', "sh"]


def make_squashfs(material: Material) -> Path:
    """Write a squashfs whose root is the environment, to be mounted at `/opt/env`."""
    _require_linux(material)
    return _write(material, _entries(material), material.work / "env.squashfs")


def make_sif(material: Material) -> Path:
    """Write an Apptainer image: a root with the environment, and mount points for the rest."""
    _require_linux(material)
    root = STANDARD_PREFIX.lstrip("/")
    moment = int(material.moment.timestamp())
    inside = [entry._replace(path=f"{root}/{entry.path}") for entry in _entries(material)]
    system = _write(material, [*inside, *_root(material, moment)], material.work / "root.squashfs")
    path = material.work / "env.sif"
    with removed_on_failure(path):
        write_sif(
            path,
            system,
            platform=material.platform,
            moment=material.moment,
            labels=_labels(material),
            run_script=_RUN,
        )
    return path


def _require_linux(material: Material) -> None:
    if material.platform not in ARCHITECTURES:
        raise InvalidInputError(
            f"File systems are not supported for {material.platform}, only for Linux.",
            hint="Request an archive (env.tar.zst), or another platform of the lock.",
        )


def _entries(material: Material) -> list[Entry]:
    parts = parts_of(material, prefix=STANDARD_PREFIX)
    return [entry for part in parts for entry in part.entries]


# --- files for Apptainer --------------------------------------------------------------------------

#: Where Apptainer mounts folders of the host, or its own.
_MOUNT_POINTS = [
    *("bin", "dev", "etc", "home", "lib", "lib64", "mnt", "proc", "root", "run", "sbin", "sys"),
    *("tmp", "usr", "var", "var/tmp"),
]
_RUN = """\
#!/bin/sh
if [ "$#" -eq 0 ]; then set -- /bin/sh; fi
exec "$@"
"""
_ACTIVATE = f"""\
#!/bin/sh
export CONDA_PREFIX="{STANDARD_PREFIX}"
export PATH="{STANDARD_PREFIX}/bin:$PATH"
"""
#: Python cannot write to the image: what it compiles at the first start is stored in the home.
_COMPILED = """\
if [ -w "$HOME" ] && [ -z "$PYTHONPYCACHEPREFIX" ]; then
    export PYTHONPYCACHEPREFIX="${{XDG_CACHE_HOME:-$HOME/.cache}}/condastore/{lock}"
fi
"""
_SCRIPTS = f"""\
for condastore_script in {STANDARD_PREFIX}/etc/conda/activate.d/*.sh; do
    if [ -r "$condastore_script" ]; then . "$condastore_script"; fi
done
unset condastore_script
"""


def _labels(material: Material) -> dict[str, str]:
    return {"condastore.lock": material.lock.digest, "condastore.platform": material.platform}


def _root(material: Material, moment: int) -> Iterable[Entry]:
    def file(path: str, text: str, *, executable: bool = False) -> Entry:
        return Entry.file(path, text.encode(), moment, executable=executable)

    variables = variables_of(material.packages) | dict(material.variables)
    for folder in _MOUNT_POINTS:
        yield Entry.folder(folder, moment)
    compiled = _COMPILED.format(lock=material.lock.digest[:12])
    yield file(
        ".singularity.d/env/90-environment.sh",
        _ACTIVATE + compiled + exports(variables) + _SCRIPTS,
        executable=True,
    )
    yield file(".singularity.d/runscript", _RUN, executable=True)
    yield file(".singularity.d/labels.json", json.dumps(_labels(material)) + "\n")
    for name in ("group", "hosts", "passwd", "resolv.conf"):
        yield file(f"etc/{name}", "")


# --- squashfs -------------------------------------------------------------------------------------


def _write(material: Material, entries: Iterable[Entry], path: Path) -> Path:
    """Run mksquashfs on `entries`; return the new file at `path`."""
    program = str(squashfs_program())
    everything = with_folders(entries, int(material.moment.timestamp()))
    # mksquashfs clamps times to this; its option for the root's time has no effect.
    newest = max(entry.moment for entry in everything)
    pipe = path.with_name("files.tar")
    os.mkfifo(pipe, 0o600)
    feeder = _Feeder(pipe, everything, material)
    lines: list[str] = []
    with removed_on_failure(path), feeder:
        result = run_tool(
            [*_FROM_PIPE, str(pipe), program, "-", str(path), "-tar", *_OPTIONS],
            cwd=material.work,
            env={
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "SOURCE_DATE_EPOCH": str(newest),
            },
            time_limit=_TIME_LIMIT,
            cancelled=material.cancelled,
            on_line=lines.append,
            confinement=Confinement(writable=[path.parent], connect=[]),
        )
    pipe.unlink()
    if feeder.error is not None and not isinstance(feeder.error, BrokenPipeError):
        raise feeder.error
    if not result.succeeded:
        path.unlink(missing_ok=True)
        result.require_not_killed("mksquashfs")
        output = "; ".join(line for line in lines[-3:] if line)
        if re.search("No space left|Disk quota", output):
            raise DiskSpaceError(
                "The disk is full: the file system could not be created.",
                hint="Ask an administrator to free disk space, then try again.",
            )
        raise ArtifactFailedError(
            f"The file system could not be created: {output or f'status {result.status}'}.",
            details={"status": result.status, "tail": result.tail},
        )
    return path


@functools.cache
def squashfs_program() -> Path:
    """Return the path of mksquashfs.

    Raises:
        ArtifactFailedError: it is not installed or too old; the hint says how to install it.
    """
    found = shutil.which("mksquashfs")
    # sqfstar was added together with reading archives; only mksquashfs has all options.
    if found is None or shutil.which("sqfstar") is None:
        older = found is not None
        raise ArtifactFailedError(
            "The worker's squashfs-tools are older than 4.5 and cannot read archives."
            if older
            else "The worker has no squashfs-tools, which create this file system.",
            hint=f"Ask an administrator to install them on the workers ({INSTALL}), or request "
            "an archive (env.tar.zst).",
        )
    return Path(found)


class _Feeder:
    """Thread that writes the archive into the pipe while the tool reads it."""

    def __init__(self, pipe: Path, entries: Sequence[Entry], material: Material) -> None:
        self._pipe, self._entries, self._material = pipe, entries, material
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="squashfs-feeder", daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> _Feeder:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            if (descriptor := self._open()) is not None:
                with os.fdopen(descriptor, "wb", buffering=0) as out:
                    self._write(out.write)
        except Exception as error:  # raised again by the thread that waits for the tool
            self.error = error

    def _open(self) -> int | None:
        """Open the pipe when the tool has opened it; return None if the tool ended before."""
        while not self._end.is_set():
            try:
                descriptor = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # ENXIO: no reader yet
                time.sleep(_POLL)
                continue
            os.set_blocking(descriptor, True)
            return descriptor
        return None

    def _write(self, write: Callable[[memoryview], int | None]) -> None:
        total, done = sum(entry.size for entry in self._entries), 0
        for piece in chunks(chain(tar_stream(self._entries), [END]), 1 << 20, reuse=True):
            done = min(done + len(piece), total)
            while piece:
                piece = piece[write(piece) or 0 :]
            self._material.progress(Progress(stage="packing", bytes_done=done, bytes_total=total))
