"""Users, groups, tokens and roles in the console: changes are audited, mirrored groups are kept."""

from __future__ import annotations

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse

from accounts.models import ApiToken, DirectoryGroup, User
from accounts.roles import Role
from condastore.errors import InvalidInputError
from environments.models import AuditEvent, Namespace, RoleMapping
from environments.operations import people
from tests.environments.admin.furnishing import furnish
from tests.factories import make_environment, make_user

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
    assert "ldap:group-1" not in str(site.get(url).context["adminform"].form["groups"])
    assert site.post(url, {**FORM, "groups": [own.pk]}).status_code == 302
    person.refresh_from_db()
    assert person.email == "new@example.org"
    assert set(person.groups.all()) == {mirrored, own}
    event = AuditEvent.objects.get(action="account.change")
    assert (event.username, event.target) == ("root", "person-1")


def test_an_account_is_closed_with_its_tokens_and_never_deleted(site, person, root):
    url = reverse("admin:accounts_user_close")
    site.post(f"{url}?ids={person.pk},{root.account.pk}")
    person.refresh_from_db()
    assert not person.is_active
    assert ApiToken.objects.get(user=person).revoked_at is not None
    assert User.objects.get(pk=root.account.pk).is_active
    assert AuditEvent.objects.filter(action="account.close").count() == 1
    assert site.post(reverse("admin:accounts_user_delete", args=[person.pk])).status_code == 403


def test_a_group_of_a_directory_cannot_be_changed(site):
    group = Group.objects.get(name="ldap:group-1")
    DirectoryGroup.objects.create(group=group, directory="ldap", name="group-1")
    url = reverse("admin:auth_group_change", args=[group.pk])
    assert site.get(url).status_code == 200
    assert site.post(url, {"name": "ours"}).status_code == 403


def test_revoking_a_token_is_audited(site):
    token = ApiToken.objects.get()
    site.post(reverse("admin:accounts_apitoken_revoke") + f"?ids={token.pk}")
    token.refresh_from_db()
    assert token.revoked_at is not None
    assert AuditEvent.objects.filter(action="token.revoke", username="root").exists()


def test_a_role_is_granted_and_revoked(site, person):
    namespace = Namespace.objects.get(name="team-1")
    url = reverse("admin:environments_namespace_grant") + f"?ids={namespace.pk}"
    site.post(url, {"user": "person-1", "group": "", "role": "developer"})
    assert Role.DEVELOPER in namespace.roles_of(person)
    nobody = site.post(url, {"user": "nobody", "group": "", "role": "viewer"})
    assert b"There is no user" in nobody.content
    grant = namespace.user_grants.get(user=person)
    revoke = reverse("admin:environments_namespaceuserobjectpermission_revoke")
    site.post(f"{revoke}?ids={grant.pk}")
    assert Role.DEVELOPER not in namespace.roles_of(person)


def test_a_role_mapping_needs_valid_patterns(site):
    url = reverse("admin:environments_rolemapping_new")
    given = {"group": "physics", "namespace": "physics-*", "role": "viewer"}
    assert list(site.post(url, given).context["form"].errors) == ["group"]
    site.post(url, {**given, "group": "ldap:physics-*"})
    created = RoleMapping.objects.get(group="ldap:physics-*")
    site.post(reverse("admin:environments_rolemapping_remove") + f"?ids={created.pk}")
    assert not RoleMapping.objects.filter(pk=created.pk).exists()
    actions = AuditEvent.objects.filter(action__startswith="role-mapping")
    assert actions.count() == 2


def test_a_quota_is_set_on_the_page_of_its_namespace(site):
    namespace = Namespace.objects.get(name="team-1")
    url = reverse("admin:environments_namespace_quota") + f"?ids={namespace.pk}"
    site.post(url, {"bytes": "", "environments": "-1"})
    assert b"A quota must be 0" in site.post(url, {"environments": "-1"}).content
    assert "such as 5 GB" in str(site.post(url, {"bytes": "plenty"}).context["form"].errors)
    site.post(url, {"bytes": "5 GB", "environments": "1"})
    namespace.refresh_from_db()
    assert (namespace.max_bytes, namespace.max_environments) == (5_000_000_000, 1)
    assert "5000000000 B" in site.get(url).content.decode()
    page = site.get(reverse("admin:environments_namespace_change", args=[namespace.pk]))
    assert b"near the limit" in page.content
    make_environment(namespace, "another")
    page = site.get(reverse("admin:environments_namespace_change", args=[namespace.pk]))
    assert b"over the limit" in page.content


def invitation(**changed: str) -> dict[str, str]:
    form = {"username": "nina", "email": "nina@example.org", "delivery": "link"}
    return {**form, **changed}


def set_password(url: str) -> bool:
    browser = Client()
    page = browser.get(url, follow=True)
    form = {"password1": "a long enough one", "password2": "a long enough one"}
    browser.post(page.redirect_chain[-1][0] if page.redirect_chain else url, form)
    return Client().login(username="nina", password="a long enough one")


def test_an_invited_user_sets_a_password_by_the_link_that_is_shown_once(site):
    page = site.post(reverse("admin:accounts_user_invite"), invitation())
    link = page.context["rows"][0]
    assert link in page.content.decode()
    assert "no-store" in page["Cache-Control"]
    user = User.objects.get(username="nina")
    assert (user.is_staff, user.has_usable_password()) == (False, False)
    event = AuditEvent.objects.get(action="account.create")
    assert (event.username, event.target) == ("root", "nina")
    assert link not in str(event.changes)
    assert set_password(link.partition("testserver")[2])
    used = Client().get(link.partition("testserver")[2], follow=True)
    assert used.context["token_fail"]


def test_an_invitation_by_mail_makes_its_link_on_delivery(site, settings, monkeypatch):
    from environments import tasks
    from environments.models import Notification
    from environments.services.account_mail import texts_of

    monkeypatch.setattr(tasks.deliver_notification, "send", lambda *_: None)
    settings.EMAIL_URL = "smtp://localhost"
    settings.PUBLIC_URL = "https://envs.example.org"
    answer = site.post(reverse("admin:accounts_user_invite"), invitation(delivery="mail"))
    assert answer.status_code == 302
    message = Notification.objects.get(email="nina@example.org")
    assert "/accounts/password/" not in str(message.content)
    text = texts_of(message)["nina@example.org"]
    assert "root created an account for you: nina." in text
    link = next(line for line in text.splitlines() if line.startswith("https://envs.example.org"))
    assert set_password(link.removeprefix("https://envs.example.org"))


def test_a_link_cannot_fill_in_an_invitation(site):
    url = reverse("admin:accounts_user_invite")
    form = site.get(url, invitation(administrator="1", email="eve@example.org")).context["form"]
    assert not form.initial


def test_an_invitation_that_was_delayed_for_days_is_not_sent(site, settings, monkeypatch):
    from environments import tasks
    from environments.models import Notification
    from environments.services.account_mail import LONGEST_DELAY, texts_of

    monkeypatch.setattr(tasks.deliver_notification, "send", lambda *_: None)
    settings.EMAIL_URL = "smtp://localhost"
    settings.PUBLIC_URL = "https://envs.example.org"
    site.post(reverse("admin:accounts_user_invite"), invitation(delivery="mail"))
    message = Notification.objects.get(email="nina@example.org")
    assert texts_of(message)
    message.created_at -= 2 * LONGEST_DELAY
    assert not texts_of(message)


def test_all_faults_of_an_invitation_are_shown_and_nothing_is_created(site, person, settings, root):
    url = reverse("admin:accounts_user_invite")
    given = invitation(username="a b", email="no address")
    assert sorted(site.post(url, given).context["form"].errors) == ["email", "username"]
    taken = site.post(url, invitation(username="Person-1")).context["form"]
    assert "already" in taken.errors["username"][0]
    settings.EMAIL_URL = "smtp://localhost"
    settings.PUBLIC_URL = "https://envs.example.org"
    form = site.post(url, invitation(email="", delivery="mail")).context["form"]
    assert list(form.errors) == ["email"]
    settings.LOCAL_ACCOUNTS = False
    with pytest.raises(InvalidInputError, match="Local accounts are switched off"):
        people.invite(actor=root, username="nina")
    assert not User.objects.filter(username="nina").exists()
    assert not AuditEvent.objects.filter(refused=True).exists()


def test_second_factors_are_reset_and_it_is_audited(site, person):
    Authenticator.objects.create(user=person, type=Authenticator.Type.TOTP, data={})
    page = reverse("admin:accounts_user_change", args=[person.pk])
    assert "Reset second factors" in dict(site.get(page).context["tools"])
    site.post(reverse("admin:accounts_user_reset-second-factors") + f"?ids={person.pk}")
    assert not Authenticator.objects.filter(user=person).exists()
    event = AuditEvent.objects.get(action="account.reset-second-factors")
    assert (event.target, event.changes) == ("person-1", {"removed": 1})
    assert "Reset second factors" not in dict(site.get(page).context["tools"])


def test_only_an_administrator_invites_and_resets(site, person):
    staff = make_user("staff")
    User.objects.filter(pk=staff.pk).update(is_staff=True)
    browser = Client()
    browser.force_login(User.objects.get(pk=staff.pk))
    for action in ("invite", "password-link", "reset-second-factors", "close"):
        url = reverse(f"admin:accounts_user_{action}") + f"?ids={person.pk}"
        assert browser.post(url, invitation()).status_code == 403, action
    assert not User.objects.filter(username="nina").exists()


def test_the_page_of_a_user_shows_nothing_of_the_password_hash(site, person):
    person.set_password("a long enough one")
    person.save()
    page = site.get(reverse("admin:accounts_user_change", args=[person.pk])).content.decode()
    assert "argon2" not in page.lower()
    assert "pbkdf2" not in page.lower()
    assert person.password[:20] not in page
    assert "Designates whether" not in page
    assert "a password" in page


def test_the_header_leads_an_approver_to_the_requests_that_wait(site, person):
    furnish(2)
    browser = Client()
    browser.force_login(person)  # an approver of team-1, and not staff
    start = browser.get("/").content.decode()
    assert f'href="{reverse("approvals")}"' in start
    assert '1<span class="vh"> waiting for you</span>' in start
    browser.force_login(make_user("viewer"))
    start = browser.get("/").content.decode()
    assert "/admin/" not in start
    assert "waiting for you</span>" not in start
