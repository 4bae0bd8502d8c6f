"""IT's console: rooms to look into, questions that call the operations of everybody."""

from environments.admin import (
    builds,
    decisions,
    hosted,
    images,
    log,
    mirrors,
    namespaces,
    packages,
    people,
    policies,
    recalls,
    requests,
    rules,
    system,
)

__all__ = [
    "builds",
    "decisions",
    "hosted",
    "images",
    "log",
    "mirrors",
    "namespaces",
    "packages",
    "people",
    "policies",
    "recalls",
    "requests",
    "rules",
    "system",
]
