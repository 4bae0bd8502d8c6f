"""Spell the policy kind `licenses` as everywhere else: rules and their versions named it `licences`.

Rows of the audit log keep the old spelling, as they are sealed.
"""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


def _respell(old: str, new: str):
    def change(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
        apps.get_model("environments", "PolicyRule").objects.filter(kind=old).update(kind=new)
        versions = apps.get_model("environments", "PolicyVersion")
        for version in versions.objects.order_by("pk").iterator(chunk_size=200):
            found = [rule for rule in version.rules if rule.get("kind") == old]
            for rule in found:
                rule["kind"] = new
            if found:
                version.save(update_fields=["rules"])

    return change


class Migration(migrations.Migration):
    dependencies = [("environments", "0018_lock_conflicts")]

    operations = [
        migrations.RunPython(_respell("licences", "licenses"), _respell("licenses", "licences")),
        migrations.AlterField(
            model_name="condarecord",
            name="own_license",
            field=models.TextField(
                help_text="License that the package itself names, if it is not that of its record.",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="pypirecord",
            name="own_license",
            field=models.TextField(
                help_text="License that the wheel itself names, if it is not that of its record.",
                null=True,
            ),
        ),
    ]
