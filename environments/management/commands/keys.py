"""Check the installation's keys, and complete the rotation of a key."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from environments.services import key_rotation


class Command(BaseCommand):
    help = (
        "Check that this machine has the installation's keys; encrypt and sign again what former "
        "keys protect."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--accept",
            action="store_true",
            help="make this machine's keys the installation's, after one was replaced or lost",
        )

    def handle(self, *, accept: bool, **options: Any) -> None:
        if accept:
            for name in key_rotation.accept_keys():
                self.stdout.write(f"{name} now belongs to the installation")
        if fault := key_rotation.fault():
            raise CommandError(fault)
        renewed = key_rotation.renew()
        self.stdout.write(f"{renewed.reencrypted} secrets encrypted with the current key")
        if renewed.sealed_audit:
            self.stdout.write("the audit log is now signed with the current key")
