"""Configuration of the directory that provisions accounts by SCIM."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from django.core.exceptions import ImproperlyConfigured

from accounts.providers import Providers, SamlProvider

#: SCIM attributes that may contain the subject of a sign-in.
SUBJECTS = ("externalId", "userName")
SHORTEST_TOKEN = 32


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioning:
    """A directory: the issuer of its sign-ins, and its token digests."""

    directory: str
    issuer: str
    subject: str = SUBJECTS[0]
    tokens: Sequence[bytes] = field(repr=False)  # digests; two while a token is replaced

    @classmethod
    def read(
        cls,
        *,
        token: str,
        directory: str,
        issuer: str,
        subject: str,
        providers: Providers,
        ldap: dict[str, Any],
    ) -> Self | None:
        """Parse the settings; None without a token.

        Raises:
            ImproperlyConfigured: with every fault.
        """
        tokens = token.split()
        if not tokens:
            return None
        wrong = []
        if any(len(one) < SHORTEST_TOKEN for one in tokens):
            wrong.append(
                f"CONDASTORE_SCIM_TOKEN has fewer than {SHORTEST_TOKEN} characters: "
                "create one with `openssl rand -hex 32`."
            )
        if subject not in SUBJECTS:
            wrong.append(f"CONDASTORE_SCIM_SUBJECT is {subject!r}: write {' or '.join(SUBJECTS)}.")
        provider = providers.by_id.get(directory)
        if provider is None and not (ldap["url"] and directory == ldap["name"]):
            known = [*providers.by_id, *([ldap["name"]] if ldap["url"] else [])]
            named = f"one of: {', '.join(known)}" if known else "a provider, when there is one"
            wrong.append(
                f"CONDASTORE_SCIM_DIRECTORY is {directory!r}: name {named}. "
                "It is where those who are provisioned sign in."
            )
        elif provider is None:
            issuer = issuer or f"ldap:{ldap['user_base'].lower()}"
        elif isinstance(provider, SamlProvider):
            issuer = issuer or provider.entity_id
        elif not issuer:
            wrong.append(
                "CONDASTORE_SCIM_ISSUER is missing: write the `issuer` that the provider's "
                "/.well-known/openid-configuration says."
            )
        if wrong:
            raise ImproperlyConfigured(" ".join(wrong))
        digests = tuple(map(digest, tokens))
        return cls(directory=directory, issuer=issuer, subject=subject, tokens=digests)

    def admits(self, token: str) -> bool:
        """Compare a token in constant time."""
        given = digest(token)
        return any(hmac.compare_digest(given, one) for one in self.tokens)
