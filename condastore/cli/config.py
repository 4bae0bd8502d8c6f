"""Which server this person talks to, and with which token: kept in one private file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from condastore.cli.errors import CommandError, Status

#: Default address of `condastore up`.
DEFAULT_URL = "http://127.0.0.1:8470"
URL_VARIABLE, TOKEN_VARIABLE, DATA_VARIABLE, ENVS_VARIABLE = (
    "CONDASTORE_URL",
    "CONDASTORE_TOKEN",
    "CONDASTORE_DATA",
    "CONDASTORE_ENVS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """`own_token` is False for a token that `condastore login` made, and `logout` may revoke."""

    url: str
    token: str = ""
    username: str = ""
    own_token: bool = True


def normal_url(text: str) -> str:
    """`HOST[:PORT]` or a URL, as `scheme://host[:port][/path]` without a slash at the end.

    Plain names mean https, except on this machine.
    """
    text = text.strip()
    if "://" not in text:
        text = f"{'http' if is_local(f'//{text}') else 'https'}://{text}"
    try:
        parts = urlsplit(text)
        netloc = parts.hostname and parts.netloc.rpartition("@")[2].lower()
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        netloc = ""
    if not netloc or parts.scheme not in {"http", "https"}:
        raise CommandError(
            f"{text!r} is not the address of a server.",
            status=Status.USAGE,
            code="invalid-input",
            hint=f"Write it like {DEFAULT_URL} or https://condastore.example.org.",
        )
    return urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))


def is_local(url: str) -> bool:
    """True for an address of this machine."""
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def path() -> Path:
    from platformdirs import user_config_path

    return user_config_path("condastore", appauthor=False) / "servers.json"


def _read() -> dict[str, Any]:
    try:
        content = json.loads(path().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CommandError(
            f"The file of your servers cannot be read: {error}",
            status=Status.INVALID,
            code="invalid-input",
            where=str(path()),
            hint="Correct or remove it, then sign in again with `condastore login`.",
        ) from error
    return content if isinstance(content, dict) else {}


def _write(content: Mapping[str, Any]) -> None:
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    # Private from its first byte on, and whole: it is written beside and renamed over.
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(file, "w") as stream:
            json.dump(content, stream, indent=2)
            stream.write("\n")
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def stored(url: str) -> Server | None:
    """Return the stored settings of this server from an earlier sign-in."""
    known = _read().get("servers", {}).get(url)
    if not isinstance(known, dict):
        return None
    return Server(
        url=url,
        token=str(known.get("token", "")),
        username=str(known.get("username", "")),
        own_token=bool(known.get("own_token", True)),
    )


def current() -> Server:
    """The environment's variables win over the server of the last sign-in.

    A stored token goes only to the server that it was stored for.
    """
    url = os.environ.get(URL_VARIABLE, "") or str(_read().get("current") or DEFAULT_URL)
    url = normal_url(url)
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return Server(url=url, token=token)
    return stored(url) or Server(url=url)


def remember(server: Server) -> None:
    """Keep the sign-in, and make this server the one that commands go to."""
    content = _read()
    servers = content.setdefault("servers", {})
    servers[server.url] = {
        "token": server.token,
        "username": server.username,
        "own_token": server.own_token,
    }
    _write(content | {"current": server.url})


def forget(url: str) -> None:
    content = _read()
    content.get("servers", {}).pop(url, None)
    if content.get("current") == url:
        content.pop("current")
    _write(content)


def kept_folder() -> Path | None:
    """Where `condastore sync` keeps environments on this machine, if that is said."""
    named = os.environ.get(ENVS_VARIABLE)
    return Path(named).absolute() if named else None


def data_folder() -> Path | None:
    """This machine's data folder: the one that is named, or the default one where it exists."""
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named).absolute()
    from platformdirs import user_data_path

    folder = user_data_path("condastore", appauthor=False)
    return folder if folder.is_dir() else None
