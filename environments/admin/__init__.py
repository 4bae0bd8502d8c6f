"""IT's console: rooms to look into, questions that call the operations of everybody."""

from environments.admin import (
    approvals,
    builds,
    log,
    namespaces,
    packages,
    people,
    policies,
    recalls,
    system,
)

__all__ = [
    "approvals",
    "builds",
    "log",
    "namespaces",
    "packages",
    "people",
    "policies",
    "recalls",
    "system",
]
