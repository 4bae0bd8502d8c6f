"""LDAP and Active Directory: password sign-in, groups, and checks between sign-ins.

Imported only if CONDASTORE_LDAP_URL is set: python-ldap is in the extra `ldap`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ldap
import ldap.filter
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django_auth_ldap.backend import LDAPBackend, ldap_error
from django_auth_ldap.config import (
    GroupOfNamesType,
    LDAPSearch,
    MemberDNGroupType,
    NestedGroupOfNamesType,
    NestedGroupOfUniqueNamesType,
    PosixGroupType,
)

from accounts import throttling
from accounts.directories import Person, welcome
from accounts.models import Identity, User
from condastore.errors import StoreError, UnavailableError

#: Representation of group membership: values of CONDASTORE_LDAP_GROUP_TYPE.
GROUP_TYPES: Mapping[str, Any] = {
    "groupOfNames": NestedGroupOfNamesType,
    "groupOfNames-flat": GroupOfNamesType,
    "groupOfUniqueNames": NestedGroupOfUniqueNamesType,
    "posixGroup": PosixGroupType,
    # The server resolves nested groups (LDAP_MATCHING_RULE_IN_CHAIN) in one query.
    "activeDirectory": lambda name_attr: MemberDNGroupType(
        "member:1.2.840.113556.1.4.1941:", name_attr
    ),
}
ACCOUNT_DISABLE = 0x2  # a bit of Active Directory's userAccountControl
#: Errors caused by the input, not the directory: the sign-in is refused.
_REFUSALS = (ldap.INVALID_CREDENTIALS, ldap.NO_SUCH_OBJECT, ldap.INVALID_DN_SYNTAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Configuration of one directory; see CONDASTORE_LDAP_* in docs/reference/settings.md."""

    name: str
    url: str
    start_tls: bool
    insecure: bool  # see condastore.checks
    ca_file: str
    bind_dn: str
    bind_password: str
    user_base: str
    user_filter: str
    group_base: str
    group_filter: str
    group_type: str
    id_attribute: str
    username_attribute: str
    email_attribute: str
    timeout: float  # seconds

    @property
    def issuer(self) -> str:
        """Issuer of its identities: the base DN, as the servers may change."""
        return f"ldap:{self.user_base.lower()}"

    @property
    def connection_options(self) -> dict[int, Any]:
        options: dict[int, Any] = {
            ldap.OPT_PROTOCOL_VERSION: 3,
            ldap.OPT_REFERRALS: 0,  # referrals lead to servers that do not answer
            ldap.OPT_NETWORK_TIMEOUT: self.timeout,
            ldap.OPT_TIMEOUT: self.timeout,
        }
        if self.ca_file:
            options[ldap.OPT_X_TLS_CACERTFILE] = self.ca_file
        if self.start_tls or "ldaps://" in self.url:
            options[ldap.OPT_X_TLS_REQUIRE_CERT] = ldap.OPT_X_TLS_DEMAND
            options[ldap.OPT_X_TLS_NEWCTX] = 0  # last: it applies those before
        return options

    @property
    def user_search(self) -> LDAPSearch:
        # "+" asks for operational attributes: entryUUID, when a password was locked.
        return LDAPSearch(self.user_base, ldap.SCOPE_SUBTREE, self.user_filter, ["*", "+"])

    @property
    def group_search(self) -> LDAPSearch:
        return LDAPSearch(self.group_base, ldap.SCOPE_SUBTREE, self.group_filter, ["cn"])

    @property
    def groups(self) -> Any:
        return GROUP_TYPES[self.group_type](name_attr="cn")

    def django_settings(self) -> dict[str, Any]:
        """Return the settings of django-auth-ldap, without accounts and groups."""
        return {
            "SERVER_URI": self.url,
            "START_TLS": self.start_tls,
            "CONNECTION_OPTIONS": self.connection_options,
            "BIND_DN": self.bind_dn,
            "BIND_PASSWORD": self.bind_password,
            "USER_SEARCH": self.user_search,
            "USER_ATTRLIST": ["*", "+"],
            "ALWAYS_UPDATE_USER": False,
            "CACHE_TIMEOUT": 0,
            "GROUP_SEARCH": self.group_search if self.group_base else None,
            "GROUP_TYPE": self.groups if self.group_base else None,
        }


def options() -> Options:
    return Options(**settings.LDAP)


def person_in(attributes: Mapping[str, Any], names: frozenset[str] | None, of: Options) -> Person:
    """Return the person of an entry.

    Raises:
        UnavailableError: the directory hides an identifying attribute.
    """
    subject = _subject(attributes, of.id_attribute)
    username = _text(attributes, of.username_attribute)
    if not subject or not username:
        missing = of.id_attribute if not subject else of.username_attribute
        raise UnavailableError(
            f"The directory does not show the attribute {missing} of this person.",
            hint="Let the account that CONDASTORE_LDAP_BIND_DN names read it.",
        )
    return Person(
        directory=of.name,
        issuer=of.issuer,
        subject=subject,
        username=username,
        email=_text(attributes, of.email_attribute),
        first_name=_text(attributes, "givenName"),
        last_name=_text(attributes, "sn"),
        groups=names,
    )


def _text(attributes: Mapping[str, Any], name: str) -> str:
    return next((value for value in attributes.get(name, ()) if isinstance(value, str)), "")


def _subject(attributes: Mapping[str, Any], name: str) -> str:
    value = next(iter(attributes.get(name, ())), "")
    if name.lower() == "objectguid" and value:
        # Bytes, or text if they are valid text.
        raw = value if isinstance(value, bytes) else value.encode()
        return str(uuid.UUID(bytes_le=raw))
    return value.hex() if isinstance(value, bytes) else value


# --- at a sign-in ---------------------------------------------------------------------------------


class Backend(LDAPBackend):  # type: ignore[misc]
    """Checks the password at the directory; the account comes from `directories.welcome`."""

    def __init__(self) -> None:
        self.options = options()
        self.default_settings = self.options.django_settings()

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> User | None:
        if not username or not password or "\0" in username + password:
            return None
        attempt = throttling.begin_bind(request, username)
        if attempt is None:
            raise ValidationError("Too many attempts failed. Try again later.")
        user: User | None = super().authenticate(request, username, password, **kwargs)
        if user is not None:
            attempt.undo()
        return user if user is not None and user.may_act else None

    def get_or_build_user(self, username: str, ldap_user: Any) -> tuple[User, bool]:
        names = None
        if self.options.group_base:
            names = frozenset(name for name in ldap_user.group_names if name)
        return welcome(person_in(ldap_user.attrs, names, self.options)), False

    def get_user(self, user_id: int) -> User | None:
        user = User.objects.filter(pk=user_id).first()
        return user if user is not None and user.may_act else None

    # Rights come from roles, Django's permissions from ModelBackend.
    def has_perm(self, user: User, perm: str, obj: object = None) -> bool:
        return False

    def has_module_perms(self, user: User, app_label: str) -> bool:
        return False

    def get_all_permissions(self, user: User, obj: object = None) -> set[str]:
        return set()

    def get_group_permissions(self, user: User, obj: object = None) -> set[str]:
        return set()


def _not_silently(sender: Any, exception: Exception, **kwargs: Any) -> None:
    """Report an outage, which django-auth-ldap would report as a wrong password."""
    if not isinstance(exception, _REFUSALS):
        raise unavailable(exception) from exception


ldap_error.connect(_not_silently, dispatch_uid="condastore")


def unavailable(error: Exception) -> StoreError:
    said = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    reason = said.get("info") or said.get("desc") or type(error).__name__
    return UnavailableError(
        f"The directory is not available: {reason}.",
        hint="Try again. If it happens again, contact the administrators.",
    )


# --- between sign-ins -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """Attributes of a person that group types use."""

    dn: str
    attrs: Mapping[str, Any]
    connection: Any


class Directory:
    """Queries by the account of CONDASTORE_LDAP_BIND_DN, per person, by the immutable id."""

    def __init__(self) -> None:
        self.options = options()
        self.name = self.options.name
        self._connection: Any = None

    def askable(self, identities: QuerySet[Identity]) -> QuerySet[Identity]:
        return identities

    def look_up(self, identity: Identity) -> Person | None:
        with _translated():
            found = self._entry(identity.subject)
            if found is None or is_disabled(found.attrs):
                return None
            names = None
            if self.options.group_base:
                groups = self.options.groups
                infos = groups.user_groups(found, self.options.group_search)
                names = frozenset(filter(None, map(groups.group_name_from_info, infos)))
            return person_in(found.attrs, names, self.options)

    def _entry(self, subject: str) -> _Entry | None:
        attribute = self.options.id_attribute
        if attribute.lower() == "objectguid":
            value = "".join(f"\\{byte:02x}" for byte in uuid.UUID(subject).bytes_le)
        else:
            value = ldap.filter.escape_filter_chars(subject).replace("%", "%%")
        search = LDAPSearch(
            self.options.user_base, ldap.SCOPE_SUBTREE, f"({attribute}={value})", ["*", "+"]
        )
        results = search.execute(self._bound(), (), escape=False)
        if not results:
            return None
        dn, attributes = results[0]
        return _Entry(dn, attributes, self._bound())

    def _bound(self) -> Any:
        if self._connection is None:
            connection = ldap.initialize(self.options.url, bytes_mode=False)
            for option, value in self.options.connection_options.items():
                connection.set_option(option, value)
            if self.options.start_tls:
                connection.start_tls_s()
            connection.simple_bind_s(self.options.bind_dn, self.options.bind_password)
            # Without read permission every search would be empty and everybody removed.
            connection.read_s(self.options.user_base, attrlist=["1.1"])
            self._connection = connection
        return self._connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ldap.LDAPError as error:
        raise unavailable(error) from error


def is_disabled(attributes: Mapping[str, Any]) -> bool:
    """Whether the entry is disabled: Active Directory, OpenLDAP ppolicy and 389 Directory."""
    control = _text(attributes, "userAccountControl")
    if control.lstrip("-").isdecimal() and int(control) & ACCOUNT_DISABLE:
        return True
    # A time means a temporary lock after wrong passwords; this value a lock by an administrator.
    if _text(attributes, "pwdAccountLockedTime") == "000001010000Z":
        return True
    return _text(attributes, "nsAccountLock").lower() == "true"
