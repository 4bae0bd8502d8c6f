"""Parsing of identity claims: OpenID Connect and SAML responses to a Person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accounts.directories import Person
from accounts.providers import OpenIdProvider, SamlProvider
from condastore.errors import AccessDeniedError


def refused(provider: str, why: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"{provider} did not identify you: {why}.",
        hint="Try again. If it happens again, contact the administrators.",
    )


def of_openid(provider: OpenIdProvider, answer: Mapping[str, Any]) -> Person:
    """Parse `{"id_token": claims, "userinfo": claims}`; the ID token is already verified.

    Raises:
        AccessDeniedError: a subject is missing, or userinfo has another subject.
    """
    token, userinfo = answer.get("id_token") or {}, answer.get("userinfo") or {}
    issuer, subject = token.get("iss"), token.get("sub")
    if not isinstance(issuer, str) or not isinstance(subject, str) or not issuer or not subject:
        raise refused(provider.name or provider.id, "it sent no ID token")
    return of_userinfo(provider, {**token, **userinfo}, issuer=issuer, subject=subject)


def of_userinfo(
    provider: OpenIdProvider, claims: Mapping[str, Any], *, issuer: str, subject: str
) -> Person:
    if claims.get("sub", subject) != subject:
        raise refused(provider.name or provider.id, "its responses have different subjects")
    username = _text(_inside(claims, provider.username_claim))
    if not username:
        raise refused(provider.name or provider.id, f"{provider.username_claim} is missing")
    groups = _inside(claims, provider.groups_claim) if provider.groups_claim else None
    return Person(
        directory=provider.id,
        issuer=issuer,
        subject=subject,
        username=username,
        email=_text(claims.get("email")),
        first_name=_text(claims.get("given_name")),
        last_name=_text(claims.get("family_name")) or _text(claims.get("name")),
        # Providers omit the claim for people without groups.
        groups=frozenset(_texts(groups)) if provider.groups_claim else None,
    )


def of_saml(provider: SamlProvider, attributes: Mapping[str, Any], *, subject: str) -> Person:
    def first(*names: str) -> str:
        found = (_texts(attributes.get(name)) for name in names)
        return next((values[0] for values in found if values), "")

    username = first(provider.username_attribute)
    if not username:
        raise refused(provider.name or provider.id, f"{provider.username_attribute} is missing")
    groups = provider.groups_attribute
    return Person(
        directory=provider.id,
        issuer=provider.entity_id,
        subject=subject,
        username=username,
        email=first(provider.email_attribute),
        first_name=first("urn:oid:2.5.4.42", "firstName", "givenName"),
        last_name=first("urn:oid:2.5.4.4", "lastName", "sn"),
        groups=frozenset(_texts(attributes.get(groups))) if groups else None,
    )


def _inside(claims: Mapping[str, Any], way: str) -> Any:
    """Return `claims[way]`, or the nested value if `way` has dots."""
    if way in claims:
        return claims[way]
    found: Any = claims
    for name in way.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [one for one in values if isinstance(one, str) and one]
