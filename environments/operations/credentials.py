"""Secrets of channels: which there are, and how does one go?

They come with the specifications that name them (`builds.keep_credentials`).
"""

from __future__ import annotations

from accounts.access import Actor, require, require_superuser
from accounts.roles import Perm
from environments.models import AuditEvent, ChannelCredential, audited


@audited()
def delete_credential(*, actor: Actor, credential: ChannelCredential) -> ChannelCredential:
    """Builds that start later are refused by the channel, until somebody enters another."""
    if credential.namespace is None:
        require_superuser(actor)
    else:
        require(actor, Perm.MANAGE, credential.namespace)
    place, key = credential.namespace or "the installation", credential.pk
    credential.delete()
    credential.pk = key  # what was deleted is shown once more
    AuditEvent.record(actor, "credential.delete", place, {"url_prefix": credential.url_prefix})
    return credential
