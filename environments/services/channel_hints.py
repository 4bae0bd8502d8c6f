"""Which channels that the request did not list have the packages that it misses?"""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.db.models import QuerySet

from condastore.errors import UnsatisfiableError
from environments.domain.names import channel_allowed
from environments.engine.solve.explain import spec_name
from environments.models import Channel, ChannelCredential

#: Channels that are named for one package.
MOST = 3


def point_elsewhere(error: UnsatisfiableError, *, listed: Sequence[str]) -> None:
    """Add to `error` where the missing names are, as far as we have read what channels offer."""
    found: dict[str, list[str]] = {}
    private = tuple(ChannelCredential.objects.values_list("url_prefix", flat=True))
    for item in error.details.get("missing", ()):
        name = spec_name(item["requirement"])
        having = _open(Channel.objects.filter(packages__name=name).exclude(url__in=listed), private)
        if having:
            found[name] = having
            said = f"it is in {' and '.join(having)}, which is not among your channels"
            item["note"] = "; ".join(part for part in (item["note"], said) if part)
    if found:
        named = [f"{name} is in {' and '.join(channels)}" for name, channels in found.items()]
        error.message = f"{error.message} {'; '.join(named)}: not among the channels you listed."
        error.hint = "Add the channel to `channels:`, or choose another package."


def _open(channels: QuerySet[Channel], private: Sequence[str]) -> list[str]:
    """Those that anybody may read and list here: of a private one not even a name is told."""
    urls = (channel.url for channel in channels.order_by("url"))
    return [
        url
        for url in urls
        if not any(f"{url}/".startswith(f"{prefix}/") for prefix in private)
        and channel_allowed(url, settings.ALLOWED_CHANNELS)
    ][:MOST]
