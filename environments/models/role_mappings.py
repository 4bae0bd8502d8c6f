"""Role mappings: roles of directory groups in namespaces, and the rows computed from them.

A mapping consists of patterns. It is expanded to one row for each group and namespace, so that a
permission check is a single join; membership of the group is read at each check.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.contrib.auth.models import Group
from django.db import models, transaction
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.utils import timezone

from accounts.models import DirectoryGroup, User
from accounts.roles import Role
from condastore.errors import InvalidInputError
from environments.models.namespaces import MappedRole, Namespace

USERNAME = "{username}"
_GROUP = re.compile(r"[a-z][a-z0-9-]{0,31}:.+", re.DOTALL)
_NAMESPACE = re.compile(r"[a-z0-9._*?\[\]!-]+")


class RoleMapping(models.Model):
    """Members of the directory groups that match hold `role` in the namespaces that match."""

    group = models.CharField(
        max_length=200, help_text="A directory's name, a colon, and a pattern: ldap:physics-*"
    )
    namespace = models.CharField(
        max_length=200,
        help_text="A pattern such as physics-*, or {username} for personal ones.",
    )
    role = models.CharField(max_length=16, choices=[(r.value, r.value) for r in Role])
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.ForeignKey(
        User, models.SET_NULL, null=True, related_name="+", editable=False
    )

    class Meta:
        ordering = ["group", "namespace", "role"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["group", "namespace", "role"], name="role_mapping_once")
        ]

    def __str__(self) -> str:
        return f"{self.group} → {self.role} in {self.namespace}"


def check_patterns(group: str, namespace: str) -> None:
    """Raises InvalidInputError.

    The directory must be named in full: groups created in one directory must not match
    mappings of another. A user name cannot be combined with wildcards: `{username}-*` of a user
    called `a` would match every namespace that starts with `a-`.
    """
    if not _GROUP.fullmatch(group):
        raise InvalidInputError(
            f"{group!r} does not start with the name of a directory.",
            where="group",
            hint="Use a form such as ldap:physics or ldap:physics-*.",
        )
    rest = namespace.replace(USERNAME, "", 1)
    if rest and not _NAMESPACE.fullmatch(rest):
        raise InvalidInputError(
            f"{namespace!r} cannot match any namespace.",
            where="namespace",
            hint=f"Use a form such as physics, physics-*, {USERNAME} or lab-{USERNAME}.",
        )
    if not namespace or (rest != namespace and re.search(r"[*?\[]", rest)):
        raise InvalidInputError(
            f"{USERNAME} and wildcards cannot be combined in one pattern."
            if namespace
            else "The pattern of namespaces is required.",
            where="namespace",
        )


Row = tuple[int, int, int, int | None, str]  # mapping, group, namespace, user, role


@transaction.atomic
def materialise(
    *,
    mappings: Iterable[RoleMapping] | None = None,
    groups: Iterable[Group] | None = None,
    namespaces: Iterable[Namespace] | None = None,
    user: User | None = None,
) -> None:
    """Update the rows of all mappings, or only those for the given mappings, groups or namespaces.

    Args:
        user: update only the rows for {username} of this person.
    """
    concerned: dict[str, Any] = {}
    rules = RoleMapping.objects.all()
    mirrored = Group.objects.exclude(mirror=None)
    namespaces_of_kind = Namespace.objects.order_by("pk")
    if mappings is not None:
        concerned["mapping__in"] = keys = [mapping.pk for mapping in mappings]
        rules = rules.filter(pk__in=keys)
    if groups is not None:
        concerned["group__in"] = keys = [group.pk for group in groups]
        mirrored = mirrored.filter(pk__in=keys)
    if namespaces is not None:
        concerned["namespace__in"] = keys = [namespace.pk for namespace in namespaces]
        namespaces_of_kind = namespaces_of_kind.filter(pk__in=keys)
    if user is not None:
        concerned["user"] = user
        rules = rules.filter(namespace__contains=USERNAME)
        mirrored = mirrored.filter(user=user)
    requested = set(_rows(rules, mirrored, namespaces_of_kind, user)) if rules.exists() else set()
    held = {
        (row.mapping_id, row.group_id, row.namespace_id, row.user_id, row.role): row.pk
        for row in MappedRole.objects.filter(**concerned)
    }
    if gone := [held[row] for row in held.keys() - requested]:
        MappedRole.objects.filter(pk__in=gone).delete()
    MappedRole.objects.bulk_create(
        [
            MappedRole(mapping_id=m, group_id=g, namespace_id=n, user_id=u, role=role)
            for m, g, n, u, role in sorted(requested - held.keys(), key=str)
        ],
        ignore_conflicts=True,
    )


def _rows(
    rules: Iterable[RoleMapping],
    mirrored: models.QuerySet[Group],
    namespaces_of_kind: models.QuerySet[Namespace],
    user: User | None,
) -> Iterator[Row]:
    names = list(mirrored.values_list("pk", "name"))
    where = list(namespaces_of_kind.values_list("pk", "name", "personal"))
    for rule in rules:
        fits = _matcher(rule.group)
        among = [pk for pk, name in names if fits(name)]
        if not among:
            continue
        if USERNAME in rule.namespace:
            yield from _personal_rows(rule, among, where, user)
            continue
        fits = _matcher(rule.namespace)
        for namespace, name, personal in where:
            if not personal and fits(name):
                for group in among:
                    yield rule.pk, group, namespace, None, rule.role


def _personal_rows(
    rule: RoleMapping, among: list[int], where: list[tuple[int, str, bool]], user: User | None
) -> Iterator[Row]:
    # The pattern `{username}` alone means the personal namespace only: a shared namespace with the
    # name of a new user is not theirs.
    alone = rule.namespace == USERNAME
    namespaces_of_kind = {name: pk for pk, name, personal in where if personal == alone}
    members = User.groups.through.objects.filter(group__in=among)
    if user is not None:
        members = members.filter(user=user)
    for group, person, username in members.values_list("group", "user", "user__username"):
        location = namespaces_of_kind.get(rule.namespace.replace(USERNAME, username.lower()))
        if location is not None:
            yield rule.pk, group, location, person, rule.role


def _matcher(pattern: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(pattern)).fullmatch


@receiver(post_save, sender=Namespace, dispatch_uid="role-mappings")
def _of_a_new_namespace(instance: Namespace, created: bool, **kwargs: Any) -> None:
    if created:
        materialise(namespaces=[instance])


def matching_groups(pattern: str) -> list[str]:
    """Return the names of the groups that a pattern matches now."""
    fits = _matcher(pattern)
    directory = pattern.partition(":")[0]
    known = DirectoryGroup.objects.filter(directory=directory).values_list("group__name", flat=True)
    return sorted(name for name in known if fits(name))
