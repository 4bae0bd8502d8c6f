"""Checker of the SCIM standard, imported by its test only as the import takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from wsgiref.headers import Headers

from scim2_client.engines.inprocess import InProcessResponse
from scim2_client.engines.wsgi import WSGISCIMClient
from scim2_tester import Status, check_server


def check(ask: Callable[..., Any]) -> tuple[int, list[tuple[str, str]]]:
    """How much was checked; the faults, by what was checked and the reason.

    `ask`: method, place, body and parameters in, the answer out; in this process.
    """

    class Checked(WSGISCIMClient):
        def request(self, method: str, url: str, **options: Any) -> InProcessResponse:
            place = urlsplit(url).path.removeprefix("/scim/v2").lstrip("/")
            parameters = {key: str(value) for key, value in (options.get("params") or {}).items()}
            answer = ask(method, place, options.get("json"), **parameters)
            headers = Headers(list(answer.items()))
            return InProcessResponse(answer.status_code, headers, answer.content)

    results = check_server(Checked(lambda *_: (), base_url="http://testserver/scim/v2"))
    good = {Status.SUCCESS, Status.SKIPPED}
    found = [(one.title, one.reason or "") for one in results if one.status not in good]
    return len(results), found
