"""The channel name `defaults`, which stands for several channels."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: conda's channels for `defaults` if it is not configured.
CONDA_DEFAULTS = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")

_R_PACKAGE = re.compile(r"r|_?r-.+|mro-.+|rstudio", re.IGNORECASE)


def channels_of(name: str, default_channels: Sequence[str]) -> tuple[str, ...]:
    """Return the channels that `name` stands for: itself, unless it is `defaults`."""
    return tuple(default_channels) if name == "defaults" else (name,)


def default_channel_of(package: str, default_channels: Sequence[str]) -> str:
    """Return the one of `default_channels` that `defaults::PACKAGE` asks for.

    A requirement names one channel. Anaconda puts R and its packages into `pkgs/r` and everything
    else into `pkgs/main`, so the name decides.
    """
    if _R_PACKAGE.fullmatch(package):
        for channel in default_channels:
            if channel.rstrip("/").endswith("/r"):
                return channel
    return default_channels[0]
