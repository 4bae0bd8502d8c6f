"""The policy that holds in a namespace."""

from __future__ import annotations

import hashlib

from django.conf import settings

from environments.domain.policy import ChannelsAllowed, Policy, Rule
from environments.models import Namespace


def policy_of(namespace: Namespace) -> Policy:
    """The installation's rules, then those of the namespace."""
    patterns = tuple(settings.ALLOWED_CHANNELS)
    rules: tuple[Rule, ...] = (ChannelsAllowed(patterns=patterns),)
    version = hashlib.sha256(repr(rules).encode()).hexdigest()[:16]
    return Policy(rules=rules, version=version)
