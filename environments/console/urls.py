"""Routes of the pages."""

from __future__ import annotations

from django.urls import path

from environments.console import (
    approvals,
    build_actions,
    build_stream,
    builds,
    comparison,
    device,
    edit,
    edit_suggestions,
    environment_actions,
    environment_list,
    environments,
    home,
    namespaces,
    tokens,
)

ENVIRONMENT = "environments/<str:namespace>/<str:name>/"
BUILD = f"{ENVIRONMENT}builds/<str:reference>/"

urlpatterns = [
    path("", home.home, name="home"),
    path("account/tokens/", tokens.tokens, name="tokens"),
    path("account/tokens/<int:key>/revoke/", tokens.revoke, name="token-revoke"),
    path("approvals/", approvals.queue, name="approvals"),
    path("approvals/decide/", approvals.decide, name="approvals-decide"),
    path("approvals/effect/", approvals.effect, name="approvals-effect"),
    path("approvals/<int:key>/", approvals.approval, name="approval"),
    path("approvals/<int:key>/explain/", approvals.explain, name="approval-explain"),
    path("approvals/<int:key>/second/", approvals.second, name="approval-second"),
    path("device/", device.device, name="device"),
    path("namespaces/", namespaces.namespace_list, name="namespaces"),
    path("namespaces/<str:name>/", namespaces.namespace, name="namespace"),
    path("namespaces/<str:name>/grant/", namespaces.grant, name="namespace-grant"),
    path("namespaces/<str:name>/revoke/", namespaces.revoke, name="namespace-revoke"),
    path("environments/", environment_list.environments, name="environments"),
    path("environments/filters/", environment_list.filters, name="environment-filters"),
    path(
        "environments/packages/",
        edit_suggestions.package_suggestions,
        name="package-suggestions",
    ),
    path("environments/new/", edit.new_environment, name="new-environment"),
    path(f"{ENVIRONMENT}edit/", edit.edit_environment, name="edit-environment"),
    path(ENVIRONMENT, environments.environment, name="environment"),
    path(f"{ENVIRONMENT}compare/", comparison.comparison, name="compare"),
    path(
        f"{ENVIRONMENT}actions/<str:action>/",
        environment_actions.environment_action,
        name="environment-action",
    ),
    path(BUILD, builds.build, name="build"),
    path(f"{BUILD}explain/", builds.explain, name="build-explain"),
    path(f"{BUILD}stream/", build_stream.build_stream, name="build-stream"),
    path(f"{BUILD}actions/<str:action>/", build_actions.build_action, name="build-action"),
]
