"""`condastore policy`: what is allowed where, and what a rule would do before it is switched on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import Json, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import not_visible
from condastore.cli.options import AsJson, Limit

app = typer.Typer(
    help="Rules for packages, and simulations of their effects.", no_args_is_help=True
)


class Effect(StrEnum):
    """What a rule does with what it objects to."""

    ENFORCE = "enforce"
    ASK = "ask"
    WARN = "warn"


Place = Annotated[
    str,
    typer.Argument(
        metavar="[NAMESPACE]", help="Without it: the whole installation.", show_default=False
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--kind", help="channels, packages-denied, licenses, age, ...", show_default=False
    ),
]
Does = Annotated[Effect, typer.Option("--effect", help="Refuse, hold for approval, or warn.")]
Named = Annotated[str, typer.Option("--name", help="How people call it.", show_default=False)]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the rule: text, or JSON; again for one more value of a list.",
        show_default=False,
    ),
]
Rules = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help="JSON: one rule, or a list of them; - for stdin.", show_default=False
    ),
]
Comment = Annotated[str, typer.Option("--comment", help="Why; it is kept with the version.")]
RuleId = Annotated[str, typer.Argument(metavar="RULE", help="The rule's id.", show_default=False)]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the policies that you may see, with their rules."""
    found = connect().every(queries.POLICIES, "policies")
    rows = [
        (one["namespace"] or "(everywhere)", *_row(rule)) for one in found for rule in one["rules"]
    ]
    render.answer(
        found,
        as_json,
        lambda: render.table(["namespace", *_COLUMNS], rows, empty=NO_RULES),
    )


NO_RULES = "No rules yet.\nAdd one: condastore policy add [NAMESPACE] --kind KIND"
_COLUMNS = ("rule", "effect", "kind", "-name", "~meaning")


def _row(rule: Json) -> tuple[Any, ...]:
    effect = rule["effect"] if rule["enabled"] else "off"
    return (rule["id"], effect, rule["kind"], rule["name"], rule["summary"])


@app.command()
def show(namespace: Place = "", as_json: AsJson = False) -> None:
    """Show everything that holds in a namespace, or in the installation."""
    api = connect()
    found = api.ask(queries.POLICY, namespace=namespace or None)["policy"]
    if found is None:
        raise not_visible(
            api,
            f"There is no namespace {namespace!r} that you may see."
            if namespace
            else "You may not see the rules of this installation.",
            hint="See yours with `condastore namespace list`.",
        )

    def human() -> None:
        for title, rules in (
            ("Rules of the installation", found["inherited"]),
            (f"Rules of {namespace}" if namespace else "Rules", found["rules"]),
        ):
            if rules:
                render.say(f"{title}:")
                render.table(_COLUMNS, [_row(rule) for rule in rules], empty="")
        if not found["inherited"] and not found["rules"]:
            render.say("No rules are set.")
        if found["builtIn"]:
            render.say("Built-in rules, in force unless a rule of the same kind is set:")
            rows = [
                ("-", rule["effect"], rule["kind"], rule["name"], rule["summary"])
                for rule in found["builtIn"]
            ]
            render.table(_COLUMNS, rows, empty="")
        render.say(f"version {found['version']}")

    render.answer(found, as_json, human)


@app.command()
def history(namespace: Place = "", limit: Limit = 0, as_json: AsJson = False) -> None:
    """Show who changed the rules, when and why."""
    found = connect().every(
        queries.POLICY_VERSIONS, "policyVersions", limit=limit, namespace=namespace or None
    )
    rows = [
        (
            one["number"],
            render.when(one["changedAt"]),
            one["changedBy"] or "",
            one["change"],
            one["comment"],
        )
        for one in found
    ]
    columns = ["#version", "when", "who", "~change", "~comment"]
    render.answer(
        found, as_json, lambda: render.table(columns, rows, empty="The rules were never changed.")
    )


@app.command()
def restore(
    number: Annotated[
        int,
        typer.Argument(metavar="VERSION", help="As `policy history` shows it.", show_default=False),
    ],
    namespace: Place = "",
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Make the rules of an older version those of a new one; they hold at once."""
    made = connect().change(
        queries.RESTORE_POLICY, namespace=namespace or None, number=number, comment=comment
    )

    def human() -> None:
        rows = [_row(rule) for rule in made["rules"]]
        render.table(_COLUMNS, rows, empty="No rules are set.")
        render.say(f"version {made['version']}")

    render.answer(made, as_json, human)


@app.command()
def add(
    namespace: Place = "",
    kind: Kind = "",
    effect: Does = Effect.ENFORCE,
    name: Named = "",
    settings: Settings = [],  # noqa: B006 - typer makes a new one
    file: Rules = None,
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Add a rule to a namespace, or to the installation; it holds at once."""
    api = connect()
    made = [
        api.change(queries.ADD_RULE, namespace=namespace or None, comment=comment, **rule)
        for rule in _rules(kind, effect, name, settings, file)
    ]
    render.answer(
        made,
        as_json,
        lambda: render.table(_COLUMNS, [_row(rule) for rule in made], empty=""),
    )


@app.command()
def change(
    rule: RuleId,
    effect: Annotated[
        Effect | None, typer.Option("--effect", help="Another effect.", show_default=False)
    ] = None,
    name: Named = "",
    settings: Settings = [],  # noqa: B006 - typer makes a new one
    enabled: Annotated[
        bool | None, typer.Option("--on/--off", help="Switch it on or off.", show_default=False)
    ] = None,
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Change a rule; `--set` replaces all its settings."""
    changed = connect().change(
        queries.CHANGE_RULE,
        id=rule,
        effect=effect.value if effect else None,
        name=name or None,
        settings=_settings(settings) if settings else None,
        enabled=enabled,
        comment=comment,
    )
    render.answer(changed, as_json, lambda: render.table(_COLUMNS, [_row(changed)], empty=""))


@app.command()
def remove(rule: RuleId, comment: Comment = "", as_json: AsJson = False) -> None:
    """Remove a rule."""
    removed = connect().change(queries.REMOVE_RULE, id=rule, comment=comment)
    render.answer(removed, as_json, lambda: render.say(f"Removed the rule “{removed['name']}”."))


@app.command()
def simulate(
    namespace: Place = "",
    kind: Kind = "",
    effect: Does = Effect.ENFORCE,
    settings: Settings = [],  # noqa: B006 - typer makes a new one
    file: Rules = None,
    as_json: AsJson = False,
) -> None:
    """Hold rules against all current builds and change nothing; without one: those in force."""
    given = kind or settings or file
    rules = _rules(kind, effect, "tried", settings, file) if given else []
    found = connect().change(
        queries.SIMULATE, repeat=True, namespace=namespace or None, rules=rules
    )

    def human() -> None:
        render.say(
            f"{found['environments']} environments: {found['blocked']} would be blocked, "
            f"{found['asked']} would wait for approval, {found['warned']} would be warned."
        )
        rows = [
            (
                f"{one['namespace']}/{one['environment']}:{one['build']}",
                hit["effect"],
                hit["reason"],
                " → ".join(hit["chain"]),
            )
            for one in found["touched"]
            for hit in one["hits"]
        ]
        if rows:
            render.table(["build", "effect", "~reason", "~required by"], rows, empty="")
        touched = found["blocked"] + found["asked"] + found["warned"]
        if touched > len(found["touched"]):
            render.say(f"And {touched - len(found['touched'])} more environments.")

    render.answer(found, as_json, human)


def _rules(
    kind: str, effect: Effect, name: str, settings: Sequence[str], file: Path | None
) -> list[Json]:
    """The rules that options or a file describe."""
    if file is None:
        if not kind:
            raise CommandError(
                "Say which kind of rule, with --kind, or give a file with --file.",
                status=Status.USAGE,
                code="invalid-input",
                hint="Kinds: channels, packages-denied, packages-allowed, licenses, age, "
                "constraints, pins, required, install-scripts, size, pypi, pip-sources, "
                "unlisted-packages, path-conflicts.",
            )
        content = {"kind": kind, "effect": effect.value, "name": name or kind}
        return [{**content, "settings": _settings(settings)}]
    try:
        text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text()
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{file} cannot be read: {error}",
            status=Status.USAGE,
            code="invalid-input",
            hint='Write JSON: [{"kind": "age", "effect": "ask", "name": "new", "settings": {}}].',
        ) from None
    rules = found if isinstance(found, list) else [found]
    for rule in rules:
        unknown = not isinstance(rule, dict) or set(rule) - {"kind", "effect", "name", "settings"}
        if unknown or "kind" not in rule:
            raise CommandError(
                f"{file}: a rule has a kind, an effect, a name and settings, and nothing else.",
                status=Status.USAGE,
                code="invalid-input",
            )
    return [
        {
            "kind": rule["kind"],
            "effect": rule.get("effect", effect.value),
            "name": rule.get("name", rule["kind"]),
            "settings": rule.get("settings", {}),
        }
        for rule in rules
    ]


def _settings(pairs: Sequence[str]) -> Json:
    found: Json = {}
    for pair in pairs:
        key, mark, text = pair.partition("=")
        if not mark or not key:
            raise CommandError(
                f"{pair!r} is not a setting: write KEY=VALUE.",
                status=Status.USAGE,
                code="invalid-input",
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if key in found:
            before = found[key]
            found[key] = [*(before if isinstance(before, list) else [before]), value]
        else:
            found[key] = value
    return found
