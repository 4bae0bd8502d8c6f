"""OpenID Connect checks between sign-ins: existence and groups of people, by refresh token.

Only for providers whose refresh tokens live as long as the account (`"sync": true`): elsewhere an
expired token proves nothing.
"""

from __future__ import annotations

from typing import Any

import httpx
from django.conf import settings
from django.db.models import QuerySet

from accounts.claims import of_userinfo
from accounts.directories import Person
from accounts.models import Identity
from accounts.providers import OpenIdProvider
from condastore.errors import UnavailableError

TIMEOUT = 20.0  # seconds
WELL_KNOWN = "/.well-known/openid-configuration"


class Directory:
    """A provider, queried per person with their refresh token."""

    def __init__(self, name: str) -> None:
        self.name = name
        provider = settings.SIGN_IN_PROVIDERS.by_id[name]
        assert isinstance(provider, OpenIdProvider)
        self.provider = provider
        self._configuration: dict[str, Any] = {}

    def askable(self, identities: QuerySet[Identity]) -> QuerySet[Identity]:
        return identities.exclude(sealed_refresh_token="")

    def look_up(self, identity: Identity) -> Person | None:
        if not (secret := identity.refresh_token):
            raise UnavailableError(
                "A refresh token cannot be read: the encryption key has changed."
            )
        try:
            with httpx.Client(timeout=TIMEOUT) as client:
                return self._ask(client, identity, secret)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise UnavailableError(
                f"{self.name} is not available: {error or type(error).__name__}."
            ) from error

    def _ask(self, client: httpx.Client, identity: Identity, secret: str) -> Person | None:
        if not self._configuration:
            url = self.provider.server_url.rstrip("/")
            url = url if "/.well-known/" in url else url + WELL_KNOWN
            self._configuration = client.get(url).raise_for_status().json()
        configuration = self._configuration
        if configuration["issuer"] != identity.issuer:
            raise ValueError(f"its issuer is now {configuration['issuer']}")
        form = {"grant_type": "refresh_token", "refresh_token": secret}
        answer = client.post(configuration["token_endpoint"], **self._with_client(form))
        if answer.status_code == httpx.codes.BAD_REQUEST:
            if answer.json().get("error") == "invalid_grant":
                return None
            raise ValueError(f"the token endpoint answered {answer.text[:200]}")
        token = answer.raise_for_status().json()
        if renewed := token.get("refresh_token"):  # the old one may be invalid from now on
            identity.refresh_token = renewed
            identity.save(update_fields=["sealed_refresh_token"])
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        userinfo = client.get(configuration["userinfo_endpoint"], headers=headers)
        if userinfo.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            return None
        claims = userinfo.raise_for_status().json()
        return of_userinfo(self.provider, claims, issuer=identity.issuer, subject=identity.subject)

    def _with_client(self, form: dict[str, str]) -> dict[str, Any]:
        known = self._configuration.get("token_endpoint_auth_methods_supported", [])
        provider = self.provider
        if "client_secret_basic" in known and "client_secret_post" not in known:
            return {"data": form, "auth": (provider.client_id, provider.client_secret)}
        client = {"client_id": provider.client_id, "client_secret": provider.client_secret}
        return {"data": form | client}
