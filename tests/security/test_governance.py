"""Attacks on governance: channel credentials, the audit log, approvals, and names of others.

Each attack goes through a public interface and has its control: the honest twin that works.
"""

from __future__ import annotations

import json
import socket
import stat
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.apps import apps
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.db import connection

from accounts.access import Actor, may
from accounts.models import User
from accounts.roles import Perm, Role
from condastore.cli import audit as cli_audit
from condastore.errors import InvalidInputError, UnavailableError
from environments.domain.audit_chain import chain_key
from environments.domain.audit_checkpoints import (
    Checkpoint,
    HeadState,
    parse_checkpoint,
    seal_head,
)
from environments.domain.lifecycle import BuildState
from environments.engine.network.audit_anchors import parse_audit_anchor
from environments.jobs import builds as building
from environments.models import (
    AuditEvent,
    AuditHead,
    Build,
    ChannelCredential,
    Decision,
    Environment,
    HostedChannel,
    LockRow,
    Namespace,
    PendingGrant,
    Policy,
    Preview,
    RequestAsker,
)
from environments.models.audit import seal_former_key, verify_chain
from environments.operations import audit, builds, hosted_channels, upkeep
from environments.operations.environments import delete_environment
from environments.operations.mirrors import create_mirror
from environments.operations.namespaces import create_namespace
from environments.operations.people import close_account
from environments.services.approval_requests import decider_names
from environments.services.solving import credentials_for, mirror_credentials
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
    requested: dict[str, Any] = {"channel": CHANNEL, "namespace": "research"} | options
    return code_of(ask(actor, SET, secret=secret, **requested))


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
    reported = credential_events()
    assert [(who, action, one.get("replaced")) for who, action, one in reported] == [
        ("dora", "credential.set", False),
        ("dora", "credential.set", True),
        ("dora", "credential.delete", None),
        ("dora", "credential.set", False),
    ]
    assert "secret" not in json.dumps([changes for _, _, changes in reported])


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
def test_an_upgrade_leaves_credentials_of_the_installation_to_shared_namespaces(
    research: Namespace,
) -> None:
    personal = Namespace.objects.create(name="eve", personal=True)
    for prefix in (CHANNEL, "oci://registry.example.org"):
        row = ChannelCredential(url_prefix=prefix, kind="basic")
        row.seal("svc:all")
        row.save()
    import_module("environments.migrations.0004_credential_scopes").keep_shared_namespaces(
        apps, None
    )
    assert secrets_in(research) == ["svc:all"]
    assert secrets_in(personal) == []
    scopes = ChannelCredential.objects.order_by("url_prefix").values_list("namespaces", flat=True)
    assert list(scopes) == [["*"], []]


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


# --- the audit log ------------------------------------------------------------------------------


def record(times: int) -> None:
    for number in range(times):
        AuditEvent.record(None, "test.event", f"thing {number}", {"number": number})


def sql(statement: str, *values: Any) -> None:
    """Write to the database as somebody who has no key, past the triggers of PostgreSQL."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            for table in ("environments_auditevent", "environments_audithead"):
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(statement, values)


def head_row() -> dict[str, Any]:
    return dict(AuditHead.objects.values().get())


def put_head(row: dict[str, Any]) -> None:
    sql(
        "UPDATE environments_audithead SET position = %s, digest = %s, cut_position = %s, "
        "cut_digest = %s, counter = %s, seal = %s",
        *(row[name] for name in ("position", "digest", "cut_position", "cut_digest")),
        *(row["counter"], row["seal"]),
    )


def cut_off(after: int) -> None:
    sql("DELETE FROM environments_auditevent WHERE position > %s", after)


def verify_with(anchor: Path) -> str:
    """What `manage audit verify --anchor` says: its output, or why it failed."""
    out = StringIO()
    try:
        call_command("audit", "verify", "--anchor", str(anchor), stdout=out)
    except CommandError as error:
        return str(error)
    return out.getvalue()


@pytest.fixture
def anchor(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(audit, "_stored", None)
    path = tmp_path / "audit.checkpoints"
    settings.AUDIT_ANCHOR = f"file:{path}"
    return path


def store() -> None:
    """One turn of the scheduler."""
    audit.store_checkpoint()
    if audit._sending is not None:
        audit._sending.join(20)


@pytest.mark.django_db
@pytest.mark.parametrize("seal", ["kept", "emptied", "of another row"])
def test_the_newest_events_are_not_cut_off_together_with_the_head(seal: str) -> None:
    record(10)
    assert verify_chain().fault is None
    row = head_row() | {"position": 5, "digest": AuditEvent.objects.get(position=5).digest}
    row |= {"kept": {}, "emptied": {"seal": ""}, "of another row": {"seal": "0" * 64}}[seal]
    cut_off(5)
    put_head(row)
    fault = verify_chain().fault
    assert fault is not None
    assert fault.position == 5
    record(2)  # what the system writes next does not seal what was forged
    fault = verify_chain().fault
    assert fault is not None
    assert fault.position == 6


@pytest.mark.django_db
def test_an_old_head_with_its_own_seal_is_found_by_the_anchor(anchor: Path) -> None:
    record(5)
    store()
    old = head_row()
    record(3)
    store()
    assert "2 checkpoints match" in verify_with(anchor)
    cut_off(5)
    put_head(old)
    assert verify_chain().fault is None, "nothing in the database contradicts it"
    said = verify_with(anchor)
    assert "line 2" in said
    assert "event 5" in said
    record(10)  # the log continues; the anchor remembers
    assert verify_chain().fault is None
    assert "line 2: Event 8 is not the one" in verify_with(anchor)
    store()
    said = verify_with(anchor)
    assert "line 2" in said


@pytest.mark.django_db
def test_a_log_that_was_emptied_is_found_by_the_anchor(anchor: Path) -> None:
    record(5)
    store()
    sql("DELETE FROM environments_auditevent")
    sql("DELETE FROM environments_audithead")
    assert verify_chain().fault is None
    assert "The log ends at event 0" in verify_with(anchor)


@pytest.mark.django_db
def test_lines_of_an_anchor_are_not_forged_reordered_or_cut_short(anchor: Path) -> None:
    for _ in range(3):
        record(2)
        store()
    lines = anchor.read_text().splitlines()
    changed = lines[1].replace('"position":4', '"position":3')
    for content, said in (
        (lines, "3 checkpoints match"),
        ([lines[0], changed, lines[2]], "line 2: It was not signed"),
        ([lines[1], lines[0], lines[2]], "line 2: The log was rolled back"),
        ([lines[0], lines[1][:-9]], "line 2: The line is not a checkpoint"),
        (["Nov 30 12:00:00 host condastore: " + line for line in lines], "3 checkpoints match"),
    ):
        anchor.write_text("\n".join(content) + "\n")
        assert said in verify_with(anchor)


@pytest.mark.django_db
def test_a_pruned_log_agrees_with_its_anchor(anchor: Path, root: Actor) -> None:
    record(4)
    store()
    record(4)
    audit.prune(actor=root, before=AuditEvent.objects.get(position=7).at)
    store()
    record(1)
    assert verify_chain().fault is None
    assert "2 checkpoints match" in verify_with(anchor)
    row = head_row()
    put_head(row | {"cut_position": 7, "cut_digest": AuditEvent.objects.get(position=7).digest})
    sql("DELETE FROM environments_auditevent WHERE position <= 7")
    assert verify_chain().fault is not None


@pytest.mark.django_db
def test_the_scheduler_stores_a_checkpoint_when_the_log_has_changed(
    anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_last", {})
    for lines in (1, 1, 2):
        record(lines - len(anchor.read_text().splitlines()) if anchor.exists() else 1)
        upkeep._last.pop("anchor", None)  # the interval is over
        upkeep.sweep()
        if audit._sending is not None:
            audit._sending.join(20)
        assert len(anchor.read_text().splitlines()) == lines


@pytest.mark.django_db
def test_no_checkpoint_is_signed_of_a_head_that_was_set_back(anchor: Path) -> None:
    record(4)
    store()
    put_head(head_row() | {"position": 2, "digest": AuditEvent.objects.get(position=2).digest})
    store()
    assert len(anchor.read_text().splitlines()) == 1
    assert stat.S_IMODE(anchor.stat().st_mode) == 0o600


@pytest.mark.django_db
def test_a_head_of_an_older_version_is_sealed_by_the_migration() -> None:
    record(4)
    put_head(head_row() | {"counter": 0, "seal": ""})
    assert verify_chain().fault is not None
    import_module("environments.migrations.0007_audit_seal").seal_existing_head(apps, None)
    assert verify_chain().fault is None
    record(1)
    assert verify_chain().fault is None


@pytest.mark.django_db
def test_a_replaced_audit_key_seals_the_head_anew_and_the_former_one_sets_nothing_back(
    settings: Any, anchor: Path
) -> None:
    record(4)
    store()
    former = head_row()
    settings.AUDIT_KEY_FALLBACKS = [settings.AUDIT_KEY]
    settings.AUDIT_KEY = "n" * 60
    assert seal_former_key()
    record(2)
    assert verify_chain().fault is None
    assert "1 checkpoints match" in verify_with(anchor)
    sixth = AuditEvent.objects.get(position=6)
    key = chain_key(settings.AUDIT_KEY_FALLBACKS[0])
    state = HeadState(counter=6, position=6, digest=sixth.digest)
    cut_off(6)
    put_head(former | asdict(state) | {"seal": seal_head(key, state)})
    assert verify_chain().fault is not None
    record(1)
    assert verify_chain().fault is not None


class _Receiver(BaseHTTPRequestHandler):
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_checkpoint_reaches_a_webhook_and_syslog(tmp_path: Path) -> None:
    line = Checkpoint.of(b"key", HeadState(counter=1, position=1, digest="d"), at="now").line()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        parse_audit_anchor(f"http://127.0.0.1:{port}/anchor").store(line)
        server.shutdown()
        thread.join()
    assert _Receiver.bodies == [line.encode()]
    with pytest.raises(UnavailableError):
        parse_audit_anchor(f"http://127.0.0.1:{port}/anchor").store(line)
    path = tmp_path / "log"
    with pytest.raises(UnavailableError):
        parse_audit_anchor(f"syslog:{path}").store(line)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        parse_audit_anchor(f"syslog:{path}").store(line)
        assert parse_checkpoint(daemon.recv(9000).decode()).line() == line
    for wrong in ("http://example.org/", "ftp://x", "file:relative", "nonsense"):
        with pytest.raises(InvalidInputError):
            parse_audit_anchor(wrong)


@pytest.mark.django_db
def test_the_command_line_compares_a_file_of_checkpoints_in_parts(
    anchor: Path, root: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        record(1)
        store()
    monkeypatch.setattr(cli_audit, "ANCHOR_LINES", 2)

    class Api:
        def ask(self, document: str, **variables: Any) -> dict[str, Any]:
            return ask(root, document, **variables)

    api: Any = Api()
    assert cli_audit._compared(api, anchor)["checked"] == 5
    lines = anchor.read_text().splitlines()
    anchor.write_text("\n".join([*lines[:2], lines[3], lines[2], lines[4]]))
    found = cli_audit._compared(api, anchor)
    assert (found["intact"], found["fault"]["line"]) == (False, 4)


# --- approvals of what one asked for ------------------------------------------------------------


@pytest.fixture
def anna(research: Namespace) -> Actor:
    return factories.actor(User.objects.get(username="anna"))


@pytest.fixture
def carol(research: Namespace) -> Actor:
    """Another approver, like Anna."""
    user = factories.make_user("carol")
    research.grant(Role.APPROVER, user)
    return factories.actor(user)


@pytest.fixture
def service(research: Namespace, carol: Actor) -> Actor:
    """A service account of Carol's, which may approve."""
    user = factories.make_user("robot")
    User.objects.filter(pk=user.pk).update(is_service=True, owner=carol.account)
    research.grant(Role.APPROVER, user)
    return factories.actor(User.objects.get(pk=user.pk))


@pytest.fixture
def ask_about_tool(research: Namespace) -> None:
    Policy.of(research).rules.create(
        kind="packages-denied", effect="ask", name="look", settings={"packages": ["tool"]}
    )


def build_of(actor: Actor, environment: Environment, version: str = "1.0") -> Build:
    """A build that the actor submits and that is HELD because of `tool`; nothing is solved."""
    submitted = builds.submit_build(
        actor=actor, environment=environment, specification="dependencies: [tool]"
    )
    lock = LockRow.store(factories.make_lock(factories.make_package("tool", version)))
    Build.objects.filter(pk=submitted.build.pk).update(lock=lock)
    return run(submitted.build)


def run(build: Build) -> Build:
    building.run(build.pk)
    found = Build.objects.select_related("environment__namespace").get(pk=build.pk)
    assert found.state == BuildState.HELD, (found.state, found.failure)
    return found


def decide(actor: Actor, build: Build, *, approve: bool = True, **options: Any) -> str:
    """The code of the answer to a decision on what the build waits for; "" where it worked."""
    arguments = {"requests": [str(build.requests.get().pk)], "approve": approve} | options
    document = (
        "mutation($requests: [ID!]!, $approve: Boolean!, $scope: DecisionScope, $spec: String) {"
        ' decide(requests: $requests, approve: $approve, reason: "fine", scope: $scope,'
        f" spec: $spec) {{ __typename {ERROR} }} }}"
    )
    arguments.setdefault("scope", "VERSION")
    arguments.setdefault("spec", "")
    return code_of(ask(actor, document, **arguments))


@pytest.mark.django_db(transaction=True)
def test_who_cancels_their_own_build_does_not_decide_for_it(
    ask_about_tool: None, environment: Environment, carol: Actor, alice: Actor, anna: Actor
) -> None:
    mine = build_of(carol, environment)
    theirs = build_of(alice, environment)
    assert mine.requests.get() == theirs.requests.get()
    assert decide(carol, theirs) == "access-denied"
    builds.cancel_build(actor=carol, build=mine)
    assert decide(carol, theirs) == "access-denied"
    assert decide(carol, theirs, approve=False) == "access-denied"
    assert decide(anna, theirs) == ""


@pytest.mark.django_db(transaction=True)
def test_a_request_that_is_withdrawn_and_asked_again_is_still_ones_own(
    ask_about_tool: None,
    environment: Environment,
    carol: Actor,
    alice: Actor,
    anna: Actor,
    dora: Actor,
) -> None:
    research = environment.namespace
    scratch = factories.make_environment(research, "scratch")
    mine = build_of(carol, scratch)
    delete_environment(actor=dora, environment=scratch)
    theirs = build_of(alice, environment)
    assert mine.requests.get() != theirs.requests.get()
    assert decide(carol, theirs) == "access-denied"
    assert decide(carol, theirs, scope="SPEC", spec="tool") == "access-denied"
    # Another version was never asked for by Carol; a wide answer would cover what she asked for.
    other = build_of(alice, environment, "2.0")
    assert decide(carol, other, scope="SPEC", spec="tool >=1") == "access-denied"
    assert decide(carol, other) == ""
    # What somebody else allows already, she may cover.
    assert decide(anna, theirs) == ""
    third = build_of(alice, environment, "3.0")
    assert decide(carol, third, scope="SPEC", spec="tool") == ""


@pytest.mark.django_db(transaction=True)
def test_who_restores_a_build_of_another_has_asked_for_it(
    environment: Environment, carol: Actor, alice: Actor, anna: Actor, research: Namespace
) -> None:
    lock = factories.make_lock(factories.make_package("tool"))
    archived = factories.make_build(environment, BuildState.ARCHIVED, lock=lock)
    Build.objects.filter(pk=archived.pk).update(requested_by=alice.account)
    Policy.of(research).rules.create(
        kind="packages-denied", effect="ask", name="look", settings={"packages": ["tool"]}
    )
    held = run(builds.restore_build(actor=carol, build=archived))
    assert decide(carol, held) == "access-denied"
    assert decide(anna, held) == ""


@pytest.mark.django_db(transaction=True)
def test_ones_service_account_decides_no_more_than_oneself(
    ask_about_tool: None,
    environment: Environment,
    carol: Actor,
    service: Actor,
    alice: Actor,
    anna: Actor,
    settings: Any,
) -> None:
    held = build_of(carol, environment)
    assert decide(service, held) == "access-denied"
    assert decide(anna, held) == ""
    requested = build_of(service, environment, "2.0")
    User.objects.filter(pk=service.account.pk).update(owner=anna.account)  # Carol's no more
    assert decide(carol, requested) == "access-denied"
    User.objects.filter(pk=service.account.pk).update(owner=carol.account)
    settings.TWO_PERSON_APPROVAL = True
    third = build_of(alice, environment, "3.0")
    assert decide(carol, third) == ""
    half = Decision.objects.get(complete=False)
    second = f"mutation {{ secondDecision(id: {half.pk}) {{ __typename {ERROR} }} }}"
    assert code_of(ask(service, second)) == "access-denied"
    # Carol approved first, and asks for it now: both approvers must be others.
    build_of(carol, environment, "3.0")
    assert code_of(ask(anna, second)) == "access-denied"
    assert not Decision.objects.get(pk=half.pk).complete


@pytest.mark.django_db(transaction=True)
def test_two_people_who_did_not_ask_approve_together(
    ask_about_tool: None,
    environment: Environment,
    carol: Actor,
    alice: Actor,
    anna: Actor,
    settings: Any,
) -> None:
    settings.TWO_PERSON_APPROVAL = True
    held = build_of(alice, environment)
    assert decide(carol, held) == ""
    half = Decision.objects.get(complete=False)
    second = f"mutation {{ secondDecision(id: {half.pk}) {{ __typename {ERROR} }} }}"
    assert code_of(ask(anna, second)) == ""
    assert Build.objects.get(pk=held.pk).state == BuildState.QUEUED


@pytest.mark.django_db(transaction=True)
def test_an_upgrade_knows_who_asked_before_it(
    ask_about_tool: None, environment: Environment, carol: Actor, alice: Actor
) -> None:
    mine = build_of(carol, environment)
    theirs = build_of(alice, environment)
    builds.cancel_build(actor=carol, build=mine)
    RequestAsker.objects.all().delete()
    migrations = Path(building.__file__).parents[1] / "migrations"
    [name] = [path.stem for path in migrations.glob("*_request_askers.py")]
    import_module(f"environments.migrations.{name}").record_askers(apps, None)
    assert decide(carol, theirs) == "access-denied"


@pytest.mark.django_db(transaction=True)
def test_where_self_approval_is_on_one_decides_on_ones_own(
    ask_about_tool: None, environment: Environment, carol: Actor, settings: Any
) -> None:
    settings.SELF_APPROVAL = True
    assert decide(carol, build_of(carol, environment)) == ""


# --- names of others ----------------------------------------------------------------------------


@pytest.fixture
def eve(db: None) -> Actor:
    """An account with its personal namespace, as everybody has one."""
    actor = factories.actor(factories.make_user("eve"))
    create_namespace(actor=actor, name="eve")
    return actor


GRANT = (
    "mutation($user: String, $group: String, $role: Role!) { grantRole("
    'namespace: "eve", role: $role, user: $user, group: $group)'
    f" {{ __typename ... on Namespace {{ name grants {{ user group role }} }} {ERROR} }} }}"
)
REVOKE = (
    "mutation($user: String, $group: String) { revokeRole("
    'namespace: "eve", user: $user, group: $group)'
    f" {{ __typename ... on Namespace {{ name grants {{ user group role }} }} {ERROR} }} }}"
)


def as_anybody(answer: Any, name: str) -> str:
    """What was answered, with the name taken out."""
    return json.dumps(answer, sort_keys=True).replace(name, "NAME")


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["user", "group"])
def test_granting_and_revoking_tells_nobody_which_names_exist(
    research: Namespace, eve: Actor, kind: str
) -> None:
    Group.objects.create(name="alice")
    User.objects.create(username="closed", is_active=False)
    answers = []
    for name in ("alice", "aaron", *(["closed"] if kind == "user" else [])):
        holder = {kind: name}
        steps = [
            ask(eve, REVOKE, **holder),
            ask(eve, GRANT, role="VIEWER", **holder),
            ask(eve, GRANT, role="APPROVER", **holder),
            ask(eve, '{ namespace(name: "eve") { grants { user group role mapped } } }'),
            ask(eve, REVOKE, **holder),
            ask(eve, REVOKE, **holder),
        ]
        changes = AuditEvent.objects.visible_to(eve).matching(action="namespace.")
        reported = [(one.action, one.target, one.changes) for one in changes.order_by("position")]
        answers.append(as_anybody([steps, reported[-3:]], name))
    assert len(set(answers)) == 1
    assert '"code": "conflict"' in answers[0]


@pytest.mark.django_db
def test_an_administrator_is_told_that_a_name_does_not_exist(
    eve: Actor, root: Actor, settings: Any
) -> None:
    assert code_of(ask(root, GRANT, role="VIEWER", user="nobody")) == "not-found"
    settings.USERS_VISIBLE = True
    assert code_of(ask(eve, GRANT, role="VIEWER", user="nobody")) == "not-found"


@pytest.mark.django_db
def test_a_grant_to_a_name_takes_effect_when_somebody_bears_it(eve: Actor) -> None:
    ask(eve, GRANT, role="DEVELOPER", user="newcomer")
    ask(eve, GRANT, role="VIEWER", group="ldap:crew")
    location = Namespace.objects.get(name="eve")
    environment = factories.make_environment(location, "ml")
    share = (
        f'mutation {{ shareEnvironment(environmentId: {environment.pk}, user: "reader") '
        f"{{ __typename ... on Environment {{ sharedWith }} {ERROR} }} }}"
    )
    assert ask(eve, share)["shareEnvironment"]["sharedWith"] == ["user reader"]
    newcomer, reader = (
        factories.actor(User.objects.create_user(name)) for name in ("newcomer", "reader")
    )
    other = factories.make_user("other")
    other.groups.add(Group.objects.create(name="ldap:crew"))
    assert may(newcomer, Perm.BUILD, location)
    assert may(factories.actor(other), Perm.VIEW, location)
    assert not may(factories.actor(other), Perm.BUILD, location)
    assert may(reader, Perm.VIEW, environment)
    assert not may(reader, Perm.VIEW, location)
    assert not PendingGrant.objects.exists()
    ask(eve, REVOKE, user="newcomer")
    assert not may(newcomer, Perm.VIEW, location)


@pytest.mark.django_db
def test_who_may_decide_shows_granted_names_and_no_members(research: Namespace, eve: Actor) -> None:
    team = Group.objects.create(name="ldap:team")
    User.objects.get(username="anna").groups.add(team)
    for name in ("alice", "nobody"):
        ask(eve, GRANT, role="APPROVER", user=name)
    for name in ("ldap:team", "ldap:none"):
        ask(eve, GRANT, role="APPROVER", group=name)
    location = Namespace.objects.get(name="eve")
    assert decider_names([location.pk])[location.pk] == [
        "alice",
        "eve",
        "group ldap:none",
        "group ldap:team",
        "nobody",
    ]


@pytest.mark.django_db
def test_a_service_account_is_not_found_by_granting_it_a_role(
    eve: Actor, root: Actor, service: Actor
) -> None:
    ask(eve, GRANT, role="VIEWER", user="robot")
    listed = "{ serviceAccounts { edges { node { username owner } } } }"
    assert ask(eve, listed)["serviceAccounts"]["edges"] == []
    close_account(actor=root, user=User.objects.get(username="carol"))
    assert not AuditEvent.objects.visible_to(eve).filter(target="robot").exists()
    # Once it has built there, the managers of the namespace see it.
    location = Namespace.objects.get(name="eve")
    build = factories.make_build(factories.make_environment(location, "ml"))
    Build.objects.filter(pk=build.pk).update(requested_by=service.account)
    assert len(ask(eve, listed)["serviceAccounts"]["edges"]) == 1


def create_channel_as(actor: Actor, name: str, namespace: str = "eve") -> dict[str, Any]:
    arguments = f'namespace: "{namespace}", name: "{name}"'
    answer = ask(actor, f"mutation {{ createHostedChannel({arguments}) {{ __typename {ERROR} }} }}")
    found: dict[str, Any] = answer["createHostedChannel"]
    return found


@pytest.mark.django_db
def test_creating_a_hosted_channel_tells_nobody_of_hidden_ones(
    research: Namespace, eve: Actor, root: Actor, dora: Actor
) -> None:
    assert create_channel_as(root, "secret", "research")["__typename"] == "HostedChannel"
    assert create_channel_as(dora, "research/plans", "research")["__typename"] == "HostedChannel"
    for taken, free in (("secret", "absent"), ("research/plans", "research/absent")):
        reported = [as_anybody(create_channel_as(eve, name), name) for name in (taken, free)]
        assert reported[0] == reported[1]
        assert "code" in reported[0]
    # The control: one's own names, which are all shown.
    assert create_channel_as(eve, "eve/secret")["__typename"] == "HostedChannel"
    assert create_channel_as(eve, "eve/secret")["code"] == "conflict"
    assert {one.name for one in hosted_channels.channels(eve)} == {"eve/secret"}


@pytest.mark.django_db
def test_what_one_may_not_see_is_answered_like_what_is_not_there(
    research: Namespace, eve: Actor
) -> None:
    """Names of namespaces, environments, channels, mirrors and tokens in changes of others."""
    environment = factories.make_environment(research, "ml")
    own = factories.make_environment(Namespace.objects.get(name="eve"), "mine")
    HostedChannel.objects.create(name="hidden", namespace=research)
    text = json.dumps("channels: [hosted/NAME]\ndependencies: [x]")
    for document, taken, free in (
        ('createNamespace(name: "NAME")', "research", "absent"),
        (f'moveEnvironment(environmentId: {own.pk}, namespace: "NAME")', "research", "absent"),
        (
            f'copyEnvironment(environmentId: {own.pk}, namespace: "NAME", name: "ml")',
            "research",
            "absent",
        ),
        ('createEnvironment(namespace: "NAME", name: "ml")', "research", "absent"),
        ("deleteEnvironment(environmentId: NAME)", str(environment.pk), "999999"),
        ('createToken(name: "x", namespaces: ["NAME"])', "research", "absent"),
        ('createToken(name: "x", serviceAccount: "NAME")', "alice", "absent"),
        ('createServiceAccount(name: "NAME")', "alice", "absent"),
        ('createMirror(name: "NAME", upstream: "https://c.example.org/x")', "hidden", "absent"),
        ('deleteHostedChannel(name: "NAME")', "hidden", "absent"),
        (
            'createWebhook(namespace: "NAME", url: "https://h.example.org/")',
            "research",
            "absent",
        ),
        (
            f'submitBuild(namespace: "eve", environment: "mine", specification: {text})',
            "hidden",
            "absent",
        ),
    ):
        answers = []
        for name in (taken, free):
            requested = f"mutation {{ {document.replace('NAME', name)} {{ __typename {ERROR} }} }}"
            answers.append(as_anybody(ask(eve, requested), name))
        assert answers[0] == answers[1], document
        assert "OperationError" in answers[0], document
