"""Count the tests of a run and name the flaky ones.

Usage: `count.py FIRST.xml [AGAIN.xml]`.

The files are pytest's `--junitxml`. The second run is that of what failed in the first.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path


def outcomes(path: Path) -> dict[str, str]:
    """Test -> `passed`, `failed` or `skipped`; an error before or after a test is a failure."""
    found: dict[str, str] = {}
    for case in ET.parse(path).iter("testcase"):  # noqa: S314
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        if outcome == "passed" and "skipped" in kinds:
            outcome = "skipped"
        if found.get(name) != "failed":
            found[name] = outcome
    return found


def main(first: str, again: str = "") -> int:
    tests = outcomes(Path(first))
    alone = outcomes(Path(again)) if again and Path(again).exists() else {}
    flaky = sorted(
        name for name, how in alone.items() if how == "passed" and tests.get(name) == "failed"
    )
    tests |= alone
    number = Counter(tests.values())
    for name in flaky:
        print(f"flaky: {name} failed, and passed alone")
    for name in sorted(name for name, how in tests.items() if how == "failed"):
        print(f"failed: {name}")
    parts = [f"{number['passed']} passed", f"{number['failed']} failed"]
    parts += [f"{number['skipped']} skipped"] if number["skipped"] else []
    parts += [f"{len(flaky)} flaky"] if flaky else []
    print(", ".join(parts))
    return 1 if number["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
