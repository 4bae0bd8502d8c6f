"""Record who asked for each approval request, apart from the builds that wait."""

from __future__ import annotations

from typing import Any

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


def record_askers(apps: Any, schema_editor: Any) -> None:
    """Of the builds that waited, or wait, as far as they are there."""
    waiting = apps.get_model("environments", "WaitingBuild").objects.order_by("pk")
    asker = apps.get_model("environments", "RequestAsker")
    known: set[tuple[int, int]] = set()
    new = []
    rows = waiting.exclude(asked_by=None).values_list(
        "request", "asked_by", "asked_by__owner", "at"
    )
    for request, user, owner, at in rows.iterator():
        if (request, user) not in known:
            known.add((request, user))
            new.append(asker(request_id=request, user_id=user, owner_id=owner, at=at))
    asker.objects.bulk_create(new, batch_size=1000)


class Migration(migrations.Migration):
    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
        ("environments", "0009_account_mails"),
    ]

    operations = [
        migrations.AddField(
            model_name="build",
            name="resumed_by",
            field=models.ForeignKey(
                help_text="Who restored it last, or copied it here.",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.CreateModel(
            name="RequestAsker",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        help_text="Of a service account: its owner at that time.",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "request",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="askers",
                        to="environments.approvalrequest",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("request", "user"), name="asker_once")
                ],
            },
        ),
        migrations.RunPython(record_askers, migrations.RunPython.noop),
    ]
