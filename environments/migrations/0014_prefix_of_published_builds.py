"""Take the prefix from builds that ended without being published, and forbid it from now on."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

WITH_PREFIX = ("CANCELLING", "PUBLISHING", "READY")


def take_prefixes(apps: Any, schema_editor: Any) -> None:
    """Clear `prefix` where the build is not published; upkeep then removes the folder."""
    builds = apps.get_model("environments", "Build").objects.exclude(prefix=None)
    builds.exclude(state__in=WITH_PREFIX).update(prefix=None)
    if schema_editor.connection.vendor == "postgresql":
        # A table with pending deferred checks cannot be altered.
        schema_editor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        schema_editor.execute("SET CONSTRAINTS ALL DEFERRED")


class Migration(migrations.Migration):
    dependencies = [("environments", "0013_own_licenses")]

    operations = [
        migrations.RunPython(take_prefixes, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="build",
            constraint=models.CheckConstraint(
                condition=models.Q(("state__in", [*WITH_PREFIX]), ("prefix", None), _connector="OR"),
                name="build_prefix_only_published",
            ),
        ),
    ]
