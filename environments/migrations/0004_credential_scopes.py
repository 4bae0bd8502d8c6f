"""Name the namespaces whose builds use a credential of the installation."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models


def keep_shared_namespaces(apps: Any, schema_editor: Any) -> None:
    """Credentials that every build could use so far: from now on those of shared namespaces.

    Administrators created these namespaces; personal ones lose the credential, until an
    administrator names them.
    """
    rows = apps.get_model("environments", "ChannelCredential").objects
    rows.filter(namespace=None).exclude(url_prefix__startswith="oci://").update(namespaces=["*"])


class Migration(migrations.Migration):
    dependencies = [("environments", "0003_serving")]

    operations = [
        migrations.AddField(
            model_name="channelcredential",
            name="namespaces",
            field=models.JSONField(
                blank=True,
                default=list,
                help_text="Of an installation-wide credential: names and patterns of the "
                "namespaces whose builds use it. A wildcard never matches a personal namespace.",
            ),
        ),
        migrations.RunPython(keep_shared_namespaces, migrations.RunPython.noop),
    ]
