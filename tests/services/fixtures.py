"""The services for pytest: one of each for the whole run, started when first asked for.

A test that kills or pauses one takes one of its own: ``with valkey() as service``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import (
    LdapService,
    OpenIdService,
    S3Service,
    SamlService,
    Service,
    openid_provider,
    openldap,
    postgres,
    rabbitmq,
    redis,
    saml_provider,
    seaweed_s3,
    valkey,
)


@pytest.fixture(scope="session")
def valkey_service() -> Iterator[Service]:
    with valkey() as service:
        yield service


@pytest.fixture(scope="session")
def redis_service() -> Iterator[Service]:
    with redis() as service:
        yield service


@pytest.fixture(scope="session")
def rabbitmq_service() -> Iterator[Service]:
    with rabbitmq() as service:
        yield service


@pytest.fixture(scope="session")
def postgres_service() -> Iterator[Service]:
    with postgres() as service:
        yield service


@pytest.fixture(scope="session")
def debian_postgres_service() -> Iterator[Service]:
    with postgres("debian") as service:
        yield service


@pytest.fixture(scope="session")
def s3_service() -> Iterator[S3Service]:
    with seaweed_s3() as service:
        yield service


@pytest.fixture(scope="session")
def ldap_service() -> Iterator[LdapService]:
    with openldap() as service:
        yield service


@pytest.fixture(scope="session")
def openid_service() -> Iterator[OpenIdService]:
    callbacks = [f"http://testserver/accounts/oidc/{name}/login/callback/" for name in ("a", "b")]
    with openid_provider(redirects=callbacks) as service:
        yield service


@pytest.fixture(scope="session")
def saml_service() -> Iterator[SamlService]:
    with saml_provider() as service:
        yield service
