"""Channels that are hosted here, and the packages that were uploaded to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from accounts.access import Actor
from environments.admin.base import BESIDE, Panel, Question, Reason, Room, badge, link, moment, size
from environments.models import HostedChannel, HostedPackage, Namespace
from environments.operations import hosted_channels
from environments.services import hosted_channels as hosting


class ChannelForm(forms.Form):
    """Who reads it, and what it is for."""

    description = forms.CharField(required=False, widget=forms.Textarea)
    public = forms.BooleanField(
        required=False, help_text="Everybody may read it; else who may see its namespace."
    )


class NewChannelForm(ChannelForm):
    name = forms.CharField(
        max_length=128, help_text="NAMESPACE/NAME, or a name for the whole installation."
    )
    namespace = forms.ModelChoiceField(
        Namespace.objects.all(), help_text="Its developers upload; those who run it yank."
    )
    field_order = ("name", "namespace")


class ChangeChannelForm(ChannelForm):
    """Shows at first what holds now."""

    def __init__(self, *args: Any, about: HostedChannel | None = None, **options: Any) -> None:
        if about is not None:
            held = {"description": about.description, "public": about.public}
            options["initial"] = held | options.get("initial", {})
        super().__init__(*args, **options)


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    made = hosted_channels.create_channel(actor=actor, **answers)
    return f"{made} takes packages: condastore channel upload {made.name} FILE..."


def _change(actor: Actor, row: HostedChannel, answers: Mapping[str, Any]) -> None:
    hosted_channels.change_channel(actor=actor, channel=row, **answers)


def _delete(actor: Actor, row: HostedChannel, answers: Mapping[str, Any]) -> str:
    hosted_channels.delete_channel(actor=actor, channel=row)
    return f"{row} is deleted."


def _yank(actor: Actor, row: HostedPackage, answers: Mapping[str, Any]) -> None:
    hosted_channels.yank(actor=actor, package=row, reason=answers["reason"])


def _unyank(actor: Actor, row: HostedPackage, answers: Mapping[str, Any]) -> None:
    hosted_channels.unyank(actor=actor, package=row)


@admin.register(HostedChannel)
class HostedChannelRoom(Room):
    list_display = ("name", "of_namespace", "public", "packages_held", "bytes_held", "shown_state")
    list_filter = ("public", ("deleted_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "namespace__name")
    ordering = ("name",)
    facts = (
        "name",
        "address",
        "of_namespace",
        "description",
        "public",
        "shown_state",
        "bytes_held",
        "created_by",
        "created_at",
    )
    questions = (
        Question(
            name="new",
            title="Make a hosted channel",
            text="People of its namespace upload packages; builds name it hosted/NAME.",
            do=_create,
            form=NewChannelForm,
            rows=False,
        ),
        Question(
            name="change",
            title="Change",
            text="Who reads it, and what it is for.",
            do=_change,
            form=ChangeChannelForm,
            alone=True,
            fits=lambda row: row.deleted_at is None,
        ),
        Question(
            name="delete",
            title="Delete",
            text="Its packages go with it; builds keep those that they have. Its name stays taken.",
            do=_delete,
            alone=True,
            removes=True,
            fits=lambda row: row.deleted_at is None,
        ),
    )

    def form_options(self, request: HttpRequest, question: Question, about: Any) -> dict[str, Any]:
        return {"about": about} if question.name == "change" else {}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        held = HostedPackage.objects.filter(channel=OuterRef("pk")).order_by().values("channel")
        rows = super().get_queryset(request).select_related("namespace", "created_by")
        return rows.annotate(
            held=Coalesce(Subquery(held.annotate(n=Count("pk")).values("n")), 0),
            held_size=Coalesce(Subquery(held.annotate(n=Sum("size")).values("n")), 0),
        )

    @admin.display(description="namespace")
    def of_namespace(self, channel: HostedChannel) -> object:
        return link(channel.namespace)

    @admin.display(description="address")
    def address(self, channel: HostedChannel) -> str:
        return hosting.url_of(channel)

    @admin.display(description="packages")
    def packages_held(self, channel: Any) -> int:
        return int(channel.held)

    @admin.display(description="bytes")
    def bytes_held(self, channel: Any) -> object:
        return size(channel.held_size)

    @admin.display(description="state")
    def shown_state(self, channel: HostedChannel) -> object:
        return badge("deleted" if channel.deleted_at else "open")

    def panels(self, actor: Actor, row: HostedChannel) -> Sequence[Panel]:
        newest = row.packages.select_related("channel", "uploaded_by").order_by("-pk")
        return (
            Panel(
                title="The newest packages",
                headers=("Package", "Bytes", "Uploaded", "By", ""),
                rows=[
                    (
                        link(package),
                        size(package.size),
                        moment(package.uploaded_at),
                        package.uploaded_by or "",
                        badge("yanked") if package.yanked_at else "",
                    )
                    for package in newest[:BESIDE]
                ],
            ),
        )


@admin.register(HostedPackage)
class HostedPackageRoom(Room):
    list_display = (
        "file_name",
        "of_channel",
        "subdir",
        "shown_size",
        "uploaded_by",
        "age",
        "state",
    )
    list_filter = ("subdir", ("yanked_at", admin.EmptyFieldListFilter))
    search_fields = ("name__begins", "sha256__startswith")
    ordering = ("-pk",)
    facts = (
        "file_name",
        "of_channel",
        "subdir",
        "name",
        "version",
        "build",
        "sha256",
        "shown_size",
        "uploaded_by",
        "uploaded_at",
        "yanked_by",
        "yanked_at",
        "yank_reason",
    )
    questions = (
        Question(
            name="yank",
            title="Yank",
            text="No solve chooses it any more. Locks that have it stay good.",
            do=_yank,
            form=Reason,
            fits=lambda row: row.yanked_at is None,
        ),
        Question(
            name="unyank",
            title="List again",
            text="Solves may choose it again.",
            do=_unyank,
            fits=lambda row: row.yanked_at is not None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        return rows.select_related("channel__namespace", "uploaded_by", "yanked_by")

    @admin.display(description="channel")
    def of_channel(self, package: HostedPackage) -> object:
        return link(package.channel)

    @admin.display(description="bytes")
    def shown_size(self, package: HostedPackage) -> object:
        return size(package.size)

    @admin.display(description="uploaded")
    def age(self, package: HostedPackage) -> object:
        return moment(package.uploaded_at)

    @admin.display(description="state")
    def state(self, package: HostedPackage) -> object:
        return badge("yanked" if package.yanked_at else "listed")
