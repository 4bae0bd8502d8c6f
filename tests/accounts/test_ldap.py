"""A real LDAP server: who signs in, with which groups, over which connections; and who is gone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor, may
from accounts.directories import check_people
from accounts.models import Identity, User
from accounts.roles import Perm, Role
from environments.operations.role_mappings import add_role_mapping
from tests import factories
from tests.services import LdapService
from tests.services.ldap import ADMIN, ADMIN_PASSWORD, BASE, person_entry

pytestmark = [pytest.mark.django_db, pytest.mark.component("slapd")]


@pytest.fixture
def directory(ldap_service: LdapService, settings: Any) -> LdapService:
    """Its people may sign in here, over ldaps."""
    settings.LDAP = settings.LDAP | {
        "url": ldap_service.secure_url,
        "ca_file": str(ldap_service.certificate),
        "bind_dn": ADMIN,
        "bind_password": ADMIN_PASSWORD,
        "user_base": f"ou=people,{BASE}",
        "group_base": f"ou=groups,{BASE}",
    }
    backends = settings.AUTHENTICATION_BACKENDS
    settings.AUTHENTICATION_BACKENDS = [*backends, "accounts.ldap_directory.Backend"]
    settings.DIRECTORIES = [("accounts.ldap_directory.Directory", {})]
    settings.DIRECTORY_INTERVAL = timedelta(0)
    return ldap_service


def sign_in(name: str, password: str = "") -> Any:
    form = {"username": name, "password": password or f"{name}-password"}
    return Client().post("/login/", form, headers={"Accept": "text/html"})


def token(name: str, password: str = "") -> Any:
    body = {"username": name, "password": password or f"{name}-password"}
    return Client().post("/api/token", body, content_type="application/json")


def groups(name: str) -> set[str]:
    return set(User.objects.get(username=name).groups.values_list("name", flat=True))


def test_a_person_of_the_directory_signs_in_at_every_door(directory: LdapService) -> None:
    assert sign_in("erin").status_code == 302
    assert token("erin").status_code == 201
    erin = User.objects.get()
    assert (erin.email, erin.first_name, erin.last_name) == ("erin@example.org", "Erin", "Example")
    assert not erin.has_usable_password()
    identity = Identity.objects.get()
    assert identity.issuer == f"ldap:ou=people,{BASE}"
    assert len(identity.subject) == 36  # entryUUID


@pytest.mark.parametrize("password", ["wrong", " "])
def test_a_wrong_password_signs_nobody_in(directory: LdapService, password: str) -> None:
    assert "is wrong" in sign_in("erin", password).content.decode()
    assert token("erin", password).status_code == 401
    assert not User.objects.exists()


@pytest.mark.parametrize("name", ["*", "erin)(uid=*", "er*", "nobody"])
def test_a_user_name_is_no_filter(directory: LdapService, name: str) -> None:
    assert token(name, "erin-password").status_code == 401


def test_letter_case_makes_no_second_account(directory: LdapService) -> None:
    assert token("erin").status_code == token("ERIN", "erin-password").status_code == 201
    assert User.objects.count() == 1


def test_a_local_account_of_the_name_is_not_taken_over(directory: LdapService) -> None:
    factories.make_user("erin", superuser=True, password="a local password")
    refused = sign_in("erin")
    assert refused.status_code == 409
    assert "belongs to another account" in refused.content.decode()
    assert token("erin").json()["code"] == "conflict"
    assert token("erin", "a local password").status_code == 201


def test_groups_in_groups_are_followed(directory: LdapService) -> None:
    token("erin")
    assert groups("erin") == {"ldap:physics", "ldap:science"}


def test_groups_in_groups_are_left_where_the_type_is_flat(
    directory: LdapService, settings: Any
) -> None:
    settings.LDAP = settings.LDAP | {"group_type": "groupOfNames-flat"}
    token("erin")
    assert groups("erin") == {"ldap:physics"}


def test_posix_groups(directory: LdapService, settings: Any) -> None:
    settings.LDAP = settings.LDAP | {"group_type": "posixGroup", "group_base": f"ou=posix,{BASE}"}
    token("bob")
    assert groups("bob") == {"ldap:staff"}


def test_active_directory_is_asked_for_the_whole_chain_at_once(
    directory: LdapService, settings: Any
) -> None:
    from accounts.ldap_directory import Options

    options = Options(**settings.LDAP | {"group_type": "activeDirectory"})
    requested: list[str] = []

    class Connection:
        def search_s(self, base: str, scope: int, text: str, attributes: object) -> list[Any]:
            requested.append(text)
            return []

    class Entry:
        dn, attrs, connection = "cn=erin,dc=example", {"cn": ["erin"]}, Connection()

    assert list(options.groups.user_groups(Entry, options.group_search)) == []
    assert requested == ["(&(objectClass=*)(member:1.2.840.113556.1.4.1941:=cn=erin,dc=example))"]


def test_an_account_that_active_directory_disabled_is_gone() -> None:
    from accounts.ldap_directory import is_disabled

    assert is_disabled({"userAccountControl": ["514"]})
    assert not is_disabled({"userAccountControl": ["512"]})
    assert is_disabled({"pwdAccountLockedTime": ["000001010000Z"]})
    assert not is_disabled({"pwdAccountLockedTime": ["20260101000000Z"]})
    assert is_disabled({"nsAccountLock": ["TRUE"]})


def test_start_tls_checks_the_certificate(directory: LdapService, settings: Any) -> None:
    settings.LDAP = settings.LDAP | {"url": directory.url, "start_tls": True}
    assert token("erin").status_code == 201


@pytest.mark.parametrize("start_tls", [True, False])
def test_a_certificate_that_nobody_vouches_for_is_refused(
    directory: LdapService, settings: Any, start_tls: bool
) -> None:
    url = directory.url if start_tls else directory.secure_url
    settings.LDAP = settings.LDAP | {"url": url, "start_tls": start_tls, "ca_file": ""}
    answer = token("erin")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert not User.objects.exists()


def test_a_directory_that_is_down_keeps_local_people_in(
    directory: LdapService, settings: Any
) -> None:
    settings.LDAP = settings.LDAP | {"url": "ldap://127.0.0.1:9"}
    factories.make_user("dora", password="a local password")
    assert token("dora", "a local password").status_code == 201
    answer = token("erin")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_rights_follow_the_directory_between_sign_ins(directory: LdapService, root: Actor) -> None:
    physics = factories.make_namespace("physics")
    add_role_mapping(actor=root, group="ldap:physics", namespace="physics", role=Role.DEVELOPER)
    directory.add(person_entry("frank", 7))
    member = f"dn: cn=physics,ou=groups,{BASE}\nchangetype: modify\n%s: member\n"
    member += f"member: uid=frank,ou=people,{BASE}\n"
    directory.modify(member % "add")
    secret = token("frank").json()["token"]
    frank = User.objects.get(username="frank")
    assert may(Actor(frank), Perm.BUILD, physics)
    check_people()
    assert may(Actor(frank), Perm.BUILD, physics)
    directory.modify(member % "delete")
    check_people()
    assert not may(Actor(frank), Perm.BUILD, physics)
    directory.delete(f"uid=frank,ou=people,{BASE}")
    check_people()
    frank.refresh_from_db()
    assert not frank.is_active
    headers = {"Authorization": f"Bearer {secret}"}
    assert Client().get("/api/whoami", headers=headers).status_code == 401


def test_a_directory_that_cannot_be_read_closes_nobody(
    directory: LdapService, settings: Any
) -> None:
    token("erin")
    for change in (
        {"url": "ldap://127.0.0.1:9"},
        {"bind_password": "wrong"},
        {"bind_dn": "", "bind_password": ""},  # anonymous: it may not read
        {"user_base": f"ou=nowhere,{BASE}"},
    ):
        settings.LDAP = settings.LDAP | change
        check_people()
        assert User.objects.get().is_active, change


def test_the_checks_say_what_is_wrong_with_the_settings(settings: Any) -> None:
    from accounts.ldap_directory import GROUP_TYPES
    from condastore import checks

    def ids() -> set[str]:
        return {str(message.id) for message in checks.check(None)}

    assert not ids() & {"condastore.E021", "condastore.E027"}
    settings.LDAP = settings.LDAP | {
        "url": "ldap://ldap.example.org",
        "group_type": "groups",
        "ca_file": "/nowhere.pem",
    }
    assert {f"condastore.{one}" for one in ("E021", "E022", "E023", "E027")} <= ids()
    assert set(checks.GROUP_TYPES) == set(GROUP_TYPES)
    settings.LDAP = settings.LDAP | {"url": ""}
    settings.LOCAL_ACCOUNTS = False
    assert "condastore.E025" in ids()


def test_guesses_stop_before_the_directory_locks_the_person_out(
    directory: LdapService, settings: Any
) -> None:
    """Most directories lock an account, for every service, after five wrong passwords or more."""

    def tried(address: str, password: str) -> int:
        body = {"username": "erin", "password": password}
        client = Client(REMOTE_ADDR=address)
        status: int = client.post("/api/token", body, content_type="application/json").status_code
        return status

    assert tried("198.51.100.7", "erin-password") == 201
    guesses = [tried(f"203.0.113.{number}", "wrong") for number in range(6)]
    assert guesses == [401] * 4 + [429] * 2
    assert tried("192.0.2.9", "erin-password") == 429  # it would be one more if it were wrong
    assert tried("198.51.100.7", "erin-password") == 201
    factories.make_user("local", password="a long enough one")
    assert token("local", "a long enough one").status_code == 201
    settings.SIGN_IN_LIMITS = settings.SIGN_IN_LIMITS | {"directory": ""}
    assert tried("192.0.2.9", "erin-password") == 201
