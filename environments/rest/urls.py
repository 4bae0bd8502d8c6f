"""Routes of the REST door, below `/api/`."""

from __future__ import annotations

from django.urls import path

from environments.rest import views

urlpatterns = [
    path("token", views.sign_in, name="api-token"),
    path("whoami", views.whoami, name="whoami"),
    path("audit", views.audit_log, name="audit-log"),
    path("envs/<str:namespace>/<str:environment>/<str:reference>/log", views.log, name="log"),
    path(
        "envs/<str:namespace>/<str:environment>/<str:reference>/<str:name>",
        views.download,
        name="download",
    ),
]
