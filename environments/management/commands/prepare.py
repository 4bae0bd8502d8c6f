"""Prepare the database before the parts of a new version start, or the first ones at all."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from condastore.supervisor.startup import prepare_database


class Command(BaseCommand):
    help = (
        "Bring the tables up to date, and create the first administrator where there is none: with "
        "CONDASTORE_ADMIN_PASSWORD, or with a password that is generated and printed once."
    )

    def handle(self, **options: Any) -> None:
        administrator = prepare_database(ask=False)
        if administrator is None:
            self.stdout.write("The database is up to date.")
        elif administrator.password:
            self.stdout.write(
                f"Administrator {administrator.username!r}, password: {administrator.password}"
            )
        else:
            self.stdout.write(f"Administrator {administrator.username!r} was created.")
