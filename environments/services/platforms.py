"""Platform that this installation links for, and default platforms of a specification."""

from __future__ import annotations

import platform as machine
import sys
from collections.abc import Sequence

from django.conf import settings

_ARCHITECTURES = {"x86_64": "64", "amd64": "64", "aarch64": "aarch64", "arm64": "arm64"}


def own_platform() -> str:
    """Return the conda platform of the machine that runs this process."""
    architecture = machine.machine().lower()
    if sys.platform == "darwin":
        return "osx-arm64" if architecture == "arm64" else "osx-64"
    return f"linux-{_ARCHITECTURES.get(architecture, architecture)}"


def default_platforms() -> tuple[str, ...]:
    return tuple(settings.DEFAULT_PLATFORMS) or (own_platform(),)


def platform_to_link(platforms: Sequence[str]) -> str:
    """Return the platform to link: this machine's if the lock has it, otherwise the first."""
    own = own_platform()
    return own if own in platforms else platforms[0]
