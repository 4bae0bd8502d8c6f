"""Notifications by mail and signed webhooks, through a real mail server and receiver."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope
from django.conf import settings as django_settings
from django.db import OperationalError, connection
from django.utils import timezone
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from condastore.databases.sqlite3.base import queue_of
from condastore.errors import AccessDeniedError, ConflictError, InvalidInputError, LeaseLostError
from condastore.outages import persist
from environments import tasks
from environments.jobs import builds, notification_delivery
from environments.models import Build, Namespace, Notification, Policy, Webhook
from environments.models.notifications import Event
from environments.operations import approvals, queueing, recalls, upkeep
from environments.operations.notifications import create_webhook, delete_webhook, try_webhook
from tests import factories
from tests.services.processes import free_ports

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Receiver:
    """A webhook's receiver: what came, and what it answers."""

    url: str
    got: list[tuple[dict[str, str], str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    during: Callable[[], None] = lambda: None


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.got.append((headers, body))
            found.during()
            self.send_response(found.answers.pop(0) if found.answers else 204)
            self.send_header("Location", found.url + "elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(url=f"http://127.0.0.1:{server.server_port}/hook")
    settings.WEBHOOK_PRIVATE_NETWORKS = ["127.0.0.0/8"]
    settings.ALLOWED_NETWORKS = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


class Sink:
    """A mail server that keeps what it gets; `refusal` is what it answers to an address."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, Any]] = []
        self.refusal = ""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Any, envelope: Envelope, address: str, options: Any
    ) -> str:
        if self.refusal:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802
        self, server: Any, session: Any, envelope: Envelope
    ) -> str:
        mail = message_from_bytes(envelope.content)  # type: ignore[arg-type]
        self.mails += [(address, mail) for address in envelope.rcpt_tos]
        return "250 taken"

    def to(self, name: str) -> list[str]:
        return [str(mail["Subject"]) for to, mail in self.mails if to == f"{name}@example.org"]


@pytest.fixture
def mail(settings: Any) -> Iterator[Sink]:
    sink = Sink()
    (port,) = free_ports()
    controller = Controller(sink, hostname="127.0.0.1", port=port)
    controller.start()
    settings.EMAIL_URL = f"smtp://127.0.0.1:{port}"
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", port
    yield sink
    controller.stop()


@pytest.fixture(autouse=True)
def delivered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no queue here: what would be sent to it is done."""
    monkeypatch.setattr(tasks.deliver_notification, "send", tasks.deliver_notification.fn)


@pytest.fixture
def hook(dora: Actor, research: Namespace, receiver: Receiver) -> Any:
    return create_webhook(actor=dora, namespace=research, url=receiver.url)


@pytest.fixture
def anna(research: Namespace) -> Actor:
    return factories.actor(User.objects.get(username="anna"))


def tell(namespace: Namespace | None, event: Event = Event.QUOTA_WARNING, **options: Any) -> None:
    key = namespace.pk if namespace else None
    options = {"subject": "80 % is used", "text": "Mind it.", "data": {"used": 80}} | options
    Notification.tell(event, namespace=key, **options)


# --- webhooks ------------------------------------------------------------------------------------


def test_a_message_is_signed_so_that_the_receiver_knows_who_sent_it_and_when(
    hook, receiver, research
):
    tell(research)
    queueing.send_due(Notification)
    [(headers, body)] = receiver.got
    read = Verifier(hook.secret).verify(body, headers)
    assert read["type"] == "quota.warning"
    assert read["data"] == {"used": 80}
    row = Notification.objects.get()
    assert row.delivered_at is not None
    assert headers["webhook-id"] == f"msg_{row.pk}"
    # What is sent again later, or was changed, does not pass.
    old = headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 600)}
    for said, text in ((old, body), (headers, body.replace("80", "10"))):
        with pytest.raises(WebhookVerificationError):
            Verifier(hook.secret).verify(text, said)
    assert hook.secret not in hook.webhook.sealed_secret


def test_what_is_not_taken_is_tried_again_later_with_the_same_id(hook, receiver, research):
    receiver.answers += [503, 307, 204]
    tell(research)
    waits = []
    for _ in range(3):
        queueing.send_due(Notification)
        row = Notification.objects.get()
        waits.append((row.not_before - timezone.now()).total_seconds())
        Notification.objects.update(not_before=timezone.now())
    assert row.attempt == 3
    assert row.delivered_at is not None
    assert waits[0] <= 10 < waits[1] <= 20
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len(receiver.got) == 3  # the redirect was not followed


def test_after_enough_attempts_it_is_given_up(hook, receiver, research, settings):
    settings.NOTIFICATION_ATTEMPTS = 2
    receiver.answers += [500] * 5
    tell(research)
    for _ in range(4):
        queueing.send_due(Notification)
        Notification.objects.update(not_before=timezone.now(), message_sent_at=None)
    row = Notification.objects.get()
    assert (row.attempt, row.failed_at is not None) == (2, True)
    assert "500" in row.problem


def test_a_receiver_that_wants_no_more_gets_no_more(hook, receiver, research):
    receiver.answers += [410]
    tell(research)
    queueing.send_due(Notification)
    assert not Webhook.objects.get().enabled
    tell(research)
    assert Notification.objects.count() == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1"])
def test_nothing_is_sent_to_this_machine_however_it_is_written(
    hook, receiver, research, settings, host
):
    settings.WEBHOOK_PRIVATE_NETWORKS = settings.ALLOWED_NETWORKS = []
    Webhook.objects.update(url=receiver.url.replace("127.0.0.1", host))
    tell(research)
    queueing.send_due(Notification)
    row = Notification.objects.get()
    assert row.failed_at is not None
    assert receiver.got == []


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/", "https://", "https://user:secret@example.org/", "x", "http://[::1"],
)
def test_an_address_that_is_none_is_refused(dora, research, url):
    with pytest.raises(InvalidInputError):
        create_webhook(actor=dora, namespace=research, url=url)


def test_who_runs_the_namespace_chooses_its_webhooks(alice, anna, dora, root, research, receiver):
    for actor in (alice, anna):
        with pytest.raises(AccessDeniedError):
            create_webhook(actor=actor, namespace=research, url=receiver.url)
    with pytest.raises(AccessDeniedError):
        create_webhook(actor=dora, namespace=None, url=receiver.url)
    with pytest.raises(InvalidInputError, match=r"quota\.exceeded"):
        create_webhook(actor=dora, namespace=research, url=receiver.url, events=["quota.exceeded"])
    created = create_webhook(
        actor=dora, namespace=research, url=receiver.url, events=["build.finished"]
    )
    every = create_webhook(actor=root, namespace=None, url=receiver.url)
    assert list(Webhook.objects.visible_to(dora)) == [created.webhook]
    assert list(Webhook.objects.visible_to(alice)) == []
    tell(research)
    tell(factories.make_namespace("lab"), Event.BUILD_FINISHED)
    assert {row.webhook for row in Notification.objects.all()} == {every.webhook}
    delete_webhook(actor=dora, webhook=created.webhook)
    assert Webhook.objects.get() == every.webhook


def test_a_webhook_is_tried_whatever_it_is_told_of(alice, dora, root, research, receiver):
    created = create_webhook(
        actor=dora, namespace=research, url=receiver.url, events=["build.finished"]
    ).webhook
    other = create_webhook(actor=root, namespace=None, url=receiver.url).webhook
    for person in (alice, dora):
        with pytest.raises(AccessDeniedError):
            try_webhook(actor=person, webhook=other)
    try_webhook(actor=dora, webhook=created)
    assert [(row.webhook, row.event) for row in Notification.objects.all()] == [
        (created, Event.TEST)
    ]
    queueing.send_due(Notification)
    assert len(receiver.got) == 1
    assert Notification.objects.get().delivered_at is not None
    created.enabled = False
    with pytest.raises(ConflictError, match="is disabled"):
        try_webhook(actor=dora, webhook=created)


def test_two_workers_deliver_a_message_once(hook, receiver, research):
    tell(research)
    key = Notification.objects.get().pk
    together = threading.Barrier(2)

    def work() -> None:
        from django.db import connection

        together.wait()
        notification_delivery.deliver(key)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.got) == 1


def test_the_sweep_sends_what_the_queue_lost(hook, receiver, research, monkeypatch):
    def down(key: int) -> None:
        raise ConnectionError

    with monkeypatch.context() as outage:
        outage.setattr(tasks.deliver_notification, "send", down)
        tell(research)
        queueing.send_due(Notification)
    assert receiver.got == []
    upkeep.sweep()
    assert len(receiver.got) == 1


def test_what_is_delivered_while_the_database_is_away_is_written_down_later(
    hook, receiver, research, monkeypatch
):
    queue = queue_of(str(connection.settings_dict["NAME"]))
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.2)

    def lock_out() -> None:
        queue.acquire(30)
        threading.Timer(1, queue.release).start()

    receiver.during = lock_out
    tell(research)
    connection.close()
    queueing.send_due(Notification)
    row = Notification.objects.get()
    assert row.delivered_at is not None
    assert (row.attempt, len(receiver.got)) == (1, 1)


def test_an_outage_of_the_database_is_no_attempt_at_a_message(
    hook, receiver, research, monkeypatch
):
    tell(research)
    queue = queue_of(str(connection.settings_dict["NAME"]))
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.2)
    connection.close()
    [message] = Notification.objects.all()
    lease = message.claim("one", life=timedelta(seconds=30))
    assert lease is not None
    queue.acquire(30)
    threading.Timer(1, queue.release).start()
    with pytest.raises(OperationalError):
        message.give_back(lease)
    persist(lambda: message.give_back(lease))
    assert Notification.objects.get().attempt == 0
    with pytest.raises(LeaseLostError):
        message.give_back(lease)
    queueing.send_due(Notification)
    assert len(receiver.got) == 1


# --- mail ----------------------------------------------------------------------------------------


def test_approvers_hear_of_requests_and_those_who_asked_of_decisions(
    mail, hook, receiver, submit, anna, environment
):
    Policy.of(None).rules.create(
        kind="packages-denied", effect="ask", name="look", settings={"packages": ["libalpha"]}
    )
    build = submit("dependencies: [apptool]", reason="for the course")
    builds.run(build.pk)
    queueing.send_due(Notification)
    [subject] = mail.to("anna")
    assert "research/ml" in subject
    assert "libalpha" in subject
    text = mail.mails[0][1].get_payload()
    assert "for the course" in text
    assert "apptool -> " in text
    assert {to for to, _ in mail.mails} == {"anna@example.org", "dora@example.org"}

    [request] = build.requests.select_related("namespace")
    approvals.decide(actor=anna, requests=[request], approve=True, reason="a fine library")
    builds.run(build.pk)
    queueing.send_due(Notification)
    decided, finished = mail.to("alice")
    assert "approved" in decided
    assert "READY" in finished
    events = [json.loads(body)["type"] for _, body in receiver.got]
    assert events == ["request.opened", "request.decided", "build.finished"]
    opened = json.loads(receiver.got[0][1])["data"]
    assert opened["requests"][0]["package"] == "libalpha"


def test_a_build_that_nobody_had_to_approve_sends_no_mail(mail, hook, receiver, submit):
    build = submit("dependencies: [mathkernel]")
    builds.run(build.pk)
    queueing.send_due(Notification)
    assert mail.mails == []
    assert [json.loads(body)["data"]["state"] for _, body in receiver.got] == ["READY"]


def test_those_whom_a_recall_hits_are_told(mail, environment, alice, root):
    build = factories.make_build(environment)
    Build.objects.filter(pk=build.pk).update(requested_by=alice.account)
    recalls.recall(actor=root, spec="python", reason="it bites")
    assert len(mail.to("alice")) == 1


def test_no_mail_is_written_where_no_server_is_configured(research, settings):
    assert not django_settings.EMAIL_URL
    tell(research, emails=["alice@example.org"])
    assert not Notification.objects.exists()


@pytest.mark.parametrize(("refusal", "final"), [("550 no such user", True), ("451 later", False)])
def test_an_address_that_is_none_is_given_up_and_a_busy_server_is_not(
    mail, research, refusal, final
):
    mail.refusal = refusal
    tell(research, emails=["gone@example.org"])
    queueing.send_due(Notification)
    row = Notification.objects.get()
    assert (row.failed_at is not None) == final
    assert row.delivered_at is None


def test_a_subject_cannot_bring_headers_along(mail, research):
    tell(research, emails=["anna@example.org"], subject="hello\r\nBcc: eve@example.org")
    queueing.send_due(Notification)
    assert [to for to, _ in mail.mails] == ["anna@example.org"]


def test_old_messages_are_forgotten(hook, receiver, research, monkeypatch):
    tell(research)
    Notification.objects.update(
        created_at=timezone.now() - Notification.KEPT - timedelta(days=1),
        failed_at=timezone.now(),
        state=Notification.FAILED_STATE,
    )
    monkeypatch.setattr(upkeep, "_last", {})
    monkeypatch.setattr(tasks.tidy, "send", lambda: None)
    monkeypatch.setattr(tasks.index_channel, "send", lambda key: None)
    upkeep.sweep()
    assert not Notification.objects.exists()


def test_a_group_of_approvers_is_told_too(research):
    from django.contrib.auth.models import Group

    from environments.services.approval_requests import deciders

    group = Group.objects.create(name="it")
    factories.make_user("gus").groups.add(group)
    research.grant(Role.APPROVER, group)
    names = [user.username for user in deciders([research.pk])[research.pk]]
    assert names == ["anna", "dora", "gus"]


def test_what_was_delivered_by_a_worker_that_lost_its_lease_is_not_sent_again(
    hook, receiver, research
):
    def lose_the_lease() -> None:
        receiver.during = lambda: None
        past = timezone.now() - timedelta(minutes=1)
        Notification.objects.update(lease_expires_at=past)
        upkeep.give_up_lost(Notification)
        connection.close()

    receiver.during = lose_the_lease
    tell(research)
    queueing.send_due(Notification)
    assert len(receiver.got) == 1
    message = Notification.objects.get()
    assert message.delivered_at is not None
    Notification.objects.update(not_before=timezone.now())
    queueing.send_due(Notification)
    assert len(receiver.got) == 1
