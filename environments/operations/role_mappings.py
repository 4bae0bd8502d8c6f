"""Operations on role mappings, for administrators of the installation."""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from accounts.access import Actor, require_superuser
from accounts.roles import Role
from condastore.errors import ConflictError
from environments.models import AuditEvent, RoleMapping
from environments.models.role_mappings import check_patterns, matching_groups, materialise


def role_mappings(actor: Actor) -> QuerySet[RoleMapping]:
    """All mappings for administrators; nobody else sees the groups of directories."""
    return RoleMapping.objects.all() if actor.is_superuser else RoleMapping.objects.none()


@transaction.atomic
def add_role_mapping(*, actor: Actor, group: str, namespace: str, role: Role) -> RoleMapping:
    """Add a mapping; it applies at once to current and future members."""
    require_superuser(actor)
    group, namespace = group.strip(), namespace.strip().lower()
    check_patterns(group, namespace)
    try:
        with transaction.atomic():
            mapping = RoleMapping.objects.create(
                group=group, namespace=namespace, role=role.value, created_by=actor.account
            )
    except IntegrityError:
        raise ConflictError(
            f"The mapping of {group} to a role in {namespace} already exists."
        ) from None
    materialise(mappings=[mapping])
    AuditEvent.record(actor, "role-mapping.add", mapping, {"groups": matching_groups(group)[:50]})
    return mapping


@transaction.atomic
def remove_role_mapping(*, actor: Actor, mapping: RoleMapping) -> None:
    require_superuser(actor)
    text, locations = str(mapping), mapping.mapped.values("namespace").distinct().count()
    mapping.delete()
    AuditEvent.record(actor, "role-mapping.remove", text, {"namespaces": locations})
