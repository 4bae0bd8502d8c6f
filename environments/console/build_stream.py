"""Live parts of the page of a build, as server-sent events of HTML.

A stream holds neither a thread nor a connection while it waits: one poll per process serves all
(`operations.change_polls`). It ends with the event `finished`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET

from accounts.access import Actor
from accounts.authentication import CHECK_INTERVAL, renewed
from condastore.errors import StoreError
from environments.console.builds import line_in, live_context
from environments.console.log_windows import lines_from, total_of
from environments.console.responses import actor_of
from environments.models import Build
from environments.operations.build_changes import BUILD_CHANGES, states_of
from environments.operations.change_polls import read_in_thread
from environments.operations.environments import find_build, find_environment

#: Log lines of one message at most; more follow in the next one.
LINES = 2_000
#: Seconds after which a comment keeps the connection open in proxies.
SILENCE = 15.0
CLOSE = "event: finished\ndata: \n\n"


@require_GET
async def build_stream(
    request: HttpRequest, namespace: str, name: str, reference: str
) -> HttpResponseBase:
    """Send summary, stages and new log lines whenever the build changes."""
    actor = actor_of(request)

    def find() -> int:
        return find_build(actor, find_environment(actor, namespace, name), reference).pk

    follower = Follower(
        actor=actor, build=await sync_to_async(find)(), next_line=line_in(request, least=0)
    )
    response = StreamingHttpResponse(follower.messages(), content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    return response


@dataclass(slots=True, kw_only=True)
class Follower:
    """One reader. `next_line` is the number of log lines it has; None for no log."""

    actor: Actor
    build: int
    next_line: int | None
    seen: object = None
    checked: float = float("-inf")

    async def messages(self) -> AsyncIterator[str]:
        while True:
            try:
                text, last = await read_in_thread(self.look)
            except (StoreError, Build.DoesNotExist):
                yield CLOSE  # the build was deleted, or may not be seen any more
                return
            if text:
                yield text
            if last:
                yield CLOSE
                return
            if not await BUILD_CHANGES.changed(self.build, self.seen, timeout=SILENCE):
                yield ": waiting\n\n"

    def look(self) -> tuple[str, bool]:
        """Return the next message, "" for none, and whether it is the last one."""
        if time.monotonic() - self.checked >= CHECK_INTERVAL:
            self.actor = renewed(self.actor)
            self.checked = time.monotonic()
        state = states_of([self.build]).get(self.build)
        found = (
            Build.objects.visible_to(self.actor)
            .select_related("environment__namespace", "requested_by", "origin")
            .defer("source", "log_archive", "verdicts")
            .get(pk=self.build)
        )
        if state == self.seen:
            return "", False
        self.seen = state
        context = live_context(self.actor, found)
        more = False
        if self.next_line is not None:
            total = total_of(found)
            window = lines_from(found, self.next_line, total=total, limit=LINES)
            context["log"] = window
            self.next_line += len(window.lines)
            more = self.next_line < total
        if more:
            self.seen = None
        context["live"] = True
        text = render_to_string("environments/_build_live.html", context)
        settled = isinstance(state, tuple) and bool(state[-1])
        return event(text), found.finished and settled and not more


def event(text: str) -> str:
    """Return the text as one unnamed server-sent event."""
    return "".join(f"data: {line}\n" for line in text.splitlines() if line.strip()) + "\n"
