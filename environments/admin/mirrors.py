"""Remote channels that are read here through the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from environments.admin.base import Panel, Question, Room, badge, link, moment
from environments.domain.names import SUBDIRS
from environments.models import Mirror, Namespace
from environments.operations import mirrors


class MirrorForm(forms.Form):
    """Who reads it, by which rules."""

    namespace = forms.ModelChoiceField(
        Namespace.objects.all(),
        required=False,
        help_text="Whose rules hold and whose people read it. None: the installation's rules, "
        "and all who sign in.",
    )
    public = forms.BooleanField(required=False, help_text="Everybody may read it.")
    subdirs = forms.MultipleChoiceField(
        choices=[(subdir, subdir) for subdir in SUBDIRS],
        initial=mirrors.DEFAULT_SUBDIRS,
        help_text="noarch is always mirrored.",
    )


class ChangeMirrorForm(MirrorForm):
    """Shows at first what holds now."""

    def __init__(self, *args: Any, about: Mirror | None = None, **options: Any) -> None:
        if about is not None:
            held = {
                "namespace": about.namespace_id,
                "public": about.public,
                "subdirs": about.subdirs,
            }
            options["initial"] = held | options.get("initial", {})
        super().__init__(*args, **options)


class NewMirrorForm(MirrorForm):
    name = forms.CharField(max_length=64)
    upstream = forms.CharField(
        max_length=500, label="Channel", help_text="Its URL, or a name such as conda-forge."
    )
    field_order = ("name", "upstream")


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    made = mirrors.create_mirror(actor=actor, **answers)
    return f"{made.upstream} is mirrored as /channel/mirror/{made.name}."


def _change(actor: Actor, row: Mirror, answers: Mapping[str, Any]) -> None:
    mirrors.change_mirror(actor=actor, mirror=row, **answers)


def _delete(actor: Actor, row: Mirror, answers: Mapping[str, Any]) -> str:
    mirrors.delete_mirror(actor=actor, mirror=row)
    return f"The mirror {row.name} is deleted."


@admin.register(Mirror)
class MirrorRoom(Room):
    list_display = ("name", "upstream", "of_namespace", "public", "shown_state")
    list_filter = ("public",)
    search_fields = ("name", "upstream")
    ordering = ("name",)
    facts = ("name", "upstream", "of_namespace", "public", "created_by", "created_at")
    questions = (
        Question(
            name="new",
            title="Mirror a channel",
            text="conda, mamba and pixi read it here, through the rules; each day stays to be had.",
            do=_create,
            form=NewMirrorForm,
            rows=False,
        ),
        Question(
            name="change",
            title="Change",
            text="Another channel is another mirror.",
            do=_change,
            form=ChangeMirrorForm,
            alone=True,
        ),
        Question(
            name="delete",
            title="Delete",
            text="Its history goes with it: the same days cannot be had again.",
            do=_delete,
            alone=True,
            removes=True,
        ),
    )

    def form_options(self, request: HttpRequest, question: Question, about: Any) -> dict[str, Any]:
        return {"about": about} if question.name == "change" else {}

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
        return badge("followed" if all(index.looked_at for index in indexes) else "new")

    def panels(self, actor: Actor, row: Mirror) -> Sequence[Panel]:
        return (
            Panel(
                title="Subdirs",
                headers=("Subdir", "Records", "Looked at", "Changed", "Last failure"),
                rows=[
                    (
                        index.subdir,
                        f"{index.records:,}",
                        moment(index.looked_at),
                        moment(index.changed_at),
                        index.failure["message"] if index.failure else "",
                    )
                    for index in row.indexes.order_by("subdir")
                    if index.subdir in row.subdirs
                ],
            ),
        )
