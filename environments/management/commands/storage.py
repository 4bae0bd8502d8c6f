"""Copy all blobs between the store of this installation and another one."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import Storage, storages
from django.core.management.base import BaseCommand, CommandError

from condastore.blob_storage import blob_storage
from condastore.errors import StoreError
from environments.jobs.blob_migration import Moved, copy_all
from environments.services import blobs

KINDS = ("files", "s3", "gcs", "azure")
#: Interval between two lines of progress, in seconds.
PROGRESS_SECONDS = 2.0


class Command(BaseCommand):
    help = "Copy all blobs between this installation's store and another one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="what", required=True)
        migrate = commands.add_parser("migrate", help="copy missing blobs; can be repeated")
        location = migrate.add_mutually_exclusive_group(required=True)
        location.add_argument("--to", choices=KINDS, help="copy to another store")
        location.add_argument(
            "--from",
            choices=KINDS,
            dest="origin",
            help="copy from another store",
        )
        migrate.add_argument(
            "--options",
            metavar="FILE",
            help="options of the other store, as CONDASTORE_BLOBS_OPTIONS",
        )
        migrate.add_argument("--check", action="store_true", help="verify blobs that already exist")

    def handle(self, **options: Any) -> None:
        other = _store(options["to"] or options["origin"], options["options"])
        source, target = blobs.storage(), other
        if options["origin"]:
            source, target = other, source
        self._started = self._said = time.monotonic()
        try:
            moved = copy_all(source, target, check=options["check"], told=self._report_progress)
        except StoreError as error:
            raise CommandError(f"{error} Run the command again to continue.") from error
        self._print(moved)
        if moved.damaged:
            raise CommandError(
                f"{moved.damaged} damaged {'blob was' if moved.damaged == 1 else 'blobs were'} "
                "not copied; the log names them."
            )

    def _report_progress(self, moved: Moved) -> None:
        if time.monotonic() - self._said > PROGRESS_SECONDS:
            self._said = time.monotonic()
            self._print(moved)

    def _print(self, moved: Moved) -> None:
        seconds = max(time.monotonic() - self._started, 0.001)
        done = moved.copied + moved.present
        self.stdout.write(
            f"{done:,} of {moved.total:,} blobs ({moved.copied_size + moved.present_size:,} of "
            f"{moved.total_size:,} bytes); {moved.copied:,} copied, {moved.present:,} were there; "
            f"{moved.copied_size / seconds / 1e6:.1f} MB/s"
        )
        self.stdout.flush()


def _store(kind: str, options: str | None) -> Storage:
    try:
        text = Path(options).read_text() if options else ""
        return storages.create_storage(blob_storage(kind, text))
    except OSError as error:
        raise CommandError(f"Cannot read {options}: {error}") from error
    except ImproperlyConfigured as error:
        raise CommandError(str(error).replace("CONDASTORE_BLOBS_OPTIONS", "The file")) from error
