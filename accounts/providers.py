"""External identity providers: settings, converted to those of django-allauth."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from django.core.exceptions import ImproperlyConfigured

_ID = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider; `id` is the prefix of its group names and part of its callback URLs."""

    kind: ClassVar[str]
    id: str
    name: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError("id: up to 32 of a-z, 0-9 and -, a letter first")

    def app(self) -> dict[str, Any]:
        """Return the entry of SOCIALACCOUNT_PROVIDERS."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIdProvider(Provider):
    """OpenID Connect; `server_url` is the base of `/.well-known/openid-configuration`."""

    kind: ClassVar[str] = "openid_connect"
    server_url: str
    client_id: str
    client_secret: str = ""
    scope: tuple[str, ...] = ("openid", "profile", "email")
    username_claim: str = "preferred_username"
    groups_claim: str = "groups"  # dots separate nested keys: realm_access.roles
    #: Its refresh tokens live as long as the account and are used to check that it exists.
    sync: bool = False

    def app(self) -> dict[str, Any]:
        scope = [*self.scope]
        if self.sync and "offline_access" not in scope:
            scope.append("offline_access")
        # Without it some providers issue no refresh token after the first consent.
        parameters = {"prompt": "consent"} if self.sync else {}
        return {
            "provider_id": self.id,
            "name": self.name or self.id,
            "client_id": self.client_id,
            "secret": self.client_secret,
            "settings": {
                "server_url": self.server_url.rstrip("/"),
                "oauth_pkce_enabled": True,
                "scope": scope,
                "auth_params": parameters,
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SamlProvider(Provider):
    """SAML 2.0, by `metadata_url`, or by `sso_url` and `x509cert` if it publishes none."""

    kind: ClassVar[str] = "saml"
    entity_id: str
    metadata_url: str = ""
    sso_url: str = ""
    x509cert: str = ""
    #: Attributes of the response. The default subject is the NameID, which must be persistent.
    subject_attribute: str = ""
    username_attribute: str = "urn:oid:0.9.2342.19200300.100.1.1"
    email_attribute: str = "urn:oid:0.9.2342.19200300.100.1.3"
    groups_attribute: str = "groups"

    def __post_init__(self) -> None:
        Provider.__post_init__(self)
        if not self.metadata_url and not (self.sso_url and self.x509cert):
            raise ValueError("give metadata_url, or sso_url and x509cert")

    def app(self) -> dict[str, Any]:
        idp = {"entity_id": self.entity_id}
        if self.metadata_url:
            idp["metadata_url"] = self.metadata_url
        else:
            idp |= {"sso_url": self.sso_url, "x509cert": self.x509cert}
        mapping = {"username": self.username_attribute, "email": self.email_attribute}
        if self.subject_attribute:
            mapping["uid"] = self.subject_attribute
        return {
            "provider_id": self.entity_id,
            "name": self.name or self.id,
            "client_id": self.id,  # part of the callback URLs in allauth
            "settings": {
                "idp": idp,
                "attribute_mapping": mapping,
                "advanced": {
                    "want_assertion_signed": True,
                    "reject_deprecated_algorithm": True,  # SHA-1
                    "reject_idp_initiated_sso": True,
                },
            },
        }


@dataclass(frozen=True, slots=True)
class _Reader:
    variable: str
    kind: type[Provider]

    def read(self, text: str) -> list[Provider]:
        try:
            entries = json.loads(text or "[]")
        except ValueError as error:
            raise self.wrong(f"not JSON: {error}") from None
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise self.wrong("it must be a list of objects")
        return [self._one(entry) for entry in entries]

    def _one(self, entry: Mapping[str, Any]) -> Provider:
        name = entry.get("id", "one without an id")
        known = {one.name: one for one in fields(self.kind)}
        if unknown := sorted(set(entry) - set(known)):
            raise self.wrong(f"{name}: {', '.join(unknown)} is not known; {', '.join(known)} are")
        for key, value in entry.items():
            requested = bool if key == "sync" else list if key == "scope" else str
            if not isinstance(value, requested):
                raise self.wrong(f"{name}: {key} must be a {requested.__name__}")
        try:
            given: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()
            }
            return self.kind(**given)
        except (TypeError, ValueError) as error:
            raise self.wrong(f"{name}: {str(error).removeprefix('Provider.__init__() ')}") from None

    def wrong(self, why: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"{self.variable}: {why}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """Validate that the ids of all providers differ."""

    openid: tuple[OpenIdProvider, ...] = ()
    saml: tuple[SamlProvider, ...] = ()
    by_id: Mapping[str, Provider] = field(default_factory=dict)

    @classmethod
    def read(cls, *, openid: str, saml: str, taken: Iterable[str] = ()) -> Self:
        """Parse the providers of a variable.

        Raises:
            ImproperlyConfigured: names the variable and the entry.
        """
        oidc: list[Any] = _Reader("CONDASTORE_OIDC_PROVIDERS", OpenIdProvider).read(openid)
        saml_: list[Any] = _Reader("CONDASTORE_SAML_PROVIDERS", SamlProvider).read(saml)
        by_id: dict[str, Provider] = {}
        for one in [*oidc, *saml_]:
            if one.id in by_id or one.id in taken:
                raise ImproperlyConfigured(
                    f"CONDASTORE_OIDC_PROVIDERS, CONDASTORE_SAML_PROVIDERS: two are {one.id!r}."
                )
            by_id[one.id] = one
        return cls(openid=tuple(oidc), saml=tuple(saml_), by_id=by_id)

    def __bool__(self) -> bool:
        return bool(self.by_id)

    @property
    def apps(self) -> list[str]:
        """Return the Django apps that the providers need."""
        return [
            f"allauth.socialaccount.providers.{kind}"
            for kind in sorted({one.kind for one in self.by_id.values()})
        ]

    @property
    def django_settings(self) -> dict[str, Any]:
        """SOCIALACCOUNT_PROVIDERS."""
        return {
            "openid_connect": {
                "OAUTH_PKCE_ENABLED": True,
                "APPS": [one.app() for one in self.openid],
            },
            "saml": {"APPS": [one.app() for one in self.saml]},
        }

    def named(self, kind: str, given: str) -> Provider:
        """Return the provider of an id or SAML entity id."""
        for one in self.by_id.values():
            if one.kind == kind and given in {one.id, getattr(one, "entity_id", one.id)}:
                return one
        raise LookupError(given)
