"""Requests that a plain account makes the installation send: to public and configured servers only.

Eve has a namespace of her own and no other role. Whatever she names, nothing of this machine is
connected to but the configured channel, and no answer says whether something is there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from accounts.access import Actor
from condastore.errors import AddressRefusedError
from environments.engine.images.remote import Reference, Repository
from environments.engine.network import clients
from environments.jobs import mirrors
from environments.models import MirrorIndex
from environments.operations.mirrors import create_mirror
from environments.services import image_builder
from environments.services.outgoing_guard import configured_guard
from tests.channels import building
from tests.channels.server import ChannelServer, Fault, serving
from tests.services.canary import Canary
from tests.services.canary import canary as listening
from tests.services.processes import free_ports
from tests.system import SUBMIT, System, until

EVE = """
from accounts.models import User
from accounts.roles import Role
from tests import factories
namespace = factories.make_namespace("eve", eve=Role.ADMIN)
factories.make_environment(namespace, "ml")
print(factories.make_token(User.objects.get(username="eve")))
"""
PREVIEW = """
mutation($text: String!) { previewSolve(namespace: "eve", specification: $text) {
  ... on Preview { state failure { code message } } ... on OperationError { code message } } }
"""
HOOK = """
mutation($url: String!) { createWebhook(namespace: "eve", url: $url) {
  ... on CreatedWebhook { webhook { id } } ... on OperationError { code message } } }
"""
TEST_HOOK = "mutation($id: ID!) { testWebhook(id: $id) { __typename } }"
RULE = """
mutation($to: String!) { createPushRule(namespace: "eve", pattern: "ml", target: $to) {
  __typename ... on OperationError { code message } } }
"""
RULES = """{ pushRules(namespace: "eve") {
  edges { node { target pushes { state problem } } } } }"""
DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Attacker:
    """Eve in a running installation that allows nothing but what it configured."""

    system: System
    token: str

    def ask(self, query: str, **variables: Any) -> Any:
        return self.system.graphql(query, token=self.token, **variables)

    def submit(self, text: str) -> str:
        """Id of the build; the code of the refusal where there is none."""
        answer = self.ask(SUBMIT, namespace="eve", environment="ml", text=text, force=False)
        payload = answer["submitBuild"]
        return str(payload["build"]["id"] if "build" in payload else payload["code"])

    def failures(self, *texts: str) -> list[dict[str, Any]]:
        """What is said of specifications that are submitted together, and must fail."""
        builds = [self.submit(text) for text in texts]
        done = [self.system.wait(build) for build in builds]
        assert [build["state"] for build in done] == ["FAILED"] * len(texts), done
        assert [build["attempt"] for build in done] == [1] * len(texts), done
        return [build["failure"] for build in done]


@pytest.fixture(scope="module")
def server(small_channel: Path, simple_index: Path) -> Iterator[ChannelServer]:
    """The configured channel and index."""
    with serving({"": small_channel, building.INDEX_FOLDER: simple_index.parent}) as server:
        yield server


@pytest.fixture(scope="module")
def eve(server: ChannelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    environ = {"CONDASTORE_ALLOWED_NETWORKS": "", "CONDASTORE_NOTIFICATION_ATTEMPTS": "1"}
    folder = tmp_path_factory.mktemp("outgoing") / "data"
    with System(folder, channel=server.url, environ=environ) as system:
        yield Attacker(system, system.manage(EVE).strip())


@pytest.fixture
def canary() -> Iterator[Canary]:
    with listening() as found:
        yield found
        assert found.contacts == []


def wanting(channel: str) -> str:
    return f"channels: ['{channel}']\ndependencies: [libalpha]\n"


def explicit(url: str) -> str:
    return f"# platform: linux-64\n@EXPLICIT\n{url}#sha256:{DIGEST}\n"


def said(failure: dict[str, Any], *targets: str) -> str:
    """The whole failure, without the target's own name."""
    text = f"{failure['code']} {failure['where']} {failure['message']} {failure['hint']}"
    for target in targets:
        text = text.replace(target, "TARGET")
    return text


# --- the running system -------------------------------------------------------------------------


def test_the_configured_channel_and_index_are_reached(eve: Attacker, server: ChannelServer) -> None:
    build = eve.submit("dependencies: [python, {pip: [tinylinux]}]\n")
    done = eve.system.wait(build)
    assert done["state"] == "READY", done
    assert server.requests.count("*tinylinux-1.0*.whl") > 0


def test_channels_and_locks_at_addresses_of_this_machine_tell_nothing(
    eve: Attacker, canary: Canary
) -> None:
    (closed,) = free_ports()
    opened = f"127.0.0.1:{canary.port}"
    channels = [opened, f"127.0.0.1:{closed}", f"localhost:{canary.port}", f"[::1]:{canary.port}"]
    channels += ["169.254.169.254", "10.0.0.1", "nowhere.invalid"]
    locks = [opened, f"127.0.0.1:{closed}"]
    failures = eve.failures(
        *(wanting(f"http://{one}/channel") for one in channels),
        *(explicit(f"http://{one}/channel/linux-64/x-1.0-0.conda") for one in locks),
    )
    assert {failure["code"] for failure in failures} == {"address-refused"}
    reported = {
        said(failure, one, one.rpartition(":")[0].strip("[]") or one)
        for failure, one in zip(failures, [*channels, *locks], strict=True)
    }
    assert len(reported) == 1, reported


def test_a_preview_reaches_nothing_that_a_build_may_not(eve: Attacker, canary: Canary) -> None:
    shown = eve.ask(PREVIEW, text=wanting(f"{canary.url}channel"))["previewSolve"]
    assert shown["failure"]["code"] == "address-refused", shown


def test_a_redirect_of_the_configured_server_leads_nowhere_else(
    eve: Attacker, server: ChannelServer, canary: Canary
) -> None:
    server.faults.add(Fault("moved/*", status=302, location=canary.url))
    server.faults.add(Fault("linux-64/libbeta-*", status=302, location=canary.url))
    server.faults.add(Fault("*tinyutil-2.3*.whl*", status=302, location=canary.url))
    try:
        failures = eve.failures(
            wanting(f"{server.url}moved"),
            "dependencies: [libbeta]\n",
            "dependencies: [python, {pip: [tinyutil]}]\n",
        )
    finally:
        server.faults.clear()
    assert [failure["code"] for failure in failures] == ["address-refused"] * 3, failures
    assert not any(re.search(r"\b[2345]\d\d\b|[0-9a-f]{32}", one["message"]) for one in failures)


def test_files_of_the_machine_tell_nothing(eve: Attacker, tmp_path: Path) -> None:
    (tmp_path / "linux-64").mkdir()
    (tmp_path / "linux-64" / "there-1.0-0.conda").write_text("secret")
    (tmp_path / "linux-64" / "folder-1.0-0.conda").mkdir()
    urls = [
        f"{tmp_path.as_uri()}/linux-64/{name}-1.0-0.conda" for name in ("there", "gone", "folder")
    ]
    failures = eve.failures(
        wanting(tmp_path.as_uri()), wanting("file:///missing"), *map(explicit, urls)
    )
    assert {failure["code"] for failure in failures} == {"file-refused"}
    reported = {said(one, tmp_path.as_uri(), "file:///missing") for one in failures}
    assert len(reported) == 1, reported


def test_webhooks_and_pushes_reach_nothing_of_this_machine(eve: Attacker, canary: Canary) -> None:
    created = eve.ask(HOOK, url=f"http://localhost:{canary.port}/hook")["createWebhook"]
    eve.ask(TEST_HOOK, id=created["webhook"]["id"])
    rule = eve.ask(RULE, to=f"http://127.0.0.1:{canary.port}/team/ml:1")["createPushRule"]
    assert rule["__typename"] == "PushRule", rule
    build = eve.system.wait(eve.submit("dependencies: [libalpha]\n"))
    assert build["state"] == "READY", build

    def pushed() -> Any:
        [edge] = eve.ask(RULES)["pushRules"]["edges"]
        return [one for one in edge["node"]["pushes"] if one["state"] == "FAILED"]

    def called() -> Any:
        with eve.system.rows() as rows:
            return rows.execute(
                "SELECT problem FROM environments_notification"
                " WHERE failed_at IS NOT NULL AND webhook_id IS NOT NULL"
            ).fetchall()

    until(pushed, say=eve.system.log)
    until(called, say=eve.system.log)
    assert "no address that this installation may connect to" in pushed()[0]["problem"]
    assert "no address that this installation may connect to" in called()[0][0]


# --- what needs no running system ---------------------------------------------------------------


@pytest.fixture
def nothing_allowed(settings: Any) -> None:
    settings.ALLOWED_NETWORKS = settings.FILE_CHANNELS = settings.PUSH_PRIVATE_NETWORKS = []


@pytest.mark.django_db
def test_a_base_image_is_pulled_from_a_configured_registry_only(
    nothing_allowed: None, settings: Any, canary: Canary, tmp_path: Path
) -> None:
    registry = f"http://127.0.0.1:{canary.port}"
    with pytest.raises(AddressRefusedError):
        image_builder.find_base(f"{registry}/base:1", "linux-64", work=tmp_path)
    assert canary.contacts == []
    settings.BASE_IMAGE = f"{registry}/base:1"
    assert configured_guard().resolve("127.0.0.1", canary.port) == ["127.0.0.1"]


def test_a_registry_leads_nobody_elsewhere(
    nothing_allowed: None, settings: Any, canary: Canary, tmp_path: Path
) -> None:
    """By a redirect, and by the address where it says that one signs in."""
    with serving(tmp_path) as server:
        registry = server.url.removesuffix("/")
        settings.BASE_IMAGE = f"{registry}/base:1"
        server.faults.add(Fault("v2/*", status=302, location=canary.url))
        with Repository(Reference.parse(f"{registry}/base:1")) as repository:
            for ask in (
                lambda: repository.manifest("1"),
                lambda: repository._sign_in(f'Bearer realm="{canary.url}",service="x"'),
            ):
                with pytest.raises(AddressRefusedError):
                    ask()


def test_credentials_do_not_follow_a_redirect_to_another_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    shown = {"Authorization": "Basic dXNlcjpwYXNzd29yZA=="}

    async def ask(url: str) -> bytes:
        async with clients.async_client(follow_redirects=True) as client:
            return (await client.get(url, headers=shown)).content

    with serving(tmp_path) as first, serving(tmp_path) as second:
        first.faults.add(Fault("moved", status=302, location=f"{second.url}file"))
        with clients.client(follow_redirects=True) as client:
            assert client.get(f"{first.url}moved", headers=shown).content == b"x"
        assert asyncio.run(ask(f"{first.url}moved")) == b"x"
        assert ["authorization" in request.headers for request in first.requests] == [True, True]
        assert ["authorization" in request.headers for request in second.requests] == [False, False]


@pytest.mark.django_db(transaction=True)
def test_the_upstream_of_a_mirror_is_reached_and_what_it_leads_to_is_not(
    nothing_allowed: None, root: Actor, server: ChannelServer, canary: Canary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("environments.tasks.read_mirror.send", lambda *_: None)
    mirror = create_mirror(actor=root, name="small", upstream=server.url, subdirs=["noarch"])
    index = MirrorIndex.objects.get(mirror=mirror)
    assert mirrors.read_upstream(index.pk)
    server.faults.add(Fault("noarch/*", status=302, location=canary.url))
    try:
        assert not mirrors.read_upstream(index.pk)
    finally:
        server.faults.clear()
    index.refresh_from_db()
    assert index.failure["code"] == "address-refused"
