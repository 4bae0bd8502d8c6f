"""Mirrors: remote channels that are served here, filtered by the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction
from environments.admin.display import RelatedTable, badge, link, relative_time
from environments.admin.filters import date_range, flag_filter
from environments.domain.names import SUBDIRS
from environments.models import Mirror, Namespace
from environments.operations import mirrors


class MirrorForm(forms.Form):
    """Namespace, visibility and subdirs."""

    namespace = forms.ModelChoiceField(
        Namespace.objects.order_by("name"),
        required=False,
        empty_label="the whole installation",
        help_text="Its rules apply, and its members may read the mirror. For the whole "
        "installation: the installation's rules apply, and everyone who signs in may read it.",
    )
    public = forms.BooleanField(
        required=False, help_text="Everyone may read it, also without signing in."
    )
    subdirs = forms.MultipleChoiceField(
        choices=[(subdir, subdir) for subdir in SUBDIRS],
        initial=mirrors.DEFAULT_SUBDIRS,
        help_text="noarch is always mirrored.",
    )


class ChangeMirrorForm(MirrorForm):
    """Initially shows the current values."""

    def __init__(self, *args: Any, about: Mirror | None = None, **options: Any) -> None:
        if about is not None:
            current = {
                "namespace": about.namespace_id,
                "public": about.public,
                "subdirs": about.subdirs,
            }
            options["initial"] = current | options.get("initial", {})
        super().__init__(*args, **options)


class NewMirrorForm(MirrorForm):
    name = forms.CharField(max_length=64)
    upstream = forms.CharField(
        max_length=500, label="Channel", help_text="Its URL, or a name such as conda-forge."
    )
    field_order = ("name", "upstream")


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    created = mirrors.create_mirror(actor=actor, **answers)
    return f"{created.upstream} is mirrored as /channel/mirror/{created.name}."


def _change(actor: Actor, row: Mirror, answers: Mapping[str, Any]) -> None:
    mirrors.change_mirror(actor=actor, mirror=row, **answers)


def _delete(actor: Actor, row: Mirror, answers: Mapping[str, Any]) -> str:
    mirrors.delete_mirror(actor=actor, mirror=row)
    return f"The mirror {row.name} was deleted."


@admin.register(Mirror)
class MirrorAdmin(ReadOnlyAdmin):
    title = "Mirrors"
    console_group, console_position = ConsoleGroup.CHANNELS, 3
    list_display = ("name", "upstream", "of_namespace", "public", "shown_state", "created")
    list_filter = (
        ("public", flag_filter("visibility", yes="Public", no="Private")),
        date_range("created_at", "creation"),
    )
    search_fields = ("name", "upstream")
    ordering = ("name",)
    fields = ("name", "upstream", "of_namespace", "public", "created_by", "created_at")
    confirmed_actions = (
        ConfirmedAction(
            name="new",
            title="Mirror a channel",
            text="conda, mamba and pixi read the channel here, filtered by the rules. The index of "
            "each day stays available.",
            run=_create,
            form=NewMirrorForm,
            rows=False,
        ),
        ConfirmedAction(
            name="change",
            title="Change",
            text="The upstream channel cannot be changed: add another mirror instead.",
            run=_change,
            form=ChangeMirrorForm,
            single=True,
        ),
        ConfirmedAction(
            name="delete",
            title="Delete",
            text="Its history is deleted too: the indexes of earlier days cannot be recovered.",
            run=_delete,
            single=True,
            deletes=True,
        ),
    )

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        return {"about": about} if action.name == "change" else {}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).select_related("namespace", "created_by")
        return rows.prefetch_related("indexes")

    @admin.display(description="namespace")
    def of_namespace(self, mirror: Mirror) -> object:
        return link(mirror.namespace) if mirror.namespace else "the installation"

    @admin.display(description="state")
    def shown_state(self, mirror: Mirror) -> object:
        indexes = [index for index in mirror.indexes.all() if index.subdir in mirror.subdirs]
        if any(index.failure for index in indexes):
            return badge("stale")
        return badge("up to date" if all(index.looked_at for index in indexes) else "new")

    @admin.display(description="created")
    def created(self, mirror: Mirror) -> object:
        return relative_time(mirror.created_at)

    def related_tables(self, actor: Actor, row: Mirror) -> Sequence[RelatedTable]:
        return (
            RelatedTable(
                title="Subdirs",
                headers=("Subdir", "Records", "Checked", "Changed", "Last failure"),
                rows=[
                    (
                        index.subdir,
                        f"{index.records:,}",
                        relative_time(index.looked_at),
                        relative_time(index.changed_at),
                        index.failure["message"] if index.failure else "",
                    )
                    for index in row.indexes.order_by("subdir")
                    if index.subdir in row.subdirs
                ],
            ),
        )
