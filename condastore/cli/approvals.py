"""`condastore approval`: packages that need a decision, and the decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import Json, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import not_found, not_visible
from condastore.cli.options import AsJson, Limit
from condastore.cli.prompts import required_text

app = typer.Typer(
    help="Requests for packages that need approval, and decisions on them.", no_args_is_help=True
)

Ids = Annotated[
    list[str], typer.Argument(metavar="ID...", help="As the list shows them.", show_default=False)
]
Reason = Annotated[
    str, typer.Option("--reason", help="Reason, shown to those who wait.", show_default=False)
]
Everywhere = Annotated[bool, typer.Option("--everywhere", help="In all namespaces.")]
Spec = Annotated[str, typer.Option(help="Cover all that this MatchSpec matches.")]


class Scope(StrEnum):
    BUILD = "build"
    VERSION = "version"


@app.command("list")
def list_(
    namespace: Annotated[str, typer.Option(help="Of this namespace only.")] = "",
    state: Annotated[
        str, typer.Option(help="open, second, approved, rejected, withdrawn, or all.")
    ] = "open",
    search: Annotated[str, typer.Option(help="A part of the package's name.")] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the requests of the namespaces that you may see."""
    states = {"open": ["OPEN", "SECOND"], "all": []}.get(state.lower(), [state.upper()])
    wanted: Json = {"namespace": namespace, "search": search, "state": states}
    filters = {name: value for name, value in wanted.items() if value}
    found = connect().every(
        queries.APPROVALS, "approvalRequests", limit=limit, filters=filters or None
    )
    rows = [
        (
            one["id"],
            one["namespace"],
            f"{one['name']} {one['version']}".strip(),
            one["state"],
            " -> ".join(one["chain"]),
            len(one["waiting"]),
            render.when(one["openedAt"]),
        )
        for one in found
    ]
    columns = ["#id", "namespace", "package", "state", "~required by", "#waiting", "-since"]
    narrowed = namespace or search or state.lower() != "open"
    empty = "No approval request matches." if narrowed else "No approval requests are open."
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def show(
    request: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show a request: the package, who asked for it and why, and who decides."""
    api = connect()
    found = api.ask(queries.APPROVAL, id=request)["approvalRequest"]
    if found is None:
        raise not_visible(
            api,
            f"There is no request {request!r} that you may see.",
            hint="See them with `condastore approval list`.",
        )
    render.answer(found, as_json, lambda: _show(found))


def _show(found: Json) -> None:
    decision = found["decision"] or {}
    scripts = found["installScripts"]
    until = render.moment(decision.get("expiresAt"))
    render.pairs(
        [
            ("request", found["id"]),
            ("namespace", found["namespace"]),
            ("package", f"{found['name']} {found['version']} {found['build']}".strip()),
            ("channel", found["channel"]),
            ("license", found["license"]),
            ("size", render.size(found["size"]) if found["size"] != "0" else ""),
            ("published", render.moment(found["publishedAt"])),
            ("first seen", render.moment(found["firstSeenAt"])),
            ("install scripts", "not examined yet" if scripts is None else ", ".join(scripts)),
            ("required by", " -> ".join(found["chain"])),
            ("reason", found["reason"]),
            ("state", found["state"]),
            ("approved already", ", ".join(found["approvedVersions"])),
            ("environments", found["environments"]),
            ("may decide", ", ".join(found["deciders"])),
            ("decided by", decision.get("decidedBy")),
            ("decision", decision.get("reason")),
            ("until", until),
        ]
    )
    if found["waiting"]:
        render.say()
        rows = [
            (one["build"], one["state"], one["askedBy"], render.moment(one["at"]), one["note"])
            for one in found["waiting"]
        ]
        render.table(["build", "state", "submitted by", "-since", "~purpose"], rows, empty="")


@app.command()
def approve(
    requests: Ids,
    reason: Reason = "",
    scope: Annotated[Scope, typer.Option(help="These bytes, or this version.")] = Scope.VERSION,
    spec: Spec = "",
    everywhere: Everywhere = False,
    until: Annotated[
        str,
        typer.Option(metavar="WHEN", help="2026-12-31, a time, or a number of days: 30d."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Approve packages; the builds that wait for them go on."""
    _decide(True, requests, reason, scope, spec, everywhere, _moment(until), as_json)


@app.command()
def reject(
    requests: Ids,
    reason: Reason = "",
    scope: Annotated[Scope, typer.Option(help="These bytes, or this version.")] = Scope.VERSION,
    spec: Spec = "",
    everywhere: Everywhere = False,
    as_json: AsJson = False,
) -> None:
    """Reject packages; the builds that wait for them fail with the reason."""
    _decide(False, requests, reason, scope, spec, everywhere, None, as_json)


@app.command()
def second(
    requests: Ids,
    as_json: AsJson = False,
) -> None:
    """Agree, as another person, with approvals that need two."""
    api = connect()
    agreed = []
    for key in requests:
        found = api.ask(queries.APPROVAL, id=key)["approvalRequest"]
        if found is None or found["state"] != "SECOND":
            raise not_found(f"The request {key} does not wait for a second person.")
        agreed.append(api.change(queries.SECOND, id=found["decision"]["id"]))
    render.answer(agreed, as_json, lambda: render.say(f"Agreed with {len(agreed)}."))


@app.command()
def explain(
    request: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    note: Annotated[
        str, typer.Option("--note", help="Explanation for the approvers.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Explain to the approvers what a package is needed for."""
    note = required_text(note, option="--note")
    found = connect().change(queries.EXPLAIN_REQUEST, id=request, note=note)
    render.answer(found, as_json, lambda: _show(found))


@app.command()
def decisions(
    namespace: Annotated[str, typer.Option(help="Of this namespace only.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Those not in force, too.")] = False,
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List what was decided, the newest first."""
    filters: Json = {"namespace": namespace or None, "inForce": None if every else True}
    found = connect().every(queries.DECISIONS, "decisions", limit=limit, filters=filters)
    rows = [
        (
            one["id"],
            one["namespace"] or "(everywhere)",
            one["spec"] or one["name"],
            "approved" if one["approved"] else "rejected",
            one["decidedBy"],
            render.moment(one["expiresAt"]),
            f"revoked by {one['revokedBy']}" if one["revokedAt"] else "",
            one["reason"],
        )
        for one in found
    ]
    columns = ["#id", "namespace", "package", "decision", "-by", "-until", "", "~reason"]
    empty = "No decision matches." if namespace else "Nothing has been decided yet."
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def revoke(
    decision: Annotated[
        str,
        typer.Argument(
            metavar="DECISION", help="As `approval decisions` shows it.", show_default=False
        ),
    ],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Revoke a decision: new builds need another one; running builds continue."""
    reason = required_text(reason, option="--reason")
    gone = connect().change(queries.REVOKE_DECISION, id=decision, reason=reason)
    name = gone["spec"] or gone["name"]
    render.answer(gone, as_json, lambda: render.say(f"The decision on {name} no longer holds."))


def _decide(
    approve: bool,
    requests: list[str],
    reason: str,
    scope: Scope,
    spec: str,
    everywhere: bool,
    expires_at: str | None,
    as_json: bool,
) -> None:
    reason = required_text(reason, option="--reason")
    decided = connect().change(
        queries.DECIDE,
        requests=requests,
        approve=approve,
        reason=reason,
        scope="SPEC" if spec else scope.name,
        spec=spec,
        everywhere=everywhere,
        expiresAt=expires_at,
    )

    def human() -> None:
        for one in decided["requests"]:
            said = "a second person must agree" if one["state"] == "SECOND" else one["state"]
            render.say(f"{one['name']} {one['version']} in {one['namespace']}: {said}")

    render.answer(decided, as_json, human)


def _moment(text: str) -> str | None:
    """`30d`, a date (until its end) or a time, as the API takes it."""
    if not text:
        return None
    if text.lower().endswith("d") and text[:-1].isdigit() and len(text) < 7:
        found: Any = datetime.now(UTC) + timedelta(days=int(text[:-1]))
    else:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise CommandError(
                f"{text!r} is not a date or duration.",
                status=Status.USAGE,
                code="invalid-input",
                where="--until",
                hint="Write it like 2026-12-31, 2026-12-31T18:00 or 30d.",
            ) from None
        if len(text) == 10:
            found += timedelta(days=1)
        found = found.astimezone()
    return str(found.isoformat())
