"""Index and filter the repodata of a remote channel, from files to files.

An index run fetches the channel's repodata and merges it into the history of what it listed
(`Join`). A view is the part of the history that the policy allows at one moment, as the files that
conda clients request (`Render`). A large channel has 800,000 records, so only the records of one
name are in memory at a time, and large work runs in its own process: it uses neither the memory nor
the interpreter lock of a worker.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from condastore.errors import (
    ChannelUnavailableError,
    StoreError,
    WorkerLostError,
    error_from_json,
    error_to_json,
)
from environments.domain.json_text import parse_json
from environments.domain.progress import Cancelled
from environments.engine.channels.mirror_history import Join
from environments.engine.channels.mirror_views import Render
from environments.engine.system.confinement import child_environment, confine
from environments.engine.system.process_output import read_output, require_output
from environments.engine.system.processes import Confinement, run_tool

#: Sizes in bytes from which work runs in its own process: fetched repodata always, because it may
#: be hostile; a history, which was written here, if it is worth the start of a process.
MIN_FETCHED_BYTES, MIN_HISTORY_BYTES = 0, 16 << 20
#: Memory limit of such a process, in bytes. It holds all records of one name at once.
MEMORY_LIMIT = 2 << 30


def run_work(
    work: Join | Render,
    *,
    folder: Path,
    cancelled: Cancelled,
    time_limit: timedelta,
    memory_limit: int = MEMORY_LIMIT,
) -> dict[str, Any]:
    """Run `work`; in a confined process if it reads fetched repodata or is large.

    Args:
        memory_limit: memory that the process may use, in bytes, without mapped files.
    Raises:
        ChannelUnavailableError: the fetched file is not repodata, or takes too much memory.
        WorkerLostError: the process exited without an answer.
    """
    if work.size < (MIN_FETCHED_BYTES if isinstance(work, Join) else MIN_HISTORY_BYTES):
        return work.run()
    return run_in_process(
        work,
        folder=folder,
        cancelled=cancelled,
        time_limit=time_limit,
        memory_limit=memory_limit,
    )


def run_in_process(
    work: Join | Render,
    *,
    folder: Path,
    cancelled: Cancelled,
    time_limit: timedelta,
    memory_limit: int = MEMORY_LIMIT,
) -> dict[str, Any]:
    task, answer = folder / "task", folder / "answer"
    task.write_bytes(pickle.dumps(work))
    answer.unlink(missing_ok=True)
    root = Path(__file__).resolve().parents[3]
    confinement = Confinement(readable=work.reads, writable=[folder], connect=[])
    result = run_tool(
        [
            *(sys.executable, "-c", _PROGRAM, os.fspath(task), os.fspath(answer)),
            json.dumps(confinement.arguments()),
        ],
        cwd=folder,
        env=child_environment({"PYTHONPATH": os.fspath(root), "TMPDIR": os.fspath(folder)}),
        time_limit=time_limit,
        cancelled=cancelled,
        on_line=lambda line: None,
        limits={"RLIMIT_DATA": memory_limit},
    )
    if result.status in _OUT_OF_MEMORY and not answer.exists():
        raise ChannelUnavailableError(
            f"Reading the package list of channel {work.channel} for {work.subdir} takes more "
            f"than {memory_limit >> 20:,} MiB of memory.",
            hint="Ask the channel's owner to check its repodata.",
        )
    try:
        # The process parsed foreign input: unpickling its answer could run code here.
        found = parse_json(read_output(answer, most=_MAX_ANSWER_BYTES))
        if "error" in found:
            raise error_from_json(found["error"])
        for path in work.writes:
            require_output(path)
        return dict(found["answer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkerLostError(
            f"The process that reads a channel exited unexpectedly (status {result.status})."
        ) from error


#: Exit statuses of a process without memory: 75 is ours, SIGABRT comes from Rust.
_OUT_OF_MEMORY = (75, 128 + signal.SIGABRT, -signal.SIGABRT)
_MAX_ANSWER_BYTES = 64 << 20
_PROGRAM = "from environments.engine.channels.mirrors import main; main()"


def main() -> None:
    """Run a pickled task; arguments: TASK ANSWER CONFINEMENT."""
    confine(**json.loads(sys.argv[3]))
    task, answer = map(Path, sys.argv[1:3])
    found: dict[str, Any]
    try:
        work = pickle.loads(task.read_bytes())  # noqa: S301 - written by the parent process
        found = {"answer": work.run()}
    except StoreError as error:
        found = {"error": error_to_json(error)}
    except MemoryError:
        os._exit(_OUT_OF_MEMORY[0])
    except Exception as error:
        found = {"error": error_to_json(WorkerLostError(f"Reading the channel failed: {error!r}"))}
    temporary = answer.with_suffix(".new")
    temporary.write_text(json.dumps(found))
    temporary.replace(answer)
    os._exit(0)  # rattler's threads may crash while Python finalizes
