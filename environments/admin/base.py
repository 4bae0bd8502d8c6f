"""What do all rooms of the console share? Pages to look at, and questions that act.

Nothing is edited in place: what may be done is a question, whose answer calls an operation.
"""

from __future__ import annotations

import datetime
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
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.access import Actor
from condastore.errors import SpecificationError, StoreError
from environments.admin.changelist import CappedPaginator, QuickList
from environments.operations import audit

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:  # generic for the type checker only
    _ModelAdmin = admin.ModelAdmin

#: Rows that one answer may be about.
MOST_AT_ONCE = 200
#: Rows of a table beside what a page is about; the rest is a list of its own.
BESIDE = 50


def actor_of(request: HttpRequest) -> Actor:
    actor: Actor = request.actor  # type: ignore[attr-defined]
    return actor


# --- what is shown ------------------------------------------------------------------------------


def size(bytes_: int | None) -> str:
    return "" if bytes_ is None else filesizeformat(bytes_)


def badge(text: object) -> SafeString:
    return format_html('<span class="badge is-{}">{}</span>', str(text).lower(), text)


def moment(at: datetime.datetime | None) -> SafeString | str:
    """How long ago, with the time for who wants to know it."""
    if at is None:
        return ""
    seconds = (timezone.now() - at).total_seconds()
    words = f"{_span(seconds)} ago" if seconds >= 0 else f"in {_span(-seconds)}"
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', at.isoformat(), f"{at:%F %T} UTC", words
    )


def _span(seconds: float) -> str:
    for unit, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            number = int(seconds // unit)
            return f"{number} {word}{'' if number == 1 else 's'}"
    return "a moment"


def link(row: Any, text: object = None) -> SafeString | str:
    """To the page of a row."""
    if row is None:
        return ""
    meta = row._meta
    url = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, row if text is None else text)


def list_url(model: Any, **query: object) -> str:
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    return f"{url}?{urlencode(query)}" if query else url


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A table beside what a page is about; `more` leads to the list of all rows."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    more: str = ""
    empty: str = "None."
    text: str = ""  # shown as it is, below


# --- questions ----------------------------------------------------------------------------------


class Reason(forms.Form):
    reason = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 3}), help_text="Those whom it concerns read it."
    )


Do = Callable[[Actor, Any, Mapping[str, Any]], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A page that asks for what an operation needs, and calls it.

    `do` gets the row (with `together`: all of them; without `rows`: None) and the form's answers.
    It may answer with a sentence that says what was done.
    """

    name: str
    title: str
    do: Do | None  # None: it only tries
    text: str = ""
    form: Callable[..., forms.Form] = forms.Form
    rows: bool = True
    together: bool = False
    alone: bool = False  # of one row at a time
    removes: bool = False  # the row is gone afterwards
    #: Whether the question makes sense for a row, where its page is open.
    fits: Callable[[Any], bool] = field(default=lambda row: True)
    superuser: bool = True
    #: What to show of the rows beside the form.
    panels: Callable[[Actor, Any], Sequence[Panel]] | None = None
    #: What would happen, before it does: title of the button, and what gives the panels.
    tries: str = ""
    tried: Callable[[Actor, Any, Mapping[str, Any]], Sequence[Panel]] | None = None


class Room(_ModelAdmin):
    """One kind of rows: to find, to look at, and to ask something of."""

    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = CappedPaginator
    sortable_by: Any = ()  # most columns have no index
    change_form_template = "admin/room_form.html"
    change_list_template = "admin/room_list.html"
    #: Columns that may be large, and that a list does not show.
    deferred: tuple[str, ...] = ()
    #: What the room is called, where the model's own name is of no help.
    title: str = ""
    #: What the page of a row shows: names of columns and methods.
    facts: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()

    # Administrators of the installation; rooms that are open to others say so themselves.
    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return actor_of(request).is_superuser

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[QuickList]:
        return QuickList

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

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Sequence[Any]:
        return self.facts or super().get_fields(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Sequence[Any]:
        return self.facts

    def panels(self, actor: Actor, row: Any) -> Sequence[Panel]:
        return ()

    # --- pages ---

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        tools = [
            (question.title, self._url(question))
            for question in self._open(request)
            if not question.rows
        ]
        context = {"tools": tools, "title": self.name, "name": self.name}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    @property
    def name(self) -> str:
        return self.title or str(self.opts.verbose_name_plural).capitalize()

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, obj: Any = None, **options: Any
    ) -> Any:
        context["name"] = self.name
        if obj is not None:
            context["panels"] = self.panels(actor_of(request), obj)
            context["tools"] = [
                (question.title, f"{self._url(question)}?ids={obj.pk}")
                for question in self._open(request)
                if question.rows and question.fits(obj)
            ]
        return super().render_change_form(request, context, *args, obj=obj, **options)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {
            question.name: (partial(_chosen, question), question.name, question.title)
            for question in self._open(request)
            if question.rows and not question.alone
        }

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"{question.name}/",
                self.admin_site.admin_view(partial(self.ask, question=question)),
                name=self._url_name(question),
            )
            for question in self.questions
        ]
        return [*own, *super().get_urls()]

    def ask(self, request: HttpRequest, question: Question) -> HttpResponse:
        if question not in self._open(request):
            raise PermissionDenied
        actor, rows = actor_of(request), self._asked(request, question)
        about = (rows if question.together else rows[0] if len(rows) == 1 else None) or None
        data = request.POST if request.method == "POST" else None
        options = self.form_options(request, question, about)
        form = question.form(data, initial=request.GET.dict(), **options)
        tried: Sequence[Panel] = ()
        if form.is_bound and form.is_valid():
            try:
                if "_try" in request.POST and question.tried:
                    tried = question.tried(actor, about, form.cleaned_data)
                elif question.do:
                    self._do(request, question, rows, form.cleaned_data)
                    return HttpResponseRedirect(self._after(request, question, rows))
            except StoreError as error:
                audit.refused_request(request, error)
                show_faults(form, error)
        about_panels = question.panels(actor, rows) if question.panels else ()
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": question.title,
            "subtitle": None,
            "name": self.name,
            "text": question.text,
            # A template calls what can be called: it is told of functions by flags.
            "asks": question.do is not None,
            "tries": question.tries,
            "rows": () if question.panels else rows,
            "form": form,
            "about": about_panels,
            "panels": tried,
            "media": self.media + form.media,
            "back": self._after(request, question, rows),
        }
        return TemplateResponse(request, "admin/ask.html", context)

    def form_options(self, request: HttpRequest, question: Question, about: Any) -> dict[str, Any]:
        """What the form of a question has to know beside what was typed."""
        return {}

    def _do(
        self, request: HttpRequest, question: Question, rows: list[Any], answers: Mapping[str, Any]
    ) -> None:
        """One row's error is shown in the form; of many, each beside what could be done."""
        actor, do = actor_of(request), question.do
        assert do is not None, "asked only where there is something to do"
        if not question.rows or question.together or len(rows) == 1:
            about = None if not question.rows else rows if question.together else rows[0]
            said = do(actor, about, answers)
            self.message_user(request, said or f"{question.title}: done.", messages.SUCCESS)
            return
        done = 0
        for row in rows:
            try:
                do(actor, row, answers)
                done += 1
            except StoreError as error:
                audit.refused_request(request, error)
                self.message_user(request, told(error), messages.WARNING)
        self.message_user(
            request, f"{question.title}: {done} done, {len(rows) - done} could not be."
        )

    def _open(self, request: HttpRequest) -> list[Question]:
        if not self.has_view_permission(request):
            return []
        superuser = actor_of(request).is_superuser
        return [one for one in self.questions if superuser or not one.superuser]

    def _asked(self, request: HttpRequest, question: Question) -> list[Any]:
        if not question.rows:
            return []
        keys = [key for key in request.GET.get("ids", "").split(",") if key.isdecimal()]
        keys = [key for key in keys if len(key) < 18][:MOST_AT_ONCE]
        rows = list(self.get_queryset(request).filter(pk__in=keys))
        if not rows or (question.alone and len(rows) > 1):
            raise Http404
        return rows

    def _after(self, request: HttpRequest, question: Question, rows: list[Any]) -> str:
        if len(rows) == 1 and not question.removes and "back" not in request.GET:
            name = f"admin:{self.opts.app_label}_{self.opts.model_name}_change"
            return reverse(name, args=[rows[0].pk])
        query = request.GET.get("back", "")
        return list_url(self.model) + (f"?{query}" if query else "")

    def _url_name(self, question: Question) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{question.name}"

    def _url(self, question: Question) -> str:
        return reverse(f"admin:{self._url_name(question)}")


def _chosen(
    question: Question, room: Room, request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponse | None:
    """From the list to the question, with the rows that were chosen."""
    keys = list(queryset.order_by().values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
    if len(keys) > MOST_AT_ONCE:
        text = f"At most {MOST_AT_ONCE} at a time: choose fewer."
        room.message_user(request, text, messages.WARNING)
        return None
    query = urlencode({"ids": ",".join(map(str, keys)), "back": request.GET.urlencode()})
    return HttpResponseRedirect(f"{room._url(question)}?{query}")


def told(error: StoreError) -> str:
    return f"{error} {error.hint}".strip()


def show_faults(form: forms.Form, error: StoreError) -> None:
    """Each fault at the field that it is about."""
    for fault in error.faults if isinstance(error, SpecificationError) else (error,):
        name = fault.where.removeprefix("settings.").partition("[")[0].partition(".")[0]
        if name in form.fields:
            form.add_error(name, f"{fault.message} {fault.hint}".strip())
        else:
            form.add_error(None, told(fault))
