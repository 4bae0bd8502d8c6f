"""Prepare the database before a new version, or the first one, is started."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from condastore.supervisor.startup import prepare_database


class Command(BaseCommand):
    help = (
        "Apply migrations, and create the first administrator if there is none: with "
        "CONDASTORE_ADMIN_PASSWORD, or with a generated password that is printed once."
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
