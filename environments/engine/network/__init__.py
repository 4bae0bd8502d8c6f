"""Outgoing requests: address guard, forward proxy, clients and webhooks."""
