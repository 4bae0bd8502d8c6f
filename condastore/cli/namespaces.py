"""`condastore namespace`: the owners of environments, and who holds which role in them."""

from __future__ import annotations

import re
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.exports import FORMATS
from condastore.cli.lookup import not_visible
from condastore.cli.options import AsJson, Limit, complete_namespace

app = typer.Typer(help="Namespaces, their quotas and their members' roles.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(metavar="NAMESPACE", show_default=False, autocompletion=complete_namespace),
]
User = Annotated[str, typer.Argument(metavar="[USER]", help="Who.", show_default=False)]
Group = Annotated[str, typer.Option("--group", help="A group, instead of a user.")]


class Role(StrEnum):
    """What a person may be in a namespace."""

    VIEWER = "viewer"
    DEVELOPER = "developer"
    APPROVER = "approver"
    ADMIN = "admin"


@app.command("list")
def list_(limit: Limit = 0, as_json: AsJson = False) -> None:
    """List the namespaces that you may see."""
    found = connect().every(queries.NAMESPACES, "namespaces", limit=limit)
    rows = [
        (
            one["name"],
            "personal" if one["personal"] else "shared",
            "yes" if one["public"] else "",
            one["environments"]["totalCount"],
            one["description"],
        )
        for one in found
    ]
    columns = ["namespace", "kind", "public", "#environments", "~description"]
    empty = (
        "You have no namespaces yet. Your own is created with your first environment:\n"
        "  condastore env build NAME -f environment.yml"
    )
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def create(
    name: Name,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    public: Annotated[
        bool, typer.Option("--public", help="Readable by everybody, signed in or not.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a namespace."""
    made = connect().change(
        queries.CREATE_NAMESPACE, name=name, description=description, public=public
    )
    render.answer(made, as_json, lambda: render.say(f"Created the namespace {made['name']}."))


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a namespace, what you may do in it, and who holds which role."""
    api = connect()
    found = api.ask(queries.NAMESPACE, name=name)["namespace"]
    if found is None:
        raise not_visible(
            api,
            f"There is no namespace {name!r} that you may see.",
            hint="See yours with `condastore namespace list`.",
        )

    def human() -> None:
        render.pairs(
            [
                ("namespace", found["name"]),
                ("description", found["description"]),
                ("kind", "personal" if found["personal"] else "shared"),
                ("public", "yes" if found["public"] else "no"),
                ("created", render.moment(found["createdAt"])),
                ("environments", found["environments"]["totalCount"]),
                ("eager artifacts", ", ".join(map(_format, found["eagerArtifacts"]))),
                ("base image", found["baseImage"] or "the default of the installation"),
                ("adds pip to Python", "yes" if found["addPipAsPythonDependency"] else "no"),
                ("you may", ", ".join(perm.lower() for perm in found["myPermissions"])),
            ]
        )
        render.say()
        _show_quotas(found["quotas"])
        if grants := found["grants"]:
            render.say()
            rows = [
                (grant["user"] or f"group {grant['group']}", grant["role"].lower())
                for grant in grants
            ]
            render.table(["who", "role"], rows, empty="")

    render.answer(found, as_json, human)


def _eager_formats(incomplete: str) -> list[str]:
    return [name for name in EAGER if name.startswith(incomplete)]


#: What can be made of every new build, as `env export` calls it; an image, for the registry.
EAGER = (*(name for name, form in FORMATS.items() if form.made), "image")


@app.command()
def eager(
    namespace: Name,
    formats: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FORMAT]...",
            help=f"Of {', '.join(EAGER)}.",
            show_default=False,
            autocompletion=_eager_formats,
        ),
    ] = None,
    nothing: Annotated[bool, typer.Option("--nothing", help="Only what is asked for.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which files are made of every new build, before anybody asks for them."""
    unknown = [name for name in formats or () if name not in EAGER]
    if unknown or bool(formats) == nothing:
        raise CommandError(
            f"{unknown[0]!r} is not made by the server." if unknown else "Say what is to be made.",
            status=Status.USAGE,
            code="invalid-input",
            hint=f"Use some of {', '.join(EAGER)}, or --nothing.",
        )
    kinds = [name.replace(".", "_").upper() for name in formats or ()]
    changed = connect().change(queries.EAGER, namespace=namespace, kinds=kinds, repeat=True)
    made = ", ".join(map(_format, changed["eagerArtifacts"])) or "only what is asked for"
    render.answer(changed, as_json, lambda: render.say(f"Made of every new build: {made}."))


@app.command("add-pip")
def add_pip(
    namespace: Name,
    on: Annotated[
        bool, typer.Option("--on/--off", help="Add pip to new solves with Python.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Set whether new solves add pip as a dependency of Python, as conda and mamba do.

    A specification with a `pip:` part gets it in any case.
    """
    changed = connect().change(queries.ADD_PIP, namespace=namespace, on=on, repeat=True)
    text = (
        f"New solves of {namespace} add pip as a dependency of Python."
        if changed["addPipAsPythonDependency"]
        else f"New solves of {namespace} no longer add pip beside Python."
    )
    render.answer(changed, as_json, lambda: render.say(text))


def _format(kind: str) -> str:
    return kind.lower().replace("_", ".")


@app.command()
def quota(
    namespace: Name,
    disk: Annotated[
        str, typer.Option("--bytes", help="Size on disk, such as 500 GB or 2 TiB.")
    ] = "",
    environments: Annotated[str, typer.Option(help="Environments.")] = "",
    builds_at_once: Annotated[str, typer.Option(help="Builds queued or running.")] = "",
    builds_a_day: Annotated[str, typer.Option(help="Builds within 24 hours.")] = "",
    as_json: AsJson = False,
) -> None:
    """Set quotas: a number, 0 for no limit, or `default` for the installation's."""
    given = {
        "bytes": disk,
        "environments": environments,
        "buildsAtOnce": builds_at_once,
        "buildsADay": builds_a_day,
    }
    limits = {name: _quota(text, size=name == "bytes") for name, text in given.items() if text}
    if not limits:
        raise CommandError(
            "Say which quota to set.",
            status=Status.USAGE,
            code="invalid-input",
            hint="See them with `condastore namespace show`.",
        )
    changed = connect().change(queries.SET_QUOTA, namespace=namespace, repeat=True, **limits)
    render.answer(changed, as_json, lambda: _show_quotas(changed["quotas"]))


_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(|[kKMGT]i?)[bB]?")


def _quota(text: str, *, size: bool) -> int | None:
    """Return the limit; None for the installation's default. `size`: it may have a unit."""
    if text == "default":
        return None
    if text.isdecimal():
        return int(text)
    found = _SIZE.fullmatch(text.strip()) if size else None
    if found is None:
        example = ", such as 500 MB or 2 GiB" if size else ""
        raise CommandError(
            f"{text!r} is not a quota.",
            status=Status.USAGE,
            code="invalid-input",
            hint=f"Write a {'size' if size else 'number'}{example}, 0 for no limit, or default.",
        )
    base = 1024 if found[2].endswith("i") else 1000
    power = " kmgt".index(found[2][:1].lower() or " ")
    return int(Decimal(found[1]) * base**power)


def _show_quotas(quotas: list[dict[str, Any]]) -> None:
    rows = []
    for one in quotas:
        of_bytes = one["kind"] == "BYTES"
        used, limit = (
            amount if amount is None else render.size(amount) if of_bytes else f"{int(amount):,}"
            for amount in (one["used"], one["limit"])
        )
        kind = "size" if of_bytes else one["kind"].lower().replace("_", " ")
        rows.append((kind, used, limit or "no limit", _fullness(one)))
    render.table(["quota", "#used", "#limit", ""], rows, empty="")


def _fullness(quota: dict[str, Any]) -> str:
    if quota["limit"] is None:
        return ""
    used, limit = int(quota["used"]), int(quota["limit"])
    if used > limit:
        return "over quota"
    return "full" if used == limit else "nearly full" if quota["near"] else ""


@app.command()
def grant(
    namespace: Name,
    user_and_role: Annotated[
        list[str],
        typer.Argument(
            metavar="[USER] ROLE",
            help="The user, unless --group names a group, and the role: "
            "viewer, developer, approver or admin.",
            show_default=False,
        ),
    ],
    group: Group = "",
    as_json: AsJson = False,
) -> None:
    """Grant a user or a group a role, which replaces the one they hold.

    A name that does not exist yet gets the role when its account or group is created.
    """
    *users, role_name = user_and_role
    if len(users) > 1:
        raise CommandError(
            "Name one user and one role.",
            status=Status.USAGE,
            code="invalid-input",
            hint="condastore namespace grant NAMESPACE USER ROLE",
        )
    user = users[0] if users else ""
    role = _role_of(role_name)
    holder = holder_of(user, group)
    changed = connect().change(
        queries.GRANT, namespace=namespace, role=role.name, repeat=True, **holder
    )
    text = f"{named(user, group)} is now {role.value} in {namespace}."
    render.answer(changed, as_json, lambda: render.say(text))


def _role_of(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise CommandError(
            f"{name!r} is not a role; the roles are {', '.join(Role)}.",
            status=Status.USAGE,
            code="invalid-input",
            hint="condastore namespace grant NAMESPACE USER ROLE",
        ) from None


@app.command()
def revoke(namespace: Name, user: User = "", group: Group = "", as_json: AsJson = False) -> None:
    """Revoke the role of a user or a group."""
    holder = holder_of(user, group)
    changed = connect().change(queries.REVOKE, namespace=namespace, repeat=True, **holder)
    text = f"{named(user, group)} has no role in {namespace} now."
    render.answer(changed, as_json, lambda: render.say(text))


def holder_of(user: str, group: str) -> dict[str, Any]:
    """The variables of a mutation that name a user or a group."""
    if bool(user) == bool(group):
        raise CommandError(
            "Name a user, or a group with --group.", status=Status.USAGE, code="invalid-input"
        )
    return {"user": user or None, "group": group or None}


def named(user: str, group: str) -> str:
    """How an answer calls them."""
    return user or f"The group {group}"
