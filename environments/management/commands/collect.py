"""Remove kept bytes that nothing needs, on the server itself and at once."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from environments.jobs import blob_gc

_SAID = {
    "marked": "nothing needs; they go in a later round",
    "removed": "gone",
    "needed_again": "were marked, and are needed again",
    "without_row": "in the store that no row knows, for a day",
    "without_bytes": "are missing in the store",
}


class Command(BaseCommand):
    help = "Find the kept bytes that nothing needs; remove those that were found an hour ago."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say it, change nothing")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        report = blob_gc.collect(dry_run=dry_run).to_json()
        if options["json"]:
            self.stdout.write(json.dumps({"dry_run": dry_run, **report}))
            return
        if dry_run:
            self.stdout.write("nothing is changed:")
        for name, text in _SAID.items():
            found = report[name]
            said = f"{found['number']:>8,} blobs  {found['size']:>18,} bytes"
            self.stdout.write(f"{name.replace('_', ' '):14}{said}  {text}")
