"""Confirmation pages: take what an action needs in a form, and call its operation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from accounts.access import Actor
from condastore.errors import AccessDeniedError, SpecificationError, StoreError
from environments.admin.display import RelatedTable, list_url
from environments.operations import audit

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:  # generic for the type checker only
    _ModelAdmin = admin.ModelAdmin

#: Rows that one action may be applied to at a time.
MAX_SELECTED = 200


def actor_of(request: HttpRequest) -> Actor:
    actor: Actor = request.actor  # type: ignore[attr-defined]
    return actor


class Reason(forms.Form):
    """A reason, which is recorded and shown to the people affected."""

    reason = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="Shown to the people affected, and recorded in the audit log.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTimeText:
    """A secret that is shown once, on the page that answers: it is stored nowhere."""

    title: str
    text: str
    value: str


Run = Callable[[Actor, Any, Mapping[str, Any]], str | OneTimeText | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmedAction:
    """An action with a confirmation page.

    `run` gets the row (with `in_bulk`: all selected rows; without `rows`: None) and the form's
    cleaned data. It may return a sentence that says what was done, or a text to show once.
    """

    name: str
    title: str
    run: Run | None  # None: only a dry run
    text: str = ""
    form: Callable[..., forms.Form] = forms.Form
    rows: bool = True
    in_bulk: bool = False
    single: bool = False  # applies to one row at a time
    deletes: bool = False  # the row does not exist afterwards
    #: Whether the action is offered on the page of a row.
    applies_to: Callable[[Any], bool] = field(default=lambda row: True)
    superuser_only: bool = True
    prefilled: bool = True  # the query string of a link may fill in the form
    #: Tables about the selected rows, shown above the form.
    related_tables: Callable[[Actor, Any], Sequence[RelatedTable]] | None = None
    #: Label of the dry-run button, and the function that returns what the action would do.
    dry_run_label: str = ""
    dry_run: Callable[[Actor, Any, Mapping[str, Any]], Sequence[RelatedTable]] | None = None
    #: The action runs only after a dry run of the same values.
    dry_run_first: bool = False


class ConfirmedActions(_ModelAdmin):
    """Adds `confirmed_actions` to an admin class: URLs, entries of the list, buttons of a page."""

    confirmed_actions: tuple[ConfirmedAction, ...] = ()
    #: Title of the list, if the model's own plural is not how people call the rows.
    title: str = ""

    @property
    def name(self) -> str:
        return self.title or str(self.opts.verbose_name_plural).capitalize()

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"{action.name}/",
                self.admin_site.admin_view(partial(self.confirm, action=action)),
                name=self._url_name(action),
            )
            for action in self.confirmed_actions
        ]
        return [*own, *super().get_urls()]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {
            action.name: (partial(_selected, action), action.name, action.title)
            for action in self._permitted(request)
            if action.rows and not action.single
        }

    def list_tools(self, request: HttpRequest) -> list[tuple[str, str]]:
        """Return title and URL of each action that needs no row."""
        return [
            (action.title, self._url(action))
            for action in self._permitted(request)
            if not action.rows
        ]

    def row_tools(self, request: HttpRequest, row: Any) -> list[tuple[str, str]]:
        """Return title and URL of each action that applies to the row."""
        return [
            (action.title, f"{self._url(action)}?ids={row.pk}")
            for action in self._permitted(request)
            if action.rows and action.applies_to(row)
        ]

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        """Return keyword arguments for the form of an action."""
        return {}

    def confirm(self, request: HttpRequest, action: ConfirmedAction) -> HttpResponse:
        if action not in self._permitted(request):
            raise PermissionDenied
        actor, rows = actor_of(request), self._rows_of(request, action)
        about = (rows if action.in_bulk else rows[0] if len(rows) == 1 else None) or None
        data = request.POST if request.method == "POST" else None
        options = self.form_options(request, action, about)
        initial = request.GET.dict() if action.prefilled else {}
        form = action.form(data, initial=initial, **options)
        found: Sequence[RelatedTable] = ()
        previewed = ""
        if form.is_bound and form.is_valid():
            try:
                if action.dry_run and ("_try" in request.POST or not _previewed(request, action)):
                    found = action.dry_run(actor, about, form.cleaned_data)
                    previewed = _digest(request)
                elif action.run:
                    once = self._run(request, action, rows, form.cleaned_data)
                    back = self._back(request, action, rows)
                    return self._shown_once(request, once, back) or HttpResponseRedirect(back)
            except StoreError as error:
                _record_refusal(request, error)
                show_faults(form, error)
        selected = action.related_tables(actor, rows) if action.related_tables else ()
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": action.title,
            "subtitle": None,
            "name": self.name,
            "text": action.text,
            # Django templates call callables, so pass booleans instead.
            "runs": action.run is not None and (bool(previewed) or not action.dry_run_first),
            "previewed": previewed if action.dry_run_first else "",
            "dry_run_label": action.dry_run_label,
            "rows": () if action.related_tables else rows,
            "form": form,
            "selected_tables": selected,
            "related_tables": found,
            "media": self.media + form.media,
            "back": self._back(request, action, rows),
        }
        return TemplateResponse(request, "admin/confirm.html", context)

    def _run(
        self,
        request: HttpRequest,
        action: ConfirmedAction,
        rows: list[Any],
        answers: Mapping[str, Any],
    ) -> OneTimeText | None:
        """Run the action: an error of a single row goes to the form, of many rows to messages."""
        actor, run = actor_of(request), action.run
        assert run is not None, "the caller has checked it"
        if not action.rows or action.in_bulk or len(rows) == 1:
            about = None if not action.rows else rows if action.in_bulk else rows[0]
            said = run(actor, about, answers)
            if isinstance(said, OneTimeText):
                return said
            self.message_user(request, said or f"{action.title}: done.", messages.SUCCESS)
            return None
        done = 0
        for row in rows:
            try:
                run(actor, row, answers)
                done += 1
            except StoreError as error:
                _record_refusal(request, error)
                self.message_user(request, error_text(error), messages.WARNING)
        self.message_user(request, f"{action.title}: {done} done, {len(rows) - done} failed.")
        return None

    def _shown_once(
        self, request: HttpRequest, once: OneTimeText | None, back: str
    ) -> HttpResponse | None:
        if once is None:
            return None
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": once.title,
            "subtitle": None,
            "name": self.name,
            "text": once.text,
            "rows": [once.value],
            "media": self.media,
            "back": back,
        }
        response = TemplateResponse(request, "admin/confirm.html", context)
        response["Cache-Control"] = "private, no-store"
        response["Referrer-Policy"] = "no-referrer"
        return response

    def _permitted(self, request: HttpRequest) -> list[ConfirmedAction]:
        if not self.has_view_permission(request):
            return []
        superuser = actor_of(request).is_superuser
        return [one for one in self.confirmed_actions if superuser or not one.superuser_only]

    def _rows_of(self, request: HttpRequest, action: ConfirmedAction) -> list[Any]:
        if not action.rows:
            return []
        keys = [key for key in request.GET.get("ids", "").split(",") if key.isdecimal()]
        keys = [key for key in keys if len(key) < 18][:MAX_SELECTED]
        rows = list(self.get_queryset(request).filter(pk__in=keys))
        if not rows or (action.single and len(rows) > 1):
            raise Http404
        return rows

    def _back(self, request: HttpRequest, action: ConfirmedAction, rows: list[Any]) -> str:
        if len(rows) == 1 and not action.deletes and "back" not in request.GET:
            name = f"admin:{self.opts.app_label}_{self.opts.model_name}_change"
            return reverse(name, args=[rows[0].pk])
        query = request.GET.get("back", "")
        return list_url(self.model) + (f"?{query}" if query else "")

    def _url_name(self, action: ConfirmedAction) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{action.name}"

    def _url(self, action: ConfirmedAction) -> str:
        return reverse(f"admin:{self._url_name(action)}")


def _selected(
    action: ConfirmedAction,
    model_admin: ConfirmedActions,
    request: HttpRequest,
    queryset: QuerySet[Any],
) -> HttpResponse | None:
    """Redirect from the list to the confirmation page, with the selected rows."""
    keys = list(queryset.order_by().values_list("pk", flat=True)[: MAX_SELECTED + 1])
    if len(keys) > MAX_SELECTED:
        text = f"Select at most {MAX_SELECTED} rows at a time."
        model_admin.message_user(request, text, messages.WARNING)
        return None
    query = urlencode({"ids": ",".join(map(str, keys)), "back": request.GET.urlencode()})
    return HttpResponseRedirect(f"{model_admin._url(action)}?{query}")


def _digest(request: HttpRequest) -> str:
    """Return a digest of the submitted values, without those of the page itself."""
    own = {"csrfmiddlewaretoken", "_try", "_previewed"}
    values = sorted((key, found) for key, found in request.POST.lists() if key not in own)
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _previewed(request: HttpRequest, action: ConfirmedAction) -> bool:
    """Return True unless the action needs a dry run of exactly these values first."""
    return not action.dry_run_first or request.POST.get("_previewed") == _digest(request)


def _record_refusal(request: HttpRequest, error: StoreError) -> None:
    """Record a denied action in the audit log.

    A name that does not exist is a typing error here: rows are looked up before, by `ids`.
    """
    if isinstance(error, AccessDeniedError):
        audit.refused_request(request, error)


def error_text(error: StoreError) -> str:
    return f"{error} {error.hint}".strip()


def show_faults(form: forms.Form, error: StoreError) -> None:
    """Add each fault to the form field that it is about."""
    for fault in error.faults if isinstance(error, SpecificationError) else (error,):
        name = fault.where.removeprefix("settings.").partition("[")[0].partition(".")[0]
        if name in form.fields:
            text = f"{fault.message} {fault.hint}".strip()
            if text not in form.errors.get(name, []):
                form.add_error(name, text)
        else:
            form.add_error(None, error_text(fault))
