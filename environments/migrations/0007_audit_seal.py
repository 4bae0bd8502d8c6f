"""Seal the head of the audit log."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import migrations, models

from environments.domain.audit_chain import chain_key
from environments.domain.audit_checkpoints import HeadState, seal_head


def seal_existing_head(apps: Any, schema_editor: Any) -> None:
    """Seal the head as it is: what was cut off before cannot be known."""
    for head in apps.get_model("environments", "AuditHead").objects.filter(position__gt=0):
        head.counter = 1
        state = HeadState(
            counter=1,
            position=head.position,
            digest=head.digest,
            cut_position=head.cut_position,
            cut_digest=head.cut_digest,
        )
        head.seal = seal_head(chain_key(settings.AUDIT_KEY), state)
        head.save(update_fields=["counter", "seal"])


class Migration(migrations.Migration):
    dependencies = [("environments", "0006_worker_isolation")]

    operations = [
        migrations.AddField(
            model_name="audithead",
            name="counter",
            field=models.PositiveBigIntegerField(default=0, help_text="Grows with each change."),
        ),
        migrations.AddField(
            model_name="audithead",
            name="seal",
            field=models.CharField(
                blank=True, max_length=64, help_text="HMAC of the other columns."
            ),
        ),
        migrations.RunPython(seal_existing_head, migrations.RunPython.noop),
    ]
