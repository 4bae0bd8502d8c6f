"""Check the marker of the data folder; accept an empty folder in place of a lost one."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from environments.services import data_folder_marker


class Command(BaseCommand):
    help = (
        "Check that the data folder belongs to this installation and is not the mount point of an "
        "unmounted file system."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--accept",
            action="store_true",
            help="make this data folder the installation's, after the former one was lost",
        )

    def handle(self, *, accept: bool, **options: Any) -> None:
        if accept and data_folder_marker.accept():
            self.stdout.write("this data folder now belongs to the installation")
        if fault := data_folder_marker.fault():
            raise CommandError(fault)
        self.stdout.write("the data folder belongs to the installation")
