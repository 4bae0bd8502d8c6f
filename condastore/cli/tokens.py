"""`condastore login`, `logout`, `whoami` and `token`: who acts, and with which secret."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from typing import Annotated

import typer

from condastore.cli import config, queries, render
from condastore.cli.client import Api, connect, not_signed_in
from condastore.cli.config import Server
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import not_found
from condastore.cli.namespaces import Role
from condastore.cli.options import AsJson

app = typer.Typer(help="API tokens, with which programs sign in.", no_args_is_help=True)


NO_TOKENS = "You have no tokens yet.\nCreate one: condastore token create NAME"


def add_to(root: typer.Typer) -> None:
    for command in (login, logout, whoami):
        root.command()(command)
    root.add_typer(app, name="token")


def login(
    url: Annotated[
        str, typer.Argument(metavar="[URL]", help="The server.", show_default=False)
    ] = "",
    token: Annotated[
        str, typer.Option(help="Sign in with this API token; - reads it from stdin.")
    ] = "",
    username: Annotated[str, typer.Option("--username", "-u", help="Asked for if left out.")] = "",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from stdin; do not ask.")
    ] = False,
    browser: Annotated[
        bool,
        typer.Option("--browser", help="Approve it in a browser, here or on another device."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sign in to a server; later commands go to it.

    With the browser where the server has single sign-on, else with a password.
    """
    target = config.normal_url(url) if url else config.current().url
    made = ""
    if token:
        secret = token if token != "-" else sys.stdin.readline().strip()  # noqa: S105
    elif browser or (not username and Api(Server(url=target)).prefers_browser()):
        made = _token_name()
        secret = _approved(Api(Server(url=target)), made)
    else:
        username = username or _asked("Username", as_json)
        if password_stdin:
            password = sys.stdin.readline().rstrip("\r\n")
        else:
            password = _asked("Password", as_json, hidden=True)
        made = _token_name()
        secret = Api(Server(url=target)).sign_in(username, password, made)
    api = Api(Server(url=target, token=secret))
    me = api.ask(queries.ME)["me"]
    if me is None:
        raise CommandError(
            "The server does not know this token.",
            status=Status.REFUSED,
            code="token-invalid",
            hint="Make a new one, or sign in with your password.",
        )
    server = Server(url=target, token=secret, username=me["username"], own_token=not made)
    config.remember(server)
    if os.environ.get(config.TOKEN_VARIABLE):
        render.warn(f"note: {config.TOKEN_VARIABLE} is set, and wins over this sign-in")
    text = f"Signed in to {target} as {me['username']}."
    render.answer({"url": target} | me, as_json, lambda: render.say(text))


def logout(as_json: AsJson = False) -> None:
    """Forget the sign-in; the token that `login` made is revoked."""
    server = config.stored(config.current().url)
    if server is None:
        raise CommandError(
            f"You are not signed in to {config.current().url}.",
            status=Status.REFUSED,
            code="not-signed-in",
            hint=f"Sign in: `condastore login {config.current().url}`.",
        )
    revoked = False
    if not server.own_token:
        try:
            revoked = _revoke_own(Api(server))
        except CommandError as error:
            render.warn(f"note: the token could not be revoked: {error.message}")
    config.forget(server.url)
    document = {"url": server.url, "revoked": revoked}
    render.answer(document, as_json, lambda: render.say(f"Signed out of {server.url}."))


def whoami(as_json: AsJson = False) -> None:
    """Show who you are on the server, and your roles."""
    api = connect()
    me = api.ask(queries.ME)["me"]
    if me is None:
        raise not_signed_in(api.server.url)

    def human() -> None:
        roles = [
            f"{held['namespace']['name']} ({', '.join(role.lower() for role in held['roles'])})"
            for held in me["namespaces"]
        ]
        render.pairs(
            [
                ("user", me["username"]),
                ("server", api.server.url),
                ("email", me["email"]),
                ("token", me["tokenName"]),
                ("superuser", "yes" if me["isSuperuser"] else ""),
                ("roles", ", ".join(roles)),
            ]
        )

    render.answer({"url": api.server.url} | me, as_json, human)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List your tokens."""
    api = connect()
    me = api.ask(queries.TOKENS)["me"]
    if me is None:
        raise not_signed_in(api.server.url)
    rows = [
        (
            one["id"],
            one["name"],
            f"{one['hint']}...",
            (one["role"] or "").lower(),
            ", ".join(one["namespaces"]),
            render.moment(one["expiresAt"])[:10],
            render.when(one["lastUsedAt"]),
            "revoked" if one["revoked"] else "",
        )
        for one in me["tokens"]
    ]
    columns = ["#id", "name", "-secret", "role", "~namespaces", "expires", "-last used", ""]
    render.answer(me["tokens"], as_json, lambda: render.table(columns, rows, empty=NO_TOKENS))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.", show_default=False)],
    role: Annotated[
        Role | None,
        typer.Option(help="Limit it to the permissions of this role.", show_default=False),
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(help="It acts in this namespace only; may be repeated.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days until it expires.")] = 90,
    service_account: Annotated[
        str, typer.Option(help="It acts for this service account of yours.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Create a token; its secret is shown only once."""
    made = connect().change(
        queries.CREATE_TOKEN,
        name=name,
        role=role.name if role else None,
        namespaces=namespace or [],
        days=days,
        serviceAccount=service_account or None,
    )

    def human() -> None:
        render.say(made["secret"])
        until = render.moment(made["token"]["expiresAt"])
        render.warn(f"Keep it now: it is not shown again. It expires {until}.")

    render.answer(made, as_json, human)


@app.command("service-account")
def service_account(
    name: Annotated[str, typer.Argument(help="Its name.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Make an account of yours for a program: it holds roles of its own, and signs in by token."""
    made = connect().change(queries.CREATE_SERVICE_ACCOUNT, name=name)
    text = (
        f"Made the service account {made['username']}. Next: give it a role, and make its token:\n"
        f"  condastore namespace grant NAMESPACE {made['username']} ROLE\n"
        f"  condastore token create NAME --service-account {made['username']}"
    )
    render.answer(made, as_json, lambda: render.say(text))


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="Its name or id.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Revoke a token."""
    api = connect()
    me = api.ask(queries.TOKENS)["me"]
    if me is None:
        raise not_signed_in(api.server.url)
    usable = [one for one in me["tokens"] if not one["revoked"]]
    by_name = [one["id"] for one in usable if one["name"] == token]
    if not by_name and not token.isdigit():
        raise not_found(
            f"You have no token {token!r}.", hint="See yours with `condastore token list`."
        )
    gone = api.change(queries.REVOKE_TOKEN, id=by_name[0] if by_name else token)
    render.answer(gone, as_json, lambda: render.say(f"Revoked the token {gone['name']}."))


def _revoke_own(api: Api) -> bool:
    me = api.ask(queries.TOKENS)["me"]
    own = [one["id"] for one in me["tokens"] if one["name"] == me["tokenName"]] if me else []
    for token_id in own:
        api.change(queries.REVOKE_TOKEN, id=token_id)
    return bool(own)


def _approved(api: Api, name: str) -> str:
    """The token that a person lets this command line have, in a browser."""
    started = api.start_device(name)
    page, code = started["verification_uri"], started["user_code"]
    render.warn(f"Open {page} and enter the code {code}")
    if sys.stdin.isatty() and sys.stdout.isatty():
        import webbrowser

        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(started.get("verification_uri_complete") or page)
    return api.collect_device(started)


def _asked(what: str, as_json: bool, *, hidden: bool = False) -> str:
    if not sys.stdin.isatty():
        raise CommandError(
            f"{what} is needed, and there is no terminal to ask on.",
            status=Status.USAGE,
            code="invalid-input",
            hint="Use --token, or --username and --password-stdin.",
        )
    answer: str = typer.prompt(what, hide_input=hidden, err=as_json)
    return answer


def _token_name() -> str:
    """Such as `login-laptop-3f9a12`: a name that tells where it is used, and is taken by nobody."""
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname().lower())
    host = "-".join(part for part in host[:30].split("-") if part) or "here"
    return f"login-{host}-{secrets.token_hex(3)}"
