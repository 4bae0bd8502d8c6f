"""Which platform this installation links for, and which platforms a request means by default."""

from __future__ import annotations

import platform as machine
import sys
from collections.abc import Sequence

from django.conf import settings

_ARCHITECTURES = {"x86_64": "64", "amd64": "64", "aarch64": "aarch64", "arm64": "arm64"}


def own_platform() -> str:
    """conda's name of the machine that this process runs on."""
    architecture = machine.machine().lower()
    if sys.platform == "darwin":
        return "osx-arm64" if architecture == "arm64" else "osx-64"
    return f"linux-{_ARCHITECTURES.get(architecture, architecture)}"


def default_platforms() -> tuple[str, ...]:
    return tuple(settings.DEFAULT_PLATFORMS) or (own_platform(),)


def to_link(platforms: Sequence[str]) -> str:
    """The platform of the folder: this machine's where the lock has it, else the first."""
    own = own_platform()
    return own if own in platforms else platforms[0]
