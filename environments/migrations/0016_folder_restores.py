"""Record folders of READY builds that are missing, and who links them again."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("environments", "0015_add_pip_as_python_dependency"),
    ]

    operations = [
        migrations.CreateModel(
            name="FolderRestore",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("WAITING", "Waiting"),
                            ("RESTORING", "Restoring"),
                            ("FAILED", "Failed"),
                            ("RESTORED", "Restored"),
                        ],
                        default="WAITING",
                        max_length=9,
                    ),
                ),
                (
                    "restored",
                    models.PositiveIntegerField(
                        default=0, help_text="How often it was linked again."
                    ),
                ),
                (
                    "found_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, help_text="When it was found missing."
                    ),
                ),
                (
                    "finished_at",
                    models.DateTimeField(help_text="When it was linked again last.", null=True),
                ),
                ("failure", models.JSONField(help_text="Why the last attempt failed.", null=True)),
                ("attempt", models.PositiveIntegerField(default=0)),
                ("not_before", models.DateTimeField(default=django.utils.timezone.now)),
                ("lease_owner", models.CharField(blank=True, max_length=200)),
                ("lease_token", models.PositiveBigIntegerField(default=0)),
                ("lease_expires_at", models.DateTimeField(null=True)),
                (
                    "prefix",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="restore",
                        to="environments.prefix",
                    ),
                ),
            ],
            options={
                "default_permissions": ("view",),
                "indexes": [
                    models.Index(
                        fields=["state", "not_before"], name="environment_state_19359e_idx"
                    )
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("state", "RESTORING"), ("lease_expires_at", None), _connector="XOR"
                        ),
                        name="folder_leased_iff_restoring",
                    )
                ],
            },
        ),
    ]
