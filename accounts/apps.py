"""Configuration of the Django app `accounts`."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from allauth.account.signals import password_changed, password_reset

        from accounts.password_reset import end_device_sign_ins

        for signal in (password_changed, password_reset):
            signal.connect(end_device_sign_ins, dispatch_uid="device-sign-ins")
        post_migrate.connect(_make_cache_table, sender=self, dispatch_uid="accounts.cache")


def _make_cache_table(using: str, **kwargs: Any) -> None:
    """Create the cache table of failed sign-ins if it does not exist."""
    from django.core.management import call_command

    call_command("createcachetable", database=using, verbosity=0)
