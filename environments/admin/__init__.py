"""IT's console: rooms to look into, questions that call the operations of everybody."""

from environments.admin import (
    approval_requests,
    audit_log,
    builds,
    decisions,
    hosted,
    images,
    mirrors,
    namespaces,
    packages,
    people,
    policies,
    recalls,
    rules,
    system,
)

__all__ = [
    "approval_requests",
    "audit_log",
    "builds",
    "decisions",
    "hosted",
    "images",
    "mirrors",
    "namespaces",
    "packages",
    "people",
    "policies",
    "recalls",
    "rules",
    "system",
]
