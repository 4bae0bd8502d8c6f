"""Channels: repodata, records, credentials, mirrors and hosted channels."""
