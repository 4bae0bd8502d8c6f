"""Operations on webhooks: create, test and delete them."""

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

#: Maximum of webhooks of one namespace, or of the installation.
MAX_WEBHOOKS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedWebhook:
    """`secret` is shown only here."""

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
    """Send events of a namespace (None: of all) to `url`; empty `events` means all events."""
    _require(actor, namespace)
    address = parse_url(url)
    unknown = sorted(set(events) - set(Event.values))
    if unknown:
        raise InvalidInputError(
            f"Unknown events: {', '.join(unknown)}.",
            where="events",
            hint=f"Available events: {', '.join(Event.values)}.",
        )
    if Webhook.objects.filter(namespace=namespace).count() >= MAX_WEBHOOKS:
        raise LimitError(f"There are already {MAX_WEBHOOKS} webhooks.", hint="Delete one first.")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    hook = Webhook(namespace=namespace, url=address, events=sorted(set(events)))
    hook.seal(secret)
    hook.save()
    location = namespace or "the installation"
    AuditEvent.record(actor, "webhook.create", location, {"url": address, "events": hook.events})
    return CreatedWebhook(webhook=hook, secret=secret)


@audited()
def try_webhook(*, actor: Actor, webhook: Webhook) -> Webhook:
    """Send a test message, regardless of the events the webhook is subscribed to.

    Raises:
        ConflictError: the webhook is disabled and nothing is sent to it.
    """
    _require(actor, webhook.namespace)
    if not webhook.enabled:
        raise ConflictError(
            f"The webhook {webhook.url} is disabled: its receiver answered that it is gone.",
            hint="Delete the webhook and create it again.",
        )
    Notification.try_out(webhook)
    location = webhook.namespace or "the installation"
    AuditEvent.record(actor, "webhook.test", location, {"url": webhook.url})
    return webhook


@audited()
def delete_webhook(*, actor: Actor, webhook: Webhook) -> Webhook:
    """Delete a webhook with its undelivered messages."""
    _require(actor, webhook.namespace)
    location, key = webhook.namespace or "the installation", webhook.pk
    webhook.delete()
    webhook.pk = key  # the deleted row is returned to the caller
    AuditEvent.record(actor, "webhook.delete", location, {"url": webhook.url})
    return webhook
