"""`python -m tests.faults.soak --kills N --seed S [--postgresql]`: a long run of random kills.

Prints what was killed; the exit status is 1 where something was lost, stuck or left over.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.benchmarks import channels
from tests.channels.building import INDEX_FOLDER
from tests.channels.server import serving
from tests.channels.simple_index import sample_distributions, write_simple_index
from tests.faults.soaking import Soak
from tests.migrated import migrated_postgres


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    parser.add_argument("--keep", action="store_true", help="keep the data folder")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        index = write_simple_index(folder / "index", sample_distributions())
        server = stack.enter_context(serving({"": channels.small(), INDEX_FOLDER: index.parent}))
        database = stack.enter_context(migrated_postgres()) if arguments.postgresql else None
        soak = Soak(
            folder,
            channel=server.url,
            faults=arguments.kills,
            seed=arguments.seed,
            database=database,
            say=say,
        )
        say(f"seed {arguments.seed}, {folder}")
        try:
            soak.run()
        except Exception:
            traceback.print_exc()
            say(f"FAILED; the data are in {folder}")
            return 1
        finally:
            say(f"faults: {dict(soak.done)}")
            say(f"builds: {len(soak.builds)}, cancelled: {len(soak.cancelled)}")
            say(f"states of killed workers' builds: {dict(soak.states)}")
            say(f"requests without an answer: {dict(soak.refused)}")
    if not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    say("nothing lost, nothing stuck, nothing left over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
