"""Routes of served channels, below `/channel/`."""

from __future__ import annotations

import re

from django.urls import re_path

from environments.domain.names import SUBDIRS
from environments.rest import channels, hosted, mirrors

_NAME = r"(?P<name>(?:shards/)?[^/]+)"
_FILE = rf"(?P<subdir>[^/]+)/{_NAME}"
_SUBDIRS = "|".join(map(re.escape, SUBDIRS))

#: First: `hosted` and `mirror` are reserved names. A channel is NAME or NAMESPACE/NAME, and a NAME
#: is never that of a platform.
_HOSTED = rf"^hosted/(?P<channel>[^/]+(?:/(?!(?:{_SUBDIRS})/)[^/]+)?)"
_MIRROR = r"^mirror/(?P<mirror>[^/@]+)"

urlpatterns = [
    re_path(rf"{_HOSTED}/(?P<subdir>{_SUBDIRS})/{_NAME}$", hosted.file, name="hosted-channel"),
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
