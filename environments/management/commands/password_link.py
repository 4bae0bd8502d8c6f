"""Print a password reset link, on the server itself, for somebody who cannot sign in."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from accounts.models import User
from accounts.password_reset import link_for, may_reset
from environments.models import AuditEvent


class Command(BaseCommand):
    help = "Print a link with which the person can set a new password once. Pass it on safely."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")

    def handle(self, *, username: str, **options: Any) -> None:
        user = User.objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"There is no user {username!r}.")
        if not may_reset(user):
            raise CommandError(f"{username} is closed, or its password is managed elsewhere.")
        site = f"http://{settings.HOST}:{settings.PORT}"
        AuditEvent.record(None, "account.password-link", user)
        self.stdout.write(link_for(user, site=site))
        minutes = settings.PASSWORD_RESET_TIMEOUT // 60
        self.stderr.write(f"The link works once, for {minutes} minutes.")
