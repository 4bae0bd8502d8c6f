"""Rows, querysets and guarded changes."""

from environments.models.audit import AuditEvent
from environments.models.builds import Build, BuildEvent, BuildTag, LogChunk, Prefix
from environments.models.channels import Channel, ChannelCredential, IndexedPackage
from environments.models.environments import (
    Environment,
    EnvironmentGroupObjectPermission,
    EnvironmentUserObjectPermission,
)
from environments.models.locks import (
    CondaRecord,
    LockedConda,
    LockedPypi,
    LockRow,
    PypiRecord,
    SolveRow,
    SpecificationRow,
)
from environments.models.namespaces import (
    Namespace,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
)
from environments.models.previews import Preview
from environments.models.workers import Leader, Worker

__all__ = [
    "AuditEvent",
    "Build",
    "BuildEvent",
    "BuildTag",
    "Channel",
    "ChannelCredential",
    "CondaRecord",
    "Environment",
    "EnvironmentGroupObjectPermission",
    "EnvironmentUserObjectPermission",
    "IndexedPackage",
    "Leader",
    "LockRow",
    "LockedConda",
    "LockedPypi",
    "LogChunk",
    "Namespace",
    "NamespaceGroupObjectPermission",
    "NamespaceUserObjectPermission",
    "Prefix",
    "Preview",
    "PypiRecord",
    "SolveRow",
    "SpecificationRow",
    "Worker",
]
