"""The audit log: what is written, that it stays as it was written, and who may read it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.signals import user_login_failed
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.models.signals import pre_migrate
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from strawberry.relay.utils import to_base64

from accounts.access import ANONYMOUS, Actor
from accounts.models import User
from accounts.roles import Role
from condastore.errors import AccessDeniedError, ConflictError, InvalidInputError, NotSignedInError
from environments.domain.audit_chain import COVERED, plain, seal
from environments.models import AuditEvent, AuditHead, Environment, Namespace, audited
from environments.models.audit import AppendOnlyError, key, unguarded, verify_chain
from environments.operations import audit
from environments.operations.builds import submit_build, tag_build
from environments.operations.environments import create_environment
from environments.operations.namespaces import grant_role
from environments.operations.tokens import create_token, revoke_token
from tests import factories
from tests.environments.graphql.asking import ERROR, ask, post

TEXT = "channels: [https://channel.example.org/main]\ndependencies: [python]\n"


@pytest.fixture(autouse=True)
def _unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests were refused counts for nothing here."""
    monkeypatch.setattr(audit, "_refusal_limit", audit.RefusalLimit())


def events(action: str = "") -> list[AuditEvent]:
    return list(AuditEvent.objects.matching(action=action).order_by("position"))


def record(times: int) -> None:
    for number in range(times):
        AuditEvent.record(None, "test.event", f"thing {number}", {"number": number})


def sql(statement: str, *values: str) -> None:
    """What somebody does who can write to the database, and nothing else."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("ALTER TABLE environments_auditevent DISABLE TRIGGER USER")
            cursor.execute("ALTER TABLE environments_audithead DISABLE TRIGGER USER")
        cursor.execute(statement, values)


# --- the chain ----------------------------------------------------------------------------------


@pytest.mark.django_db
def test_what_was_written_is_verified(research: Namespace, alice: Actor):
    environment = create_environment(actor=alice, namespace=research, name="ml")
    build = submit_build(actor=alice, environment=environment, specification=TEXT).build
    tag_build(actor=alice, build=build, tag="prod")
    found = verify_chain()
    assert found.fault is None
    assert found.checked == len(events()) == 3
    assert [(one.username, one.action, one.target) for one in events()] == [
        ("alice", "environment.create", "research/ml"),
        ("alice", "build.submit", "research/ml build 1"),
        ("alice", "build.tag", "research/ml build 1"),
    ]
    assert {one.namespace for one in events()} == {research}


@pytest.mark.django_db
def test_a_digest_is_what_the_documents_say(alice: Actor):
    record(2)
    first, second = events()
    covered = [getattr(second, name) for name in COVERED]
    covered[1] = second.at.isoformat(timespec="microseconds")
    assert second.digest == seal(key(), first.digest, covered)


TAMPERING: dict[str, tuple[str, tuple[str, ...], int]] = {
    "an edited text": ("UPDATE environments_auditevent SET target = 'x' WHERE position = 4", (), 4),
    "an edited name": (
        "UPDATE environments_auditevent SET username = 'x' WHERE position = 4",
        (),
        4,
    ),
    "an edited time": (
        "UPDATE environments_auditevent SET at = '2020-01-01 00:00:00' WHERE position = 1",
        (),
        1,
    ),
    "edited changes": (
        "UPDATE environments_auditevent SET changes = %s WHERE position = 7",
        (json.dumps({"number": 99}),),
        7,
    ),
    "an edited digest": (
        "UPDATE environments_auditevent SET digest = %s WHERE position = 5",
        ("0" * 64,),
        5,
    ),
    "a missing event": ("DELETE FROM environments_auditevent WHERE position = 5", (), 5),
    "a missing first event": ("DELETE FROM environments_auditevent WHERE position = 1", (), 1),
    "events cut off at the end": ("DELETE FROM environments_auditevent WHERE position > 8", (), 9),
    "no events at all": ("DELETE FROM environments_auditevent", (), 1),
    "a head set back": ("UPDATE environments_audithead SET position = 8", (), 8),
    "an edited head": ("UPDATE environments_audithead SET digest = 'x'", (), 10),
    "a head that is gone": ("DELETE FROM environments_audithead", (), 1),
    "a cut that nobody made": (
        "UPDATE environments_audithead SET cut_position = 0, cut_digest = 'x'",
        (),
        1,
    ),
    "an event without a position": (
        "UPDATE environments_auditevent SET position = NULL WHERE position = 10",
        (),
        10,
    ),
    "an event beyond the end": (
        "UPDATE environments_auditevent SET position = 12 WHERE position = 10",
        (),
        10,
    ),
}


@pytest.mark.django_db
@pytest.mark.parametrize("how", TAMPERING)
def test_a_changed_log_is_found_at_its_first_place(how: str):
    record(10)
    statement, values, position = TAMPERING[how]
    sql(statement, *values)
    fault = verify_chain().fault
    assert fault is not None, how
    assert fault.position == position, (how, fault)


@pytest.mark.django_db
def test_events_that_changed_places_are_found():
    record(6)
    sql("UPDATE environments_auditevent SET position = 100 WHERE position = 3")
    sql("UPDATE environments_auditevent SET position = 3 WHERE position = 4")
    sql("UPDATE environments_auditevent SET position = 4 WHERE position = 100")
    assert verify_chain().fault.position == 3


@pytest.mark.django_db
def test_an_event_that_was_put_in_is_found():
    record(3)
    at = timezone.now()
    forged = AuditEvent(
        at=at, username="eve", action="x", target="y", position=4, digest="f" * 64, changes={}
    )
    unguarded().bulk_create([forged])
    assert verify_chain().fault.position == 4


@pytest.mark.django_db
def test_with_another_key_nobody_makes_a_log_that_verifies(settings: Any):
    record(2)
    settings.AUDIT_KEY = "another one"
    assert verify_chain().fault.position == 1


@pytest.mark.django_db
def test_after_a_lost_head_the_log_goes_on_and_says_so():
    record(3)
    sql("DELETE FROM environments_audithead")
    record(2)
    assert verify_chain().fault.position == 4


@pytest.mark.django_db
def test_events_are_never_changed_through_the_models():
    record(1)
    event = AuditEvent.objects.get()
    changes: list[Callable[[], Any]] = [
        event.save,
        event.delete,
        lambda: AuditEvent.objects.update(action="x"),
        lambda: AuditEvent.objects.all().delete(),
        lambda: AuditEvent.objects.create(username="x", action="x", target="x"),
        lambda: AuditEvent.objects.bulk_create([event]),
        lambda: AuditEvent.objects.bulk_update([event], ["action"]),
    ]
    for change in changes:
        with pytest.raises(AppendOnlyError):
            change()


@pytest.mark.django_db
def test_what_is_deleted_stays_named_in_the_log(research: Namespace, dora: Actor):
    person = factories.make_user("eve")
    created = create_token(actor=factories.actor(person), name="mine")
    AuditEvent.record(Actor(person, token=created.token), "test.event", research)
    before = AuditEvent.objects.order_by("-pk").values().first()
    created.token.delete()
    person.delete()
    assert AuditEvent.objects.order_by("-pk").values().first() == before
    assert verify_chain().fault is None


def test_every_value_is_kept_as_databases_give_it_back():
    assert plain({"a": 1.5, 2: {"b": ["\0x", None, True]}, "c": "\ud800"}) == {
        "a": "1.5",
        "2": {"b": ["x", None, True]},
        "c": "?",
    }


# --- with the change, or not at all -------------------------------------------------------------


class StopError(Exception):
    pass


@audited()
def fail(action: str) -> None:
    AuditEvent.record(None, action, "x")
    raise StopError


@pytest.mark.django_db
def test_what_is_rolled_back_is_not_in_the_log():
    with pytest.raises(StopError):
        fail("outer")
    assert events() == []
    with audited():
        AuditEvent.record(None, "outer", "x")
        with pytest.raises(StopError):
            fail("inner")
    assert [one.action for one in events()] == ["outer"]


@pytest.mark.django_db
def test_the_events_of_a_block_are_its_last_writes(research: Namespace):
    with audited():
        AuditEvent.record(None, "one", research)
        with audited():
            AuditEvent.record(None, "two", research)
        assert events() == []
        Namespace.objects.filter(pk=research.pk).update(description="later")
    assert [one.action for one in events()] == ["one", "two"]


@pytest.mark.django_db(transaction=True)
def test_operations_at_once_all_end_and_keep_one_chain(research: Namespace):
    """Each touches rows that the others touch, in another order, and appends in between."""
    locations = [factories.make_environment(research, name) for name in ("one", "two")]
    faults: list[BaseException] = []

    def work(order: list[Environment]) -> None:
        try:
            for _ in range(10):
                with audited():
                    for location in order:
                        AuditEvent.record(None, "touch", location)
                        location.take_number()
        except BaseException as error:
            faults.append(error)
        finally:
            connection.close()

    # The rows are taken in one order; only the log is between them.
    threads = [threading.Thread(target=work, args=(locations,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    found = verify_chain()
    assert (found.checked, found.fault) == (80, None)


@pytest.mark.django_db(transaction=True)
def test_events_that_are_appended_at_once_keep_one_chain():
    """Each by one statement, on a connection of its own, that another may have forestalled."""
    faults: list[BaseException] = []

    def work() -> None:
        try:
            record(25)
        except BaseException as error:
            faults.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    found = verify_chain()
    assert (found.checked, found.fault) == (100, None)


@pytest.mark.django_db(transaction=True)
def test_the_tables_of_the_log_may_be_migrated_after_an_append():
    record(2)
    with connection.cursor() as cursor:
        pre_migrate.send(apps.get_app_config("environments"), using="default")
        if connection.vendor == "sqlite":  # as Django replaces a table
            cursor.execute("CREATE TABLE copied AS SELECT * FROM environments_auditevent")
            cursor.execute("ALTER TABLE environments_auditevent RENAME TO replaced")
            cursor.execute("ALTER TABLE copied RENAME TO environments_auditevent")
            cursor.execute("DROP TABLE environments_auditevent")
            cursor.execute("ALTER TABLE replaced RENAME TO environments_auditevent")
    record(1)
    assert verify_chain().checked == 3


# --- refused attempts ---------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_refused_mutation_is_recorded(environment: Environment, bob: Actor, charlie: Actor):
    document = (
        'mutation { submitBuild(namespace: "research", environment: "ml", specification: "x") '
        f"{{ __typename {ERROR} }} }}"
    )
    assert ask(bob, document)["submitBuild"]["code"] == "access-denied"
    assert ask(charlie, document)["submitBuild"]["code"] == "not-found"
    reported = [(one.username, one.action, one.refused, one.changes["code"]) for one in events()]
    assert reported == [
        ("bob", "graphql.submitBuild", True, "access-denied"),
        ("charlie", "graphql.submitBuild", True, "not-found"),
    ]
    first = events()[0]
    assert first.target == "namespace=research environment=ml"
    assert first.namespace == environment.namespace


@pytest.mark.django_db
def test_an_attempt_on_a_build_is_told_to_its_namespace(environment: Environment, bob: Actor):
    build = factories.make_build(environment)
    document = f"mutation {{ cancelBuild(id: {build.pk}) {{ __typename {ERROR} }} }}"
    assert ask(bob, document)["cancelBuild"]["code"] == "access-denied"
    assert events()[0].namespace == environment.namespace


@pytest.mark.django_db
def test_a_refusal_by_a_global_id_is_recorded_for_the_namespace(
    environment: Environment, bob: Actor
):
    build = factories.make_build(environment)
    document = f"mutation($id: ID!) {{ archiveBuild(id: $id) {{ __typename {ERROR} }} }}"
    for given in (str(build.pk), to_base64("Build", build.pk)):
        assert ask(bob, document, id=given)["archiveBuild"]["code"] == "access-denied"
    recorded = [(event.target, event.namespace) for event in events()]
    assert recorded == [(f"id={build.pk}", environment.namespace)] * 2
    hidden = "!" * 100 + to_base64("Build", build.pk)
    assert ask(bob, document, id=hidden)["archiveBuild"]["code"] == "not-found"


@pytest.mark.django_db
def test_a_waiting_mutation_records_its_refusal_too(environment: Environment, bob: Actor):
    document = (
        'mutation { previewSolve(namespace: "research", specification: "x") '
        f"{{ __typename {ERROR} }} }}"
    )
    assert ask(bob, document)["previewSolve"]["code"] == "access-denied"
    assert [one.action for one in events()] == ["graphql.previewSolve"]


@pytest.mark.django_db
def test_secrets_and_long_texts_of_a_refused_attempt_are_not_kept(
    environment: Environment, bob: Actor
):
    text = "channels: [https://me:secret@channel.example.org/main]" + "x" * 5000
    document = (
        "mutation($text: String!) { submitBuild(namespace: "
        f'"research", environment: "ml", specification: $text) {{ __typename {ERROR} }} }}'
    )
    ask(bob, document, text=text)
    [event] = events()
    assert "secret" not in json.dumps([event.target, event.changes])


@pytest.mark.django_db
def test_mistakes_are_no_refusals(environment: Environment, alice: Actor):
    document = (
        'mutation { submitBuild(namespace: "research", environment: "ml", specification: "[") '
        f"{{ __typename {ERROR} }} }}"
    )
    assert ask(alice, document)["submitBuild"]["code"] == "specification-invalid"
    assert events() == []


@pytest.mark.django_db
def test_a_bad_sign_in_is_recorded_at_each_door(research: Namespace):
    factories.make_user("eve", password="right")
    client = Client(REMOTE_ADDR="192.0.2.7")
    body = json.dumps({"username": "eve", "password": "wrong"})
    assert client.post("/api/token", body, content_type="application/json").status_code == 401
    client.post("/login/", {"username": "eve", "password": "wrong"})
    found = events("account.sign-in")
    assert {(one.username, one.target, one.address) for one in found} == {
        ("anonymous", "eve", "192.0.2.7")
    }
    assert all(one.refused for one in found)
    assert len(found) == 2
    assert "wrong" not in json.dumps([one.changes["code"] for one in found])


@pytest.mark.django_db
def test_sign_in_and_sign_out_are_recorded(research: Namespace):
    factories.make_user("eve", password="right")
    client = Client(REMOTE_ADDR="192.0.2.7")
    client.post("/login/", {"username": "eve", "password": "right"})
    client.post("/logout/")
    reported = [(one.username, one.action, one.refused, one.address) for one in events("account.")]
    assert reported == [
        ("eve", "account.sign-in", False, "192.0.2.7"),
        ("eve", "account.sign-out", False, "192.0.2.7"),
    ]


@pytest.mark.django_db
def test_a_token_is_recorded_once_for_each_address_and_when_it_is_refused(alice: Actor):
    created = create_token(actor=alice, name="mine")
    secret = {"Authorization": f"Bearer {created.secret}"}
    for address in ("192.0.2.7", "192.0.2.7", "192.0.2.8", "192.0.2.7"):
        post(Client(REMOTE_ADDR=address), "{ me { username } }", None, **secret)
    used = events("token.use")
    assert [(one.username, one.address, one.token) for one in used] == [
        ("alice", "192.0.2.7", created.token),
        ("alice", "192.0.2.8", created.token),
    ]
    revoke_token(actor=alice, token_id=created.token.pk)
    assert post(Client(), "{ me { username } }", None, **secret).status_code == 401
    assert post(Client(), "{ me { username } }", Authorization="Bearer no").status_code == 401
    refused = [one for one in events("token.use") if one.refused]
    assert [one.target for one in refused] == ["mine of alice", "unknown token"]


@pytest.mark.django_db
def test_refusals_of_one_address_do_not_fill_the_disk(settings: Any):
    settings.AUDIT_REFUSALS = 5
    for _ in range(50):
        user_login_failed.send(None, credentials={"username": "eve"}, request=None)
    assert 5 <= len(events()) <= 10  # the minute may have turned meanwhile


def test_what_was_left_out_is_said_in_the_next_minute():
    bound = audit.RefusalLimit()
    reported = [bound.allows("eve", now=0.0) for _ in range(40)]
    assert reported == [0] * 30 + [None] * 10
    assert bound.allows("bob", now=1.0) == 0
    assert bound.allows("eve", now=61.0) == 10
    assert bound.allows("eve", now=62.0) == 0


# --- downloads ----------------------------------------------------------------------------------


@pytest.mark.django_db
def test_downloads_are_recorded_as_the_setting_says(environment: Environment, settings: Any):
    build = factories.make_build(environment)
    client = Client()
    client.force_login(User.objects.get(username="bob"))
    address = f"/api/envs/research/ml/{build.number}/explicit.txt"
    answer = client.get(address)
    client.head(address)
    client.get(address, headers={"If-None-Match": answer["ETag"]})  # nothing was sent
    [event] = events("build.download")
    assert (event.username, event.changes) == ("bob", {"file": "explicit.txt"})
    settings.AUDIT_DOWNLOADS = 0
    client.get(address)
    assert len(events("build.download")) == 1


def _appended(action: str) -> int:
    """How many statements the transaction of one event takes."""
    with CaptureQueriesContext(connection) as sent:
        AuditEvent.record(None, action, "a test")
    return len(sent)


@pytest.mark.django_db(transaction=True)
def test_the_head_is_read_only_where_another_has_written_it() -> None:
    AuditEvent.record(None, "first", "a test")
    _appended("of this connection")  # SQLite prepares it once
    few = _appended("second")
    assert few == 1
    with transaction.atomic():
        AuditEvent.record(None, "rolled back", "a test")
        transaction.set_rollback(True)
    assert _appended("third") > few
    assert _appended("fourth") <= few
    assert [one.action for one in AuditEvent.objects.order_by("position")] == [
        "first", "of this connection", "second", "third", "fourth",
    ]  # fmt: skip
    assert verify_chain().fault is None


# --- who reads it -------------------------------------------------------------------------------


@pytest.mark.django_db
def test_one_reads_of_the_namespaces_one_runs(research: Namespace, dora: Actor, root: Actor):
    other = factories.make_namespace("other", olga=Role.ADMIN)
    grant_role(actor=dora, namespace=research, role=Role.VIEWER, user="charlie")
    AuditEvent.record(None, "test.event", other)
    AuditEvent.record(None, "test.event", "no place")

    def seen(actor: Actor) -> list[str]:
        rows = AuditEvent.objects.visible_to(actor).order_by("position")
        return [f"{row.action} {row.target}" for row in rows]

    people = {name: factories.actor(User.objects.get(username=name)) for name in ("bob", "olga")}
    assert seen(dora) == ["namespace.grant research"]
    assert seen(people["olga"]) == ["test.event other"]
    assert seen(people["bob"]) == seen(ANONYMOUS) == []
    assert len(seen(root)) == 3
    limited = create_token(actor=root, name="limited", namespaces=["research"])
    assert seen(Actor(root.account, token=limited.token)) == ["namespace.grant research"]


# --- export and prune ---------------------------------------------------------------------------


@pytest.mark.django_db
def test_an_export_has_what_the_filters_say_and_is_recorded(root: Actor, bob: Actor):
    record(3)
    AuditEvent.record(bob, "other.event", "x", refused=True)
    lines = [json.loads(line) for line in audit.export(actor=root, filters=audit.Filters())]
    assert [line["position"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[-1]["action"] == "audit.export"
    assert set(COVERED) | {"namespace", "digest"} == set(lines[0])
    for one, after in itertools.pairwise(lines):
        digest = seal(key(), one["digest"], [after[name] for name in COVERED])
        assert digest == after["digest"]
    for filters, positions in [
        (audit.Filters(action="test."), [1, 2, 3]),
        (audit.Filters(actor="bob"), [4]),
        (audit.Filters(refused=True), [4]),
        (audit.Filters(target="thing 2"), [3]),
        (audit.Filters(until=timezone.now() - timedelta(days=1)), []),
    ]:
        found = audit.export(actor=root, filters=filters)
        assert [json.loads(line)["position"] for line in found] == positions
    assert list(audit.export(actor=bob, filters=audit.Filters())) == []
    with pytest.raises(NotSignedInError):
        audit.export(actor=ANONYMOUS, filters=audit.Filters())


@pytest.mark.django_db
def test_an_export_reads_a_part_at_a_time(root: Actor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit, "BATCH", 2)
    record(5)
    lines = list(audit.export(actor=root, filters=audit.Filters()))
    assert [json.loads(line)["position"] for line in lines] == [1, 2, 3, 4, 5, 6]


def age(position: int) -> Any:
    return AuditEvent.objects.get(position=position).at


@pytest.mark.django_db
def test_a_pruned_log_is_verified_from_where_it_was_cut(
    root: Actor, bob: Actor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit, "BATCH", 2)
    record(10)
    pruned = audit.prune(actor=root, before=age(6))
    assert (pruned.events, pruned.position) == (5, 5)
    assert [one.position for one in events()] == [6, 7, 8, 9, 10, 11]
    assert events()[-1].action == "audit.prune"
    found = verify_chain()
    assert (found.checked, found.fault, found.start.position) == (6, None, 5)
    record(2)
    audit.prune(actor=root, before=age(12))
    assert [one.position for one in events()] == [12, 13, 14]
    assert verify_chain().fault is None
    assert audit.prune(actor=root, before=age(12)).events == 0
    with pytest.raises(AccessDeniedError):
        audit.prune(actor=bob, before=timezone.now())
    with pytest.raises(InvalidInputError):
        audit.prune(actor=root, before=timezone.now() + timedelta(days=1))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("how", "position"),
    [
        ("DELETE FROM environments_auditevent WHERE position = 6", 6),
        ("UPDATE environments_audithead SET cut_position = 6, cut_digest = ''", 7),
        ("UPDATE environments_auditevent SET position = 3 WHERE position = 11", 11),
    ],
)
def test_a_pruned_log_that_was_changed_is_found(root: Actor, how: str, position: int):
    record(10)
    audit.prune(actor=root, before=age(6))
    sql(how)
    assert verify_chain().fault.position == position


@pytest.mark.django_db
def test_who_cuts_off_more_than_a_prune_did_is_found(root: Actor):
    record(10)
    audit.prune(actor=root, before=age(4))
    digest = AuditEvent.objects.get(position=7).digest
    sql("DELETE FROM environments_auditevent WHERE position <= 7")
    sql("UPDATE environments_audithead SET cut_position = 7, cut_digest = %s", digest)
    assert verify_chain().fault.position == 8


@pytest.mark.django_db
def test_a_damaged_log_is_not_pruned(root: Actor):
    record(5)
    sql("UPDATE environments_auditevent SET target = 'x' WHERE position = 2")
    with pytest.raises(ConflictError, match="Event 2"):
        audit.prune(actor=root, before=timezone.now())


@pytest.mark.django_db
def test_a_prune_that_was_killed_is_ended_by_the_next(root: Actor, monkeypatch: pytest.MonkeyPatch):
    record(6)
    monkeypatch.setattr(audit, "_delete_cut", lambda: None)
    audit.prune(actor=root, before=age(4))
    assert verify_chain().fault is not None
    monkeypatch.undo()
    audit.prune(actor=root, before=age(4))
    assert verify_chain().fault is None
    assert AuditHead.objects.get().cut_position == 3


@pytest.mark.django_db
def test_postgresql_itself_refuses_what_is_no_append():
    record(1)
    if connection.vendor != "postgresql":
        return  # SQLite: a program that opens the file can change it; verify finds it
    for statement in (
        "UPDATE environments_auditevent SET target = 'x'",
        "DELETE FROM environments_auditevent",
    ):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            connection.cursor().execute(statement)


# --- at the doors -------------------------------------------------------------------------------


@pytest.mark.django_db
def test_graphql_searches_verifies_and_prunes(root: Actor, research: Namespace, dora: Actor):
    record(3)
    AuditEvent.record(dora, "test.other", research, {"a": 1})
    requested = """query($filters: AuditFilter) { auditEvents(filters: $filters) {
        totalCount edges { node { position username namespace changes refused } } } }"""
    found = ask(root, requested, filters={"action": "test.o"})["auditEvents"]
    assert [edge["node"] for edge in found["edges"]] == [
        {
            "position": 4,
            "username": "dora",
            "namespace": "research",
            "changes": {"a": 1},
            "refused": False,
        }
    ]
    verified = "{ verifyAudit { intact checked start end fault { position message } } }"
    assert ask(root, verified)["verifyAudit"] == {
        "intact": True,
        "checked": 4,
        "start": 0,
        "end": 4,
        "fault": None,
    }
    sql("UPDATE environments_auditevent SET target = 'x' WHERE position = 2")
    assert ask(root, verified)["verifyAudit"]["fault"]["position"] == 2
    prune = "mutation { pruneAudit(before: %s) { ... on PrunedAudit { events } " + ERROR + " } }"
    pruned = ask(root, prune % json.dumps(age(2).isoformat()))["pruneAudit"]
    assert pruned["code"] == "conflict"


@pytest.mark.django_db
def test_the_server_verifies_exports_and_prunes_by_a_command(root: Actor):
    record(3)

    def run(*arguments: str) -> str:
        out = StringIO()
        call_command("audit", *arguments, stdout=out)
        return out.getvalue()

    assert run("verify").startswith("3 events verified, from 1 to 3")
    assert len(run("export", "--as", "root").splitlines()) == 4
    assert run("prune", "--before", age(3).isoformat(), "--as", "root").startswith(
        "deleted 2 events"
    )
    sql("UPDATE environments_auditevent SET target = 'x' WHERE position = 4")
    with pytest.raises(CommandError, match="event 4"):
        run("verify")
    with pytest.raises(CommandError, match="no user"):
        run("export", "--as", "nobody")
