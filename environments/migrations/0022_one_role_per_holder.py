"""Allow one role for each holder and namespace; keep the highest of several."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import structlog
from django.db import migrations, models
from django.db.models.signals import post_migrate

logger = structlog.get_logger(__name__)
#: From the lowest to the highest.
ROLES = ("role_viewer", "role_developer", "role_approver", "role_admin")
HOLDERS = (
    ("NamespaceUserObjectPermission", "user", "user__username"),
    ("NamespaceGroupObjectPermission", "group", "group__name"),
)


def keep_highest_role(apps: Any, schema_editor: Any) -> None:
    """Delete all but the highest role of each holder in a namespace, and record what was deleted.

    Roles that were granted at the same moment could both stay. Rights were those of the higher one,
    so nobody gains or loses any.
    """
    using = schema_editor.connection.alias
    removed: list[dict[str, str]] = []
    for model, holder, name in HOLDERS:
        rows = apps.get_model("environments", model).objects.using(using)
        found: dict[tuple[int, int], list[tuple[str, int, str, str]]] = defaultdict(list)
        columns = ("content_object", holder, "permission__codename", "pk", name)
        names = ("content_object__name",)
        for namespace, key, codename, pk, label, where in rows.values_list(*columns, *names):
            found[namespace, key].append((codename, pk, label, where))
        for roles in found.values():
            if len(roles) == 1:
                continue
            roles.sort(key=lambda role: ROLES.index(role[0]) if role[0] in ROLES else -1)
            kept = roles.pop()
            rows.filter(pk__in=[pk for _, pk, _, _ in roles]).delete()
            for codename, _, label, where in roles:
                change = {
                    "holder": label if holder == "user" else f"group {label}",
                    "namespace": where,
                    "before": codename.removeprefix("role_"),
                    "after": kept[0].removeprefix("role_"),
                }
                removed.append(change)
                logger.warning("second role removed", **change)
    if removed:
        # The audit log is written by the current models, so after all migrations.
        post_migrate.connect(
            partial(_record, removed, using), weak=False, dispatch_uid="one-role-per-holder"
        )


def _record(removed: list[dict[str, str]], database: str, *, using: str, **kwargs: Any) -> None:
    if using != database or not removed:
        return
    from environments.models import AuditEvent, Namespace

    changes, removed[:] = list(removed), []
    for change in changes:
        namespace = Namespace.objects.get(name=change.pop("namespace"))
        AuditEvent.record(None, "namespace.grant", namespace, change)


class Migration(migrations.Migration):
    dependencies = [("environments", "0019_license_spelling")]

    operations = [
        migrations.RunPython(keep_highest_role, migrations.RunPython.noop, elidable=False),
        migrations.AddConstraint(
            model_name="namespaceuserobjectpermission",
            constraint=models.UniqueConstraint(
                fields=("user", "content_object"), name="one_role_per_user"
            ),
        ),
        migrations.AddConstraint(
            model_name="namespacegroupobjectpermission",
            constraint=models.UniqueConstraint(
                fields=("group", "content_object"), name="one_role_per_group"
            ),
        ),
    ]
