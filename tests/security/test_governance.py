"""Attacks on governance: channel credentials, the audit log, approvals, and names of others.

Each attack goes through a public interface and has its control: the honest twin that works.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from accounts.access import Actor
from accounts.roles import Role
from environments.models import AuditEvent, ChannelCredential, Namespace, Preview
from environments.operations.mirrors import create_mirror
from environments.solving import credentials_for, mirror_credentials
from tests import factories
from tests.environments.graphql.asking import ERROR, ask

CHANNEL = "https://private.example.org/main"
WITH_SECRET = "channels: ['https://{secret}@private.example.org/main']\ndependencies: [python]\n"

SUBMIT = (
    'mutation($text: String!) { submitBuild(namespace: "research", environment: "ml", '
    f"specification: $text) {{ __typename {ERROR} }} }}"
)
PREVIEW = (
    'mutation($text: String!) { previewSolve(namespace: "research", specification: $text, wait: 0)'
    f" {{ __typename {ERROR} }} }}"
)
SET = (
    "mutation($channel: String!, $secret: String!, $namespace: String, $namespaces: [String!]) {"
    " setChannelCredential(channel: $channel, secret: $secret, namespace: $namespace,"
    f" namespaces: $namespaces) {{ __typename {ERROR} }} }}"
)


def code_of(answer: dict[str, Any]) -> str:
    """Code of the only mutation's error; "" where it worked."""
    [payload] = answer.values()
    return str(payload.get("code", ""))


def submit(actor: Actor, secret: str) -> dict[str, Any]:
    return ask(actor, SUBMIT, text=WITH_SECRET.format(secret=secret))


def set_secret(actor: Actor, secret: str, **options: Any) -> str:
    wanted: dict[str, Any] = {"channel": CHANNEL, "namespace": "research"} | options
    return code_of(ask(actor, SET, secret=secret, **wanted))


def secrets_in(namespace: Namespace) -> list[str]:
    return [one.secret for one in credentials_for(namespace, (CHANNEL,))]


def credential_events() -> list[tuple[str, str, dict[str, Any]]]:
    rows = AuditEvent.objects.matching(action="credential.").order_by("position")
    return [(row.username, row.action, row.changes) for row in rows]


# --- channel credentials ------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_developer_does_not_replace_the_secret_of_the_namespace_by_submitting_a_url(
    research: Namespace, alice: Actor, dora: Actor
) -> None:
    assert code_of(submit(dora, "svc:good")) == ""
    assert secrets_in(research) == ["svc:good"]
    refused = submit(alice, "mallory:evil")["submitBuild"]
    assert refused["code"] == "access-denied"
    assert "admin of research" in refused["message"] + refused["hint"]
    assert "evil" not in json.dumps(refused)
    assert secrets_in(research) == ["svc:good"]
    # The controls: the same secret, and none at all.
    assert code_of(submit(alice, "svc:good")) == ""
    plain = f"channels: ['{CHANNEL}']\ndependencies: [python]\n"
    assert code_of(ask(alice, SUBMIT, text=plain)) == ""
    assert secrets_in(research) == ["svc:good"]


@pytest.mark.django_db
def test_a_developer_does_not_set_the_first_secret_of_a_channel(
    research: Namespace, alice: Actor
) -> None:
    assert code_of(submit(alice, "mallory:evil")) == "access-denied"
    assert not ChannelCredential.objects.exists()
    assert not research.environments.exists()
    assert set_secret(alice, "mallory:evil") == "access-denied"
    assert not ChannelCredential.objects.exists()


@pytest.mark.django_db
def test_every_change_of_a_credential_is_in_the_audit_log_without_the_secret(
    research: Namespace, dora: Actor
) -> None:
    submit(dora, "svc:first-secret")
    submit(dora, "svc:first-secret")  # changes nothing
    set_secret(dora, "svc:second-secret")
    key = ChannelCredential.objects.get().pk
    ask(dora, f"mutation {{ deleteChannelCredential(id: {key}) {{ __typename }} }}")
    login = 'registry: "r.example.org", login: "u:third-secret", namespace: "research"'
    ask(dora, f"mutation {{ keepRegistryLogin({login}) {{ __typename }} }}")
    told = credential_events()
    assert [(who, action, one.get("replaced")) for who, action, one in told] == [
        ("dora", "credential.set", False),
        ("dora", "credential.set", True),
        ("dora", "credential.delete", None),
        ("dora", "credential.set", False),
    ]
    assert "secret" not in json.dumps([changes for _, _, changes in told])


@pytest.mark.django_db
def test_a_preview_stores_no_secret_not_even_of_an_admin(
    research: Namespace, alice: Actor, dora: Actor
) -> None:
    for actor, code in ((alice, "access-denied"), (dora, "invalid-input")):
        text = WITH_SECRET.format(secret="mallory:evil")
        assert code_of(ask(actor, PREVIEW, text=text)) == code
    assert not ChannelCredential.objects.exists()
    assert not Preview.objects.exists()
    set_secret(dora, "svc:good")
    text = WITH_SECRET.format(secret="svc:good")
    assert code_of(ask(alice, PREVIEW, text=text)) == ""
    assert secrets_in(research) == ["svc:good"]


@pytest.mark.django_db
def test_a_secret_in_the_url_of_a_brought_lock_is_refused_like_one_of_a_channel(
    research: Namespace, alice: Actor, dora: Actor
) -> None:
    explicit = (
        "# platform: linux-64\n@EXPLICIT\n"
        f"https://{{}}@private.example.org/main/noarch/tool-1.0-0.conda#{'a' * 64}\n"
    )
    set_secret(dora, "svc:good")
    refused = ask(alice, SUBMIT, text=explicit.format("mallory:evil"))
    assert code_of(refused) == "access-denied"
    assert code_of(ask(alice, SUBMIT, text=explicit.format("svc:good"))) == ""
    assert [row.secret for row in ChannelCredential.objects.all()] == ["svc:good"]


@pytest.mark.django_db
def test_a_credential_of_the_installation_is_used_only_where_administrators_say(
    research: Namespace, root: Actor, dora: Actor
) -> None:
    eve = factories.make_user("eve")
    personal = Namespace.objects.create(name="eve", personal=True)
    personal.grant(Role.ADMIN, eve)
    lab = factories.make_namespace("lab")
    nowhere = {"namespace": None}
    assert set_secret(root, "svc:all", **nowhere) == "invalid-input"
    assert set_secret(root, "svc:all", namespaces=["newcomer"], **nowhere) == "not-found"
    assert set_secret(dora, "svc:all", namespaces=["research"], **nowhere) == "access-denied"
    assert set_secret(root, "svc:all", namespaces=["res*"], **nowhere) == ""
    assert [secrets_in(one) for one in (research, lab, personal)] == [["svc:all"], [], []]
    assert set_secret(root, "svc:all", namespaces=["*"], **nowhere) == ""
    assert [secrets_in(one) for one in (research, lab, personal)] == [["svc:all"]] * 2 + [[]]
    assert set_secret(root, "svc:all", namespaces=["eve"], **nowhere) == ""
    assert [secrets_in(one) for one in (research, lab, personal)] == [[], [], ["svc:all"]]
    # The namespace's own comes before that of the installation, whatever was set first.
    set_secret(root, "svc:all", namespaces=["research"], **nowhere)
    set_secret(dora, "svc:own")
    assert secrets_in(research)[0] == "svc:own"


@pytest.mark.django_db
def test_the_secret_of_a_mirror_of_the_installation_opens_nothing_for_builds(
    research: Namespace, root: Actor
) -> None:
    url = CHANNEL.replace("https://", "https://svc:mirrored@")
    create_mirror(actor=root, name="inner", upstream=url)
    assert secrets_in(research) == []
    [used] = mirror_credentials(None, CHANNEL)
    assert used.secret == "svc:mirrored"
    [(who, action, changes)] = credential_events()
    assert (who, action, changes["url_prefix"]) == ("root", "credential.set", CHANNEL)


@pytest.mark.django_db
def test_what_is_listed_of_credentials_has_no_secret(research: Namespace, dora: Actor) -> None:
    set_secret(dora, "svc:hidden-word")
    listed = ask(
        dora,
        "{ channelCredentials { edges { node { urlPrefix kind namespace namespaces } } } }",
    )
    [edge] = listed["channelCredentials"]["edges"]
    assert edge["node"] == {
        "urlPrefix": CHANNEL,
        "kind": "basic",
        "namespace": "research",
        "namespaces": [],
    }
    assert "hidden-word" not in json.dumps(listed)
