"""The administration console: Django's admin site with its lists in groups."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import SimpleAdminConfig
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse


class ConsoleGroup(StrEnum):
    """Headings of the console's start page, in order. An admin class names its own."""

    DECISIONS = "Decisions"
    POLICIES = "Policies"
    ENVIRONMENTS = "Environments"
    PACKAGES = "Packages"
    CHANNELS = "Channels"
    PEOPLE = "People"
    IMAGES = "Container images"
    SYSTEM = "System"


#: Heading of lists whose admin class names no group.
UNGROUPED = "More"


class AdminConfig(SimpleAdminConfig):
    """Without autodiscovery: `condastore.urls` imports the admin classes; workers need none."""

    default_site = "condastore.admin_site.Console"


class Console(AdminSite):
    site_header = site_title = "condastore"
    index_title = "Administration"

    def has_permission(self, request: HttpRequest) -> bool:
        from environments.admin.access import may_enter

        return may_enter(request)

    def login(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the site's sign-in, with its rate limits and second factors."""
        from allauth.account.decorators import secure_admin_login

        answer: HttpResponse = secure_admin_login(super().login)(request, extra_context)
        return answer

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Return the lists by the `console_group` of their admin classes."""
        apps = super().get_app_list(request, app_label)
        if app_label is not None:
            return apps
        groups: dict[str, list[tuple[int, str, Any]]] = {group: [] for group in ConsoleGroup}
        for entry in (entry for app in apps for entry in app["models"]):
            model_admin: Any = self.get_model_admin(entry["model"])
            entry["name"] = getattr(model_admin, "name", "") or entry["name"]
            group = getattr(model_admin, "console_group", None) or UNGROUPED
            position = getattr(model_admin, "console_position", 0)
            groups.setdefault(group, []).append((position, entry["name"], entry))
        return [
            _group(title, [entry for *_, entry in sorted(entries, key=lambda one: one[:2])])
            for title, entries in groups.items()
            if entries
        ]

    def index(self, request: HttpRequest, extra_context: Any = None) -> TemplateResponse:
        from environments.admin import dashboard

        actor = request.actor  # type: ignore[attr-defined]
        context = {
            "numbers": dashboard.numbers(actor),
            "related_tables": dashboard.related_tables(actor),
        }
        return super().index(request, {**context, **(extra_context or {})})


def _group(title: str, entries: list[Any]) -> dict[str, Any]:
    return {
        "name": title,
        "app_label": title.lower().replace(" ", "-"),
        "app_url": entries[0]["admin_url"],
        "has_module_perms": True,
        "models": entries,
    }
