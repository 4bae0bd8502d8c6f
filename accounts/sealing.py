"""Encryption of secrets that the database holds, with the installation's encryption key."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings

#: Purpose of secrets that allauth encrypts: one-time passwords, seeds of recovery codes.
SECOND_FACTORS = "second-factors"


@lru_cache(maxsize=64)
def _cipher(key: str, purpose: str) -> Fernet:
    digest = hashlib.sha256(f"{purpose}:{key}".encode()).digest()
    return Fernet(base64.urlsafe_b64encode(digest))


def _former_keys() -> Iterator[str]:
    """Return former encryption keys, then the secret key, which was used before they existed."""
    yield from settings.ENCRYPTION_KEY_FALLBACKS
    yield settings.SECRET_KEY
    yield from settings.SECRET_KEY_FALLBACKS


def seal(secret: str, *, purpose: str) -> str:
    """Encrypt `secret` for one purpose; it cannot be decrypted for another."""
    return _cipher(settings.ENCRYPTION_KEY, purpose).encrypt(secret.encode()).decode()


def unseal(sealed: str, *, purpose: str) -> str:
    """Decrypt `sealed`; empty if no key of the installation fits, so it must be entered again."""
    for key in (settings.ENCRYPTION_KEY, *_former_keys()):
        try:
            return _cipher(key, purpose).decrypt(sealed.encode()).decode()
        except InvalidToken:
            continue
    return ""


def resealed(sealed: str, *, purpose: str) -> str:
    """Encrypt `sealed` again if it was encrypted with a former key; else return it unchanged."""
    try:
        _cipher(settings.ENCRYPTION_KEY, purpose).decrypt(sealed.encode())
    except InvalidToken:
        secret = unseal(sealed, purpose=purpose)
        return seal(secret, purpose=purpose) if secret else sealed
    return sealed
