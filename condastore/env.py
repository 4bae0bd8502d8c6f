"""Typed reads of the environment: every setting is a `CONDASTORE_*` variable, read once.

`SETTINGS` collects what was declared, so that one table documents all of it and a test can compare.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from django.core.exceptions import ImproperlyConfigured
from environs import Env, EnvError

PREFIX = "CONDASTORE_"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One variable as an operator sees it."""

    name: str
    kind: str
    default: str
    help: str


SETTINGS: dict[str, Setting] = {}
#: Files that secrets were read from, by the variable that names each.
SECRET_FILES: dict[str, Path] = {}
_env = Env()


def _read(name: str, kind: str, default: object, help_: str, parse: Callable[[str], T]) -> T:
    full = PREFIX + name
    shown = "" if default is None else str(default)
    SETTINGS[full] = Setting(name=full, kind=kind, default=shown, help=help_)
    try:
        return parse(full)
    except (EnvError, ValueError) as error:
        raise ImproperlyConfigured(f"{full} must be a {kind}: {error}") from error


def text(name: str, default: str, help_: str) -> str:
    return _read(name, "text", default, help_, lambda full: _env.str(full, default))


def flag(name: str, default: bool, help_: str, *, shown: str = "") -> bool:
    return _read(name, "flag", shown or default, help_, lambda full: _env.bool(full, default))


def choice(name: str, default: str, options: Sequence[str], help_: str) -> str:
    """One of `options`."""

    def parse(full: str) -> str:
        given = str(_env.str(full, default)).strip().lower()
        if given not in options:
            raise ValueError(f"{given!r} is not one of {', '.join(options)}")
        return given

    return _read(name, f"choice of {' or '.join(options)}", default, help_, parse)


def number(name: str, default: int, help_: str) -> int:
    return _read(name, "number", default, help_, lambda full: _env.int(full, default))


def words(name: str, default: str, help_: str) -> list[str]:
    """Words separated by commas."""
    return _read(
        name,
        "list",
        default,
        help_,
        lambda full: [word.strip() for word in _env.str(full, default).split(",") if word.strip()],
    )


def seconds(name: str, default: float, help_: str) -> timedelta:
    return _read(
        name,
        "number of seconds",
        default,
        help_,
        lambda full: timedelta(seconds=_env.float(full, default)),
    )


def folder(name: str, default: Path, help_: str, *, shown: str = "") -> Path:
    return _read(
        name, "folder", shown or default, help_, lambda full: Path(_env.str(full, str(default)))
    )


def secret(name: str, help_: str) -> str:
    """A secret from the variable, or from the file that its `_FILE` twin names; "" if neither."""

    def parse(full: str) -> str:
        if value := _env.str(full, ""):
            return value
        if path := os.environ.get(full + "_FILE"):
            SECRET_FILES[full + "_FILE"] = Path(path)
            try:
                return Path(path).read_text().strip()
            except OSError as error:
                raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        return ""

    return _read(name, "secret (or NAME_FILE)", None, help_, parse)
