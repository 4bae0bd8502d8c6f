"""Every change and every refused attempt, with who made it: append-only, and chained by digests."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Self

import structlog
from django.conf import settings
from django.db import IntegrityError, connections, models, router, transaction
from django.db.models import Max, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from accounts.access import Actor
from accounts.models import ApiToken, User
from accounts.roles import Perm
from environments.domain.audit_chain import (
    COVERED,
    Anchor,
    Fault,
    Verified,
    chain_key,
    check,
    plain,
    seal,
    written,
)
from environments.domain.audit_checkpoints import HeadState, is_seal_of, seal_head
from environments.models.audit_swap import SealedHead, swap
from environments.models.namespaces import Namespace

logger = structlog.get_logger(__name__)
#: The action that cutting off the oldest events leaves behind: it says where the log begins now.
PRUNE = "audit.prune"
#: The action that is recorded with a new key, to seal what was signed with a former one.
NEW_KEY = "audit.key"
#: Rows that are read or deleted at once.
BATCH = 5_000


def key() -> bytes:
    return chain_key(settings.AUDIT_KEY)


def former_keys() -> list[bytes]:
    """Keys that signed older events, newest first."""
    return [chain_key(former) for former in settings.AUDIT_KEY_FALLBACKS]


class AppendOnlyError(TypeError):
    """Somebody's code tried to change what was written."""


class AuditQuerySet(models.QuerySet["AuditEvent"]):
    def visible_to(self, actor: Actor) -> Self:
        """All for those who run the installation; else those of namespaces that one runs."""
        if actor.is_superuser:
            return self
        run = Namespace.objects.with_perm(actor, Perm.GRANT)
        return self.filter(namespace__in=run.order_by().values("pk"))

    def matching(
        self,
        *,
        actor: str = "",
        action: str = "",
        target: str = "",
        namespace: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        refused: bool | None = None,
    ) -> Self:
        """`action` and `target` by their beginning; `until` is not included."""
        found = self
        if actor:
            found = found.filter(username=actor)
        if action:
            found = found.filter(action__begins=action)
        if target:
            found = found.filter(target__begins=target)
        if namespace:
            found = found.filter(namespace__name=namespace)
        if since is not None:
            found = found.filter(at__gte=since)
        if until is not None:
            found = found.filter(at__lt=until)
        if refused is not None:
            found = found.filter(refused=refused)
        return found

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise AppendOnlyError("The audit log is only ever appended to, by AuditEvent.record.")

    update = delete = create = bulk_create = bulk_update = _refuse
    get_or_create = update_or_create = _refuse


class AuditHead(models.Model):
    """One row: where the chain ends, and where it was cut. Locked by whoever appends.

    The seal covers all of it, so that who does not have the key cannot set it back; `counter` grows
    with each change, so that an older copy of the row differs from a newer one.
    """

    position = models.PositiveBigIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)
    cut_position = models.PositiveBigIntegerField(default=0, help_text="The last that was pruned.")
    cut_digest = models.CharField(max_length=64, blank=True)
    counter = models.PositiveBigIntegerField(default=0, help_text="Grows with each change.")
    seal = models.CharField(max_length=64, blank=True, help_text="HMAC of the other columns.")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.position} {self.digest[:12]}"

    @property
    def state(self) -> HeadState:
        """What the seal covers."""
        return HeadState(
            counter=self.counter,
            position=self.position,
            digest=self.digest,
            cut_position=self.cut_position,
            cut_digest=self.cut_digest,
        )

    @property
    def is_sealed(self) -> bool:
        """Whether the row is as this installation wrote it last, or at an earlier time.

        A log without any event has no seal.
        """
        return self.state.is_new or is_seal_of(key(), self.state, self.seal)

    def save_sealed(self) -> None:
        """Save the row with the next counter and a new seal."""
        self.counter += 1
        self.seal = seal_head(key(), self.state)
        self.save(force_update=True)

    @classmethod
    def locked(cls) -> AuditHead:
        """The head, until the transaction ends: nobody else appends meanwhile."""
        found = cls.objects.select_for_update().filter(pk=1).first()
        if found is not None:
            return found
        # Events without a head: somebody took it away. The gap that is left here tells of it.
        last = AuditEvent.objects.aggregate(last=Max("position"))["last"]
        try:
            with transaction.atomic():
                cls.objects.create(pk=1, position=0 if last is None else last + 1)
        except IntegrityError:
            pass  # another's was the first
        return cls.objects.select_for_update().get(pk=1)

    @property
    def end(self) -> Anchor:
        return Anchor(position=self.position, digest=self.digest)

    @property
    def start(self) -> Anchor:
        return Anchor(position=self.cut_position, digest=self.cut_digest)


class AuditEvent(models.Model):
    """Written in the same transaction as the change it tells of.

    Users, tokens and namespaces are named by keys that outlive them: nothing is changed here when
    one of them is deleted.
    """

    at = models.DateTimeField(default=timezone.now, editable=False)
    user = models.ForeignKey(
        User, models.DO_NOTHING, null=True, related_name="+", db_constraint=False
    )
    username = models.CharField(max_length=150)
    token = models.ForeignKey(
        ApiToken, models.DO_NOTHING, null=True, related_name="+", db_constraint=False
    )
    address = models.CharField(max_length=45, blank=True)
    namespace = models.ForeignKey(
        Namespace, models.DO_NOTHING, null=True, related_name="+", db_constraint=False
    )
    action = models.CharField(max_length=64)
    target = models.CharField(max_length=200)
    changes = models.JSONField(default=dict)
    refused = models.BooleanField(default=False, help_text="It was tried, and not allowed.")
    #: Place in the chain; each digest is of this row and of the digest before.
    position = models.PositiveBigIntegerField(unique=True, null=True, editable=False)
    digest = models.CharField(max_length=64, editable=False, blank=True)

    objects = AuditQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["target"], name="event_on", opclasses=["varchar_pattern_ops"]),
            models.Index(fields=["action"], name="event_of", opclasses=["varchar_pattern_ops"]),
            models.Index(fields=["username", "-id"]),
            models.Index(fields=["namespace", "-id"]),
            models.Index(fields=["at"]),
        ]

    def __str__(self) -> str:
        return f"{self.username} {self.action} {self.target}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise AppendOnlyError("The audit log is only ever appended to, by AuditEvent.record.")

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        raise AppendOnlyError("The audit log is only ever appended to, by AuditEvent.record.")

    @classmethod
    def record(
        cls,
        actor: Actor | None,
        action: str,
        target: object,
        changes: Mapping[str, Any] | None = None,
        *,
        namespace: Namespace | None = None,
        refused: bool = False,
    ) -> None:
        """Append one event; no actor: the system did it by itself.

        Inside `audited()` it is written at the end of that block; else at once, and then it has to
        be the last write of its transaction: the head stays locked until the commit.
        """
        place = namespace or _namespace_of(target)
        event = cls(
            user=actor.account if actor and actor.signed_in else None,
            username=actor.name if actor else "system",
            token=actor.token if actor else None,
            address=actor.address if actor else "",
            namespace_id=place.pk if place else None,
            action=action[:64],
            target=plain(target)[:200],
            changes=plain(changes or {}),
            refused=refused,
        )
        if _block.open:
            _block.waiting.append(event)
        else:
            _append([event])


def _namespace_of(target: object) -> Namespace | None:
    """Of what the event is about: those who run that namespace may read of it."""
    for _ in range(3):  # build -> environment -> namespace
        if isinstance(target, Namespace):
            return target
        target = getattr(target, "namespace", None) or getattr(target, "environment", None)
    return None


class _Block(threading.local):
    """The outermost `audited()` of this thread, and what it will write."""

    def __init__(self) -> None:
        self.open = False
        self.waiting: list[AuditEvent] = []


_block = _Block()


@contextmanager
def audited() -> Iterator[None]:
    """One transaction, whose audit events are its last writes, in whichever order they came up.

    Who appends holds the head until the commit, so nobody may wait for another lock after it: on
    PostgreSQL two operations would wait for each other. Also a decorator: `@audited()`.
    """
    outermost = not _block.open
    kept = len(_block.waiting)
    try:
        with transaction.atomic():
            _block.open = True
            try:
                yield
            except BaseException:
                del _block.waiting[kept:]  # what is rolled back did not happen
                raise
            if outermost:
                _append(_block.waiting)
    finally:
        if outermost:
            _block.open = False
            _block.waiting.clear()


#: The head that this process wrote last, and the key that sealed it.
_last_written: tuple[bytes, SealedHead] | None = None
#: Attempts to append by one statement; others that append may be faster each time.
ATTEMPTS = 3


def _append(events: Sequence[AuditEvent]) -> None:
    if not events or (len(events) == 1 and _append_by_one_statement(events[0])):
        return
    with transaction.atomic(savepoint=False):
        head, secret = AuditHead.locked(), key()
        if not _continues(head):
            # To continue from here would hide it: the gap in the positions stays.
            logger.error("audit log was set back or edited", position=head.position)
            last = AuditEvent.objects.aggregate(last=Max("position"))["last"]
            head.position = max(head.position, last or 0) + 1
        _chain(events, head, secret)
        unguarded().bulk_create(events)
        head.save_sealed()
        _remember(SealedHead(state=head.state, seal=head.seal), secret)


def _append_by_one_statement(event: AuditEvent) -> bool:
    """Append without locking the head; False where that did not succeed.

    The first attempt takes the head that was written here last. The statement compares the whole
    head, so it changes nothing where anybody else has appended, pruned or edited since, or where
    the transaction that wrote it was rolled back: the next attempt reads the head.
    """
    secret = key()
    before = _last_written[1] if _last_written and _last_written[0] == secret else None
    for _ in range(ATTEMPTS):
        if before is None:
            found = AuditHead.objects.filter(pk=1).first()
            if found is None or not found.is_sealed or found.state.is_new:
                return False
            before = SealedHead(state=found.state, seal=found.seal)
        head = AuditHead(pk=1, **asdict(before.state))
        _chain([event], head, secret)
        head.counter += 1
        after = SealedHead(state=head.state, seal=seal_head(secret, head.state))
        if swap(before, after, event, using=router.db_for_write(AuditEvent)):
            _remember(after, secret)
            return True
        before = None
    return False


def _chain(events: Sequence[AuditEvent], head: AuditHead, secret: bytes) -> None:
    """Give events their positions and digests, and move the head to the last of them."""
    for event in events:
        event.at = timezone.now()  # in the order of the positions
        event.position = head.position = head.position + 1
        event.digest = head.digest = seal(secret, head.digest, _covered(event))


def _remember(head: SealedHead, secret: bytes) -> None:
    global _last_written
    _last_written = (secret, head)


def _continues(head: AuditHead) -> bool:
    """Whether the log may go on from this head: its seal is right, or there is no event yet."""
    if head.state.is_new:
        return not AuditEvent.objects.exclude(position=None).exists()
    return head.is_sealed or _is_sealed_by_former_key(head)


def _is_sealed_by_former_key(head: AuditHead) -> bool:
    """Whether the key was replaced, and this is the first event since then.

    A former key seals only a head whose event it signed, too: one that is set back to an event of
    the current key is not taken.
    """
    sealing = [one for one in former_keys() if is_seal_of(one, head.state, head.seal)]
    return any(_signed_last(head, one) for one in sealing)


def _signed_last(head: AuditHead, secret: bytes) -> bool:
    """Whether `secret` signed the newest event."""
    last = AuditEvent.objects.filter(position=head.position).first()
    if last is None:
        return False
    before = head.cut_digest
    if head.position - 1 > head.cut_position:
        rows = AuditEvent.objects.filter(position=head.position - 1)
        before = rows.values_list("digest", flat=True).first() or ""
    return hmac.compare_digest(seal(secret, before, _covered(last)), last.digest)


def unguarded() -> models.QuerySet[AuditEvent]:
    """All events, for those who append and prune."""
    return models.QuerySet(AuditEvent)


def _covered(event: AuditEvent) -> list[Any]:
    values = [getattr(event, name) for name in COVERED]
    values[1] = written(event.at)
    return values


def verify_chain() -> Verified:
    """Look at each event, in constant memory. What is appended meanwhile is not looked at."""
    head = AuditHead.objects.filter(pk=1).first() or AuditHead()
    rows = AuditEvent.objects.filter(position__gt=head.cut_position, position__lte=head.position)
    found = check(
        _as_written(rows),
        key=key(),
        former_keys=former_keys(),
        start=head.start,
        head=head.end,
    )
    if found.fault is None and (fault := _outside(head) or _unsealed(head)):
        return replace(found, fault=fault)
    return found


def _unsealed(head: AuditHead) -> Fault | None:
    if head.is_sealed:
        return None
    return Fault(
        position=head.position,
        message="The head of the log is not as it was written: it was set back or edited.",
    )


def digests_at(positions: Sequence[int]) -> dict[int, str]:
    """Position -> digest, of the events that are there."""
    rows = AuditEvent.objects.filter(position__in=positions)
    return {position or 0: digest for position, digest in rows.values_list("position", "digest")}


def seal_former_key() -> bool:
    """Record a first event with a new key where a former one signed the last; True if it did.

    Until then nothing shows that the older events are as they were written.
    """
    with transaction.atomic():
        head = AuditHead.objects.select_for_update().filter(pk=1).first()
        if head is None or not any(_signed_last(head, one) for one in former_keys()):
            return False
        AuditEvent.record(None, NEW_KEY, "audit log")
        return True


def _as_written(rows: AuditQuerySet) -> Iterator[tuple[tuple[Any, ...], str]]:
    columns = rows.order_by("position").values_list("position", "at", *COVERED[2:], "digest")
    for position, at, *others, digest in columns.iterator(chunk_size=BATCH):
        yield (position, written(at), *others), digest


def _outside(head: AuditHead) -> Fault | None:
    """What is beside the chain: events that do not belong to it, or a cut that nobody made."""
    end = AuditHead.objects.filter(pk=1).values("position")  # now, in the same look
    loose = Q(position=None) | Q(position__lte=head.cut_position)
    beyond = Q(position__gt=Coalesce(Subquery(end), 0))
    if (event := AuditEvent.objects.filter(loose | beyond).order_by("pk").first()) is not None:
        return Fault(
            position=event.position or 0,
            message=f"Event {event.position or 'without a position'} is not part of the log.",
        )
    if head.cut_position:
        cuts = AuditEvent.objects.filter(action=PRUNE, position__gt=head.cut_position)
        last = cuts.order_by("-position").first()
        made = last.changes if last else {}
        if (made.get("to"), made.get("digest")) != (head.cut_position, head.cut_digest):
            return Fault(
                position=head.cut_position + 1,
                message=f"The events up to {head.cut_position} were taken away by no prune.",
            )
    return None


def guard_rows(*, using: str = "default", **kwargs: Any) -> None:
    """On PostgreSQL, let the database itself refuse changes, but for what a prune has cut off.

    The head may only grow.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        if AuditEvent._meta.db_table in connection.introspection.table_names(cursor):
            cursor.execute(GUARD)


GUARD = """
CREATE OR REPLACE FUNCTION condastore_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND OLD.position <= (
    SELECT cut_position FROM environments_audithead WHERE id = 1
  ) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION 'The audit log is only ever appended to.';
END $$;
CREATE OR REPLACE TRIGGER condastore_audit_guard BEFORE UPDATE OR DELETE
  ON environments_auditevent FOR EACH ROW EXECUTE FUNCTION condastore_audit_guard();
CREATE OR REPLACE FUNCTION condastore_audit_head_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND NEW.position >= OLD.position AND NEW.counter >= OLD.counter
    AND NEW.cut_position >= OLD.cut_position THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'The head of the audit log never goes back.';
END $$;
CREATE OR REPLACE TRIGGER condastore_audit_head_guard BEFORE UPDATE OR DELETE
  ON environments_audithead FOR EACH ROW EXECUTE FUNCTION condastore_audit_head_guard();
"""
