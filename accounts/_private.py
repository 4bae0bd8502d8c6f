"""Private names of Django and allauth that have no public counterpart.

The only module of this package that uses such names, each with the reason.
`tests/accounts/test_private.py` fails when a release changes one of them, and says what to do.
"""

from __future__ import annotations

# The public `allauth.core.ratelimit` counts the actions of allauth's own settings only, and
# returns no usage that can be rolled back.
from allauth.core.internal import ratelimit
from django.http import HttpRequest

__all__ = ["exempt_from_csrf", "ratelimit"]


def exempt_from_csrf(request: HttpRequest) -> None:
    """Accept the request without a CSRF token, whichever view answers it.

    `csrf_exempt` is for views; here the kind of sign-in decides, in the middleware.
    """
    request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
