"""Adapters of django-allauth: no sign-up, own rate limits, identities by issuer and subject."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests
from allauth.account.adapter import DefaultAccountAdapter
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from accounts import throttling
from accounts.authentication import client_address
from accounts.claims import of_openid, of_saml
from accounts.directories import Person, welcome
from accounts.models import User
from accounts.providers import OpenIdProvider, SamlProvider
from accounts.sealing import SECOND_FACTORS, seal, unseal
from accounts.signals import mail_wanted
from condastore.errors import AccessDeniedError, UnavailableError

if TYPE_CHECKING:
    from allauth.socialaccount.models import SocialLogin

PROVIDER_TIMEOUT = 10  # seconds


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "username_password_mismatch": "The user name or the password is wrong.",
        "too_many_login_attempts": "Too many attempts failed. Try again in a few minutes.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False  # directories and administrators create accounts

    def get_client_ip(self, request: HttpRequest) -> str:
        return client_address(request.META) or "unknown"

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        """Skip allauth's own limit, with which anybody could lock an account of somebody else."""

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        login = str(credentials.get("username") or credentials.get("email") or "")
        attempt = throttling.begin(request, login)
        if attempt is None:
            raise self.validation_error("too_many_login_attempts")
        user: User | None = super().authenticate(request, **credentials)
        if user is not None:
            attempt.undo()
            throttling.succeeded(request, login)
        return user

    def post_login(self, request: HttpRequest, user: User, **options: Any) -> HttpResponse:
        response: HttpResponse = super().post_login(request, user, **options)
        throttling.remember_device(request, response, user.username)
        return response

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Queue a mail, so that no page waits for the mail server or fails with it."""
        mail = self.render_mail(template_prefix, email, {**context, "email": email})
        mail_wanted.send(sender=User, email=email, subject=mail.subject, text=mail.body)

    def format_email_subject(self, subject: str) -> str:
        return subject  # delivery adds the prefix of the installation


class _ProviderSession(requests.Session):
    """Reports that a provider does not respond, instead of an internal error."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", PROVIDER_TIMEOUT)
        try:
            return super().request(*args, **kwargs)
        except requests.RequestException as error:
            raise UnavailableError(
                "The identity provider does not respond.",
                hint="Try again. If the problem persists, tell an administrator.",
            ) from error


class ProviderAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    def get_requests_session(self) -> requests.Session:
        return _ProviderSession()

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Find or create the account before allauth looks for one in its own way."""
        if sociallogin.state.get("process", "login") != "login":
            raise AccessDeniedError("Only administrators connect accounts to identities.")
        token = sociallogin.token
        sociallogin.user = welcome(
            person_of(sociallogin), refresh_token=token.token_secret if token else ""
        )


def person_of(sociallogin: SocialLogin) -> Person:
    kind: str = sociallogin.provider.id
    account = sociallogin.account
    provider = settings.SIGN_IN_PROVIDERS.named(kind, account.provider)
    data: dict[str, Any] = account.extra_data
    if isinstance(provider, OpenIdProvider):
        return of_openid(provider, data)
    assert isinstance(provider, SamlProvider)
    return of_saml(provider, data, subject=account.uid)


class SecondFactorAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Encrypts the secrets of one-time passwords like other secrets."""

    def get_totp_issuer(self) -> str:
        return "condastore"

    def encrypt(self, text: str) -> str:
        return seal(text, purpose=SECOND_FACTORS)

    def decrypt(self, encrypted_text: str) -> str:
        return unseal(encrypted_text, purpose=SECOND_FACTORS)
