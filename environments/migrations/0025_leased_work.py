"""State and lease columns of all background work, from the columns that said the same before.

An attempt that was in flight is requeued: its worker is stopped for the upgrade. Builds, artifacts
and folder restores have had these columns; their leases expire.
"""

import django.utils.timezone
from django.db import migrations, models

DELIVERY = [
    ("waiting", "Waiting"),
    ("sending", "Sending"),
    ("delivered", "Delivered"),
    ("failed", "Failed"),
]
PUSH = [("waiting", "Waiting"), ("pushing", "Pushing"), ("pushed", "Pushed"), ("failed", "Failed")]
INDEX = [("WAITING", "Waiting"), ("READING", "Reading")]
VIEW = [
    ("WAITING", "Waiting"),
    ("RENDERING", "Rendering"),
    ("READY", "Ready"),
    ("FAILED", "Failed"),
]


def set_states(apps, schema_editor):
    def rows(name):
        found = apps.get_model("environments", name).objects
        return found.using(schema_editor.connection.alias)

    for name, done, done_at in (
        ("Notification", "delivered", "delivered_at"),
        ("Push", "pushed", "pushed_at"),
    ):
        # One that failed, and was delivered after all by an attempt that took long.
        rows(name).exclude(**{done_at: None}).exclude(failed_at=None).update(failed_at=None)
        rows(name).exclude(**{done_at: None}).update(state=done)
        rows(name).exclude(failed_at=None).update(state="failed")
        rows(name).filter(state="waiting").update(message_sent_at=None)
    rows("Preview").filter(state="SOLVING").update(state="QUEUED")
    for name in ("MirrorIndex", "MirrorView"):
        rows(name).update(lease_expires_at=None, message_sent_at=None)
    rows("MirrorView").exclude(made_at=None).update(state="READY")
    rows("MirrorView").filter(made_at=None).exclude(failure=None).update(state="FAILED")
    rows("Build").filter(state="QUEUED").update(message_sent_at=None)
    rows("Artifact").filter(state="QUEUED").update(message_sent_at=None)


def added(model, *names):
    fields = {
        "attempt": models.PositiveIntegerField(default=0),
        "not_before": models.DateTimeField(default=django.utils.timezone.now),
        "message_sent_at": models.DateTimeField(null=True),
        "lease_owner": models.CharField(blank=True, max_length=200),
        "lease_token": models.PositiveBigIntegerField(default=0),
        "lease_expires_at": models.DateTimeField(null=True),
    }
    return [migrations.AddField(model, name, fields[name]) for name in names]


def state(model, choices, default, length):
    field = models.CharField(choices=choices, default=default, max_length=length)
    return migrations.AddField(model, "state", field)


class Migration(migrations.Migration):
    dependencies = [("environments", "0024_note_help_text")]

    operations = [
        migrations.RemoveIndex("notification", "notification_due"),
        migrations.RemoveIndex("push", "push_due"),
        migrations.RemoveConstraint("push", "push_ends_once"),
        migrations.RenameField("notification", "attempts", "attempt"),
        migrations.RenameField("push", "attempts", "attempt"),
        migrations.RenameField("push", "turn", "lease_token"),
        migrations.RenameField("mirrorindex", "state", "upstream_state"),
        *added("folderrestore", "message_sent_at"),
        *added("notification", "lease_token", "lease_owner", "lease_expires_at"),
        *added("push", "lease_owner", "lease_expires_at"),
        *added(
            "preview",
            "attempt",
            "not_before",
            "message_sent_at",
            "lease_owner",
            "lease_token",
            "lease_expires_at",
        ),
        *added("mirrorindex", "attempt", "not_before", "lease_owner"),
        *added("mirrorview", "attempt", "not_before", "lease_owner"),
        state("notification", DELIVERY, "waiting", 9),
        state("push", PUSH, "waiting", 7),
        state("mirrorindex", INDEX, "WAITING", 7),
        state("mirrorview", VIEW, "WAITING", 9),
        migrations.RunPython(set_states, migrations.RunPython.noop),
    ]
