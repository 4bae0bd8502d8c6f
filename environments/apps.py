"""Django's entry to the environments app."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class EnvironmentsConfig(AppConfig):
    name = "environments"

    def ready(self) -> None:
        from environments import directories as directories  # listens
        from environments.models.audit import guard_rows, seal_after_migration
        from environments.operations import audit

        audit.listen()
        post_migrate.connect(guard_rows, sender=self, dispatch_uid="audit")
        post_migrate.connect(seal_after_migration, sender=self, dispatch_uid="audit-key")
