"""`condastore audit`: list, verify, export and prune the audit log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.options import AsJson, Limit, Yes

app = typer.Typer(help="The audit log: search, verify, export, prune.", no_args_is_help=True)

Actor = Annotated[str, typer.Option(help="What this person did.")]
Action = Annotated[str, typer.Option(help="Actions that begin so: build., or build.submit.")]
Target = Annotated[str, typer.Option(help="What begins so, such as NAMESPACE/ENV.")]
InNamespace = Annotated[str, typer.Option("--namespace", help="Of this namespace.")]
Since = Annotated[str, typer.Option(help="From this day or moment on: 2026-01-31.")]
Until = Annotated[str, typer.Option(help="Before this day or moment.")]
Refused = Annotated[
    bool | None,
    typer.Option("--refused/--allowed", help="What was not allowed, or was.", show_default=False),
]


@app.command("list")
def list_(
    actor: Actor = "",
    action: Action = "",
    target: Target = "",
    namespace: InNamespace = "",
    since: Since = "",
    until: Until = "",
    refused: Refused = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List events, the newest first: of the namespaces that you run, or of all."""
    filters = {
        "actor": actor or None,
        "action": action or None,
        "target": target or None,
        "namespace": namespace or None,
        "since": _moment(since),
        "until": _moment(until),
        "refused": refused,
    }
    found = connect().every(queries.AUDIT_EVENTS, "auditEvents", limit=limit, filters=filters)
    rows = [
        (
            one["position"],
            render.moment(one["at"]),
            one["username"],
            one["action"],
            one["target"],
            "refused" if one["refused"] else "",
            one["address"],
        )
        for one in found
    ]
    columns = ["#event", "when", "who", "action", "~target", "", "-from"]
    narrowed = any(value is not None for value in filters.values())
    empty = (
        "No event matches."
        if narrowed
        else "You see no audit events: they are for administrators of a namespace."
    )
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


#: Lines of an anchor that one request compares.
ANCHOR_LINES = 1_000


@app.command()
def verify(
    anchor: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also compare the log with the checkpoints that were stored in this file.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify that the log is as it was written; with --anchor, that nobody set it back."""
    api = connect()
    found = api.ask(queries.VERIFY_AUDIT)["verifyAudit"]
    found["anchor"] = compared = _compared(api, anchor) if anchor else None

    def human() -> None:
        told = [
            ("intact", "yes" if found["intact"] else "NO"),
            ("verified", f"{found['checked']} events, from {int(found['start']) + 1} on"),
            ("newest", f"{found['end']}  {found['digest']}"),
        ]
        if compared:
            newest = f", the newest of {render.moment(compared['newest'])}"
            told += [
                ("as in the anchor", "yes" if compared["intact"] else "NO"),
                (
                    "compared",
                    f"{compared['checked']} checkpoints{newest * bool(compared['newest'])}",
                ),
            ]
        render.pairs(told)

    render.answer(found, as_json, human)
    if fault := found["fault"]:
        raise CommandError(
            fault["message"],
            status=Status.FAILED,
            code="audit-damaged",
            where=f"event {fault['position']}",
            hint="The events before it are as they were written. Compare with an export.",
        )
    if compared and (fault := compared["fault"]):
        raise CommandError(
            fault["message"],
            status=Status.FAILED,
            code="audit-damaged",
            where=f"line {fault['line']} of {anchor}",
            hint="The checkpoints before it agree with the log.",
        )


def _compared(api: Api, path: Path) -> dict[str, Any]:
    """Compare the checkpoints of a file with the log, a part at a time."""
    total: dict[str, Any] = {"intact": True, "checked": 0, "newest": None, "fault": None}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise CommandError(
            f"{path} cannot be read: {error.strerror}.", status=Status.USAGE, code="invalid-input"
        ) from None
    for start in range(0, len(lines), ANCHOR_LINES):
        overlap = min(start, 1)  # so that the order between two parts is compared too
        part = lines[start - overlap : start + ANCHOR_LINES]
        texts = [line for _, line in part]
        found = api.ask(queries.VERIFY_AUDIT_ANCHOR, lines=texts)["verifyAuditAnchor"]
        total["checked"] += max(0, found["checked"] - overlap)
        total["newest"] = found["newest"] or total["newest"]
        if fault := found["fault"]:
            fault["line"] = part[fault["line"] - 1][0]
            return total | {"intact": False, "fault": fault}
    return total


@app.command()
def export(
    output: Annotated[
        str, typer.Option("--output", "-o", help="File to write; - for stdout.")
    ] = "-",
    actor: Actor = "",
    action: Action = "",
    target: Target = "",
    namespace: InNamespace = "",
    since: Since = "",
    until: Until = "",
    refused: Refused = None,
) -> None:
    """Write events as lines of JSON, the oldest first."""
    asked = {
        "actor": actor,
        "action": action,
        "target": target,
        "namespace": namespace,
        "since": _moment(since) or "",
        "until": _moment(until) or "",
        "refused": "" if refused is None else str(refused).lower(),
    }
    parts = connect().stream("/api/audit", **{key: value for key, value in asked.items() if value})
    if output == "-":
        for part in parts:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        for part in parts:
            file.write(part)
    partial.replace(path)


@app.command()
def prune(
    before: Annotated[
        str, typer.Option(help="What is older goes: 2026-01-31.", show_default=False)
    ],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take away old events; the rest can still be verified. Export them first."""
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError(
                "This takes events away for good.",
                status=Status.USAGE,
                code="invalid-input",
                hint="Add --yes if you mean it.",
            )
        typer.confirm(f"Take away all events before {before}, for good?", abort=True, err=True)
    gone: dict[str, Any] = connect().change(queries.PRUNE_AUDIT, before=_moment(before))
    text = f"{gone['events']} events are gone; the log begins after event {gone['position']}."
    render.answer(gone, as_json, lambda: render.say(text))


def _moment(text: str) -> str | None:
    """In the form that the server takes: a day means its beginning, in UTC."""
    from datetime import UTC, datetime

    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"{text!r} is not a moment.",
            status=Status.USAGE,
            code="invalid-input",
            hint="Write 2026-01-31, or 2026-01-31T12:00:00+00:00.",
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
