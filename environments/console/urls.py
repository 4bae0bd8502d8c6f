"""Routes of the pages."""

from __future__ import annotations

from django.urls import path

from environments.console import builds, device, environment_list, environments, home

ENVIRONMENT = "environments/<str:namespace>/<str:name>/"

urlpatterns = [
    path("", home.home, name="home"),
    path("device/", device.device, name="device"),
    path("environments/", environment_list.environments, name="environments"),
    path("environments/filters/", environment_list.filters, name="environment-filters"),
    path(ENVIRONMENT, environments.environment, name="environment"),
    path(f"{ENVIRONMENT}builds/<str:reference>/", builds.build, name="build"),
]
