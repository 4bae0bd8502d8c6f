"""Configuration of the Django app `environments`."""

from __future__ import annotations

from typing import Any

import structlog
from django.apps import AppConfig
from django.db import DatabaseError, transaction
from django.db.models.signals import post_migrate, post_save, pre_migrate

logger = structlog.get_logger(__name__)


class EnvironmentsConfig(AppConfig):
    name = "environments"

    def ready(self) -> None:
        from environments import receivers  # noqa: F401 - connects them
        from environments.engine.network import addresses
        from environments.models.audit import guard_rows
        from environments.models.audit_swap import forget
        from environments.operations import account_mail as account_mail  # likewise
        from environments.operations import audit
        from environments.services.outgoing_guard import configured_guard

        configured_guard()  # report an invalid setting now
        addresses.install(configured_guard)
        audit.connect_signals()
        post_save.connect(_close_folders, sender="environments.Namespace", dispatch_uid="folders")
        pre_migrate.connect(forget, sender=self, dispatch_uid="audit")
        post_migrate.connect(guard_rows, sender=self, dispatch_uid="audit")
        post_migrate.connect(_renew_keys, sender=self, dispatch_uid="keys")


def _close_folders(instance: Any, created: bool, **kwargs: Any) -> None:
    """Change the folder modes of a namespace when its visibility changes."""
    from environments.services import folder_access

    if not created:
        transaction.on_commit(lambda: folder_access.apply_to_namespace(instance))


def _renew_keys(*, using: str = "default", plan: Any = None, **kwargs: Any) -> None:
    """Encrypt again what former keys protect, after an upgrade."""
    from environments.services import key_rotation

    if using != "default" or not plan:
        return
    try:
        renewed = key_rotation.renew()
    except DatabaseError as error:  # migrated to another version
        logger.warning("former keys are still in use", error=str(error))
        return
    if renewed.reencrypted or renewed.sealed_audit:
        logger.info("former keys replaced", reencrypted=renewed.reencrypted)
