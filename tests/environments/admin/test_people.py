"""People in the console: what is changed is written down, and a directory's word stays its own."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse

from accounts.models import ApiToken, DirectoryGroup, User
from accounts.roles import Role
from environments.models import AuditEvent, Namespace, RoleMapping
from tests.environments.admin.furnishing import furnish

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(client: Client, root) -> Client:
    furnish(1)
    client.force_login(root.account)
    return client


@pytest.fixture
def person(site: Client) -> User:
    return User.objects.get(username="person-1")


FORM = {
    "username": "person-1",
    "email": "new@example.org",
    "is_active": "on",
    "identities-TOTAL_FORMS": "0",
    "identities-INITIAL_FORMS": "0",
}


def test_a_change_of_an_account_is_audited_and_leaves_directory_groups_alone(site, person):
    mirrored = Group.objects.get(name="ldap:group-1")
    DirectoryGroup.objects.create(group=mirrored, directory="ldap", name="group-1")
    own = Group.objects.create(name="our own")
    url = reverse("admin:accounts_user_change", args=[person.pk])
    assert b"ldap:group-1</option>" not in site.get(url).content
    assert site.post(url, {**FORM, "groups": [own.pk]}).status_code == 302
    person.refresh_from_db()
    assert person.email == "new@example.org"
    assert set(person.groups.all()) == {mirrored, own}
    event = AuditEvent.objects.get(action="account.change")
    assert (event.username, event.target) == ("root", "person-1")


def test_an_account_is_closed_with_its_tokens_and_never_deleted(site, person, root):
    url = reverse("admin:accounts_user_changelist")
    site.post(url, {"action": "close", "_selected_action": [person.pk, root.account.pk]})
    person.refresh_from_db()
    assert not person.is_active
    assert ApiToken.objects.get(user=person).revoked_at is not None
    assert User.objects.get(pk=root.account.pk).is_active
    assert AuditEvent.objects.filter(action="account.close").count() == 1
    assert site.post(reverse("admin:accounts_user_delete", args=[person.pk])).status_code == 403


def test_a_directorys_group_is_not_changed_here(site):
    group = Group.objects.get(name="ldap:group-1")
    DirectoryGroup.objects.create(group=group, directory="ldap", name="group-1")
    url = reverse("admin:auth_group_change", args=[group.pk])
    assert site.get(url).status_code == 200
    assert site.post(url, {"name": "ours"}).status_code == 403


def test_a_token_is_revoked_and_it_is_written_down(site):
    token = ApiToken.objects.get()
    site.post(reverse("admin:accounts_apitoken_revoke") + f"?ids={token.pk}")
    token.refresh_from_db()
    assert token.revoked_at is not None
    assert AuditEvent.objects.filter(action="token.revoke", username="root").exists()


def test_roles_are_given_and_taken(site, person):
    namespace = Namespace.objects.get(name="team-1")
    url = reverse("admin:environments_namespace_grant") + f"?ids={namespace.pk}"
    site.post(url, {"user": "person-1", "group": "", "role": "developer"})
    assert Role.DEVELOPER in namespace.roles_of(person)
    nobody = site.post(url, {"user": "nobody", "group": "", "role": "viewer"})
    assert b"There is no user" in nobody.content
    grant = namespace.user_grants.get(user=person)
    take = reverse("admin:environments_namespaceuserobjectpermission_take")
    site.post(f"{take}?ids={grant.pk}")
    assert Role.DEVELOPER not in namespace.roles_of(person)


def test_a_mapping_is_made_where_its_patterns_can_be_read(site):
    url = reverse("admin:environments_rolemapping_new")
    given = {"group": "physics", "namespace": "physics-*", "role": "viewer"}
    assert list(site.post(url, given).context["form"].errors) == ["group"]
    site.post(url, {**given, "group": "ldap:physics-*"})
    made = RoleMapping.objects.get(group="ldap:physics-*")
    site.post(reverse("admin:environments_rolemapping_remove") + f"?ids={made.pk}")
    assert not RoleMapping.objects.filter(pk=made.pk).exists()
    actions = AuditEvent.objects.filter(action__startswith="role-mapping")
    assert actions.count() == 2


def test_a_quota_is_set_on_the_page_of_its_namespace(site):
    namespace = Namespace.objects.get(name="team-1")
    url = reverse("admin:environments_namespace_quota") + f"?ids={namespace.pk}"
    site.post(url, {"bytes": "", "environments": "-1"})
    assert b"A quota must be 0" in site.post(url, {"environments": "-1"}).content
    site.post(url, {"bytes": "1000", "environments": "1"})
    namespace.refresh_from_db()
    assert (namespace.max_bytes, namespace.max_environments) == (1000, 1)
    page = site.get(reverse("admin:environments_namespace_change", args=[namespace.pk]))
    assert b"near or over the limit" in page.content
