"""Routes of the pages."""

from __future__ import annotations

from django.urls import path

from environments.console import views

urlpatterns = [
    path("", views.start, name="start"),
    path("device/", views.device, name="device"),
    path("environments/<str:namespace>/<str:name>/", views.environment, name="environment"),
    path(
        "environments/<str:namespace>/<str:name>/builds/<str:reference>/",
        views.build,
        name="build",
    ),
]
