"""Keys of the installation: identical on every machine, and replaceable without losing data."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from accounts.models import REFRESH_TOKENS, Identity, InstallationKey
from accounts.sealing import SECOND_FACTORS, resealed
from environments.models import ChannelCredential, Webhook
from environments.models.audit import seal_former_key
from environments.models.channels import CHANNEL_CREDENTIALS
from environments.models.notifications import WEBHOOK_SECRETS

#: Columns with encrypted text, and the purpose each is encrypted for.
COLUMNS: tuple[tuple[type[models.Model], str, str], ...] = (
    (Identity, "sealed_refresh_token", REFRESH_TOKENS),
    (ChannelCredential, "sealed", CHANNEL_CREDENTIALS),
    (Webhook, "sealed_secret", WEBHOOK_SECRETS),
)
_FINGERPRINT = b"condastore key fingerprint"


# --- identical keys on every machine --------------------------------------------------------------


def _keys() -> dict[str, list[str]]:
    """Return all keys by the name of their file: the current key first, then former keys."""
    return {
        "secret_key": [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS],
        "audit_key": [settings.AUDIT_KEY, *settings.AUDIT_KEY_FALLBACKS],
        "encryption_key": [settings.ENCRYPTION_KEY, *settings.ENCRYPTION_KEY_FALLBACKS],
        "registry_key": [settings.REGISTRY_KEY, *settings.REGISTRY_KEY_FALLBACKS],
    }


def _fingerprint(key: str) -> str:
    return hmac.digest(key.encode(), _FINGERPRINT, "sha256").hex()


def foreign_keys() -> list[str]:
    """Return the names of this process's keys that differ from the installation's keys.

    The first process that calls this records its keys. A process that has the recorded key as a
    former key records its current one instead.
    """
    recorded = dict(InstallationKey.objects.values_list("name", "fingerprint"))
    foreign = []
    for name, (current, *former) in _keys().items():
        mark = _fingerprint(current)
        if name not in recorded:
            row, _ = InstallationKey.objects.get_or_create(
                name=name, defaults={"fingerprint": mark}
            )
            recorded[name] = row.fingerprint
        if recorded[name] == mark:
            continue
        if recorded[name] in map(_fingerprint, former):
            _record(name, mark)
        else:
            foreign.append(name)
    return foreign


def accept_keys() -> list[str]:
    """Record this process's keys as the installation's, and return the names of those replaced."""
    foreign = foreign_keys()
    for name in foreign:
        _record(name, _fingerprint(_keys()[name][0]))
    return foreign


def _record(name: str, fingerprint: str) -> None:
    rows = InstallationKey.objects.filter(name=name)
    rows.update(fingerprint=fingerprint, since=timezone.now())


def fault() -> str:
    """Return why this process must not run with its keys; empty if they are the installation's."""
    if not (foreign := foreign_keys()):
        return ""
    names = ", ".join(f"CONDASTORE_{name.upper()}" for name in foreign)
    return (
        f"The keys of this machine differ from those of the installation: {names}. Give every "
        "machine the same keys, by setting or in its data folder. If a key was replaced or lost "
        "permanently, run `condastore manage keys --accept`."
    )


# --- replacing a key ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewedCounts:
    """Counts of rows that were signed or encrypted with a former key and now use the current
    one."""

    reencrypted: int
    sealed_audit: bool


def renew() -> RenewedCounts:
    """Encrypt and sign again what former keys protect; safe to run next to other processes."""
    count = sum(_reencrypt(model, column, purpose) for model, column, purpose in COLUMNS)
    return RenewedCounts(
        reencrypted=count + _reencrypt_second_factors(), sealed_audit=seal_former_key()
    )


def _reencrypt(model: type[models.Model], column: str, purpose: str) -> int:
    count = 0
    rows: Iterator[tuple[int, str]] = (
        model._default_manager.exclude(**{column: ""}).values_list("pk", column).iterator()
    )
    for pk, old in list(rows):
        new = resealed(old, purpose=purpose)
        if new != old:  # unless the row was changed in the meantime
            row = model._default_manager.filter(**{"pk": pk, column: old})
            count += row.update(**{column: new})
    return count


def _reencrypt_second_factors() -> int:
    count = 0
    for pk in list(Authenticator.objects.values_list("pk", flat=True)):
        with transaction.atomic():
            row = Authenticator.objects.select_for_update().filter(pk=pk).first()
            if row is None:
                continue
            new = _renewed(row.data)
            if new != row.data:
                count += Authenticator.objects.filter(pk=pk).update(data=new)
    return count


def _renewed(data: dict[str, Any]) -> dict[str, Any]:
    """Return allauth's authenticator data with its secrets encrypted by the current key."""
    return {
        name: resealed(value, purpose=SECOND_FACTORS)
        if name in ("secret", "seed") and isinstance(value, str)
        else value
        for name, value in data.items()
    }
