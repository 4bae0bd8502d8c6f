"""Routes of sign-in: the subset of allauth's routes that is used."""

from __future__ import annotations

from typing import Any

from allauth.account import views
from allauth.socialaccount import views as providers
from allauth.urls import build_provider_urlpatterns
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.urls import include, path, re_path
from django.views.decorators.cache import never_cache

from accounts.password_reset import by_mail
from accounts.throttling import remember_device
from condastore.errors import AccessDeniedError


class OwnPassword(views.PasswordChangeView):  # type: ignore[misc]
    """Password page; accounts of a directory cannot set a local password."""

    def dispatch(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponseBase:
        user = request.user
        if user.is_authenticated and not user.has_usable_password():
            raise AccessDeniedError(
                "Your password is not managed here.", hint="Change it at your identity provider."
            )
        answer: HttpResponseBase = super().dispatch(request, *args, **options)
        return answer


class AskForReset(views.PasswordResetView):  # type: ignore[misc]
    """Password reset page; without e-mail it names whom to contact."""

    def get_context_data(self, **options: Any) -> dict[str, Any]:
        return {**super().get_context_data(**options), "by_mail": by_mail()}

    def post(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponseBase:
        if not by_mail():
            raise AccessDeniedError(
                "This installation does not send mail.", hint="Ask an administrator for a link."
            )
        answer: HttpResponseBase = super().post(request, *args, **options)
        return answer


class NewPassword(views.PasswordResetFromKeyView):  # type: ignore[misc]
    """New password by link; the browser counts as known afterwards."""

    def form_valid(self, form: Any) -> HttpResponseBase:
        response: HttpResponseBase = super().form_valid(form)
        remember_device(self.request, response, self.reset_user.username)
        return response


#: Without local accounts there may be no password to confirm.
passwords = settings.LOCAL_ACCOUNTS or bool(settings.LDAP["url"])
sign_in = views.LoginView.as_view(
    extra_context={"passwords": passwords, "local": settings.LOCAL_ACCOUNTS}
)
urlpatterns = [
    path("login/", sign_in, name="login"),
    path("login/", sign_in, name="account_login"),
    path("accounts/logout/", views.logout, name="account_logout"),
    path("accounts/inactive/", views.account_inactive, name="account_inactive"),
    path("accounts/password/", OwnPassword.as_view(), name="account_change_password"),
    path("accounts/password/reset/", AskForReset.as_view(), name="account_reset_password"),
    path(
        "accounts/password/reset/done/",
        views.password_reset_done,
        name="account_reset_password_done",
    ),
    re_path(
        r"^accounts/password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        never_cache(NewPassword.as_view()),
        name="account_reset_password_from_key",
    ),
    path(
        "accounts/password/reset/key/done/",
        views.password_reset_from_key_done,
        name="account_reset_password_from_key_done",
    ),
    path("accounts/reauthenticate/", views.reauthenticate, name="account_reauthenticate"),
    path("accounts/2fa/", include("allauth.mfa.urls")),
    path("accounts/cancelled/", providers.login_cancelled, name="socialaccount_login_cancelled"),
    path("accounts/error/", providers.login_error, name="socialaccount_login_error"),
    path("accounts/", include(build_provider_urlpatterns())),
]
