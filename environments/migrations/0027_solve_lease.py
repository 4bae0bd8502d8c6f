"""The owner of the lease under which a solve runs; `created_at` is the time of creation again.

A solve that was running has no result: its worker is stopped for the upgrade.
"""

import django.utils.timezone
from django.db import migrations, models
from django.db.models import Q


def delete_unfinished(apps, schema_editor):
    solves = apps.get_model("environments", "SolveRow").objects
    solves.using(schema_editor.connection.alias).filter(lock=None).delete()


class Migration(migrations.Migration):
    dependencies = [("environments", "0026_leased_work_constraints")]

    operations = [
        migrations.RunPython(delete_unfinished, migrations.RunPython.noop),
        migrations.AlterField(
            "solverow",
            "created_at",
            models.DateTimeField(default=django.utils.timezone.now, editable=False),
        ),
        migrations.AddField(
            "solverow",
            "lease_owner",
            models.CharField(
                blank=True,
                default="",
                help_text="Owner of the lease of the attempt that solves.",
                max_length=200,
            ),
            preserve_default=False,
        ),
        migrations.AddConstraint(
            "solverow",
            models.CheckConstraint(
                condition=Q(lock=None) ^ Q(lease_owner=""), name="solve_owned_iff_unfinished"
            ),
        ),
    ]
