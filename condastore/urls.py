"""Which address leads where."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import LogoutView
from django.urls import include, path

from condastore import checks as checks  # registers the system checks
from condastore import health
from condastore.schema import schema
from environments.graphql.views import make_view

admin.autodiscover()
graphql = make_view(schema)

urlpatterns = [
    path("graphql", graphql, name="graphql"),
    path("graphql/", graphql),
    path("api/", include("environments.rest.urls")),
    path("v2/", include("environments.registry.urls")),
    path("channel/", include("environments.rest.channel_urls")),
    path("healthz", health.alive, name="alive"),
    path("readyz", health.ready, name="ready"),
    path("metrics", health.measured, name="metrics"),
    path("", include("accounts.urls")),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
    path("", include("environments.console.urls")),
]
if settings.SCIM:  # what it needs is in the extra `scim`
    urlpatterns.insert(0, path("scim/v2/", include("environments.rest.scim.urls")))
handler400 = "condastore.http.error_responses.page_bad"
handler403 = "condastore.http.error_responses.page_refused"
handler404 = "condastore.http.error_responses.page_not_found"
handler500 = "condastore.http.error_responses.page_failed"
