"""`python -m tests.benchmarks [NAME...]`: print the table and write `bench.json`.

The exit status is 1 if a number is over its ceiling.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks import (
    admin,
    archives,
    audit,
    builds,
    bursts,
    collection,
    downloads,
    first_use,
    images,
    lists,
    logs,
    policies,
    previews,
    serving,
    starts,
    waits,
)
from tests.benchmarks.measure import Benchmark, Clock, Measure, show, write

BENCHMARKS: Mapping[str, Benchmark] = {
    "ready": builds.ready,
    "cold": builds.cold,
    "first-use": first_use.first_use,
    "eight": builds.eight,
    "workers": builds.workers,
    "bursts": bursts.bursts,
    "waits": waits.waits,
    "lists": lists.lists,
    "log": logs.log,
    "admin": admin.admin,
    "preview": previews.preview,
    "preview-rules": previews.ruled,
    "policies": policies.policies,
    "audit": audit.audit,
    "archives": archives.archives,
    "collection": collection.collection,
    "images": images.images,
    "downloads": downloads.downloads,
    "serving": serving.serving,
    "starts": starts.starts,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(BENCHMARKS)):
        parser.error(f"there is no benchmark {unknown[0]!r}; choose of {', '.join(BENCHMARKS)}")
    # What was started is stopped, also when this is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    measures: list[Measure] = []
    for name in arguments.names or BENCHMARKS:
        clock = Clock()
        for measure in BENCHMARKS[name]():
            measures.append(measure)
            print(f"  {measure.name}: {measure.value:.3g} {measure.unit}", file=sys.stderr)
        print(f"{name}: {clock.seconds:.0f} s", file=sys.stderr, flush=True)
    show(measures)
    write(measures, arguments.out)
    return 0 if all(measure.holds for measure in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
