"""Suggest unlisted channels that provide missing packages."""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.db.models import QuerySet

from condastore.errors import UnsatisfiableError
from environments.domain.names import channel_allowed
from environments.engine.solve.match_specs import spec_name
from environments.models import Channel, ChannelCredential

#: Number of channels named for one package.
MAX_CHANNELS = 3


def add_channel_hints(error: UnsatisfiableError, *, listed: Sequence[str]) -> None:
    """Add to `error` which indexed channels provide the missing names."""
    found: dict[str, list[str]] = {}
    private = tuple(ChannelCredential.objects.values_list("url_prefix", flat=True))
    for item in error.details.get("missing", ()):
        name = spec_name(item["requirement"])
        having = _public(
            Channel.objects.filter(packages__name=name).exclude(url__in=listed), private
        )
        if having:
            found[name] = having
            said = f"it is in {' and '.join(having)}, which is not among your channels"
            item["note"] = "; ".join(part for part in (item["note"], said) if part)
    if found:
        named = [f"{name} is in {' and '.join(channels)}" for name, channels in found.items()]
        error.message = f"{error.message} {'; '.join(named)}: not among the channels you listed."
        error.hint = "Add the channel to `channels:`, or choose another package."


def _public(channels: QuerySet[Channel], private: Sequence[str]) -> list[str]:
    """Return the public channels; a private one is not even named."""
    urls = (channel.url for channel in channels.order_by("url"))
    return [
        url
        for url in urls
        if not any(f"{url}/".startswith(f"{prefix}/") for prefix in private)
        and channel_allowed(url, settings.ALLOWED_CHANNELS)
    ][:MAX_CHANNELS]
