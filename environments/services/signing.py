"""Key that signs provenance statements of this installation."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from condastore.keys import stored_key


def private_key() -> Ed25519PrivateKey:
    """Return settings.SIGNING_KEY, or the key of the data folder, created on first use.

    Raises:
        ImproperlyConfigured: the setting is not an Ed25519 key.
    """
    return _parsed(settings.SIGNING_KEY or _stored(Path(settings.DATA)))


def public_key() -> bytes:
    """Return the public key as PEM, for verifying signatures offline."""
    return (
        private_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def key_id() -> str:
    """Return the sha256 of the public key in DER."""
    der = (
        private_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return hashlib.sha256(der).hexdigest()


def sign(message: bytes) -> bytes:
    return private_key().sign(message)


@lru_cache(maxsize=4)
def _parsed(pem: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ImproperlyConfigured(
            "CONDASTORE_SIGNING_KEY must be a PEM private key without a password; "
            "create one with `openssl genpkey -algorithm ed25519`."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ImproperlyConfigured(
            "CONDASTORE_SIGNING_KEY must be an Ed25519 key; "
            "create one with `openssl genpkey -algorithm ed25519`."
        )
    return key


def _stored(data: Path) -> str:
    return stored_key(data, "signing_key.pem", _generate)


def _generate() -> str:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem.decode()
