"""Routes of the registry, below `/v2/`."""

from __future__ import annotations

from django.urls import path, re_path

from environments.registry import views

urlpatterns = [
    path("", views.base, name="registry"),
    path("token", views.token, name="registry-token"),
    path("_catalog", views.catalog, name="registry-catalog"),
    path("<str:namespace>/<str:environment>/tags/list", views.list_tags, name="registry-tags"),
    path(
        "<str:namespace>/<str:environment>/manifests/<str:reference>",
        views.manifest,
        name="registry-manifest",
    ),
    path("<str:namespace>/<str:environment>/blobs/<str:digest>", views.blob, name="registry-blob"),
    path(
        "<str:namespace>/<str:environment>/referrers/<str:digest>",
        views.referrers,
        name="registry-referrers",
    ),
    re_path(r"(?P<rest>.+)", views.unknown, name="registry-unknown"),
]
