"""Packages that builds use, the channels they come from, and the channels' credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.db.models import IntegerField, OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from accounts.access import Actor
from accounts.roles import Perm
from condastore.admin_site import ConsoleGroup
from environments.admin.access import NamespaceManagerAdmin
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction, actor_of
from environments.admin.display import RELATED_ROWS, RelatedTable, badge, link, relative_time, size
from environments.admin.filters import date_range, text_filter
from environments.models import (
    Channel,
    ChannelCredential,
    CondaRecord,
    Environment,
    LockedConda,
    LockedPypi,
    Namespace,
    PypiRecord,
)
from environments.operations import credentials

_OTHER_VERSIONS = 30
#: Builds and environments counted for a package; packages such as python are in all of them.
MAX_USES = 1_000


class _Counted(Subquery):
    """Number of rows of a query; slice the query to bound the cost."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) counted)"
    output_field = IntegerField()


def bounded(count: int) -> str:
    return f"{MAX_USES:,}+" if count > MAX_USES else f"{count:,}"


class PackageAdmin(ReadOnlyAdmin):
    """Package files and the builds and environments that use them."""

    locked: Any
    manager = ""
    search_fields = ("name__begins",)
    search_help_text = "Start of the package name."
    ordering = ("name", "version", "pk")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        held = self.locked.objects.filter(package=OuterRef("pk")).order_by()
        there = {"lock__builds__deleted_at": None, "lock__builds__attempt__gte": 0}
        builds = held.filter(**there).values("lock__builds")
        current = (
            Environment.objects.present()
            .filter(**{f"current__lock__{self.manager}__package": OuterRef("pk")})
            .order_by()
            .values("pk")
        )
        rows: QuerySet[Any] = super().get_queryset(request)
        return rows.annotate(
            build_count=_Counted(builds.distinct()[: MAX_USES + 1]),
            environment_count=_Counted(current.distinct()[: MAX_USES + 1]),
        )

    @admin.display(description="environments")
    def environments_with(self, package: Any) -> str:
        return bounded(package.environment_count)

    @admin.display(description="builds")
    def builds_with(self, package: Any) -> str:
        return bounded(package.build_count)

    @admin.display(description="size")
    def file_size(self, package: Any) -> str:
        return size(package.size)

    @admin.display(description="saved by sharing")
    def saved(self, package: Any) -> str:
        """Size of the file for each build but the first; unpacked files take more."""
        least = "at least " if package.build_count > MAX_USES else ""
        return least + size(package.size * max(0, min(package.build_count, MAX_USES) - 1))

    @admin.display(description="first seen")
    def first_seen(self, package: Any) -> object:
        return relative_time(package.first_seen_at)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        answer = super().render_change_form(request, context, *args, obj=obj, **options)
        if obj is not None:
            context["tools"] += self._tools(obj)
        return answer

    def _tools(self, package: Any) -> list[tuple[str, str]]:
        spec = f"{package.name} =={package.version}"
        recall = urlencode({"spec": spec, "manager": self.manager})
        denied = urlencode(
            {
                "kind": "packages-denied",
                "effect": "enforce",
                "name": f"no {package.name} {package.version}"[:100],
                "packages": f"{self.manager}:{spec}",
            }
        )
        return [
            ("Recall", f"{reverse('admin:environments_recall_new')}?{recall}"),
            ("Deny", f"{reverse('admin:environments_policy_add-rule')}?{denied}"),
        ]

    def related_tables(self, actor: Actor, row: Any) -> Sequence[RelatedTable]:
        locks = self.locked.objects.filter(package=row).order_by().values("lock")
        using = Environment.objects.present().filter(current__lock__in=locks)
        using = using.select_related("namespace", "current").order_by("namespace__name", "name")
        using = using.defer("current__source", "current__log_archive", "current__verdicts")
        others = self.get_queryset(_NO_REQUEST).filter(name=row.name).exclude(pk=row.pk)
        return (
            RelatedTable(
                title=f"Environments with this package ({bounded(row.environment_count)})",
                headers=("Environment", "Current build", "State"),
                rows=[
                    (link(one), one.current.number, badge(one.current.state))
                    for one in using[: 4 * RELATED_ROWS]
                    if one.current
                ],
            ),
            RelatedTable(
                title="Other versions and builds",
                headers=("Package", "Environments", "Builds"),
                rows=[
                    (link(one), bounded(one.environment_count), bounded(one.build_count))
                    for one in others.order_by("-pk")[:_OTHER_VERSIONS]
                ],
            ),
        )


_NO_REQUEST = HttpRequest()


@admin.register(CondaRecord)
class CondaAdmin(PackageAdmin):
    title = "Conda packages in use"
    console_group, console_position = ConsoleGroup.PACKAGES, 1
    locked = LockedConda
    manager = "conda"
    list_display = (
        "name",
        "version",
        "build",
        "channel",
        "license",
        "environments_with",
        "builds_with",
        "file_size",
        "saved",
    )
    list_filter = (
        text_filter("channel", "channel", "channel__contains"),
        text_filter("license", "license", "license__icontains"),
        date_range("first_seen_at", "first seen"),
    )
    deferred = ("record",)
    fields = (
        "name",
        "version",
        "build",
        "channel",
        "subdir",
        "license",
        "file_size",
        "saved",
        "first_seen",
        "listed",
        "link_scripts",
        "sha256",
        "address",
    )

    @admin.display(description="URL")
    def address(self, package: CondaRecord) -> object:
        return format_html("<code>{}</code>", package.url)


@admin.register(PypiRecord)
class PypiAdmin(PackageAdmin):
    title = "PyPI packages in use"
    console_group, console_position = ConsoleGroup.PACKAGES, 2
    locked = LockedPypi
    manager = "pypi"
    list_display = (
        "name",
        "version",
        "file_name",
        "license",
        "environments_with",
        "builds_with",
        "file_size",
        "saved",
    )
    list_filter = (
        text_filter("license", "license", "license__icontains"),
        date_range("first_seen_at", "first seen"),
    )
    fields = (
        "name",
        "version",
        "file_name",
        "license",
        "file_size",
        "saved",
        "first_seen",
        "requires_python",
        "sha256",
        "url",
    )


@admin.register(Channel)
class ChannelAdmin(ReadOnlyAdmin):
    title = "Source channels"
    console_group, console_position = ConsoleGroup.CHANNELS, 4
    list_display = ("url", "first_seen", "indexed")
    list_filter = (
        date_range("first_seen_at", "first seen"),
        date_range("indexed_at", "last indexed", prefix="indexed_"),
    )
    search_fields = ("url",)
    fields = ("url", "first_seen_at", "indexed_at")

    @admin.display(description="first seen")
    def first_seen(self, channel: Channel) -> object:
        return relative_time(channel.first_seen_at)

    @admin.display(description="last indexed")
    def indexed(self, channel: Channel) -> object:
        return relative_time(channel.indexed_at) or "never"


def _delete_credential(actor: Actor, row: ChannelCredential, answers: Mapping[str, Any]) -> None:
    credentials.delete_credential(actor=actor, credential=row)


class CredentialForm(forms.Form):
    channel = forms.CharField(max_length=500, help_text="URL of the channel, without a secret.")
    user = forms.CharField(
        required=False, max_length=200, help_text="Empty if the secret is a token."
    )
    secret = forms.CharField(
        max_length=4000,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="The password, or the token.",
    )
    namespace = forms.ModelChoiceField(
        Namespace.objects.none(),
        required=False,
        help_text="Namespace whose builds use the credential.",
    )
    namespaces = forms.CharField(
        required=False,
        max_length=2000,
        help_text="Only for credentials of the installation: namespaces whose builds use it, by "
        "name or pattern (physics-*; * for all shared ones), separated by commas.",
    )

    def __init__(self, *args: Any, actor: Actor, **options: Any) -> None:
        super().__init__(*args, **options)
        field: Any = self.fields["namespace"]
        field.queryset = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by("name")
        if actor.is_superuser:
            field.empty_label = "the whole installation"
        else:
            field.required = True
            del self.fields["namespaces"]


def _set_credential(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    user, secret = answers["user"].strip(), answers["secret"]
    saved = credentials.set_credential(
        actor=actor,
        namespace=answers["namespace"],
        channel=answers["channel"],
        kind="basic" if user else "token",
        secret=f"{user}:{secret}" if user else secret,
        namespaces=[one for one in answers.get("namespaces", "").split(",") if one.strip()],
    )
    return f"The secret of {saved.url_prefix} was set."


@admin.register(ChannelCredential)
class CredentialAdmin(NamespaceManagerAdmin):
    """Credentials of channels. Secrets are never shown."""

    confirmed_actions = (
        ConfirmedAction(
            name="set",
            title="Set or replace",
            text="Builds that start later authenticate with it at the channel.",
            run=_set_credential,
            form=CredentialForm,
            rows=False,
            superuser_only=False,
        ),
        ConfirmedAction(
            name="remove",
            title="Delete",
            text="The channel refuses builds that start later, until another credential is set.",
            run=_delete_credential,
            superuser_only=False,
            deletes=True,
        ),
    )
    title = "Channel credentials"
    console_group, console_position = ConsoleGroup.CHANNELS, 5
    list_display = ("url_prefix", "kind", "namespace", "namespaces", "created")
    list_filter = (date_range("created_at", "creation"),)
    list_select_related = ("namespace",)
    search_fields = ("url_prefix",)
    ordering = ("-pk",)
    fields = ("url_prefix", "kind", "namespace", "namespaces", "base", "created_at")

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        return {"actor": actor_of(request)} if action.name == "set" else {}

    @admin.display(description="created")
    def created(self, credential: ChannelCredential) -> object:
        return relative_time(credential.created_at)
