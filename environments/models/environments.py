"""Environments: a name in a namespace, numbered builds, and a pointer to the current one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from django.db import connection, models, transaction
from django.db.models import Case, Q, Value, When
from django.db.models.expressions import RawSQL
from django.dispatch import Signal
from django.utils import timezone
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from accounts.access import Actor
from accounts.models import User
from accounts.roles import PUBLIC, Perm
from condastore.errors import NotFoundError
from condastore.statements import subquery
from environments.models.namespaces import (
    Namespace,
    groups_of,
    held,
    key_of,
    keys_held,
    kind_of,
    never,
    one_of,
)
from environments.models.row_loading import LoadedDirectly

if TYPE_CHECKING:
    from environments.models.builds import Build

SHARED = "shared_environment"
#: Sent with `environment` and `build` in the transaction that moves the pointer.
current_changed = Signal()


class EnvironmentQuerySet(models.QuerySet["Environment"]):
    def with_perm(self, actor: Actor, perm: Perm) -> Self:
        """Environments by role in the namespace; for viewing and downloading also by direct
        share."""
        # The names add no condition; with them a list ordered by name is read from the index
        # instead
        # of being sorted.
        if never(actor, perm):
            return self.none()
        if actor.sees_everything:
            names: Any = Namespace.objects.order_by().values("name")
            return self.present().filter(namespace__name__in=names)
        return self.present().filter(
            allowed(actor, perm), namespace__name__in=_names_of_visible(actor, perm)
        )

    def visible_to(self, actor: Actor) -> Self:
        return self.with_perm(actor, Perm.VIEW)

    def present(self) -> Self:
        return self.filter(deleted_at=None)


def allowed(actor: Actor, perm: Perm, *, through: str = "") -> Case | Value:
    """Return the condition of `with_perm` on the environment, or on the one `through` leads to.

    A single condition: databases would run the two halves of an OR as separate searches and join
    the results before evaluating anything else.
    """
    if actor.sees_everything:
        return Value(True, output_field=models.BooleanField())
    own = held(actor, perm, through=f"{through}namespace__")
    if _may_be_shared(actor, perm):
        own |= Q(**{f"{through}pk__in": shared_environments(actor)})
    return Case(When(own, then=True), default=False, output_field=models.BooleanField())


def _may_be_shared(actor: Actor, perm: Perm) -> bool:
    return perm in PUBLIC and actor.signed_in and actor.allows(perm)


def shared_environments(actor: Actor) -> RawSQL:
    """Return the subquery of the keys of environments shared directly with `actor`."""
    return subquery(
        ("shared environments",),
        lambda key, names: one_of(_shared(key, names, "content_object")),
        key=actor.account.pk,
        words=actor.only_namespaces,
    )


def _names_of_visible(actor: Actor, perm: Perm) -> RawSQL:
    """Return the subquery of the names of namespaces with environments of `with_perm`."""
    shared = _may_be_shared(actor, perm)

    def build(key: int, names: Sequence[str] | None) -> models.QuerySet[Any, Any]:
        parts = keys_held(actor, perm, key, names)
        if shared:
            parts += _shared(key, names, "content_object__namespace")
        return Namespace.objects.order_by().filter(pk__in=one_of(parts)).values("name")

    return subquery(
        ("names", *kind_of(actor, perm), shared),
        build,
        key=key_of(actor),
        words=actor.only_namespaces,
    )


def _shared(
    account: int, names: Sequence[str] | None, column: str
) -> list[models.QuerySet[Any, Any]]:
    """Return querysets that together have `column` of the environments shared with an account."""
    wanted: dict[str, Any] = {"permission__codename": SHARED}
    if names is not None:
        wanted["content_object__namespace__name__in"] = names
    users = EnvironmentUserObjectPermission.objects.filter(user=account, **wanted)
    groups = EnvironmentGroupObjectPermission.objects.filter(group__in=groups_of(account), **wanted)
    return [users.values(column), groups.values(column)]


class Environment(LoadedDirectly):
    """A name in a namespace, with numbered builds and a pointer to the current one.

    With `pinned` the pointer stays where a person set it; later builds do not move it.
    """

    namespace = models.ForeignKey(Namespace, models.PROTECT, related_name="environments")
    name = models.CharField(max_length=64)
    description = models.TextField(blank=True)
    current = models.ForeignKey(
        "environments.Build", models.SET_NULL, null=True, blank=True, related_name="+"
    )
    pinned = models.BooleanField(default=False)
    last_number = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    updated_at = models.DateTimeField(default=timezone.now, editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True)
    used_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="Last download, pull, run, or access to files of its folder.",
    )

    objects = EnvironmentQuerySet.as_manager()

    class Meta:
        ordering = ["namespace__name", "name"]
        default_permissions = ()
        permissions = [(SHARED, "May see and download the environment")]
        constraints = [
            models.UniqueConstraint(
                fields=["namespace", "name"],
                condition=Q(deleted_at=None),
                name="environment_name_once",
            ),
            models.CheckConstraint(
                condition=Q(pinned=False) | Q(current__isnull=False),
                name="environment_pinned_has_current",
            ),
        ]
        indexes = [
            models.Index(fields=["name"]),
            models.Index(fields=["-updated_at"]),
            models.Index(fields=["used_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.namespace.name}/{self.name}"

    def take_number(self) -> int:
        """Return the number of the next build by a guarded UPDATE, so that each is used once.

        Call it in a transaction, which keeps the row locked.

        Raises:
            NotFoundError: the environment was deleted.
        """
        now = timezone.now()
        with connection.cursor() as cursor:
            # The ORM has no UPDATE ... RETURNING; concurrent callers wait for this transaction.
            cursor.execute(
                "UPDATE environments_environment SET last_number = last_number + 1, "
                "updated_at = %s WHERE id = %s AND deleted_at IS NULL RETURNING last_number",
                [connection.ops.adapt_datetimefield_value(now), self.pk],
            )
            found = cursor.fetchone()
        if found is None:
            raise NotFoundError(f"The environment {self} was deleted.")
        self.last_number, self.updated_at = int(found[0]), now
        return self.last_number

    def advance(self, build: Build) -> bool:
        """Make `build` current, unless the pointer is pinned or at a newer build; True if it
        moved."""
        older = Q(current=None) | Q(current__number__lt=build.number)
        with transaction.atomic():
            # Without the lock PostgreSQL would evaluate `older` with the pointer as it was before
            # waiting for another build's move, and let an older build replace a newer one.
            Environment.objects.select_for_update().filter(pk=self.pk).first()
            moved = bool(
                Environment.objects.filter(pk=self.pk, pinned=False, deleted_at=None)
                .filter(pk__in=Environment.objects.filter(older).values("pk"))
                .update(current=build, updated_at=timezone.now())
            )
            if moved:
                current_changed.send(Environment, environment=self, build=build)
            return moved

    def point(self, build: Build, *, pinned: bool, expected: Build | None) -> bool:
        """Compare-and-set the pointer; False if it is no longer at `expected`."""
        with transaction.atomic():
            moved = bool(
                Environment.objects.filter(pk=self.pk, current=expected, deleted_at=None).update(
                    current=build, pinned=pinned, updated_at=timezone.now()
                )
            )
            if moved and build != expected:
                current_changed.send(Environment, environment=self, build=build)
            return moved


class EnvironmentUserObjectPermission(UserObjectPermissionBase):
    content_object = models.ForeignKey(Environment, models.CASCADE, related_name="user_shares")

    class Meta(UserObjectPermissionBase.Meta):
        verbose_name, verbose_name_plural = (
            "user's role in an environment",
            "users' roles in environments",
        )
        default_permissions = ()


class EnvironmentGroupObjectPermission(GroupObjectPermissionBase):
    content_object = models.ForeignKey(Environment, models.CASCADE, related_name="group_shares")

    class Meta(GroupObjectPermissionBase.Meta):
        verbose_name, verbose_name_plural = (
            "group's role in an environment",
            "groups' roles in environments",
        )
        default_permissions = ()
