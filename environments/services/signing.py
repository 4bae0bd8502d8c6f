"""With which key does this installation sign what it says of its builds?"""

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
    """settings.SIGNING_KEY, or the key of the data folder, made at the first use.

    Raises:
        ImproperlyConfigured: what is set is no Ed25519 key.
    """
    return _parsed(settings.SIGNING_KEY or _stored(Path(settings.DATA)))


def public_key() -> bytes:
    """As PEM: whoever has it can check what was signed, without asking us."""
    return (
        private_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def key_id() -> str:
    """sha256 of the public key in DER."""
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
            "CONDASTORE_SIGNING_KEY is no private key in PEM without a password: "
            "make one with `openssl genpkey -algorithm ed25519`."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ImproperlyConfigured(
            "CONDASTORE_SIGNING_KEY is not an Ed25519 key: "
            "make one with `openssl genpkey -algorithm ed25519`."
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
