"""Enums of the schema: those of other layers with descriptions, and those of its own."""

from __future__ import annotations

from enum import Enum

import strawberry

from accounts.roles import Perm as Perm
from accounts.roles import Role as Role
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.lifecycle import BuildState
from environments.models import DecisionScope, RequestState
from environments.models.previews import PreviewState


def describe_enum(enum: type[Enum], description: str, **values: str) -> None:
    """Add an enum of another layer to the schema, with the descriptions of its values by name."""
    strawberry.enum(enum, name=enum.__name__, description=description)
    for value in enum.__strawberry_definition__.values:  # type: ignore[attr-defined]
        value.description = values[value.name]


describe_enum(
    Role,
    "Role in a namespace.",
    VIEWER="View and download.",
    DEVELOPER="View, download and build.",
    APPROVER="All permissions of a developer, and decide on packages.",
    ADMIN="All permissions in the namespace.",
)

describe_enum(
    Perm,
    "Permission in a namespace.",
    VIEW="See the namespace and its contents.",
    DOWNLOAD="Download locks, logs and artifacts.",
    BUILD="Create environments, build, cancel, roll back, pin and tag.",
    APPROVE="Decide on packages.",
    MANAGE="Delete and move environments, archive builds, change policy and quota.",
    GRANT="Grant and revoke roles.",
)

describe_enum(
    BuildState,
    "State of a build.",
    QUEUED="Waiting for a worker.",
    SOLVING="Solving the specification.",
    HELD="Waiting for a decision of an approver.",
    FETCHING="Downloading packages.",
    LINKING="Linking packages into the prefix.",
    CHECKING="Running smoke tests.",
    PUBLISHING="Moving the finished prefix into place.",
    READY="Finished and available.",
    FAILED="Finished with a failure.",
    CANCELLING="Cancellation was requested; a worker still holds the build.",
    CANCELLED="Cancelled.",
    ARCHIVED="Prefix deleted; specification, lock and log remain, and the build can be restored.",
)

describe_enum(
    ArtifactKind,
    "Format of a file generated from a lock.",
    TAR_GZ="Relocatable gzip archive in the format of conda-pack.",
    TAR_ZST="Relocatable Zstandard archive in the format of conda-pack.",
    SQUASHFS="SquashFS file system image.",
    SIF="Apptainer (Singularity) image.",
    INSTALLER="Self-extracting shell installer.",
    BUNDLE="Offline bundle: a channel with all packages, the lock and the installer.",
    IMAGE="Manifest of a container image, served by the registry.",
)

describe_enum(
    ArtifactState,
    "State of the generation of an artifact.",
    QUEUED="Waiting for a worker.",
    MAKING="A worker is generating the file.",
    READY="The file can be downloaded.",
    FAILED="The generation failed; a new request tries again.",
)

describe_enum(
    PreviewState,
    "State of a preview.",
    QUEUED="Waiting for a worker.",
    SOLVING="Solving the specification.",
    READY="Solved.",
    FAILED="The solve failed.",
)

describe_enum(
    RequestState,
    "State of an approval request.",
    OPEN="Waiting for a decision.",
    SECOND="Approved once; a second approver must agree.",
    APPROVED="Approved.",
    REJECTED="Rejected.",
    WITHDRAWN="No build waits for it any longer.",
)

describe_enum(
    DecisionScope,
    "What a package decision covers.",
    BUILD="Exactly one package file, by its SHA-256 digest.",
    VERSION="All builds of one version from one channel.",
    SPEC="All packages that a MatchSpec matches.",
)


@strawberry.enum(description="Package manager of a package.")
class PackageKind(Enum):
    CONDA = strawberry.enum_value("conda", description="Conda package.")
    PYPI = strawberry.enum_value("pypi", description="Python package from a package index.")


@strawberry.enum(description="Kind of a package change between two locks.")
class PackageChangeKind(Enum):
    UPGRADE = strawberry.enum_value("upgrade", description="Newer version.")
    DOWNGRADE = strawberry.enum_value("downgrade", description="Older version.")
    REBUILD = strawberry.enum_value("rebuild", description="Same version, different build.")
    CHANNEL = strawberry.enum_value("channel", description="Same version from another channel.")
