"""What would break later is said at start: Django runs these checks before each command."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.apps.config import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, register
from django.core.checks import Warning as Warned

from condastore import env, private_files
from condastore.errors import InvalidInputError
from environments.domain.folder_access import EVERYONE, parse_group_rules
from environments.engine.network.addresses import parse_networks
from environments.engine.network.audit_anchors import parse_audit_anchor
from environments.engine.pypi import git_sources
from environments.engine.system.confinement import python_paths
from environments.engine.system.disk import require_same_file_system
from environments.engine.system.sandbox import VISIBLE_PATHS
from environments.services.outgoing_guard import configured_guard

#: The length of the placeholder in which conda packages keep room for a prefix.
CONDA_PREFIX_LENGTH = 255
#: What `prefixes/<namespace>/<number>-<digest>-<environment>` adds with short names.
SHORT_PREFIX = len("prefixes/a-namespace-name/100-123456789012-an-environment-name")
BROKERS = frozenset({"redis", "rediss", "unix", "amqp", "amqps", "stub"})
#: As accounts.ldap_directory reads them, which needs python-ldap.
GROUP_TYPES = (
    *("groupOfNames", "groupOfNames-flat", "groupOfUniqueNames", "posixGroup"),
    "activeDirectory",
)
#: Where container engines mount secrets, readable by all of the container's accounts.
MOUNTED_SECRETS = Path("/run/secrets")
OLDEST_SQLITE = (3, 35, 0)
#: Loopback and link-local, where machines and clouds answer themselves.
OF_MACHINES = parse_networks(["127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10"])


@register
def check(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    data = Path(settings.DATA)
    return [
        *_data_folder(data),
        *_modes(data),
        *_services(),
        *_accounts(),
        *_sign_in(),
        *_isolation(),
        *_optional_programs(),
        *_outgoing_requests(data),
    ]


def _data_folder(data: Path) -> Iterator[CheckMessage]:
    nearest = next(path for path in (data, *data.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield Error(
            f"The data folder {data} cannot be written.",
            hint="Set CONDASTORE_DATA to a folder of your own.",
            id="condastore.E001",
        )
    cache, prefixes = data / "cache", data / "prefixes"
    if all(os.access(folder, os.W_OK | os.X_OK) for folder in (cache, prefixes)):
        try:
            require_same_file_system(cache, prefixes)
        except InvalidInputError as error:
            yield Error(
                error.message,
                hint="Put the whole data folder on one file system.",
                id="condastore.E002",
            )
    length = len(str(data)) + 1 + SHORT_PREFIX
    if length > CONDA_PREFIX_LENGTH:
        yield Error(
            f"The data folder's path is too long: {data}.",
            hint=f"conda packages leave room for paths of {CONDA_PREFIX_LENGTH} characters; "
            f"choose one of at most {CONDA_PREFIX_LENGTH - SHORT_PREFIX - 1}.",
            id="condastore.E003",
        )


def _modes(data: Path) -> Iterator[CheckMessage]:
    """What other accounts of the machine reach, and the groups that should."""
    group = private_files.group_id(settings.BLOBS_GROUP) if settings.BLOBS_GROUP else None
    if settings.BLOBS_GROUP and group is None:
        yield Error(
            f"CONDASTORE_BLOBS_GROUP names no Unix group: {settings.BLOBS_GROUP}.",
            hint="Name the group that nginx runs as.",
            id="condastore.E031",
        )
    if settings.ACCEL_REDIRECT and not settings.BLOBS_GROUP and settings.BLOBS == "files":
        yield Warned(
            "CONDASTORE_ACCEL_REDIRECT is set, and nginx may not read the blobs folder.",
            hint="Set CONDASTORE_BLOBS_GROUP to the group that nginx runs as.",
            id="condastore.W031",
        )
    from condastore.supervisor.startup import database_file

    for found in private_files.still_open(data, database=database_file(), blobs_group=group):
        yield Error(
            f"Other accounts of this machine reach what is the service's: {found}.",
            hint="Let the account that runs condastore own it, and nobody else read it "
            "(chown, chmod go-rwx).",
            id="condastore.E030",
        )
    for variable, path in env.SECRET_FILES.items():
        if path.stat().st_mode & stat.S_IROTH and not path.is_relative_to(MOUNTED_SECRETS):
            yield Warned(
                f"Every account of this machine may read {path}, which {variable} names.",
                hint=f"chmod o-r {path}",
                id="condastore.W034",
            )
    try:
        rules = parse_group_rules(settings.NAMESPACE_GROUPS)
    except InvalidInputError as error:
        yield Error(error.message, hint=error.hint, id="condastore.E032")
        return
    own = {os.getegid(), *os.getgroups()}
    for name in sorted({rule.group for rule in rules if "{" not in rule.group} - {EVERYONE}):
        number = private_files.group_id(name)
        if number is None:
            yield Warned(
                f"CONDASTORE_NAMESPACE_GROUPS names a group that is not there: {name}.",
                hint="Until it is there the folders are the service's alone.",
                id="condastore.W032",
            )
        elif os.geteuid() != 0 and number not in own:
            yield Warned(
                f"This account may not give folders to the group {name}: it is no member.",
                hint=f"usermod -aG {name} ACCOUNT, then restart.",
                id="condastore.W033",
            )


def _isolation() -> Iterator[CheckMessage]:
    if settings.SANDBOX == "off":
        yield Warned(
            "CONDASTORE_SANDBOX is off: code of packages runs with all rights of the workers.",
            hint="Set it to `required`, unless everybody who may build is trusted with the "
            "machine, the database and all secrets.",
            id="condastore.W010",
        )
    readable = (*map(Path, VISIBLE_PATHS), *python_paths())
    above = next((path for path in readable if _is_below(Path(settings.DATA), path)), None)
    if above is not None:
        yield Error(
            f"The data folder lies below {above}, which code of packages or of solvers may read.",
            hint="Set CONDASTORE_DATA to a folder elsewhere, such as /srv/condastore.",
            id="condastore.E010",
        )


def _optional_programs() -> Iterator[CheckMessage]:
    if shutil.which("git") is None:
        yield Info(
            "git is not installed: pip parts cannot name Git repositories.",
            hint=f"Where a rule of the kind pip-sources allows them: {git_sources.INSTALL}",
            id="condastore.I001",
        )


def _outgoing_requests(data: Path) -> Iterator[CheckMessage]:
    guard = configured_guard()
    inside = [
        str(network)
        for network in guard.networks
        if any(each.version == network.version and network.overlaps(each) for each in OF_MACHINES)
    ]
    if inside:
        yield Warned(
            f"CONDASTORE_ALLOWED_NETWORKS holds {', '.join(inside)}: every account reaches "
            "services of this machine, or the metadata of a cloud's machines.",
            hint="Name single servers, such as 127.0.0.1:8080.",
            id="condastore.W040",
        )
    above = next((one for one in guard.folders if _is_below(data, Path(one))), None)
    if above is not None:
        yield Warned(
            f"The data folder lies below {above}, from which everybody may use file: channels.",
            hint="Name the folders of the channels alone in CONDASTORE_FILE_CHANNELS.",
            id="condastore.W041",
        )
    try:
        parse_networks([*settings.WEBHOOK_PRIVATE_NETWORKS, *settings.PUSH_PRIVATE_NETWORKS])
    except InvalidInputError as error:
        yield Error(
            f"CONDASTORE_WEBHOOK_PRIVATE_NETWORKS or CONDASTORE_PUSH_PRIVATE_NETWORKS: {error}",
            hint=error.hint,
            id="condastore.E040",
        )


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _services() -> Iterator[CheckMessage]:
    scheme = urlsplit(settings.BROKER_URL).scheme
    if settings.BROKER_URL and scheme not in BROKERS:
        yield Error(
            f"CONDASTORE_BROKER_URL starts with {scheme or 'nothing known'}.",
            hint="Write redis://, rediss://, unix://, amqp:// or amqps://.",
            id="condastore.E004",
        )
    if not settings.EMAIL_BACKEND:
        yield Error(
            "CONDASTORE_EMAIL_URL cannot be read.",
            hint="Write smtp://host:25, or submission://user:password@host:587 for TLS.",
            id="condastore.E007",
        )
    if settings.AUDIT_ANCHOR:
        try:
            parse_audit_anchor(settings.AUDIT_ANCHOR)
        except InvalidInputError as error:
            yield Error(error.message, hint=error.hint, id="condastore.E008")
    engine = settings.DATABASES["default"]["ENGINE"]
    if engine.endswith("sqlite3") and sqlite3.sqlite_version_info < OLDEST_SQLITE:
        yield Error(
            f"SQLite {sqlite3.sqlite_version} is too old.",
            hint="Use a Python with SQLite 3.35 or newer, or PostgreSQL.",
            id="condastore.E005",
        )


def _accounts() -> Iterator[CheckMessage]:
    if settings.ANONYMOUS_USER_NAME is not None:
        yield Error(
            "ANONYMOUS_USER_NAME is set: guardian's stand-in would pass for a signed-in user.",
            hint="Set it to None.",
            id="condastore.E006",
        )
    yield from _transport()
    if settings.DEBUG and settings.PUBLIC_URL.startswith("https://"):
        yield Warned(
            "CONDASTORE_DEBUG is on at a public address: errors show settings and code.",
            hint="Switch it off.",
            id="condastore.W001",
        )


def _transport() -> Iterator[CheckMessage]:
    """Compare what protects cookies with the address that people type."""
    public = urlsplit(settings.PUBLIC_URL)
    if public.scheme == "https" and not settings.SECURE_COOKIES:
        yield Warned(
            "CONDASTORE_PUBLIC_URL is https, and CONDASTORE_SECURE_COOKIES is off: a browser sends "
            "its session without encryption too.",
            hint="Remove CONDASTORE_SECURE_COOKIES; it is on then.",
            id="condastore.W002",
        )
    for text in settings.TRUSTED_PROXIES:
        try:
            ip_network(text, strict=False)
        except ValueError:
            yield Error(
                f"CONDASTORE_TRUSTED_PROXIES names {text!r}, which is no address or network.",
                hint="Write 10.1.0.7 or 10.1.0.0/16.",
                id="condastore.E028",
            )
    if public.scheme == "http" and not is_loopback(public.hostname or ""):
        yield Warned(
            f"CONDASTORE_PUBLIC_URL is {settings.PUBLIC_URL}: passwords, sessions and tokens go "
            "over the network without encryption.",
            hint="Put a proxy with TLS in front, and write https://.",
            id="condastore.W003",
        )


def is_loopback(host: str) -> bool:
    """Return True for an address or name that never leaves this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _ldap_encryption(ldap: dict[str, Any]) -> Iterator[CheckMessage]:
    if ldap["start_tls"]:
        return
    for url in re.split(r"[\s,]+", ldap["url"].strip()):
        parts = urlsplit(url)
        if parts.scheme.lower() != "ldap" or is_loopback(parts.hostname or ""):
            continue
        message = f"Passwords go to {url} without encryption."
        if ldap["insecure"]:
            yield Warned(message, hint="Write ldaps://.", id="condastore.W020")
        else:
            yield Error(
                message,
                hint="Write ldaps://, or set CONDASTORE_LDAP_START_TLS. CONDASTORE_LDAP_INSECURE "
                "allows it all the same, for a network that nobody else can read.",
                id="condastore.E027",
            )


def _sign_in() -> Iterator[CheckMessage]:
    ldap = settings.LDAP
    if ldap["url"]:
        if find_spec("django_auth_ldap") is None:
            yield Error(
                "CONDASTORE_LDAP_URL is set, and what it needs is not installed.",
                hint="pip install 'condastore-server[ldap]'",
                id="condastore.E020",
            )
        if not ldap["user_base"]:
            yield Error(
                "CONDASTORE_LDAP_URL is set, and CONDASTORE_LDAP_USER_BASE is not.",
                hint="Say below which entry people are: ou=people,dc=example,dc=org.",
                id="condastore.E021",
            )
        if ldap["group_type"] not in GROUP_TYPES:
            yield Error(
                f"CONDASTORE_LDAP_GROUP_TYPE is {ldap['group_type']!r}.",
                hint=f"Write one of: {', '.join(GROUP_TYPES)}.",
                id="condastore.E022",
            )
        if ldap["ca_file"] and not Path(ldap["ca_file"]).is_file():
            yield Error(
                f"CONDASTORE_LDAP_CA_FILE names no file: {ldap['ca_file']}.",
                id="condastore.E023",
            )
        yield from _ldap_encryption(ldap)
    if settings.SIGN_IN_PROVIDERS.saml and find_spec("onelogin") is None:
        yield Error(
            "CONDASTORE_SAML_PROVIDERS is set, and what it needs is not installed.",
            hint="pip install 'condastore-server[saml]'",
            id="condastore.E024",
        )
    if settings.SCIM and find_spec("scim2_models") is None:
        yield Error(
            "CONDASTORE_SCIM_TOKEN is set, and what it needs is not installed.",
            hint="pip install 'condastore-server[scim]'",
            id="condastore.E026",
        )
    if not (settings.LOCAL_ACCOUNTS or ldap["url"] or settings.SIGN_IN_PROVIDERS):
        yield Error(
            "CONDASTORE_LOCAL_ACCOUNTS is off, and there is no other way to sign in.",
            hint="Name a directory or an identity provider (docs/how-to/accounts.md).",
            id="condastore.E025",
        )
