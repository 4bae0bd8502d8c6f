"""What people ask of webhooks: make one, try one, remove one."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from accounts.access import Actor, require, require_superuser
from accounts.roles import Perm
from condastore.errors import ConflictError, InvalidInputError, LimitError
from environments.engine.network.webhooks import parse_url
from environments.models import AuditEvent, Namespace, Webhook, audited
from environments.models.notifications import Event, Notification

#: Webhooks of one namespace, or of the installation.
MOST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedWebhook:
    """`secret` is told now and never again."""

    webhook: Webhook
    secret: str


def _require(actor: Actor, namespace: Namespace | None) -> None:
    if namespace is None:
        require_superuser(actor)
    else:
        require(actor, Perm.MANAGE, namespace)


@audited()
def create_webhook(
    *, actor: Actor, namespace: Namespace | None, url: str, events: Sequence[str] = ()
) -> CreatedWebhook:
    """Tell `url` of the events of a namespace, or of all of them; no `events` means every kind."""
    _require(actor, namespace)
    address = parse_url(url)
    unknown = sorted(set(events) - set(Event.values))
    if unknown:
        raise InvalidInputError(
            f"There is no event {', '.join(unknown)}.",
            where="events",
            hint=f"There are: {', '.join(Event.values)}.",
        )
    if Webhook.objects.filter(namespace=namespace).count() >= MOST:
        raise LimitError(f"There are {MOST} webhooks already.", hint="Delete one first.")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    hook = Webhook(namespace=namespace, url=address, events=sorted(set(events)))
    hook.seal(secret)
    hook.save()
    place = namespace or "the installation"
    AuditEvent.record(actor, "webhook.create", place, {"url": address, "events": hook.events})
    return CreatedWebhook(webhook=hook, secret=secret)


@audited()
def try_webhook(*, actor: Actor, webhook: Webhook) -> Webhook:
    """Send it a message of its own kind, whichever events it is told of.

    Raises:
        ConflictError: it is switched off; nothing is sent to it.
    """
    _require(actor, webhook.namespace)
    if not webhook.enabled:
        raise ConflictError(
            f"The webhook {webhook.url} is switched off: its receiver wanted no more messages.",
            hint="Delete it, and create it again.",
        )
    Notification.try_out(webhook)
    place = webhook.namespace or "the installation"
    AuditEvent.record(actor, "webhook.test", place, {"url": webhook.url})
    return webhook


@audited()
def delete_webhook(*, actor: Actor, webhook: Webhook) -> Webhook:
    """With the messages that it did not get yet."""
    _require(actor, webhook.namespace)
    place, key = webhook.namespace or "the installation", webhook.pk
    webhook.delete()
    webhook.pk = key  # what was deleted is shown once more
    AuditEvent.record(actor, "webhook.delete", place, {"url": webhook.url})
    return webhook
