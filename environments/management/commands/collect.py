"""Garbage-collect unreferenced blobs now, on the server itself."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from environments.jobs import blob_gc

_SAID = {
    "marked": "unreferenced; deleted in a later run",
    "removed": "gone",
    "needed_again": "were marked and are in use again",
    "without_row": "in the store without a row, for a day",
    "without_bytes": "are missing in the store",
}


class Command(BaseCommand):
    help = "Mark unreferenced blobs, and delete those that were marked an hour ago."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="report only, change nothing")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        report = blob_gc.collect(dry_run=dry_run).to_json()
        if options["json"]:
            self.stdout.write(json.dumps({"dry_run": dry_run, **report}))
            return
        if dry_run:
            self.stdout.write("dry run, nothing is changed:")
        for name, text in _SAID.items():
            found = report[name]
            said = f"{found['number']:>8,} blobs  {found['size']:>18,} bytes"
            self.stdout.write(f"{name.replace('_', ' '):14}{said}  {text}")
