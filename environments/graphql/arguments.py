"""Arguments that several fields share, with their descriptions."""

from __future__ import annotations

from typing import Annotated

from strawberry import ID

from environments.graphql.fields import described

NamespaceName = Annotated[str, described("Name of the namespace.")]
EnvironmentName = Annotated[str, described("Name of the environment.")]
OnlyNamespace = Annotated[str | None, described("Only rows of the namespace with this name.")]
PolicyOwner = Annotated[
    str | None, described("Name of the namespace; null means the installation.")
]
UserName = Annotated[str | None, described("Name of the user; give either `user` or `group`.")]
GroupName = Annotated[str | None, described("Name of the group; give either `user` or `group`.")]
ChangeComment = Annotated[str, described("Reason for the change, stored in the policy's history.")]
BasedOnVersion = Annotated[
    int | None,
    described(
        "Policy version that the change is based on; the change is refused "
        "if the policy has a newer version. Null skips the check."
    ),
]
BuildKey = Annotated[ID, described("Id of the build.", name="id")]
EnvironmentId = Annotated[ID, described("Id of the environment.")]
Platforms = Annotated[
    list[str] | None, described("Platforms to solve for; null means those of the specification.")
]
