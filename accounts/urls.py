"""Routes of sign-in: of allauth's, only those that are of use here."""

from __future__ import annotations

from typing import Any

from allauth.account import views
from allauth.socialaccount import views as providers
from allauth.urls import build_provider_urlpatterns
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.urls import include, path

from environments.domain.errors import AccessDeniedError


class OwnPassword(views.PasswordChangeView):  # type: ignore[misc]
    """Nobody sets a password here who came without one: it would outlive the directory's word."""

    def dispatch(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponseBase:
        user = request.user
        if user.is_authenticated and not user.has_usable_password():
            raise AccessDeniedError(
                "Your password is not kept here.", hint="Change it where you sign in."
            )
        answer: HttpResponseBase = super().dispatch(request, *args, **options)
        return answer


#: Without local accounts there may be nothing to ask a password for.
passwords = settings.LOCAL_ACCOUNTS or bool(settings.LDAP["url"])
sign_in = views.LoginView.as_view(extra_context={"passwords": passwords})
urlpatterns = [
    path("login/", sign_in, name="login"),
    path("login/", sign_in, name="account_login"),
    path("accounts/logout/", views.logout, name="account_logout"),
    path("accounts/inactive/", views.account_inactive, name="account_inactive"),
    path("accounts/password/", OwnPassword.as_view(), name="account_change_password"),
    path("accounts/reauthenticate/", views.reauthenticate, name="account_reauthenticate"),
    path("accounts/2fa/", include("allauth.mfa.urls")),
    path("accounts/cancelled/", providers.login_cancelled, name="socialaccount_login_cancelled"),
    path("accounts/error/", providers.login_error, name="socialaccount_login_error"),
    path("accounts/", include(build_provider_urlpatterns())),
]
