"""Verify, export or prune the audit log on the server itself, without signing in."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.access import Actor
from accounts.models import User
from condastore.errors import StoreError
from environments.models.audit import verify_chain
from environments.operations import audit


class Command(BaseCommand):
    help = "Verify the audit log; as an administrator, export it as JSON lines or prune it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="what", required=True)
        verify = commands.add_parser("verify", help="verify that the log was not changed")
        verify.add_argument(
            "--anchor",
            type=Path,
            metavar="FILE",
            help="compare the log with these checkpoints",
        )
        commands.add_parser("checkpoint", help="print a checkpoint to store on another system")
        export = commands.add_parser("export", help="write the log as JSON lines")
        prune = commands.add_parser("prune", help="delete old events")
        prune.add_argument("--before", required=True, help="delete events before: 2026-01-31")
        for one in (export, prune):
            one.add_argument("--as", dest="user", required=True, help="name of an administrator")

    def handle(self, *, what: str, **options: Any) -> None:
        try:
            match what:
                case "verify":
                    self._verify(options["anchor"])
                case "checkpoint":
                    created = audit.checkpoint()
                    if created is None:
                        raise CommandError("The audit log is empty.")
                    self.stdout.write(created.line())
                case "export":
                    lines = audit.export(actor=_person(options["user"]), filters=audit.Filters())
                    for line in lines:
                        self.stdout.write(line, ending="")
                case _:
                    before = audit.parse_moment(options["before"], where="--before")
                    gone = audit.prune(actor=_person(options["user"]), before=before)
                    self.stdout.write(
                        f"deleted {gone.events} events, up to position {gone.position}"
                    )
        except StoreError as error:
            raise CommandError(f"{error} {error.hint}".strip()) from error

    def _verify(self, anchor: Path | None) -> None:
        found = verify_chain()
        if found.fault is not None:
            raise CommandError(f"event {found.fault.position}: {found.fault.message}")
        self.stdout.write(
            f"{found.checked} events verified, from {found.start.position + 1} "
            f"to {found.head.position}, digest {found.head.digest}"
        )
        if anchor is None:
            return
        try:
            with anchor.open(encoding="utf-8", errors="replace") as lines:
                compared = audit.check_anchor(lines)
        except OSError as error:
            raise CommandError(f"Cannot read {anchor}: {error.strerror}.") from error
        if compared.fault is not None:
            raise CommandError(f"{anchor}, line {compared.fault.line}: {compared.fault.message}")
        self.stdout.write(f"{compared.checked} checkpoints match the log")


def _person(name: str) -> Actor:
    user = User.objects.filter(username=name, is_active=True).first()
    if user is None:
        raise CommandError(f"There is no user {name!r}.")
    return Actor(user, address="local")
