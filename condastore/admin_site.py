"""The console of those who run the installation: the Django admin, in rooms."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import SimpleAdminConfig
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

#: Which rooms stand together, in the order of how often they are needed.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Decisions", ("ApprovalRequest", "Decision", "Recall")),
    ("Policies", ("Policy", "PolicyRule", "PolicyVersion")),
    ("Environments", ("Namespace", "Environment", "Build", "LockRow", "Preview")),
    ("Packages", ("CondaRecord", "PypiRecord", "Channel", "ChannelCredential")),
    (
        "People",
        (
            "User",
            "Group",
            "NamespaceUserObjectPermission",
            "NamespaceGroupObjectPermission",
            "RoleMapping",
            "ApiToken",
        ),
    ),
    ("System", ("AuditEvent", "Worker", "Leader", "Webhook", "Notification")),
)


class AdminConfig(SimpleAdminConfig):
    """`condastore.urls` finds the rooms: a worker needs none."""

    default_site = "condastore.admin_site.Console"


class Console(AdminSite):
    site_header = site_title = "condastore"
    index_title = "How the installation is"

    def has_permission(self, request: HttpRequest) -> bool:
        from environments.admin.access import may_enter

        return may_enter(request)

    def login(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """One way in for everybody: with its limits, and its second factor."""
        from allauth.account.decorators import secure_admin_login

        answer: HttpResponse = secure_admin_login(super().login)(request, extra_context)
        return answer

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        apps = super().get_app_list(request, app_label)
        if app_label is not None:
            return apps
        rooms = {room["object_name"]: room for app in apps for room in app["models"]}
        for room in rooms.values():
            own = self._registry[room["model"]]
            room["name"] = getattr(own, "name", "") or room["name"]
        grouped = [
            _group(title, [rooms.pop(name) for name in names if name in rooms])
            for title, names in GROUPS
        ]
        rest = _group("More", list(rooms.values()))
        return [group for group in (*grouped, rest) if group["models"]]

    def index(self, request: HttpRequest, extra_context: Any = None) -> TemplateResponse:
        from environments.admin import dashboard

        actor = request.actor  # type: ignore[attr-defined]
        context = {"numbers": dashboard.numbers(actor), "panels": dashboard.panels(actor)}
        return super().index(request, {**context, **(extra_context or {})})


def _group(title: str, rooms: list[Any]) -> dict[str, Any]:
    label = title.lower()
    return {
        "name": title,
        "app_label": label,
        "app_url": rooms[0]["admin_url"] if rooms else "",
        "has_module_perms": True,
        "models": rooms,
    }
