"""A directory makes, changes and ends its people and groups here, in the words of SCIM 2.0."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings as configured
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.urls import reverse

from accounts.access import Actor, may
from accounts.authentication import TokenInvalidError, actor_with_token
from accounts.directories import Person, welcome
from accounts.models import ApiToken, DirectoryGroup, Identity, User
from accounts.providers import Providers
from accounts.provisioning import Provisioning
from accounts.roles import Perm, Role
from condastore.errors import AccessDeniedError
from environments.models import AuditEvent, Namespace
from environments.operations.people import close_account
from environments.operations.role_mappings import add_role_mapping
from tests import factories

pytestmark = pytest.mark.django_db
USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


#: One for all: each makes its own chain of middleware.
DIRECTORY = Client()


def ask(method: str, place: str, body: Any = None, *, token: str = "", **parameters: str) -> Any:
    """The answer; with `token` in place of the right one."""
    return DIRECTORY.generic(
        method.upper(),
        f"/scim/v2/{place}" + (f"?{urlencode(parameters)}" if parameters else ""),
        b"" if body is None else json.dumps(body).encode(),
        content_type="application/scim+json",
        headers={"Authorization": f"Bearer {token or configured.SCIM_TOKEN}"},
    )


def made(place: str, **attributes: Any) -> dict[str, Any]:
    schema = USER if place == "Users" else GROUP
    answer = ask("post", place, {"schemas": [schema], **attributes})
    assert answer.status_code == 201, answer.content
    assert answer["Location"] == answer.json()["meta"]["location"]
    return dict(answer.json())


def person(called: str = "erin", **attributes: Any) -> dict[str, Any]:
    return made("Users", userName=called, externalId=f"id-of-{called}", **attributes)


def group(name: str, *members: dict[str, Any]) -> dict[str, Any]:
    return made("Groups", displayName=name, members=[{"value": one["id"]} for one in members])


def patch(resource: dict[str, Any], *operations: dict[str, Any]) -> Any:
    kind = resource["meta"]["resourceType"]
    body = {"schemas": [PATCH], "Operations": list(operations)}
    return ask("patch", f"{kind}s/{resource['id']}", body)


def signs_in(name: str = "erin", *groups: str, **changes: Any) -> User:
    """By the provider that provisions."""
    words: dict[str, Any] = {
        "directory": "campus",
        "issuer": "https://idp.example.org",
        "subject": f"id-of-{name}",
        "username": name,
        "groups": frozenset(groups),
    }
    return welcome(Person(**(words | changes)))


def account(name: str = "erin") -> User:
    return User.objects.get(username=name)


# --- the standard ---------------------------------------------------------------------------------


def test_a_checker_of_the_standard_finds_no_fault(settings: Any) -> None:
    from tests.accounts.scim_checker import check

    settings.SCIM = replace(settings.SCIM, subject="userName")  # it sends no externalId
    number, faults = check(ask)
    # Without a word on it, a person stays as active as before: nobody is let in by silence.
    assert [one for one in faults if "remove attribute 'active'" not in one[1]] == []
    assert number > 40


# --- who it is ------------------------------------------------------------------------------------


def test_who_was_provisioned_signs_in_to_the_same_account() -> None:
    erin = person(
        emails=[{"value": "e@example.org", "primary": True}],
        name={"givenName": "Erin", "familyName": "Muster"},
    )
    found = account()
    assert (found.email, found.first_name, found.last_name) == ("e@example.org", "Erin", "Muster")
    assert erin["active"]
    assert signs_in().pk == found.pk
    assert User.objects.count() == 1


def test_who_has_signed_in_keeps_the_account_when_provisioned() -> None:
    erin = signs_in("erin", username="erin")
    person("erin")
    assert account().pk == erin.pk
    assert Identity.objects.get().provisioned.username == "erin"


@pytest.mark.parametrize("name", ["alice", "ALICE"])
def test_neither_user_name_nor_address_takes_an_account_over(
    research: Namespace, name: str
) -> None:
    body = {"schemas": [USER], "userName": name, "externalId": "id-of-another"}
    answer = ask("post", "Users", body)
    assert (answer.status_code, answer.json()["scimType"]) == (409, "uniqueness")
    assert "belongs to another account" in answer.json()["detail"]
    person("erin", emails=[{"value": "alice@example.org"}])
    assert not may(Actor(account("erin")), Perm.VIEW, research)


def test_a_changed_subject_is_the_same_account_and_never_anothers() -> None:
    erin, other = person("erin"), person("frank")
    replaced = ask("put", f"Users/{erin['id']}", erin | {"externalId": "corrected"})
    assert replaced.status_code == 200, replaced.content
    assert signs_in("erin", subject="corrected").username == "erin"
    taken = ask("put", f"Users/{erin['id']}", erin | {"externalId": other["externalId"]})
    assert taken.status_code == 409
    assert signs_in("frank").username == "frank"


def test_a_new_user_name_is_told_and_changes_no_account() -> None:
    erin = person()
    answer = patch(erin, {"op": "replace", "path": "userName", "value": "erin.smith"})
    assert answer.json()["userName"] == "erin.smith"
    assert account("erin").identities.get().subject == "id-of-erin"
    found = ask("get", "Users", filter='userName eq "ERIN.Smith"').json()
    assert [one["id"] for one in found["Resources"]] == [erin["id"]]


# --- who leaves -----------------------------------------------------------------------------------


def test_who_is_not_active_any_more_loses_sessions_and_tokens_at_once() -> None:
    erin = person()
    browser, secret = Client(), factories.make_token(account())
    browser.force_login(account())
    assert browser.get("/api/whoami").json()["username"] == "erin"
    answer = patch(erin, {"op": "replace", "path": "active", "value": False})
    assert (answer.status_code, answer.json()["active"]) == (200, False)
    assert not browser.get("/api/whoami").json()["signed_in"]
    with pytest.raises(TokenInvalidError):
        actor_with_token(secret)
    with pytest.raises(AccessDeniedError, match="directory has ended"):
        signs_in()


def test_who_is_active_again_has_the_account_and_its_groups_and_no_old_token(
    research: Namespace, root: Actor
) -> None:
    add_role_mapping(actor=root, group="campus:physics", namespace="research", role=Role.VIEWER)
    erin = person()
    group("physics", erin)
    secret = factories.make_token(account())
    assert may(Actor(account()), Perm.VIEW, research)
    patch(erin, {"op": "replace", "value": {"active": False}})
    assert not may(Actor(account()), Perm.VIEW, research)
    patch(erin, {"op": "replace", "value": {"active": True}})
    assert may(Actor(account()), Perm.VIEW, research)
    assert signs_in().pk == account().pk
    with pytest.raises(TokenInvalidError):
        actor_with_token(secret)


def test_who_is_deleted_is_gone_and_may_come_back(research: Namespace) -> None:
    erin = person()
    physics = group("physics", erin)
    assert ask("delete", f"Users/{erin['id']}").status_code == 204
    assert ask("get", f"Users/{erin['id']}").status_code == 404
    assert ask("delete", f"Users/{erin['id']}").status_code == 404
    assert "members" not in ask("get", f"Groups/{physics['id']}").json()
    found = account()
    assert not found.is_active
    assert not found.groups.exists()
    with pytest.raises(AccessDeniedError):
        signs_in()
    again = person()
    assert again["id"] != erin["id"]
    assert account().pk == found.pk
    assert signs_in().is_active


def test_what_an_administrator_closed_no_directory_opens(root: Actor) -> None:
    erin, frank = person("erin"), person("frank")
    close_account(actor=root, user=account("erin"))
    patch(frank, {"op": "replace", "path": "active", "value": False})
    close_account(actor=root, user=account("frank"))
    for one in (erin, frank):
        answer = patch(one, {"op": "replace", "path": "active", "value": True})
        assert answer.json()["active"] is False
    ask("delete", f"Users/{erin['id']}")
    assert person("erin")["active"] is False
    with pytest.raises(AccessDeniedError):
        signs_in("erin")


def test_an_account_with_another_identity_stays_and_loses_the_groups() -> None:
    erin = person()
    group("physics", erin)
    Identity.objects.create(user=account(), issuer="other", subject="e", directory="other")
    patch(erin, {"op": "replace", "path": "active", "value": False})
    assert account().is_active
    assert not account().groups.exists()
    assert ask("get", f"Users/{erin['id']}").json()["active"] is False


# --- groups ---------------------------------------------------------------------------------------


def test_a_role_mapping_holds_and_ends_with_membership_at_once(
    research: Namespace, root: Actor
) -> None:
    add_role_mapping(actor=root, group="campus:phys*", namespace="research", role=Role.DEVELOPER)
    erin, frank = person("erin"), person("frank")
    physics = group("physics", erin)

    def builders() -> set[str]:
        return {n for n in ("erin", "frank") if may(Actor(account(n)), Perm.BUILD, research)}

    assert builders() == {"erin"}
    patch(physics, {"op": "add", "path": "members", "value": [{"value": frank["id"]}]})
    assert builders() == {"erin", "frank"}
    patch(physics, {"op": "remove", "path": f'members[value eq "{erin["id"]}"]'})
    assert builders() == {"frank"}
    patch(physics, {"op": "replace", "path": "displayName", "value": "chemistry"})
    assert builders() == set()
    patch(physics, {"op": "replace", "path": "displayName", "value": "physicists"})
    assert builders() == {"frank"}
    assert ask("delete", f"Groups/{physics['id']}").status_code == 204
    assert builders() == set()


def test_a_mapping_by_user_name_follows_too(root: Actor) -> None:
    lab = factories.make_namespace("lab-erin")
    add_role_mapping(
        actor=root, group="campus:staff", namespace="lab-{username}", role=Role.DEVELOPER
    )
    erin, frank = person("erin"), person("frank")
    group("staff", erin, frank)
    assert may(Actor(account("erin")), Perm.BUILD, lab)
    assert not may(Actor(account("frank")), Perm.BUILD, lab)


def test_a_sign_in_leaves_provisioned_groups_alone_and_mirrors_others() -> None:
    erin = person()
    group("physics", erin)
    signs_in("erin", "chemistry")
    names = set(account().groups.values_list("name", flat=True))
    assert names == {"campus:physics", "campus:chemistry"}
    group("closed")
    signs_in("erin", "closed", "physics")
    assert set(account().groups.values_list("name", flat=True)) == {"campus:physics"}


def test_a_group_that_sign_ins_have_mirrored_is_taken_over_with_its_roles(
    research: Namespace,
) -> None:
    frank = signs_in("frank", "physics")
    research.grant(Role.VIEWER, DirectoryGroup.objects.get().group)
    assert ask("get", "Groups").json()["totalResults"] == 0
    erin = person("erin")
    group("physics", erin)
    assert may(Actor(account("erin")), Perm.VIEW, research)
    assert not may(Actor(frank), Perm.VIEW, research)


def test_members_of_an_administrators_group_run_the_installation(settings: Any) -> None:
    settings.ADMIN_GROUPS = ["campus:it"]
    erin = person()
    it = group("it", erin)
    assert account().is_superuser
    patch(it, {"op": "replace", "path": "displayName", "value": "former it"})
    assert not account().is_superuser
    patch(it, {"op": "replace", "path": "displayName", "value": "it"})
    assert account().is_superuser
    ask("delete", f"Groups/{it['id']}")
    assert not account().is_superuser


def test_groups_in_groups_and_unknown_members_are_refused() -> None:
    inner = group("inner")
    for members, said in (
        ([{"value": inner["id"], "type": "Group"}], "nested groups"),
        ([{"value": "987654"}], "Unknown members: 987654"),
        ([{"value": "erin"}], "User erin does not exist"),
    ):
        body = {"schemas": [GROUP], "displayName": "outer", "members": members}
        answer = ask("post", "Groups", body)
        assert answer.status_code == 400
        assert said in answer.json()["detail"]
    assert not DirectoryGroup.objects.filter(name="outer").exists()


# --- finding --------------------------------------------------------------------------------------


def test_people_and_groups_are_found_by_filters_and_pages() -> None:
    people = [person(f"p{number}") for number in range(5)]
    some = group("some", people[0], people[1])

    def found(place: str, **parameters: str) -> list[str]:
        return [one["id"] for one in ask("get", place, **parameters).json().get("Resources", ())]

    ids = [one["id"] for one in people]
    assert found("Users") == ids
    assert found("Users", startIndex="2", count="2") == ids[1:3]
    assert found("Users", count="0") == []
    assert ask("get", "Users", count="0").json()["totalResults"] == 5
    assert found("Users", filter='userName eq "P3"') == [ids[3]]
    assert found("Users", filter='externalId eq "id-of-p2"') == [ids[2]]
    assert found("Users", filter='externalId eq "ID-OF-P2"') == []
    assert found("Users", filter='userName sw "p" and not (id eq "' + ids[0] + '")') == ids[1:]
    assert found("Groups", filter='displayName eq "Some"') == [some["id"]]
    requested = f'id eq "{some["id"]}" and members eq "{ids[0]}"'
    assert found("Groups", filter=requested) == [some["id"]]
    assert found("Groups", filter=f'members[value eq "{ids[2]}"]') == []
    short = ask("get", f"Groups/{some['id']}", excludedAttributes="members").json()
    assert "members" not in short
    assert ask("get", f"Users/{ids[0]}").json()["groups"][0]["display"] == "some"


@pytest.mark.parametrize(
    ("asked", "keyword"),
    [
        ({"filter": 'title eq "Dr"'}, "invalidFilter"),
        ({"filter": 'userName eq "x'}, "invalidFilter"),
        ({"filter": 'userName gt "x"'}, "invalidFilter"),
        ({"filter": 'name.familyName eq "x"'}, "invalidFilter"),
        ({"count": "many"}, "invalidValue"),
    ],
)
def test_what_cannot_be_asked_is_said(asked: dict[str, str], keyword: str) -> None:
    answer = ask("get", "Users", **asked)
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/scim+json"
    assert answer.json()["scimType"] == keyword


def test_lists_take_as_many_queries_for_many_as_for_one(
    django_assert_max_num_queries: Any,
) -> None:
    people = [person(f"p{number}") for number in range(12)]
    for number in range(4):
        group(f"g{number}", *people)
    for location in ("Users", "Groups"):
        with django_assert_max_num_queries(20):  # most of them count wrong tokens
            assert len(ask("get", location).json()["Resources"]) in {12, 4}


# --- what large providers send --------------------------------------------------------------------


def test_what_entra_and_okta_send_is_understood() -> None:
    erin = made(
        "Users",
        userName="erin@example.org",
        externalId="e",
        title="Dr",
        active=True,
        **{"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": {"department": "x"}},
    )
    answer = patch(
        erin,
        {"op": "Add", "path": 'emails[type eq "work"].value', "value": "e@example.org"},
        {"op": "Replace", "path": "name.givenName", "value": "Erin"},
        {"op": "Replace", "path": "title", "value": "Prof"},
    )
    assert answer.status_code == 200, answer.content
    assert account("erin@example.org").email == "e@example.org"
    assert account("erin@example.org").first_name == "Erin"
    staff = group("staff", erin)
    gone = {"op": "Remove", "path": "members", "value": [{"value": erin["id"]}]}
    assert patch(staff, gone).status_code == 200
    assert not account("erin@example.org").groups.exists()
    answer = patch(erin, {"op": "Replace", "path": "active", "value": "False"})
    assert answer.json()["active"] is False


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"schemas": [USER], "externalId": "x"}, "userName"),
        ({"schemas": [USER], "userName": "erin"}, "externalId is required"),
        ({"schemas": [USER], "userName": "a b", "externalId": "x"}, "cannot be a user name"),
        ({"schemas": [USER], "userName": 7, "active": "so", "externalId": "x"}, "userName"),
        ({"schemas": [USER], "userName": "e" * 300, "externalId": "x"}, "255"),
        ([], "object"),
    ],
)
def test_a_person_who_cannot_be_made_is_refused_with_the_reason(body: Any, said: str) -> None:
    answer = ask("post", "Users", body)
    assert answer.status_code in {400, 409}, answer.content
    assert said in answer.json()["detail"]
    assert not User.objects.exists()


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["Users", "Groups", "Users/1", "Schemas", "nothing"])
def test_only_the_token_of_the_settings_opens_the_door(
    root: Actor, place: str, settings: Any
) -> None:
    settings.AUDIT_REFUSALS = 10**6  # each is recorded, however many other tests had refused
    browser = Client()
    browser.force_login(root.account)
    assert browser.get(f"/scim/v2/{place}").status_code == 401
    for secret in ("wrong", factories.make_token(root.account)):
        answer = ask("get", place, token=secret)
        assert (answer.status_code, answer["Content-Type"]) == (401, "application/scim+json")
        assert answer["WWW-Authenticate"].startswith("Bearer")
    assert AuditEvent.objects.filter(refused=True, action="token.use").count() == 3


def test_the_token_opens_no_other_door(root: Actor) -> None:
    header = {"Authorization": f"Bearer {configured.SCIM_TOKEN}"}
    for name in ("whoami", "audit-log", "metrics", "admin:index"):
        assert Client().get(reverse(name), headers=header).status_code == 401, name


def test_too_many_wrong_tokens_are_not_even_looked_at(settings: Any) -> None:
    settings.SCIM_FAILURES = "3/m/ip"
    assert [ask("get", "Users", token="wrong").status_code for _ in range(5)] == [
        *([401] * 3),
        *([429] * 2),
    ]
    assert ask("get", "Users").status_code == 429


def test_either_of_two_tokens_opens_while_one_is_replaced() -> None:
    both = Provisioning.read(
        token="a" * 32 + " " + "b" * 32,
        directory="fed",
        issuer="",
        subject="externalId",
        providers=Providers.read(
            openid="", saml='[{"id": "fed", "entity_id": "urn:idp", "metadata_url": "https://x"}]'
        ),
        ldap={"url": ""},
    )
    assert both is not None
    assert both.admits("a" * 32)
    assert both.admits("b" * 32)
    assert not both.admits("a" * 31 + "b")
    assert both.issuer == "urn:idp"
    assert "a" * 8 not in repr(both)


def test_faults_of_the_settings_are_all_told_at_start() -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        Provisioning.read(
            token="short",
            directory="nowhere",
            issuer="",
            subject="mail",
            providers=Providers.read(openid="", saml=""),
            ldap={"url": ""},
        )
    for name in ("SCIM_TOKEN", "SCIM_DIRECTORY", "SCIM_SUBJECT"):
        assert f"CONDASTORE_{name}" in str(raised.value)


def test_what_a_directory_did_is_told_in_its_name() -> None:
    erin = person()
    physics = group("physics", erin)
    patch(erin, {"op": "replace", "path": "active", "value": False})
    ask("delete", f"Groups/{physics['id']}")
    ask("delete", f"Users/{erin['id']}")
    events = AuditEvent.objects.filter(username="directory:campus").order_by("pk")
    assert [event.action for event in events] == [
        "account.open",
        "account.provision",
        "group.provision",
        "account.close",
        "account.provision",
        "group.deprovision",
        "account.deprovision",
    ]
    assert events[2].changes == {"created": True, "added": ["erin"]}
    before = AuditEvent.objects.count()
    again = person("frank")
    created = AuditEvent.objects.count()
    assert created > before
    ask("put", f"Users/{again['id']}", again)  # nothing is new
    assert AuditEvent.objects.count() == created
    assert not ApiToken.objects.exists()
