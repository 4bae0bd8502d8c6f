"""Approval requests for packages, the builds that wait for them, and decisions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import Case, Q, When
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Perm
from environments.models.builds import Build
from environments.models.locks import CondaRecord, PypiRecord
from environments.models.namespaces import DECIDE_EVERYWHERE, Namespace
from environments.models.policies import Policy


class RequestState(models.TextChoices):
    OPEN = "OPEN"
    SECOND = "SECOND"  # one approver has approved; two are required
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    WITHDRAWN = "WITHDRAWN"  # no build waits for it


class DecisionScope(models.TextChoices):
    BUILD = "build"  # one file, by sha256
    VERSION = "version"  # this version of the package, from this channel
    SPEC = "spec"  # all packages that a MatchSpec matches


LONGEST_REASON = 4000  # characters of the reason of a decision, and of a build
UNDECIDED = (RequestState.OPEN, RequestState.SECOND)


def in_turn() -> None:
    """Serialize changes of requests and decisions until the end of the transaction.

    Otherwise a build that is held during a decision on its package would be missed by the decision,
    and would itself not see the decision.
    """
    Policy.objects.select_for_update().get(pk=Policy.of(None).pk)


def _shown_to(actor: Actor, *more: Q) -> Case:
    """Return whether the actor may view the namespace of a row, or decide in it.

    A single condition instead of an OR, so that a list ordered by key is read from its end:
    databases run the parts of an OR as two searches, and sort all rows that both find.
    """
    seen = Namespace.objects.with_perm(actor, Perm.VIEW).order_by().values("pk")
    decided = Namespace.objects.with_perm(actor, Perm.APPROVE).order_by().values("pk")
    shown = Q(namespace__in=seen) | Q(namespace__in=decided)
    for other in more:
        shown |= other
    return Case(When(shown, then=True), default=False, output_field=models.BooleanField())


class ApprovalRequestQuerySet(models.QuerySet["ApprovalRequest"]):
    def with_perm(self, actor: Actor, perm: Perm) -> Self:
        if actor.sees_everything:
            return self
        return self.filter(
            namespace__in=Namespace.objects.with_perm(actor, perm).order_by().values("pk")
        )

    def visible_to(self, actor: Actor) -> Self:
        """Requests in namespaces that the actor may view or decide in."""
        return self.filter(_shown_to(actor))

    def undecided(self) -> Self:
        return self.filter(state__in=UNDECIDED)


class ApprovalRequest(models.Model):
    """A package that a namespace needs a decision on; shared by all builds that wait for it."""

    namespace = models.ForeignKey(Namespace, models.CASCADE, related_name="approval_requests")
    #: "conda:<sha256>", "pypi:<sha256>" or "spec:<MatchSpec>".
    subject = models.CharField(max_length=300)
    conda = models.ForeignKey(CondaRecord, models.PROTECT, null=True, related_name="requests")
    pypi = models.ForeignKey(
        PypiRecord, models.PROTECT, null=True, related_name="requests", verbose_name="PyPI package"
    )
    name = models.CharField(max_length=200, help_text="Package name.")
    version = models.CharField(max_length=100, blank=True)
    rule = models.CharField(max_length=100)
    reason = models.TextField()
    chain: Any = models.JSONField(
        default=list, help_text="Dependency chain from a requested package to this one."
    )
    state = models.CharField(max_length=9, choices=RequestState.choices, default=RequestState.OPEN)
    opened_at = models.DateTimeField(default=timezone.now, editable=False)
    decided_at = models.DateTimeField(null=True)
    decision = models.ForeignKey(
        "environments.Decision", models.SET_NULL, null=True, related_name="requests"
    )
    builds: Any = models.ManyToManyField(Build, through="WaitingBuild", related_name="requests")

    objects = ApprovalRequestQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["namespace", "subject"],
                condition=Q(state__in=("OPEN", "SECOND")),
                name="one_open_request",
            )
        ]
        indexes = [
            models.Index(fields=["state", "-id"]),
            models.Index(fields=["name"], name="request_named", opclasses=["varchar_pattern_ops"]),
            models.Index(fields=["namespace", "state"]),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip() + f" in {self.namespace.name}"

    @property
    def manager(self) -> str:
        return "conda" if self.pypi_id is None else "pypi"

    @property
    def package(self) -> CondaRecord | PypiRecord | None:
        """Return the package record; None if the rule is about a whole lock."""
        return self.conda or self.pypi


class WaitingBuild(models.Model):
    """A build that waits for a request, with who asked and why."""

    request = models.ForeignKey(ApprovalRequest, models.CASCADE, related_name="waiting")
    build = models.ForeignKey(Build, models.CASCADE, related_name="waiting")
    asked_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    note = models.TextField(blank=True, help_text="Purpose, in the words of the submitter.")
    at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["request", "build"], name="waits_once")]

    def __str__(self) -> str:
        return f"{self.build_id} waits for {self.request_id}"


class RequestAskerQuerySet(models.QuerySet["RequestAsker"]):
    def of_person(self, account: User) -> Self:
        """Rows of a person, including requests through their service accounts."""
        accounts = accounts_of(account)
        return self.filter(Q(user__in=accounts) | Q(owner__in=accounts))


class RequestAsker(models.Model):
    """A person who asked for a request; kept regardless of what happens to the build."""

    request = models.ForeignKey(ApprovalRequest, models.CASCADE, related_name="askers")
    user = models.ForeignKey(User, models.CASCADE, related_name="+")
    owner = models.ForeignKey(
        User,
        models.SET_NULL,
        null=True,
        related_name="+",
        help_text="Owner of a service account at that time.",
    )
    at = models.DateTimeField(default=timezone.now, editable=False)

    objects = RequestAskerQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = (
            "person who waits for a decision",
            "people who wait for decisions",
        )
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["request", "user"], name="asker_once")]

    def __str__(self) -> str:
        return f"{self.user_id} asked for {self.request_id}"


def person_of(account: User) -> int:
    """Return the key of the person behind an account: for a service account, its owner."""
    return account.owner_id if account.is_service and account.owner_id else account.pk


def accounts_of(account: User) -> set[int]:
    """Return the keys of the person's own account and of their service accounts."""
    person = person_of(account)
    services = User.objects.filter(is_service=True, owner=person)
    return {account.pk, person, *services.values_list("pk", flat=True)}


class DecisionQuerySet(models.QuerySet["Decision"]):
    def in_force(self, now: datetime) -> Self:
        return self.filter(
            Q(expires_at=None) | Q(expires_at__gt=now), revoked_at=None, complete=True
        )

    def for_namespace(self, namespace: Namespace | None) -> Self:
        return self.filter(Q(namespace=None) | Q(namespace=namespace))

    def visible_to(self, actor: Actor) -> Self:
        """Decisions of visible namespaces; global decisions for everybody signed in."""
        return self.filter(
            _shown_to(actor, Q(namespace=None)) if actor.signed_in else _shown_to(actor)
        )


class Decision(models.Model):
    """Approval or rejection of packages, in one namespace or in all (None), with optional
    expiry."""

    approved = models.BooleanField()
    scope = models.CharField(max_length=8, choices=DecisionScope.choices)
    manager = models.CharField(max_length=8, default="conda")  # or "pypi"
    name = models.CharField(max_length=200, blank=True)
    spec = models.CharField(max_length=500, blank=True, help_text="MatchSpec of covered packages.")
    channel = models.CharField(max_length=500, blank=True)
    sha256 = models.CharField("SHA-256", max_length=64, blank=True)
    namespace = models.ForeignKey(
        Namespace, models.CASCADE, null=True, blank=True, related_name="decisions"
    )
    reason = models.TextField()
    expires_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    decided_at = models.DateTimeField(default=timezone.now, editable=False)
    seconded_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    seconded_at = models.DateTimeField(null=True)
    complete = models.BooleanField(
        default=True, help_text="False until a second person has approved."
    )
    revoked_at = models.DateTimeField(null=True)
    revoked_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")

    objects = DecisionQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()
        permissions = [(DECIDE_EVERYWHERE, "May decide on packages in all namespaces")]
        indexes = [
            models.Index(fields=["namespace", "revoked_at", "expires_at"]),
            models.Index(fields=["name"], name="decision_named", opclasses=["varchar_pattern_ops"]),
        ]

    def __str__(self) -> str:
        what = self.spec or self.sha256[:12]
        return f"{'approved' if self.approved else 'rejected'}: {what}"
