"""Append-only audit log of changes and refused attempts, chained by digests."""

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
#: Action of the event that records pruning: the log begins after its position.
PRUNE = "audit.prune"
#: Action of the event that is recorded with a new key, to seal events signed with a former one.
NEW_KEY = "audit.key"
#: Number of rows read or deleted at once.
BATCH = 5_000


def key() -> bytes:
    return chain_key(settings.AUDIT_KEY)


def former_keys() -> list[bytes]:
    """Return keys that signed older events, newest first."""
    return [chain_key(former) for former in settings.AUDIT_KEY_FALLBACKS]


class AppendOnlyError(TypeError):
    """Code tried to change or delete an audit event."""


class AuditQuerySet(models.QuerySet["AuditEvent"]):
    def visible_to(self, actor: Actor) -> Self:
        """All events for administrators; otherwise those of namespaces that the actor manages."""
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
        """Filter events. `action` and `target` match by prefix; `until` is exclusive."""
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
        raise AppendOnlyError("The audit log is append-only; use AuditEvent.record.")

    update = delete = create = bulk_create = bulk_update = _refuse
    get_or_create = update_or_create = _refuse


class AuditHead(models.Model):
    """Single row with the end of the chain and the cut; appending locks it.

    The seal covers all columns, so that nobody without the key can roll it back; `counter`
    increases with each change, so that an older copy of the row differs from a newer one.
    """

    position = models.PositiveBigIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)
    cut_position = models.PositiveBigIntegerField(
        default=0, help_text="Position of the last pruned event."
    )
    cut_digest = models.CharField(max_length=64, blank=True)
    counter = models.PositiveBigIntegerField(default=0, help_text="Increases with each change.")
    seal = models.CharField(max_length=64, blank=True, help_text="HMAC of the other columns.")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.position} {self.digest[:12]}"

    @property
    def state(self) -> HeadState:
        """Return what the seal covers."""
        return HeadState(
            counter=self.counter,
            position=self.position,
            digest=self.digest,
            cut_position=self.cut_position,
            cut_digest=self.cut_digest,
        )

    @property
    def is_sealed(self) -> bool:
        """Return whether this installation has written the row, now or at an earlier time.

        An empty log has no seal.
        """
        return self.state.is_new or is_seal_of(key(), self.state, self.seal)

    def save_sealed(self) -> None:
        """Increment the counter, seal the row and save it."""
        self.counter += 1
        self.seal = seal_head(key(), self.state)
        self.save(force_update=True)

    @classmethod
    def locked(cls) -> AuditHead:
        """Lock the head until the end of the transaction, so that nobody else appends."""
        found = cls.objects.select_for_update().filter(pk=1).first()
        if found is not None:
            return found
        # Events without a head: somebody deleted it. The gap left in the positions reveals that.
        last = AuditEvent.objects.aggregate(last=Max("position"))["last"]
        try:
            with transaction.atomic():
                cls.objects.create(pk=1, position=0 if last is None else last + 1)
        except IntegrityError:
            pass  # created concurrently
        return cls.objects.select_for_update().get(pk=1)

    @property
    def end(self) -> Anchor:
        return Anchor(position=self.position, digest=self.digest)

    @property
    def start(self) -> Anchor:
        return Anchor(position=self.cut_position, digest=self.cut_digest)


class AuditEvent(models.Model):
    """One event, written in the transaction of the change it describes.

    Users, tokens and namespaces are referred to by keys that outlive them, so deleting one of them
    does not change an event.
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
    refused = models.BooleanField(default=False, help_text="The attempt was denied.")
    #: Position in the chain; each digest covers this row and the previous digest.
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
        raise AppendOnlyError("The audit log is append-only; use AuditEvent.record.")

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        raise AppendOnlyError("The audit log is append-only; use AuditEvent.record.")

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
        """Append one event; `actor` None means the system itself.

        Within `audited()` it is written at the end of that block. Otherwise it is written at once,
        and must then be the last write of its transaction, as the head stays locked until the
        commit.
        """
        location = namespace or _namespace_of(target)
        event = cls(
            user=actor.account if actor and actor.signed_in else None,
            username=actor.name if actor else "system",
            token=actor.token if actor else None,
            address=actor.address if actor else "",
            namespace_id=location.pk if location else None,
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
    """Return the namespace of the target, whose managers may read the event."""
    for _ in range(3):  # build -> environment -> namespace
        if isinstance(target, Namespace):
            return target
        target = getattr(target, "namespace", None) or getattr(target, "environment", None)
    return None


class _Block(threading.local):
    """The outermost `audited()` of this thread, and its pending events."""

    def __init__(self) -> None:
        self.open = False
        self.waiting: list[AuditEvent] = []


_block = _Block()


@contextmanager
def audited() -> Iterator[None]:
    """Run one transaction whose audit events are its last writes. Also a decorator: `@audited()`.

    Appending locks the head until the commit, so nothing may wait for another lock after it: on
    PostgreSQL two operations could otherwise deadlock.
    """
    outermost = not _block.open
    retained = len(_block.waiting)
    try:
        with transaction.atomic():
            _block.open = True
            try:
                yield
            except BaseException:
                del _block.waiting[retained:]  # events of a rolled back block
                raise
            if outermost:
                _append(_block.waiting)
    finally:
        if outermost:
            _block.open = False
            _block.waiting.clear()


#: The head that this process wrote last, and the key that sealed it.
_last_written: tuple[bytes, SealedHead] | None = None
#: Attempts to append by compare-and-swap; concurrent writers may win each time.
ATTEMPTS = 3


def _append(events: Sequence[AuditEvent]) -> None:
    if not events or (len(events) == 1 and _append_by_one_statement(events[0])):
        return
    with transaction.atomic(savepoint=False):
        head, secret = AuditHead.locked(), key()
        if not _continues(head):
            # Continuing from here would hide the change, so a gap in the positions is left.
            logger.error("audit log was rolled back or changed", position=head.position)
            last = AuditEvent.objects.aggregate(last=Max("position"))["last"]
            head.position = max(head.position, last or 0) + 1
        _chain(events, head, secret)
        unguarded().bulk_create(events)
        head.save_sealed()
        _remember(SealedHead(state=head.state, seal=head.seal), secret)


def _append_by_one_statement(event: AuditEvent) -> bool:
    """Append without locking the head; False if that did not succeed.

    The first attempt uses the head that this process wrote last. The statement compares the whole
    head, so it changes nothing if anybody else has appended, pruned or edited since, or if the
    transaction that wrote it was rolled back; the next attempt reads the head.
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
    """Set positions and digests of the events, and move the head to the last one."""
    for event in events:
        event.at = timezone.now()  # ordered like the positions
        event.position = head.position = head.position + 1
        event.digest = head.digest = seal(secret, head.digest, _covered(event))


def _remember(head: SealedHead, secret: bytes) -> None:
    global _last_written
    _last_written = (secret, head)


def _continues(head: AuditHead) -> bool:
    """Return whether the log may continue from this head: it is sealed, or the log is empty."""
    if head.state.is_new:
        return not AuditEvent.objects.exclude(position=None).exists()
    return head.is_sealed or _is_sealed_by_former_key(head)


def _is_sealed_by_former_key(head: AuditHead) -> bool:
    """Return whether the key was replaced and this is the first event since.

    A former key counts only if it also signed the newest event: a head rolled back to before the
    new key is not accepted.
    """
    sealing = [one for one in former_keys() if is_seal_of(one, head.state, head.seal)]
    return any(_signed_last(head, one) for one in sealing)


def _signed_last(head: AuditHead, secret: bytes) -> bool:
    """Return whether `secret` signed the newest event."""
    last = AuditEvent.objects.filter(position=head.position).first()
    if last is None:
        return False
    before = head.cut_digest
    if head.position - 1 > head.cut_position:
        rows = AuditEvent.objects.filter(position=head.position - 1)
        before = rows.values_list("digest", flat=True).first() or ""
    return hmac.compare_digest(seal(secret, before, _covered(last)), last.digest)


def unguarded() -> models.QuerySet[AuditEvent]:
    """Return all events, for appending and pruning only."""
    return models.QuerySet(AuditEvent)


def _covered(event: AuditEvent) -> list[Any]:
    values = [getattr(event, name) for name in COVERED]
    values[1] = written(event.at)
    return values


def verify_chain() -> Verified:
    """Verify each event in constant memory; events appended meanwhile are not verified."""
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
        message="The head of the log was rolled back or changed outside of this program.",
    )


def digests_at(positions: Sequence[int]) -> dict[int, str]:
    """Return the digests of existing events by position."""
    rows = AuditEvent.objects.filter(position__in=positions)
    return {position or 0: digest for position, digest in rows.values_list("position", "digest")}


def seal_former_key() -> bool:
    """Record an event with a new key if a former key signed the last one; True if it did.

    Until then nothing proves that the older events are unchanged.
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
    """Find events outside the chain, and a cut without a prune."""
    end = AuditHead.objects.filter(pk=1).values("position")  # read in the same query
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
        created = last.changes if last else {}
        if (created.get("to"), created.get("digest")) != (head.cut_position, head.cut_digest):
            return Fault(
                position=head.cut_position + 1,
                message=f"The events up to {head.cut_position} were deleted without a prune.",
            )
    return None


def guard_rows(*, using: str = "default", **kwargs: Any) -> None:
    """On PostgreSQL, install triggers that refuse changes except deleting pruned events.

    The head may only move forward.
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
  RAISE EXCEPTION 'The audit log is append-only.';
END $$;
CREATE OR REPLACE TRIGGER condastore_audit_guard BEFORE UPDATE OR DELETE
  ON environments_auditevent FOR EACH ROW EXECUTE FUNCTION condastore_audit_guard();
CREATE OR REPLACE FUNCTION condastore_audit_head_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND NEW.position >= OLD.position AND NEW.counter >= OLD.counter
    AND NEW.cut_position >= OLD.cut_position THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'The head of the audit log only moves forward.';
END $$;
CREATE OR REPLACE TRIGGER condastore_audit_head_guard BEFORE UPDATE OR DELETE
  ON environments_audithead FOR EACH ROW EXECUTE FUNCTION condastore_audit_head_guard();
"""
