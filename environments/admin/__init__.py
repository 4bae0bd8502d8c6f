"""Administration console: read-only pages of rows, and confirmed actions that call operations."""

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
    policies,
    recalls,
    roles,
    rules,
    system,
    tokens,
    users,
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
    "policies",
    "recalls",
    "roles",
    "rules",
    "system",
    "tokens",
    "users",
]
