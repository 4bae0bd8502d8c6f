"""Sign-in of programs by password, and required second factors of administrators."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from accounts.models import User
from condastore.errors import AccessDeniedError, NotSignedInError


class TooManyAttemptsError(AccessDeniedError):
    """Too many failed passwords for this account or from this address."""

    code = "too-many-attempts"
    hint = "Wait a few minutes, and try again."


class SecondFactorError(NotSignedInError):
    """The account requires a second factor."""

    code = "second-factor-needed"
    hint = "Sign in with the browser: `condastore login URL --browser`."


def with_password(request: HttpRequest, *, username: str, password: str) -> User:
    """Return the account of a user name and password, without starting a session.

    Raises:
        NotSignedInError: the password is wrong, or the account may not sign in.
        TooManyAttemptsError, SecondFactorError: even if the password is right.
    """
    from allauth.account.adapter import get_adapter

    try:
        user = get_adapter(request).authenticate(request, username=username, password=password)
    except ValidationError:
        raise TooManyAttemptsError("Too many attempts to sign in have failed.") from None
    if not isinstance(user, User) or not user.may_act:
        raise NotSignedInError(
            "The user name or the password is wrong.", hint="Check both, and try again."
        )
    if has_second_factor(user) or _must_have_one(user):
        raise SecondFactorError(f"The account {user.username} requires a second factor.")
    return user


def has_second_factor(user: User) -> bool:
    from allauth.mfa.adapter import get_adapter

    return bool(get_adapter().is_mfa_enabled(user))


def lacks_second_factor(request: HttpRequest) -> bool:
    """Whether an administrator's session must set up a second factor first.

    Sessions that came through an identity provider were authenticated by its own rules.
    """
    user = getattr(request, "user", None) or AnonymousUser()
    if not isinstance(user, User) or not _must_have_one(user):
        return False
    from allauth.account.authentication import get_authentication_records

    methods = {record.get("method") for record in get_authentication_records(request, user)}
    return "socialaccount" not in methods and not has_second_factor(user)


def _must_have_one(user: User) -> bool:
    return bool(settings.REQUIRE_SECOND_FACTOR) and user.is_superuser
