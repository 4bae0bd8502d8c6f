"""Who gets what at each address: every route of the URL configuration, as everybody.

A route that is added must be added here: the first test says so. What GraphQL shows and changes is
tried field by field in graphql/test_permission_matrix.py, by the same people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import NoReverseMatch, URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone

from accounts.models import User
from accounts.roles import Perm
from environments.models import AuditEvent, MirrorIndex
from environments.models.mirrors import ViewState
from environments.services import blobs, mirrors
from tests import factories
from tests.environments.graphql.asking import post
from tests.environments.graphql.test_permission_matrix import (
    CHANGES,
    SEEN,
    Persona,
    World,
    change,
    client_of,
    everybody,
    used,
)


@dataclass(frozen=True, kw_only=True)
class Door:
    """A route that leads to a row of `research`: what it takes, and the right that opens it."""

    to: dict[str, str]
    perm: Perm
    method: str = "get"
    opened: int = 200
    also: str = ""  # another method that it takes, tried elsewhere


ML = {"namespace": "research", "environment": "ml", "reference": "current"}
MIRROR = {"mirror": "research", "subdir": "noarch", "name": "repodata.json.zst"}
HOSTED = {"channel": "research", "subdir": "noarch", "name": "repodata.json"}
BUILD = {"namespace": "research", "name": "ml", "reference": "current"}
#: Route -> the row it leads to. `absent` replaces the names, one at a time.
DOORS = {
    "log": Door(to=ML, perm=Perm.DOWNLOAD),
    "download": Door(to={**ML, "name": "explicit.txt"}, perm=Perm.DOWNLOAD),
    "folders": Door(to={"namespace": "research"}, perm=Perm.DOWNLOAD),
    "build-channel": Door(
        to={**ML, "subdir": "linux-64", "name": "repodata.json"}, perm=Perm.DOWNLOAD
    ),
    "namespace-channel": Door(
        to={"namespace": "research", "subdir": "linux-64", "name": "repodata.json"},
        perm=Perm.DOWNLOAD,
    ),
    "hosted-channel": Door(to=HOSTED, perm=Perm.DOWNLOAD, also="put"),
    # Where packages are sent; there is nothing to read. Uploads: rest/test_hosted.py.
    "hosted-upload": Door(
        to={"channel": "research", "name": "x"}, perm=Perm.DOWNLOAD, opened=404, also="put"
    ),
    "mirror-channel": Door(to=MIRROR, perm=Perm.DOWNLOAD),
    "mirror-snapshot": Door(to={**MIRROR, "day": "2026-01-01"}, perm=Perm.DOWNLOAD),
    "use": Door(to=ML, perm=Perm.DOWNLOAD, method="post", opened=204),
    "environment": Door(to={"namespace": "research", "name": "ml"}, perm=Perm.VIEW),
    "compare": Door(to={"namespace": "research", "name": "ml"}, perm=Perm.VIEW),
    # What each does, and who may: console/test_environment_page.py.
    "environment-action": Door(
        to={"namespace": "research", "name": "ml", "action": "delete"}, perm=Perm.VIEW, also="post"
    ),
    "build": Door(to=BUILD, perm=Perm.VIEW),
    "build-stream": Door(to=BUILD, perm=Perm.VIEW),
    # What each does, and who may: console/test_build_actions.py.
    "build-action": Door(to={**BUILD, "action": "retry"}, perm=Perm.VIEW, also="post"),
    "build-explain": Door(to=BUILD, perm=Perm.VIEW, method="post", opened=303),
}
#: Routes that tell everybody the same.
OPEN = {"alive", "ready", "login", "sign-in-ways", "signing-key"}
#: Routes of signing in, which lead to no row of anybody's namespace; tried with the accounts.
SIGN_IN = {"device", "device-start", "device-collect"}
#: The registry's, which speak to tools in their own words; tried in tests/environments/registry.
REGISTRY = "registry"
#: Routes that tell of the one who asks, or what that one may see; each has a test below.
OF_ONESELF = {
    "whoami",
    "home",
    "environment-filters",
    "environments",
    "audit-log",
    "metrics",
    "api-token",
    "logout",
    "graphql",
}
#: The editor, which leads everybody signed out to the sign-in: tried in console/test_edit.py.
EDITOR = {"new-environment", "edit-environment", "package-suggestions"}
#: The sign-in of command lines: tried in tests/accounts/test_device_sign_in.py.
DEVICES = {"device", "device-start", "device-collect"}
#: Pages of a person's tokens; tried in tests/environments/console/test_tokens.py.
TOKENS = {"tokens", "token-revoke"}
#: Pages of namespaces; tried in tests/environments/console/test_namespaces.py.
NAMESPACES = {"namespaces", "namespace", "namespace-grant", "namespace-revoke"}
#: Pages of approvals, which only approvers and requesters find; tried in
#: tests/environments/console/test_approvals.py.
APPROVALS = {
    "approvals",
    "approvals-decide",
    "approvals-effect",
    "approval",
    "approval-explain",
    "approval-second",
}
#: Routes of provisioning: for the directory, whose token is nobody's account. What it may there is
#: tried in tests/accounts/test_scim.py.
PROVISIONING: dict[str, dict[str, str]] = {
    "scim-config": {},
    "scim-resource-types": {},
    "scim-resource-type": {"key": "User"},
    "scim-schemas": {},
    "scim-schema": {"key": "urn:ietf:params:scim:schemas:core:2.0:User"},
    "scim-users": {},
    "scim-user": {"key": "1"},
    "scim-groups": {},
    "scim-group": {"key": "1"},
    "scim-nothing": {},
}
#: Routes of django-allauth, by the beginning of their names: sign-in and one's own account.
ALLAUTH = ("account_", "mfa_", "socialaccount_", "saml_", "openid_connect_", "usersessions_")


def routes(patterns: Any = None, space: str = "") -> Iterator[str]:
    """The names of all routes; for one without a name, its pattern."""
    for one in get_resolver().url_patterns if patterns is None else patterns:
        if isinstance(one, URLResolver):
            yield from routes(one.url_patterns, f"{space}{one.namespace or ''}")
        elif isinstance(one, URLPattern):
            yield f"{space}:{one.name}" if space else one.name or str(one.pattern)


def make_views() -> None:
    """What the mirror shows: some bytes, that nobody reads here."""
    index = MirrorIndex.objects.get()
    index.history = blobs.add_bytes(b"x", folder=blobs.blobs_folder())
    index.save()
    for moment in ("", "2026-01-01"):
        view = mirrors.current_view(index, moment, mirrors.policy_for(index.mirror))
        for name in ("repodata", "shard_index", "shards"):
            setattr(view, name, index.history)
        view.state, view.made_at = ViewState.READY, timezone.now()
        view.save()


def normal(content: bytes) -> str:
    """An answer without what differs each time."""
    text = content.decode()
    text = re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", text)
    return re.sub(r"[0-9a-f]{32}", "", text)


@pytest.fixture(autouse=True)
def _unbounded(settings: Any) -> None:
    """Each refusal is recorded, however many there were before."""
    settings.AUDIT_REFUSALS = 10**6
    settings.SCIM_FAILURES = "1000/m/ip"


async def read(response: Any) -> str:
    return b"".join([part async for part in response.streaming_content]).decode()


def body(response: Any) -> bytes:
    """What a page or a file that is sent piece by piece says."""
    return async_to_sync(read)(response).encode() if response.streaming else response.content


# --- the tests ----------------------------------------------------------------------------------


def test_every_route_is_tried_here() -> None:
    found = {
        name
        for name in routes()
        if not name.startswith(("admin:", REGISTRY, *ALLAUTH)) and name != "graphql/"
    }
    pages = EDITOR | APPROVALS | TOKENS | NAMESPACES
    assert found == set(DOORS) | OPEN | SIGN_IN | OF_ONESELF | pages | set(PROVISIONING)


@everybody
def test_each_door_opens_to_those_who_may_and_is_not_there_for_the_rest(
    persona: Persona, world: World
) -> None:
    make_views()
    client = client_of(persona)
    for name, interface in DOORS.items():
        answer = client.generic(interface.method.upper(), reverse(name, kwargs=interface.to))
        if persona.refused:
            assert answer.status_code == 401, name
        elif interface.perm in persona.perms:
            assert answer.status_code == interface.opened, name
        else:
            assert answer.status_code == 404, name
            # The link to sign in leads back to the address that was asked for.
            back = quote(reverse(name, kwargs=interface.to), safe="")
            reported = normal(answer.content).replace(f"next={back}", "")
            known = (
                "environment research/ml.",
                "namespace 'research'.",
                "hosted channel 'research'.",
                "mirror 'research'.",
            )
            for requested in known:
                reported = reported.replace(f"There is no {requested}", "")
            assert "research" not in reported


@everybody
def test_what_one_may_not_see_answers_like_what_is_not_there(
    persona: Persona, world: World
) -> None:
    """The same status and text, and as many looks at the database: time tells nothing either."""
    if Perm.VIEW in persona.perms:
        return
    client = client_of(persona)
    for name, interface in DOORS.items():
        location = next(one for one in ("mirror", "channel", "namespace") if one in interface.to)
        absent = interface.to | {location: "absentees"}  # as many letters
        answers, polls = [], []
        for to in (interface.to, absent):
            requested = interface.method.upper(), reverse(name, kwargs=to)
            client.generic(*requested)  # sessions and caches are warm
            with CaptureQueriesContext(connection) as queries:
                answers.append(client.generic(*requested))
            # A refused change is recorded, with the namespace where there is one.
            values = re.compile(r"\d+|'[^']*'|NULL")
            polls.append([values.sub("?", one["sql"]) for one in queries])
        hidden, missing = (normal(answer.content) for answer in answers)
        assert [answer.status_code for answer in answers] == [answers[0].status_code] * 2
        assert hidden.replace("research", "absentees") == missing, name
        assert polls[0] == polls[1], name


@everybody
def test_graphql_hides_as_if_nothing_was_there(persona: Persona, world: World) -> None:
    if Perm.VIEW in persona.perms or persona.refused:
        return
    client = client_of(persona)
    absent = {
        name: str(int(value) + 10**6) if str(value).isdecimal() else value
        for name, value in world.ids.items()
    }
    absent["preview"] = "00000000-0000-4000-8000-000000000000"
    absent["lock"] = absent["specification"] = "0" * 64
    requested = [document for document, _ in SEEN.values()]
    requested += [f"{name}:{arguments}" for name, (arguments, _) in CHANGES.items()]
    for document in requested:
        bodies = []
        for ids, name in ((world.ids, "research"), (absent, "absentees")):
            if document.startswith(("{", "query")):
                text, values = document, used(document, ids)
            else:
                field, _, arguments = document.partition(":")
                text, values = change(field, arguments, ids)
            text = text.replace('"research"', f'"{name}"')
            body = post(client, text, values).content.decode()
            for key, value in ids.items():
                if key != "text":
                    body = body.replace(f'"{value}"', f"<{key}>").replace(f" {value}", f" <{key}>")
            bodies.append(body.replace(name, "<namespace>"))
        assert bodies[0] == bodies[1], document


@everybody
def test_routes_that_tell_of_oneself_tell_nothing_else(persona: Persona, world: World) -> None:
    client = client_of(persona)
    if persona.refused:
        for name in OF_ONESELF - {"graphql", "api-token", "logout"}:
            assert client.get(reverse(name)).status_code == 401, name
        return
    me = client.get(reverse("whoami")).json()
    assert me["signed_in"] == bool(persona.user)
    assert me["username"] == (persona.user or None)
    assert me["is_superuser"] == persona.superuser
    start = client.get(reverse("environments"), headers={"Accept": "text/html"}).content.decode()
    assert ("research" in start) == (Perm.VIEW in persona.perms)
    log = client.get(reverse("audit-log"))
    assert log.status_code == (200 if persona.user else 401)
    if persona.user:
        lines = async_to_sync(read)(log)
        assert ('"target": "research"' in lines) == (Perm.GRANT in persona.perms)
    metrics = client.get(reverse("metrics")).status_code
    assert metrics == (200 if persona.superuser else 403 if persona.user else 401)


@everybody
def test_nobody_provisions_who_is_not_the_directory(persona: Persona, world: World) -> None:
    client = client_of(persona)
    for name, to in PROVISIONING.items():
        for method in ("get", "post", "put", "patch", "delete"):
            answer = getattr(client, method)(reverse(name, kwargs=to))
            assert answer.status_code == 401, (name, method)
            assert b"research" not in answer.content


#: What of django-allauth answers without a sign-in; the rest leads to it.
BEFORE_SIGN_IN = {
    *("account_login", "account_inactive", "socialaccount_login_cancelled"),
    *("socialaccount_login_error", "mfa_authenticate", "mfa_login_webauthn"),
    *("account_reset_password", "account_reset_password_done"),
    "account_reset_password_from_key_done",
}


@everybody
def test_routes_of_sign_in_tell_nothing_of_namespaces(persona: Persona, world: World) -> None:
    """One's own account, for those with a session: a token has none."""
    client = client_of(persona)
    for name in sorted({name for name in routes() if name.startswith(ALLAUTH)}):
        try:
            address = reverse(name)
        except NoReverseMatch:
            continue  # of one provider: tests/accounts/test_openid.py, test_saml.py
        answer = client.get(address)
        if persona.refused:
            assert answer.status_code == 401, name
            continue
        assert answer.status_code < 500, name
        assert b"research" not in answer.content, name
        if name not in BEFORE_SIGN_IN and (not persona.user or persona.token):
            # To the page of sign-in, or nothing at all.
            assert answer.status_code in {302, 401, 403, 404, 405}, (name, answer.status_code)


def admin_pages(world: World) -> Iterator[str]:
    """Each address of the admin; of a row that is there, and of one that is not."""
    rows = {
        "environments_namespace": world.research.pk,
        "environments_environment": world.environment.pk,
        "environments_build": world.current.pk,
    }
    for name in sorted(set(routes())):
        if not name.startswith("admin:") or name == "admin:None":
            continue
        yield from _addresses(name, rows)


def _addresses(name: str, rows: dict[str, Any]) -> Iterator[str]:
    model = name.removeprefix("admin:").rpartition("_")[0]
    for arguments in ([], [rows.get(model, 1)], [10**6]):
        try:
            yield reverse(name, args=arguments)
        except NoReverseMatch:
            continue  # it takes other arguments


EVERYBODYS = ("admin:login", "admin:logout", "admin:jsi18n")


#: What approvers find in the console, each of them what is of their namespaces.
APPROVERS_ROOMS = ("/admin/environments/approvalrequest/", "/admin/environments/decision/")
#: What those find who run a namespace.
MANAGERS_ROOMS = tuple(
    f"/admin/environments/{model}/"
    for model in ("channelcredential", "policy", "policyrule", "policyversion")
)


@everybody
def test_the_admin_is_for_those_who_run_the_installation_or_decide(
    persona: Persona, world: World
) -> None:
    client = client_of(persona)
    open_ones = {reverse(name) for name in EVERYBODYS}
    start = {reverse("admin:index"), reverse("admin:app_list", args=["environments"])}
    start |= {reverse("admin:password_change"), reverse("admin:password_change_done")}
    seen = 0
    for address in admin_pages(world):
        answer = client.get(address)
        if persona.refused:
            assert answer.status_code == 401, address
        elif address in open_ones:
            assert b"research" not in body(answer), address
        elif persona.superuser:
            seen += answer.status_code == 200
        elif answer.status_code == 200:
            managing = address.startswith(MANAGERS_ROOMS)
            assert persona.user in {"dora", "olga"} | ({"anna"} if not managing else set()), address
            assert address in start or managing or address.startswith(APPROVERS_ROOMS), address
            needed = Perm.MANAGE if managing else Perm.APPROVE
            assert needed in persona.perms or b"research" not in body(answer), address
        else:
            assert answer.status_code in {302, 401, 403, 404}, (address, answer.status_code)
            assert b"research" not in body(answer), address
    assert seen > 10 or not persona.superuser


def test_one_who_may_enter_the_admin_and_no_more_sees_no_rows(world: World) -> None:
    factories.make_user("stan")
    User.objects.filter(username="stan").update(is_staff=True)
    client = Client()
    client.force_login(User.objects.get(username="stan"))
    for address in admin_pages(world):
        answer = client.get(address)
        assert b"research" not in body(answer), address


def test_what_is_refused_in_the_admin_is_recorded(world: World) -> None:
    factories.make_user("stan")
    User.objects.filter(username="stan").update(is_staff=True)
    client = Client()
    client.force_login(User.objects.get(username="stan"))
    assert client.get(reverse("admin:environments_build_changelist")).status_code == 403
    event = AuditEvent.objects.filter(refused=True).get()
    assert (event.username, event.action) == ("stan", "http.admin:environments_build_changelist")


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_no_door_takes_another_method(world: World, method: str) -> None:
    client = Client()
    client.force_login(User.objects.get(username="dora"))
    for name, interface in DOORS.items():
        if method in (interface.method, interface.also):
            continue
        answer = getattr(client, method)(reverse(name, kwargs=interface.to))
        assert answer.status_code == 405, name
