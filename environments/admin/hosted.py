"""Hosted channels and the packages that were uploaded to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction, Reason
from environments.admin.display import RELATED_ROWS, RelatedTable, badge, link, relative_time, size
from environments.admin.filters import date_range, flag_filter, presence_filter, titled_filter
from environments.models import HostedChannel, HostedPackage, Namespace
from environments.operations import hosted_channels
from environments.services import hosted_channels as hosting


class ChannelForm(forms.Form):
    """Description and visibility."""

    description = forms.CharField(required=False, widget=forms.Textarea)
    public = forms.BooleanField(
        required=False,
        help_text="Everyone may read it. Otherwise only people who may see its namespace.",
    )


class NewChannelForm(ChannelForm):
    name = forms.CharField(
        max_length=128, help_text="NAMESPACE/NAME, or a name for the whole installation."
    )
    namespace = forms.ModelChoiceField(
        Namespace.objects.all(), help_text="Its developers may upload; its admins may yank."
    )
    field_order = ("name", "namespace")


class ChangeChannelForm(ChannelForm):
    """Initially shows the current values."""

    def __init__(self, *args: Any, about: HostedChannel | None = None, **options: Any) -> None:
        if about is not None:
            current = {"description": about.description, "public": about.public}
            options["initial"] = current | options.get("initial", {})
        super().__init__(*args, **options)


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    created = hosted_channels.create_channel(actor=actor, **answers)
    return f"{created} was created. Upload with: condastore channel upload {created.name} FILE..."


def _change(actor: Actor, row: HostedChannel, answers: Mapping[str, Any]) -> None:
    hosted_channels.change_channel(actor=actor, channel=row, **answers)


def _delete(actor: Actor, row: HostedChannel, answers: Mapping[str, Any]) -> str:
    hosted_channels.delete_channel(actor=actor, channel=row)
    return f"{row} was deleted."


def _yank(actor: Actor, row: HostedPackage, answers: Mapping[str, Any]) -> None:
    hosted_channels.yank(actor=actor, package=row, reason=answers["reason"])


def _unyank(actor: Actor, row: HostedPackage, answers: Mapping[str, Any]) -> None:
    hosted_channels.unyank(actor=actor, package=row)


@admin.register(HostedChannel)
class HostedChannelAdmin(ReadOnlyAdmin):
    title = "Hosted channels"
    console_group, console_position = ConsoleGroup.CHANNELS, 1
    list_display = (
        "name",
        "of_namespace",
        "public",
        "package_count",
        "total_size",
        "shown_state",
        "created",
    )
    list_filter = (
        ("public", flag_filter("visibility", yes="Public", no="Private")),
        presence_filter("deleted", "state", "deleted_at", present="Deleted", absent="Open"),
        date_range("created_at", "creation"),
    )
    search_fields = ("name", "namespace__name")
    ordering = ("name",)
    fields = (
        "name",
        "address",
        "of_namespace",
        "description",
        "public",
        "shown_state",
        "total_size",
        "created_by",
        "created_at",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="new",
            title="Add a hosted channel",
            text="Developers of its namespace upload packages; specifications name the channel "
            "hosted/NAME.",
            run=_create,
            form=NewChannelForm,
            rows=False,
        ),
        ConfirmedAction(
            name="change",
            title="Change",
            text="Description and visibility.",
            run=_change,
            form=ChangeChannelForm,
            single=True,
            applies_to=lambda row: row.deleted_at is None,
        ),
        ConfirmedAction(
            name="delete",
            title="Delete",
            text="Its packages are deleted too; existing builds keep their copies. The name "
            "cannot be used again.",
            run=_delete,
            single=True,
            deletes=True,
            applies_to=lambda row: row.deleted_at is None,
        ),
    )

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        return {"about": about} if action.name == "change" else {}

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
    def package_count(self, channel: Any) -> int:
        return int(channel.held)

    @admin.display(description="size")
    def total_size(self, channel: Any) -> object:
        return size(channel.held_size)

    @admin.display(description="state")
    def shown_state(self, channel: HostedChannel) -> object:
        return badge("deleted" if channel.deleted_at else "open")

    @admin.display(description="created")
    def created(self, channel: HostedChannel) -> object:
        return relative_time(channel.created_at)

    def related_tables(self, actor: Actor, row: HostedChannel) -> Sequence[RelatedTable]:
        newest = row.packages.select_related("channel", "uploaded_by").order_by("-pk")
        return (
            RelatedTable(
                title="Newest packages",
                headers=("Package", "Size", "Uploaded", "By", "State"),
                rows=[
                    (
                        link(package),
                        size(package.size),
                        relative_time(package.uploaded_at),
                        package.uploaded_by or "",
                        badge("yanked" if package.yanked_at else "listed"),
                    )
                    for package in newest[:RELATED_ROWS]
                ],
            ),
        )


@admin.register(HostedPackage)
class HostedPackageAdmin(ReadOnlyAdmin):
    title = "Hosted packages"
    console_group, console_position = ConsoleGroup.CHANNELS, 2
    list_display = (
        "file_name",
        "of_channel",
        "subdir",
        "shown_size",
        "uploaded_by",
        "age",
        "state",
    )
    list_filter = (
        ("subdir", titled_filter("platform")),
        presence_filter("yanked", "state", "yanked_at", present="Yanked", absent="Listed"),
        date_range("uploaded_at", "upload"),
    )
    search_fields = ("name__begins", "sha256__startswith")
    search_help_text = "Start of the package name or of the sha256."
    ordering = ("-pk",)
    fields = (
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
    confirmed_actions = (
        ConfirmedAction(
            name="yank",
            title="Yank",
            text="Solves no longer choose it. Existing locks stay valid.",
            run=_yank,
            form=Reason,
            applies_to=lambda row: row.yanked_at is None,
        ),
        ConfirmedAction(
            name="unyank",
            title="List again",
            text="Solves may choose it again.",
            run=_unyank,
            applies_to=lambda row: row.yanked_at is not None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        return rows.select_related("channel__namespace", "uploaded_by", "yanked_by")

    @admin.display(description="channel")
    def of_channel(self, package: HostedPackage) -> object:
        return link(package.channel)

    @admin.display(description="size")
    def shown_size(self, package: HostedPackage) -> object:
        return size(package.size)

    @admin.display(description="uploaded")
    def age(self, package: HostedPackage) -> object:
        return relative_time(package.uploaded_at)

    @admin.display(description="state")
    def state(self, package: HostedPackage) -> object:
        return badge("yanked" if package.yanked_at else "listed")
