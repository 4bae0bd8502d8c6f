"""Routes of the channels that are served, below `/channel/`."""

from __future__ import annotations

from django.urls import re_path

from environments.rest import channels, hosted, mirrors

_FILE = r"(?P<subdir>[^/]+)/(?P<name>(?:shards/)?[^/]+)"

#: Before the others: `hosted` and `mirror` are no namespaces' names.
_HOSTED = r"^hosted/(?P<channel>[^/]+)"
_MIRROR = r"^mirror/(?P<mirror>[^/@]+)"

urlpatterns = [
    re_path(rf"{_HOSTED}/{_FILE}$", hosted.file, name="hosted-channel"),
    re_path(rf"{_HOSTED}/(?P<name>[^/]+)$", hosted.file, name="hosted-upload"),
    re_path(rf"{_MIRROR}/{_FILE}$", mirrors.of_mirror, name="mirror-channel"),
    re_path(rf"{_MIRROR}@(?P<day>[^/@]+)/{_FILE}$", mirrors.of_mirror, name="mirror-snapshot"),
    re_path(rf"^(?P<namespace>[^/]+)/{_FILE}$", channels.of_namespace, name="namespace-channel"),
    re_path(
        r"^(?P<namespace>[^/]+)/(?P<environment>[^/]+)/(?P<reference>[^/]+)/" + _FILE + "$",
        channels.of_build,
        name="build-channel",
    ),
]
