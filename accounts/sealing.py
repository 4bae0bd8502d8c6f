"""Encryption of secrets that the database holds, with the installation's encryption key."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings

#: Purpose of what allauth encrypts: secrets of one-time passwords, seeds of recovery codes.
SECOND_FACTORS = "second-factors"


@lru_cache(maxsize=64)
def _cipher(key: str, purpose: str) -> Fernet:
    digest = hashlib.sha256(f"{purpose}:{key}".encode()).digest()
    return Fernet(base64.urlsafe_b64encode(digest))


def _former_keys() -> Iterator[str]:
    """Former encryption keys, then the secret key: it encrypted before the two were separate."""
    yield from settings.ENCRYPTION_KEY_FALLBACKS
    yield settings.SECRET_KEY
    yield from settings.SECRET_KEY_FALLBACKS


def seal(secret: str, *, purpose: str) -> str:
    """Encrypt `secret`. What was sealed for another `purpose` is not opened for this one."""
    return _cipher(settings.ENCRYPTION_KEY, purpose).encrypt(secret.encode()).decode()


def unseal(sealed: str, *, purpose: str) -> str:
    """Decrypt `sealed`; empty where no key of the installation opens it: enter the secret again."""
    for key in (settings.ENCRYPTION_KEY, *_former_keys()):
        try:
            return _cipher(key, purpose).decrypt(sealed.encode()).decode()
        except InvalidToken:
            continue
    return ""


def resealed(sealed: str, *, purpose: str) -> str:
    """Encrypt `sealed` again where it was encrypted with a former key; else return it as it is."""
    try:
        _cipher(settings.ENCRYPTION_KEY, purpose).decrypt(sealed.encode())
    except InvalidToken:
        secret = unseal(sealed, purpose=purpose)
        return seal(secret, purpose=purpose) if secret else sealed
    return sealed
