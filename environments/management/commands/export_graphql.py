"""Write `schema.graphql`, which is committed so that API changes are visible in reviews."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from condastore.schema import SCHEMA_FILE, schema


class Command(BaseCommand):
    help = "Write the GraphQL schema to schema.graphql."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="compare only; fail if it differs")

    def handle(self, *, check: bool, **options: Any) -> None:
        text = schema.as_str() + "\n"
        if not check:
            SCHEMA_FILE.write_text(text)
            self.stdout.write(f"wrote {SCHEMA_FILE}")
        elif not SCHEMA_FILE.is_file() or SCHEMA_FILE.read_text() != text:
            raise CommandError("schema.graphql differs: run `manage.py export_graphql`.")
