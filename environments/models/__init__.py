"""Rows, querysets and guarded changes."""

import environments.models.prefix_lookup  # noqa: F401 - a lookup is registered, not called
from environments.models.approvals import (
    ApprovalRequest,
    Decision,
    DecisionScope,
    RequestAsker,
    RequestState,
    WaitingBuild,
)
from environments.models.artifacts import Artifact
from environments.models.audit import AuditEvent, AuditHead, audited
from environments.models.base_images import BaseImage, BaseLayer
from environments.models.blobs import Blob
from environments.models.builds import Build, BuildEvent, BuildTag, LogChunk, Prefix
from environments.models.channels import Channel, ChannelCredential, IndexedPackage
from environments.models.environments import (
    Environment,
    EnvironmentGroupObjectPermission,
    EnvironmentUserObjectPermission,
)
from environments.models.folder_restores import FolderRestore
from environments.models.holds import LegalHold
from environments.models.hosted import HostedChannel, HostedPackage
from environments.models.images import (
    ImageBlob,
    ImageIndex,
    ImageStatement,
    Layer,
)
from environments.models.locks import (
    CondaRecord,
    LockConflicts,
    LockedConda,
    LockedPypi,
    LockRow,
    PypiRecord,
    SpecificationRow,
)
from environments.models.mirrors import Mirror, MirrorIndex, MirrorPackage, MirrorView
from environments.models.namespaces import (
    MappedRole,
    Namespace,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
)
from environments.models.notifications import Notification, Webhook
from environments.models.pending_grants import PendingGrant
from environments.models.policies import Policy, PolicyRule, PolicyVersion
from environments.models.previews import Preview
from environments.models.pushes import Push, PushRule
from environments.models.recalls import Recall, RecalledLock
from environments.models.role_mappings import RoleMapping
from environments.models.solves import SolveRow
from environments.models.workers import Leader, Worker

__all__ = [
    "ApprovalRequest",
    "Artifact",
    "AuditEvent",
    "AuditHead",
    "BaseImage",
    "BaseLayer",
    "Blob",
    "Build",
    "BuildEvent",
    "BuildTag",
    "Channel",
    "ChannelCredential",
    "CondaRecord",
    "Decision",
    "DecisionScope",
    "Environment",
    "EnvironmentGroupObjectPermission",
    "EnvironmentUserObjectPermission",
    "FolderRestore",
    "HostedChannel",
    "HostedPackage",
    "ImageBlob",
    "ImageIndex",
    "ImageStatement",
    "IndexedPackage",
    "Layer",
    "Leader",
    "LegalHold",
    "LockConflicts",
    "LockRow",
    "LockedConda",
    "LockedPypi",
    "LogChunk",
    "MappedRole",
    "Mirror",
    "MirrorIndex",
    "MirrorPackage",
    "MirrorView",
    "Namespace",
    "NamespaceGroupObjectPermission",
    "NamespaceUserObjectPermission",
    "Notification",
    "PendingGrant",
    "Policy",
    "PolicyRule",
    "PolicyVersion",
    "Prefix",
    "Preview",
    "Push",
    "PushRule",
    "PypiRecord",
    "Recall",
    "RecalledLock",
    "RequestAsker",
    "RequestState",
    "RoleMapping",
    "SolveRow",
    "SpecificationRow",
    "WaitingBuild",
    "Webhook",
    "Worker",
    "audited",
]
