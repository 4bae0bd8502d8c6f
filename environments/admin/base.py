"""Base ModelAdmin of the console: read-only pages plus confirmed actions that call operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from environments.admin.changelist import CappedPaginator, KeyedChangeList
from environments.admin.confirmed_actions import ConfirmedActions, actor_of
from environments.admin.csv_export import CsvExport
from environments.admin.display import RelatedTable


class ConsoleList(CsvExport, ConfirmedActions):
    """What all lists of the console have in common, whether or not their rows can be edited."""

    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = CappedPaginator
    change_list_template = "admin/read_only_list.html"
    #: Heading of the console under which the list stands; its place there.
    console_group: ConsoleGroup | None = None
    console_position: int = 50

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        tools = [*self.list_tools(request), ("Export as CSV", self.export_url(request))]
        context = {"tools": tools, "title": self.name, "name": self.name}
        return super().changelist_view(request, {**context, **(extra_context or {})})


class ReadOnlyAdmin(ConsoleList):
    """Lists, shows and filters the rows of a model; changes go through confirmed actions."""

    sortable_by: Any = ()  # most columns have no index
    change_form_template = "admin/read_only_form.html"
    #: Columns that may be large, and that a list does not show.
    deferred: tuple[str, ...] = ()
    #: What the page of a row shows: names of columns and methods.
    fields: Any = ()

    # Administrators of the installation; subclasses that are open to others override it.
    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actor_of(request).is_superuser

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[KeyedChangeList]:
        return KeyedChangeList

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer(*self.deferred)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Sequence[Any]:
        return tuple(self.fields)

    def related_tables(self, actor: Actor, row: Any) -> Sequence[RelatedTable]:
        return ()

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        context["name"] = self.name
        if obj is not None:
            context["related_tables"] = self.related_tables(actor_of(request), obj)
            context["tools"] = self.row_tools(request, obj)
        return super().render_change_form(request, context, *args, obj=obj, **options)
