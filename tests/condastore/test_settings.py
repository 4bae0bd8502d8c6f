"""Every setting is documented, in one table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from condastore.env import SETTINGS

PROJECT = Path(__file__).parents[2]
MARK = "<!-- settings: kept complete by tests/condastore/test_settings.py -->\n"


def table() -> str:
    rows = [
        f"| `{each.name}` | {each.help} | {f'`{each.default}`' if each.default else ''} |"
        for each in sorted(SETTINGS.values(), key=lambda each: each.name)
    ]
    return "\n".join(["| variable | what | default |", "|---|---|---|", *rows]) + "\n"


def test_the_settings_table_is_what_the_code_reads():
    """Run this file as a program to write the table."""
    document = (PROJECT / "docs" / "reference" / "settings.md").read_text()
    assert document.partition(MARK)[2].strip() == table().strip()


def test_no_variable_is_read_behind_the_tables_back():
    # Tests and the demo set variables; what the product reads must be declared.
    read = re.compile(r"environ(?:\.get\(|\[)\s*\"(CONDASTORE_[A-Z_]+)\"")
    client_only = {"CONDASTORE_URL", "CONDASTORE_TOKEN", "CONDASTORE_DEBUG", "CONDASTORE_CONFIG"}
    for folder in ("accounts", "condastore", "environments"):
        for path in (PROJECT / folder).rglob("*.py"):
            for name in read.findall(path.read_text()):
                assert name in SETTINGS or name in client_only, f"{path}: {name}"


def test_a_setting_that_cannot_be_read_says_which_and_how():
    answer = subprocess.run(
        [sys.executable, "-c", "import condastore.settings"],
        env={"CONDASTORE_BUILD_ATTEMPTS": "many", "PATH": ""},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode != 0
    assert "CONDASTORE_BUILD_ATTEMPTS must be a number" in answer.stderr


if __name__ == "__main__":
    import os

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    django.setup()
    path = PROJECT / "docs" / "reference" / "settings.md"
    path.write_text(path.read_text().partition(MARK)[0] + MARK + "\n" + table())
