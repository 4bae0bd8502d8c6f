"""Keys of the installation: the same on every machine, and replaced without losing data."""

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

#: Columns that hold encrypted text, and what each is encrypted for.
COLUMNS: tuple[tuple[type[models.Model], str, str], ...] = (
    (Identity, "sealed_refresh_token", REFRESH_TOKENS),
    (ChannelCredential, "sealed", CHANNEL_CREDENTIALS),
    (Webhook, "sealed_secret", WEBHOOK_SECRETS),
)
_FINGERPRINT = b"condastore key fingerprint"


# --- the same keys everywhere -------------------------------------------------------------------


def _keys() -> dict[str, list[str]]:
    """Every key by the name of its file: the current one, then former ones."""
    return {
        "secret_key": [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS],
        "audit_key": [settings.AUDIT_KEY, *settings.AUDIT_KEY_FALLBACKS],
        "encryption_key": [settings.ENCRYPTION_KEY, *settings.ENCRYPTION_KEY_FALLBACKS],
        "registry_key": [settings.REGISTRY_KEY, *settings.REGISTRY_KEY_FALLBACKS],
    }


def _fingerprint(key: str) -> str:
    return hmac.digest(key.encode(), _FINGERPRINT, "sha256").hex()


def foreign_keys() -> list[str]:
    """Names of this process's keys that are not the installation's.

    The first process that asks says which they are. A process that has the recorded key as a
    former one replaces it.
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
    """Make this process's keys the installation's; the names of those that were others."""
    foreign = foreign_keys()
    for name in foreign:
        _record(name, _fingerprint(_keys()[name][0]))
    return foreign


def _record(name: str, fingerprint: str) -> None:
    rows = InstallationKey.objects.filter(name=name)
    rows.update(fingerprint=fingerprint, since=timezone.now())


def fault() -> str:
    """Why this process must not run with its keys; empty where they are the installation's."""
    if not (foreign := foreign_keys()):
        return ""
    names = ", ".join(f"CONDASTORE_{name.upper()}" for name in foreign)
    return (
        f"The keys of this machine are not those of the installation: {names}. Give every machine "
        "the same ones, by setting or in its data folder; where a key was replaced or lost for "
        "good, run `condastore manage keys --accept`."
    )


# --- replacing one ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What was signed or encrypted with a former key, and is with the current one now."""

    reencrypted: int
    sealed_audit: bool


def renew() -> Renewed:
    """Encrypt and sign again what former keys protect; safe beside everything else."""
    count = sum(_reencrypt(model, column, purpose) for model, column, purpose in COLUMNS)
    return Renewed(reencrypted=count + _reencrypt_second_factors(), sealed_audit=seal_former_key())


def _reencrypt(model: type[models.Model], column: str, purpose: str) -> int:
    count = 0
    rows: Iterator[tuple[int, str]] = (
        model._default_manager.exclude(**{column: ""}).values_list("pk", column).iterator()
    )
    for pk, old in list(rows):
        new = resealed(old, purpose=purpose)
        if new != old:  # unless it was replaced meanwhile
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
    """The secrets of allauth's authenticators: of one-time passwords, and of recovery codes."""
    return {
        name: resealed(value, purpose=SECOND_FACTORS)
        if name in ("secret", "seed") and isinstance(value, str)
        else value
        for name, value in data.items()
    }
