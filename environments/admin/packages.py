"""Packages in use: which environments hold which versions; channels, and their credentials."""

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
from environments.admin.access import ManagersRoom
from environments.admin.base import BESIDE, Panel, Question, Room, badge, link, moment, size
from environments.admin.changelist import text_filter
from environments.models import (
    Channel,
    ChannelCredential,
    CondaRecord,
    Environment,
    LockedConda,
    LockedPypi,
    PypiRecord,
)
from environments.operations import credentials
from environments.operations.namespaces import find_namespace

_OTHER_VERSIONS = 30
#: Users of a package that are counted: python is in all of them.
MOST = 1_000


class _Counted(Subquery):
    """How many rows a query has: cut it off where nobody counts any more."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) counted)"
    output_field = IntegerField()


def bounded(count: int) -> str:
    return f"{MOST:,}+" if count > MOST else f"{count:,}"


class PackageRoom(Room):
    """A package's file, and who uses it."""

    locked: Any
    manager = ""
    search_fields = ("name__begins",)
    search_help_text = "How the package's name starts."
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
            build_count=_Counted(builds.distinct()[: MOST + 1]),
            environment_count=_Counted(current.distinct()[: MOST + 1]),
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

    @admin.display(description="saved by sharing it")
    def saved(self, package: Any) -> str:
        """Its file alone, for each build but the first: what is unpacked is larger."""
        least = "at least " if package.build_count > MOST else ""
        return least + size(package.size * max(0, min(package.build_count, MOST) - 1))

    @admin.display(description="known here for")
    def known(self, package: Any) -> object:
        return moment(package.first_seen_at)

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

    def panels(self, actor: Actor, row: Any) -> Sequence[Panel]:
        locks = self.locked.objects.filter(package=row).order_by().values("lock")
        using = Environment.objects.present().filter(current__lock__in=locks)
        using = using.select_related("namespace", "current").order_by("namespace__name", "name")
        using = using.defer("current__source", "current__log_archive", "current__verdicts")
        others = self.get_queryset(_NO_REQUEST).filter(name=row.name).exclude(pk=row.pk)
        return (
            Panel(
                title=f"Environments that hold it now ({bounded(row.environment_count)})",
                headers=("Environment", "Current build", "State"),
                rows=[
                    (link(one), one.current.number, badge(one.current.state))
                    for one in using[: 4 * BESIDE]
                    if one.current
                ],
            ),
            Panel(
                title="Other versions and builds of it",
                headers=("Package", "Environments", "Builds"),
                rows=[
                    (link(one), bounded(one.environment_count), bounded(one.build_count))
                    for one in others.order_by("-pk")[:_OTHER_VERSIONS]
                ],
            ),
        )


_NO_REQUEST = HttpRequest()


@admin.register(CondaRecord)
class CondaRoom(PackageRoom):
    title = "Conda packages in use"
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
    )
    deferred = ("record",)
    facts = (
        "name",
        "version",
        "build",
        "channel",
        "subdir",
        "license",
        "file_size",
        "saved",
        "known",
        "listed",
        "link_scripts",
        "sha256",
        "address",
    )

    @admin.display(description="URL")
    def address(self, package: CondaRecord) -> object:
        return format_html("<code>{}</code>", package.url)


@admin.register(PypiRecord)
class PypiRoom(PackageRoom):
    title = "PyPI packages in use"
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
    list_filter = (text_filter("license", "license", "license__icontains"),)
    facts = (
        "name",
        "version",
        "file_name",
        "license",
        "file_size",
        "saved",
        "known",
        "requires_python",
        "sha256",
        "url",
    )


@admin.register(Channel)
class ChannelRoom(Room):
    list_display = ("url", "first_seen_at", "indexed_at")
    search_fields = ("url",)
    facts = ("url", "first_seen_at", "indexed_at")


def _delete_credential(actor: Actor, row: ChannelCredential, answers: Mapping[str, Any]) -> None:
    credentials.delete_credential(actor=actor, credential=row)


class CredentialForm(forms.Form):
    channel = forms.CharField(max_length=500, help_text="Its URL, without a secret.")
    user = forms.CharField(
        required=False, max_length=200, help_text="Empty: the secret is a token."
    )
    secret = forms.CharField(
        max_length=4000,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="The password, or the token.",
    )
    namespace = forms.CharField(
        required=False,
        max_length=64,
        help_text="Whose builds use it. Empty: of the installation.",
    )
    namespaces = forms.CharField(
        required=False,
        max_length=2000,
        help_text="Of the installation only: namespaces whose builds use it, by name or pattern "
        "(physics-*; * for all shared ones), separated by commas.",
    )


def _set_credential(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    name, user, secret = answers["namespace"].strip(), answers["user"].strip(), answers["secret"]
    made = credentials.set_credential(
        actor=actor,
        namespace=find_namespace(actor, name) if name else None,
        channel=answers["channel"],
        kind="basic" if user else "token",
        secret=f"{user}:{secret}" if user else secret,
        namespaces=[one for one in answers["namespaces"].split(",") if one.strip()],
    )
    return f"The secret of {made.url_prefix} is set."


@admin.register(ChannelCredential)
class CredentialRoom(ManagersRoom):
    """The secrets themselves are never shown."""

    questions = (
        Question(
            name="set",
            title="Set or replace",
            text="Builds that start later send it to the channel.",
            do=_set_credential,
            form=CredentialForm,
            rows=False,
            superuser=False,
        ),
        Question(
            name="remove",
            title="Delete",
            text="Builds that start later are refused by the channel, until another is entered.",
            do=_delete_credential,
            superuser=False,
            removes=True,
        ),
    )
    title = "Credentials of channels"
    list_display = ("url_prefix", "kind", "namespace", "namespaces", "created_at")
    list_select_related = ("namespace",)
    search_fields = ("url_prefix",)
    ordering = ("-pk",)
    facts = ("url_prefix", "kind", "namespace", "namespaces", "base", "created_at")
