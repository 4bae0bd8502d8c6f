"""Push a build's container image to another registry."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.access import Actor
from accounts.models import User
from condastore.errors import StoreError
from environments.operations import images
from environments.operations.environments import find_environment


def secret_of(text: str) -> str:
    """Return the secret; `-` reads it from stdin, as others can see the command line."""
    return sys.stdin.readline().rstrip("\r\n") if text == "-" else text


def told(error: StoreError) -> str:
    """Return the error with a hint; unlike a worker, a command does not retry by itself."""
    hint = "Retry later." if error.transient else error.hint
    return f"{error} {hint}".strip()


class Command(BaseCommand):
    help = "Push a build's container image to another registry (docs/how-to/container-images.md)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="what", required=True)
        push = commands.add_parser("push", help="send missing blobs, then the manifests")
        push.add_argument("image", help="NAMESPACE/ENVIRONMENT[:TAG]")
        push.add_argument("to", help="registry.example.org/name:tag")
        push.add_argument("--login", default="", help="user:password; - reads it from stdin")
        push.add_argument("--as", dest="user", required=True, help="user name to act as")

    def handle(self, *, image: str, to: str, login: str, user: str, **options: Any) -> None:
        person = User.objects.filter(username=user, is_active=True).first()
        if person is None:
            raise CommandError(f"There is no user {user!r}.")
        name, _, tag = image.partition(":")
        namespace, _, environment = name.partition("/")
        actor = Actor(person, address="local")
        try:
            found = find_environment(actor, namespace, environment)
            pushed = images.push_image(
                actor=actor,
                environment=found,
                tag=tag or images.LATEST,
                to=to,
                login=secret_of(login),
            )
        except StoreError as error:
            raise CommandError(told(error)) from error
        self.stdout.write(
            f"{to}: sent {pushed.sent} blobs ({pushed.sent_bytes} bytes); "
            f"{pushed.already_present} were already present."
        )
