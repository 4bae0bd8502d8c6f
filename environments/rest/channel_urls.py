"""Routes of the channels that are served, below `/channel/`."""

from __future__ import annotations

from django.urls import re_path

from environments.rest import channels

_FILE = r"(?P<subdir>[^/]+)/(?P<name>(?:shards/)?[^/]+)"

urlpatterns = [
    re_path(rf"^(?P<namespace>[^/]+)/{_FILE}$", channels.of_namespace, name="namespace-channel"),
    re_path(
        r"^(?P<namespace>[^/]+)/(?P<environment>[^/]+)/(?P<reference>[^/]+)/" + _FILE + "$",
        channels.of_build,
        name="build-channel",
    ),
]
