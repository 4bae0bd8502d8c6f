"""Constraints and indexes of what 0025 has filled: a migration of its own, for PostgreSQL."""

from django.db import migrations, models
from django.db.models import Q

#: Model, name, column that is set in exactly one state, that state.
SET_IN_ONE_STATE = [
    ("notification", "notification_leased_iff_sending", "lease_expires_at", "sending"),
    ("notification", "notification_delivered_at_iff_delivered", "delivered_at", "delivered"),
    ("notification", "notification_failed_at_iff_failed", "failed_at", "failed"),
    ("push", "push_leased_iff_pushing", "lease_expires_at", "pushing"),
    ("push", "push_pushed_at_iff_pushed", "pushed_at", "pushed"),
    ("push", "push_failed_at_iff_failed", "failed_at", "failed"),
    ("preview", "preview_leased_iff_solving", "lease_expires_at", "SOLVING"),
    ("mirrorindex", "mirror_index_leased_iff_reading", "lease_expires_at", "READING"),
    ("mirrorview", "mirror_view_leased_iff_rendering", "lease_expires_at", "RENDERING"),
    ("mirrorview", "mirror_view_made_at_iff_ready", "made_at", "READY"),
]


class Migration(migrations.Migration):
    dependencies = [("environments", "0025_leased_work")]

    operations = [
        *(
            migrations.AddIndex(
                model, models.Index(fields=["state", "not_before"], name=f"{model}_state")
            )
            for model in ("notification", "push", "preview")
        ),
        *(
            migrations.AddConstraint(
                model,
                models.CheckConstraint(condition=Q(state=state) ^ Q(**{column: None}), name=name),
            )
            for model, name, column, state in SET_IN_ONE_STATE
        ),
    ]
