"""Routes of the registry, below `/v2/`."""

from __future__ import annotations

from django.urls import path, re_path

from environments.registry import views

PLACE = "<str:namespace>/<str:environment>"
#: Names of images on demand have any number of parts.
PACKAGES = "(?P<namespace>dynamic)/(?P<environment>[^:]+)"

urlpatterns = [
    path("", views.base, name="registry"),
    path("token", views.token, name="registry-token"),
    path("_catalog", views.catalog, name="registry-catalog"),
]
for name, view, words in (
    ("tags", views.list_tags, "tags/list"),
    ("manifest", views.manifest, "manifests/<str:reference>"),
    ("blob", views.blob, "blobs/<str:digest>"),
    ("referrers", views.referrers, "referrers/<str:digest>"),
):
    pattern = words.replace("<str:", "(?P<").replace(">", ">[^/]+)") if "<" in words else words
    urlpatterns += [
        re_path(f"^{PACKAGES}/{pattern}$", view, name=f"registry-{name}-on-demand"),
        path(f"{PLACE}/{words}", view, name=f"registry-{name}"),
    ]
urlpatterns.append(re_path(r"(?P<rest>.+)", views.unknown, name="registry-unknown"))
