"""Operations on channel credentials: set, replace and delete them; accept secrets in URLs.

Only those who manage a namespace set or replace its credentials. Each change is recorded in the
audit log with the URL prefix, never with the secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from django.conf import settings

from accounts.access import Actor, may, require, require_superuser
from accounts.roles import Perm
from condastore.errors import AccessDeniedError, InvalidInputError, NotFoundError
from environments.domain.credential_scopes import exact_names, parse_scope
from environments.domain.names import Credential, canonical_channel
from environments.domain.urls import canonical_or_same, is_below
from environments.models import AuditEvent, ChannelCredential, Namespace, audited
from environments.services import hosted_channels

MAX_SECRET_LENGTH = 4_000  # characters
_HINT = "Set it with `condastore credential set URL`, and write the URL without the secret."


@audited()
def set_credential(
    *,
    actor: Actor,
    namespace: Namespace | None,
    channel: str,
    kind: Literal["token", "basic"] = "basic",
    secret: str = "",
    namespaces: Sequence[str] = (),
) -> ChannelCredential:
    """Set or replace the credential of a channel.

    Args:
        namespace: whose builds use it; None for the installation (administrators only).
        channel: URL of the channel. It may contain the secret; then `secret` is empty.
        secret: the token, or `user:password`.
        namespaces: with `namespace=None`: names and patterns of the namespaces whose builds use
            it. A wildcard never matches a personal namespace.

    Raises:
        InvalidInputError: URL, secret or scope are not valid.
        NotFoundError: the scope names a namespace that does not exist.
    """
    _require(actor, namespace)
    credential = _parse(channel, kind, secret)
    scope = _scope(namespace, namespaces)
    return _store(actor, namespace, credential, scope=scope)


@audited()
def delete_credential(*, actor: Actor, credential: ChannelCredential) -> ChannelCredential:
    """Delete a credential; the channel refuses builds that start later."""
    _require(actor, credential.namespace)
    location, key = credential.namespace or "the installation", credential.pk
    credential.delete()
    credential.pk = key  # the deleted row is returned to the caller
    AuditEvent.record(actor, "credential.delete", location, {"url_prefix": credential.url_prefix})
    return credential


def store_from_urls(
    *, actor: Actor, namespace: Namespace, credentials: Sequence[Credential]
) -> None:
    """Store secrets that were part of URLs in a submission, for those who manage the namespace.

    A secret that is already stored changes nothing, for every submitter.

    Raises:
        AccessDeniedError: a secret is new, and the actor does not manage the namespace.
    """
    fresh = _unstored(namespace, credentials)
    if not fresh:
        return
    if not may(actor, Perm.MANAGE, namespace):
        raise _denied(namespace, fresh)
    for credential in fresh:
        _store(actor, namespace, credential, scope=[])


def require_stored(
    *, actor: Actor, namespace: Namespace, credentials: Sequence[Credential]
) -> None:
    """Refuse secrets in URLs that are not stored yet, as a preview never stores one.

    Raises:
        AccessDeniedError: the actor does not manage the namespace.
        InvalidInputError: the actor manages it and must set the credential first.
    """
    fresh = _unstored(namespace, credentials)
    if not fresh:
        return
    if not may(actor, Perm.MANAGE, namespace):
        raise _denied(namespace, fresh)
    raise InvalidInputError(
        f"A preview stores no secrets, and {namespace} does not have this one of {_urls(fresh)}.",
        where="channels",
        hint=_HINT,
    )


def store_for_mirror(
    *, actor: Actor, namespace: Namespace | None, credentials: Sequence[Credential]
) -> None:
    """Store the secrets of a mirror's URL; those of the installation are used by mirrors only."""
    _require(actor, namespace)
    for credential in credentials:
        _store(actor, namespace, credential, scope=[])


def record_set(
    actor: Actor, row: ChannelCredential, *, replaced: bool, scope: Sequence[str] = ()
) -> None:
    """Record in the audit log that a credential was set."""
    changes: dict[str, Any] = {"url_prefix": row.url_prefix, "kind": row.kind, "replaced": replaced}
    if row.namespace is None and scope:
        changes["namespaces"] = list(scope)
    AuditEvent.record(actor, "credential.set", row.namespace or "the installation", changes)


def _require(actor: Actor, namespace: Namespace | None) -> None:
    if namespace is None:
        require_superuser(actor)
    else:
        require(actor, Perm.MANAGE, namespace)


def _parse(channel: str, kind: Literal["token", "basic"], secret: str) -> Credential:
    reference = canonical_channel(
        channel, alias=settings.CHANNEL_ALIAS, hosted=hosted_channels.base_url()
    )
    if hosted_channels.is_hosted(reference.url):
        raise InvalidInputError(
            "A hosted channel needs no credential; access is controlled by roles.", where="channel"
        )
    if not reference.url.startswith(("http://", "https://")):
        raise InvalidInputError(
            "Only http:// and https:// channels can have credentials.", where="channel"
        )
    if len(reference.credentials) + bool(secret) != 1:
        raise InvalidInputError(
            "Give the secret once: in the URL or separately.",
            where="secret",
            hint="Give a token, or user:password.",
        )
    if reference.credentials:
        found = reference.credentials[0]
    elif kind == "token":
        parts = urlsplit(reference.url)
        base = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        found = Credential(url_prefix=reference.url, kind="token", secret=secret, base=base)
    else:
        found = Credential(url_prefix=reference.url, kind="basic", secret=secret)
    _check_secret(found)
    return found


def _check_secret(credential: Credential) -> None:
    secret = credential.secret
    if len(secret) > MAX_SECRET_LENGTH or not secret.isprintable():
        raise InvalidInputError(
            f"A secret has at most {MAX_SECRET_LENGTH} printable characters.", where="secret"
        )
    if credential.kind == "basic" and not secret.partition(":")[0]:
        raise InvalidInputError(
            "The user name is missing.", where="secret", hint="Write user:password."
        )


def _scope(namespace: Namespace | None, patterns: Sequence[str]) -> list[str]:
    if namespace is not None:
        if patterns:
            raise InvalidInputError(
                "Only a credential of the installation can name namespaces.", where="namespaces"
            )
        return []
    scope = parse_scope(patterns)
    if not scope:
        raise InvalidInputError(
            "A credential of the installation must name the namespaces whose builds use it.",
            where="namespaces",
            hint="Give names or patterns, such as research or physics-*; * means all shared ones.",
        )
    # A name without a namespace could later become somebody's personal namespace.
    named = exact_names(scope)
    known = Namespace.objects.filter(name__in=named).values_list("name", flat=True)
    if unknown := sorted(set(named) - set(known)):
        raise NotFoundError(f"There is no namespace {', '.join(unknown)}.", where="namespaces")
    return list(scope)


def _store(
    actor: Actor, namespace: Namespace | None, credential: Credential, *, scope: list[str]
) -> ChannelCredential:
    """Write the row, and an audit event if it has changed."""
    if hosted_channels.is_hosted(credential.url_prefix):
        raise InvalidInputError(
            "A hosted channel needs no credential; access is controlled by roles.", where="channel"
        )
    row, created = ChannelCredential.objects.get_or_create(
        namespace=namespace,
        url_prefix=credential.url_prefix,
        defaults={"kind": credential.kind, "base": credential.base},
    )
    row = ChannelCredential.objects.select_for_update().get(pk=row.pk)
    scope = scope or list(row.namespaces)
    same = not created and _equal(row.value(), credential)
    if same and scope == row.namespaces:
        return row
    row.kind, row.base, row.namespaces = credential.kind, credential.base, scope
    if not same:
        row.seal(credential.secret)
    row.save()
    record_set(actor, row, replaced=not created, scope=scope)
    return row


def _unstored(namespace: Namespace, credentials: Sequence[Credential]) -> list[Credential]:
    """Return credentials that differ from those which builds of the namespace would use."""
    requested = [one for one in credentials if not hosted_channels.is_hosted(one.url_prefix)]
    if not requested:
        return []
    _refuse_two_secrets(requested)
    rows = ChannelCredential.objects.usable_in(namespace)

    def stored(url: str) -> Credential | None:
        covering = (row for row in rows if is_below(url, canonical_or_same(row.url_prefix)))
        return next((row.value() for row in covering), None)

    return [
        one
        for one in requested
        if (found := stored(one.url_prefix)) is None or not _equal(found, one)
    ]


def _refuse_two_secrets(credentials: Sequence[Credential]) -> None:
    prefixes = [one.url_prefix for one in credentials]
    if twice := sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1}):
        raise InvalidInputError(
            f"More than one secret was given for {', '.join(twice)}.", where="channels", hint=_HINT
        )


def _equal(stored: Credential, given: Credential) -> bool:
    """Return whether both send the same secret in the same way."""
    same = hmac.compare_digest(stored.secret.encode(), given.secret.encode())
    return same and (stored.kind, stored.base) == (given.kind, given.base)


def _denied(namespace: Namespace, credentials: Sequence[Credential]) -> AccessDeniedError:
    return AccessDeniedError(
        f"Only an admin of {namespace} can set the secret of {_urls(credentials)}.",
        where="channels",
        hint="Ask an admin of the namespace to set it (`condastore credential set`), "
        "and write the URL without the secret.",
    )


def _urls(credentials: Sequence[Credential]) -> str:
    return ", ".join(sorted({credential.url_prefix for credential in credentials}))
