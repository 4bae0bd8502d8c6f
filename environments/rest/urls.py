"""Routes of the REST interface, below `/api/`."""

from __future__ import annotations

from django.urls import path

from environments.rest import sign_in, views

urlpatterns = [
    path("sign-in", sign_in.ways, name="sign-in-ways"),
    path("token", sign_in.sign_in, name="api-token"),
    path("device", sign_in.start_device, name="device-start"),
    path("device/token", sign_in.collect_device, name="device-collect"),
    path("signing-key", views.signing_key, name="signing-key"),
    path("whoami", views.whoami, name="whoami"),
    path("audit", views.audit_log, name="audit-log"),
    path("envs/<str:namespace>", views.folders, name="folders"),
    path("envs/<str:namespace>/<str:environment>/<str:reference>/use", views.use, name="use"),
    path("envs/<str:namespace>/<str:environment>/<str:reference>/log", views.log, name="log"),
    path(
        "envs/<str:namespace>/<str:environment>/<str:reference>/<str:name>",
        views.download,
        name="download",
    ),
]
