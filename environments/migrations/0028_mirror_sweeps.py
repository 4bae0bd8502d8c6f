"""Indexes for the sweep of mirrors; readings of upstreams are spread over one interval.

0025 has made all of them due at once.
"""

from django.conf import settings
from django.db import migrations, models
from django.utils import timezone


def spread_readings(apps, schema_editor):
    found = apps.get_model("environments", "MirrorIndex").objects
    rows = found.using(schema_editor.connection.alias)
    # One that was never read is read at once: there is nothing to serve yet.
    keys = list(rows.filter(state="WAITING").exclude(looked_at=None).values_list("pk", flat=True))
    now = timezone.now()
    for position, key in enumerate(sorted(keys)):
        part = position / len(keys)
        rows.filter(pk=key).update(not_before=now + part * settings.MIRROR_INTERVAL)


class Migration(migrations.Migration):
    dependencies = [("environments", "0027_solve_lease")]

    operations = [
        migrations.AddIndex(
            "mirrorindex", models.Index(fields=["state", "not_before"], name="mirrorindex_state")
        ),
        migrations.AddIndex(
            "mirrorview", models.Index(fields=["state", "not_before"], name="mirrorview_state")
        ),
        migrations.RunPython(spread_readings, migrations.RunPython.noop),
    ]
