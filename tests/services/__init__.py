"""Real servers for tests: brokers, databases and an object store, each in a folder of its own.

::

    with postgres() as service:
        ...  # service.url
        service.kill()     # as a power cut does
        service.restart()  # the same data and the same port

| component | context manager | from |
|---|---|---|
| Valkey | `valkey` | the Python package index |
| Redis | `redis` | apt |
| RabbitMQ | `rabbitmq` | apt |
| PostgreSQL | `postgres`, `postgres("debian")` | the Python package index, apt |
| S3 (SeaweedFS) | `seaweed_s3` | the Python package index |
| OpenLDAP | `openldap` | apt |
| OpenID Connect (oidc-provider) | `openid_provider` | npm |
| SAML (pysaml2) | `saml_provider` | the Python package index, apt |

One that is not installed raises ComponentMissing, which says what to install. All listen on the
loopback interface or a unix socket only, and leave nothing behind: a watcher ends the servers of a
test run that is killed itself.
"""

from .brokers import rabbitmq, redis, valkey
from .databases import postgres
from .ldap import LdapService, openldap
from .oidc import OpenIdService, openid_provider
from .processes import ComponentMissing, Service, free_ports, running, wait_for
from .saml import SamlService, saml_provider
from .storage import S3Service, seaweed_s3

__all__ = [
    "ComponentMissing",
    "LdapService",
    "OpenIdService",
    "S3Service",
    "SamlService",
    "Service",
    "free_ports",
    "openid_provider",
    "openldap",
    "postgres",
    "rabbitmq",
    "redis",
    "running",
    "saml_provider",
    "seaweed_s3",
    "valkey",
    "wait_for",
]
