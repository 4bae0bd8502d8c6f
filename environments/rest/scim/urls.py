"""Routes of SCIM 2.0, below `/scim/v2/`."""

from __future__ import annotations

from django.urls import path, re_path

from environments.rest.scim import views
from environments.rest.scim.resources import GROUPS, PEOPLE

urlpatterns = [
    path("ServiceProviderConfig", views.Config.as_view(), name="scim-config"),
    path("ResourceTypes", views.ResourceTypes.as_view(), name="scim-resource-types"),
    path("ResourceTypes/<str:key>", views.ResourceTypes.as_view(), name="scim-resource-type"),
    path("Schemas", views.Schemas.as_view(), name="scim-schemas"),
    path("Schemas/<str:key>", views.Schemas.as_view(), name="scim-schema"),
    path("Users", views.All.as_view(kind=PEOPLE), name="scim-users"),
    path("Users/<str:key>", views.One.as_view(kind=PEOPLE), name="scim-user"),
    path("Groups", views.All.as_view(kind=GROUPS), name="scim-groups"),
    path("Groups/<str:key>", views.One.as_view(kind=GROUPS), name="scim-group"),
    re_path("", views.Nothing.as_view(), name="scim-nothing"),
]
