"""Operations on the audit log: record refusals, sign-ins and downloads; verify, export and prune.

Changes are recorded by the operations that make them (`AuditEvent.record`).
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from allauth.account.signals import password_changed, password_reset
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db import DatabaseError, models, transaction
from django.http import HttpRequest
from django.utils import timezone

from accounts.access import Actor, require_superuser
from accounts.authentication import client_address
from accounts.models import ApiToken, User
from accounts.signals import token_moved, token_refused
from condastore.errors import (
    AccessDeniedError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnavailableError,
)
from environments.domain.audit_chain import COVERED, Verified, written
from environments.domain.audit_checkpoints import (
    CheckedCheckpoints,
    Checkpoint,
    HeadState,
    check_checkpoints,
)
from environments.engine.network.audit_anchors import AuditAnchor, parse_audit_anchor
from environments.models import AuditEvent, AuditHead, Build, Environment, Namespace
from environments.models.audit import (
    BATCH,
    PRUNE,
    digests_at,
    former_keys,
    key,
    unguarded,
    verify_chain,
)
from environments.operations.usage import record_use

logger = structlog.get_logger(__name__)
MINUTE_SECONDS = 60
#: Number of actors and addresses with a refusal counter; beyond it the oldest is dropped.
MAX_COUNTERS = 10_000
#: Limit of all refusals in a minute and process, as a multiple of one actor's limit.
TOTAL_LIMIT_FACTOR = 20


# --- refused attempts -----------------------------------------------------------------------------


class RefusalLimit:
    """Rate limit of recorded refusals, by actor and in total, so that nobody fills the disk."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._seen: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def allows(self, who: str, *, now: float) -> int | None:
        """Return how many refusals were skipped since the last recorded one; None to skip this
        one."""
        most = settings.AUDIT_REFUSALS
        with self._guard:
            everybody = self._count("", most * TOTAL_LIMIT_FACTOR, now)
            mine = self._count(f"of {who}", most, now)
        return None if mine is None or everybody is None else mine

    def _count(self, who: str, most: int, now: float) -> int | None:
        minute, count, left_out = self._seen.pop(who, (0, 0, 0))
        if minute != int(now // MINUTE_SECONDS):
            minute, count = int(now // MINUTE_SECONDS), 0
        fits = count < most
        self._seen[who] = (minute, count + fits, 0 if fits else left_out + 1)
        if len(self._seen) > MAX_COUNTERS:
            self._seen.popitem(last=False)
        return left_out if fits else None


_refusal_limit = RefusalLimit()


def is_refusal(error: Exception, *, changing: bool) -> bool:
    """Return whether the error is a denied access; for changes also a target that is not
    visible."""
    return isinstance(error, AccessDeniedError | (NotFoundError if changing else AccessDeniedError))


def refused(
    actor: Actor,
    action: str,
    target: str,
    error: StoreError,
    *,
    namespace: Namespace | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Record a refused attempt in a transaction of its own. Called by the interfaces."""
    who = actor.name if actor.signed_in else actor.address
    left_out = _refusal_limit.allows(who, now=timezone.now().timestamp())
    if left_out is None:
        return
    as_json: dict[str, Any] = {"code": error.code, "reason": str(error)[:300], **(changes or {})}
    if left_out:
        as_json["left_out"] = left_out
    try:
        AuditEvent.record(actor, action, target, as_json, namespace=namespace, refused=True)
    except DatabaseError:
        # The attempt stays refused, and the caller gets that answer.
        logger.exception("refusal not recorded", actor=actor.name, action=action, target=target)


def refused_request(request: HttpRequest, error: StoreError) -> None:
    """Record a refusal of an HTTP interface."""
    if not is_refusal(error, changing=request.method not in {"GET", "HEAD", "OPTIONS"}):
        return
    match = request.resolver_match
    route = (match.view_name or match.route) if match else "none"
    name = match.kwargs.get("namespace") if match else None
    actor: Actor = getattr(request, "actor", None) or Actor(AnonymousUser())
    location = Namespace.objects.filter(name=name).first() if name else None
    refused(actor, f"http.{route}", f"{request.method} {request.path}", error, namespace=location)


#: Arguments that identify the target of a mutation; others may hold secrets or large texts.
TARGET_ARGUMENTS = (
    "namespace",
    "environment",
    "environmentId",
    "name",
    "id",
    "user",
    "group",
    "tag",
)


def refused_field(
    actor: Actor, name: str, arguments: Mapping[str, Any], error: StoreError, *, changing: bool
) -> None:
    """Record a refusal of a GraphQL field."""
    if not is_refusal(error, changing=changing):
        return
    named = {
        key: str(arguments[key])[:100] for key in TARGET_ARGUMENTS if arguments.get(key) is not None
    }
    target = " ".join(f"{key}={value}" for key, value in named.items())
    refused(actor, f"graphql.{name}", target, error, namespace=_namespace_of(name, named))


def _namespace_of(name: str, named: Mapping[str, str]) -> Namespace | None:
    """Return the namespace that a mutation is about, whose managers may read the event."""
    namespaces = Namespace.objects.all()
    if "namespace" in named:
        return namespaces.filter(name=named["namespace"]).first()
    environment, key = named.get("environmentId", ""), named.get("id", "")
    if environment.isdecimal() and len(environment) < 18:
        rows = Environment.objects.filter(pk=environment)
    elif key.isdecimal() and len(key) < 18 and name.endswith("Build"):
        rows = Environment.objects.filter(pk__in=Build.objects.filter(pk=key).values("environment"))
    else:
        return None
    return namespaces.filter(pk__in=rows.order_by().values("namespace")).first()


# --- sign-ins -------------------------------------------------------------------------------------


def connect_signals() -> None:
    """Connect the signals of sign-ins; called once when the app starts."""
    user_logged_in.connect(_signed_in, dispatch_uid="audit")
    user_logged_out.connect(_signed_out, dispatch_uid="audit")
    user_login_failed.connect(_sign_in_failed, dispatch_uid="audit")
    password_changed.connect(_password_changed, dispatch_uid="audit")
    password_reset.connect(_password_reset, dispatch_uid="audit")
    token_refused.connect(_token_refused, dispatch_uid="audit")
    token_moved.connect(_token_moved, dispatch_uid="audit")


def _address(request: HttpRequest | None) -> str:
    return client_address(request.META) if request is not None else ""


def _signed_in(sender: Any, request: HttpRequest | None, user: User, **kwargs: Any) -> None:
    AuditEvent.record(Actor(user, address=_address(request)), "account.sign-in", user)


def _signed_out(sender: Any, request: HttpRequest | None, user: User | None, **kw: Any) -> None:
    if user is not None:
        AuditEvent.record(Actor(user, address=_address(request)), "account.sign-out", user)


def _password_changed(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    AuditEvent.record(Actor(user, address=_address(request)), "account.password", user)


def _password_reset(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    actor = Actor(user, address=_address(request))
    AuditEvent.record(actor, "account.password", user, {"by": "link"})


def _sign_in_failed(
    sender: Any, credentials: Mapping[str, Any], request: HttpRequest | None = None, **kw: Any
) -> None:
    error = AccessDeniedError("The user name or password is wrong.")
    name = str(credentials.get("username") or credentials.get("email") or "")[:150]
    refused(Actor(AnonymousUser(), address=_address(request)), "account.sign-in", name, error)


def _token_refused(sender: Any, address: str, token: ApiToken | None, **kwargs: Any) -> None:
    error = AccessDeniedError("The API token is unknown, expired or revoked.")
    refused(
        Actor(AnonymousUser(), address=address), "token.use", str(token or "unknown token"), error
    )


def _token_moved(sender: Any, actor: Actor, **kwargs: Any) -> None:
    """Record the first use of a token from an address."""
    known = AuditEvent.objects.filter(token=actor.token, action="token.use", address=actor.address)
    if actor.address and not known.exists():
        AuditEvent.record(actor, "token.use", actor.token, {"new_address": actor.address})


# --- downloads ------------------------------------------------------------------------------------


def downloaded(actor: Actor, build: Build, name: str) -> None:
    """Record the download of a build's file; `AUDIT_DOWNLOADS` sets the sampling rate."""
    record_use(build.environment)
    each = settings.AUDIT_DOWNLOADS
    if each > 0 and secrets.randbelow(each) == 0:
        AuditEvent.record(actor, "build.download", build, {"file": name})


# --- verify, export, prune ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Filter of events; empty fields match all. `action` and `target` match by prefix."""

    actor: str = ""
    action: str = ""
    target: str = ""
    namespace: str = ""
    since: datetime | None = None
    until: datetime | None = None
    refused: bool | None = None

    def rows(self, actor: Actor) -> models.QuerySet[AuditEvent]:
        return AuditEvent.objects.visible_to(actor).matching(
            actor=self.actor,
            action=self.action,
            target=self.target,
            namespace=self.namespace,
            since=self.since,
            until=self.until,
            refused=self.refused,
        )

    def as_json(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in named.items() if value not in (None, "")}


def parse_moment(text: str, *, where: str = "") -> datetime:
    """Parse an ISO 8601 date or time; a date means its beginning, a missing time zone UTC."""
    try:
        moment = datetime.fromisoformat(text.strip().replace(" ", "+"))
    except ValueError:
        raise InvalidInputError(
            f"{text!r} is not a date or time.", where=where, hint="Write 2026-01-31T12:00:00+00:00."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def verify(*, actor: Actor) -> Verified:
    """Verify the hash chain of the log."""
    require_superuser(actor)
    return verify_chain()


def export(*, actor: Actor, filters: Filters) -> Iterator[str]:
    """Yield the events that the actor may see as JSON lines, oldest first, in constant memory."""
    actor.account  # noqa: B018 - NotSignedInError, before the first line
    AuditEvent.record(actor, "audit.export", "audit log", filters.as_json())
    end = AuditHead.objects.values_list("position", flat=True).get(pk=1)
    return _lines(filters.rows(actor).filter(position__lte=end).order_by("position"))


def _lines(rows: models.QuerySet[AuditEvent]) -> Iterator[str]:
    columns, after = (*COVERED, "namespace__name", "digest"), 0
    while True:
        page = list(rows.filter(position__gt=after).values(*columns)[:BATCH])
        for row in page:
            row["at"], row["namespace"] = written(row["at"]), row.pop("namespace__name")
            yield json.dumps(row, ensure_ascii=False) + "\n"
        if len(page) < BATCH:
            return
        after = page[-1]["position"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    events: int
    position: int  # position of the last pruned event


def prune(*, actor: Actor, before: datetime) -> Pruned:
    """Delete events older than `before`; the chain stays verifiable and begins later.

    The log is verified first: pruning a changed log would delete the evidence of the change.
    """
    require_superuser(actor)
    if before > timezone.now():
        raise InvalidInputError("The time is in the future.", where="before")
    _delete_cut()  # left by a prune that was killed
    found = verify_chain()
    if found.fault is not None:
        raise ConflictError(
            f"The audit log is damaged: {found.fault.message}",
            hint="Investigate first; `audit export` saves the current events.",
        )
    with transaction.atomic():
        head = AuditHead.locked()
        if not head.is_sealed:  # changed since the verification
            raise ConflictError("The head of the audit log was changed outside of this program.")
        rows = AuditEvent.objects.filter(position__gt=head.cut_position)
        newer = rows.filter(at__gte=before).order_by("position").first()
        last = head.position if newer is None else (newer.position or 0) - 1
        events = last - head.cut_position
        if events > 0:
            digest = rows.values_list("digest", flat=True).get(position=last)
            head.cut_position, head.cut_digest = last, digest
            head.save_sealed()
            changes = {"to": last, "digest": digest, "events": events, "before": before}
            AuditEvent.record(actor, PRUNE, "audit log", changes)
    _delete_cut()
    return Pruned(events=max(0, events), position=last)


def _delete_cut() -> None:
    """Delete the events before the cut in batches."""
    cut = AuditHead.objects.values_list("cut_position", flat=True).filter(pk=1).first() or 0
    rows = unguarded().filter(position__lte=cut).order_by("position")
    while keys := list(rows.values_list("pk", flat=True)[:BATCH]):
        unguarded().filter(pk__in=keys).delete()


# --- checkpoints outside the database -------------------------------------------------------------


def checkpoint() -> Checkpoint | None:
    """Sign the current head of the log; None if the log is empty.

    Raises:
        ConflictError: the head was changed outside of this program.
    """
    head = AuditHead.objects.filter(pk=1).first()
    if head is None or head.state.is_new:
        return None
    if not head.is_sealed:
        raise ConflictError(
            "The head of the audit log was changed outside of this program.",
            hint="Run `condastore audit verify` for details.",
        )
    return Checkpoint.of(key(), head.state, at=written(timezone.now()))


def check_anchor(lines: Iterable[str]) -> CheckedCheckpoints:
    """Compare a file of checkpoints with the log in constant memory. Verify the log first."""
    head = AuditHead.objects.filter(pk=1).first()
    return check_checkpoints(
        lines,
        keys=[key(), *former_keys()],
        head=head.state if head else HeadState(),
        digests=digests_at,
    )


def verify_anchor(*, actor: Actor, lines: Sequence[str]) -> CheckedCheckpoints:
    """As `check_anchor`, for administrators. Checkpoints must be in order within one call."""
    require_superuser(actor)
    if len(lines) > MAX_CHECKPOINTS:
        raise InvalidInputError(f"At most {MAX_CHECKPOINTS} lines in one call.", where="lines")
    return check_anchor(lines)


def store_checkpoint() -> None:
    """Send a checkpoint to the anchor if the log has changed since the last one.

    Called by the scheduler. A separate thread sends it, so that a slow receiver delays nothing; a
    checkpoint that was not stored is replaced by a newer one at the next call.
    """
    global _sending
    if _sending is not None and _sending.is_alive():
        return
    try:
        newest = checkpoint()
    except ConflictError:
        logger.error("audit log was rolled back or changed; no checkpoint is stored")
        return
    if newest is None:
        return
    last = _stored
    if last is not None and newest.head == last.head:
        return
    if last is not None and newest.counter <= last.counter:
        logger.error("audit log was rolled back", stored=last.position, now=newest.position)
    location = parse_audit_anchor(settings.AUDIT_ANCHOR)
    _sending = threading.Thread(target=_send, args=(location, newest), daemon=True)
    _sending.start()


def _send(place: AuditAnchor, newest: Checkpoint) -> None:
    global _stored
    try:
        place.store(newest.line())
    except UnavailableError as error:
        logger.warning("audit checkpoint not stored", error=str(error))
        return
    _stored = newest


#: Maximum number of checkpoints in one API call.
MAX_CHECKPOINTS = 2_000
#: The last checkpoint stored by this process, and the thread that is storing one.
_stored: Checkpoint | None = None
_sending: threading.Thread | None = None
