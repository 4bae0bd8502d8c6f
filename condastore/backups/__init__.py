"""Backups of a whole installation: database, secrets, first-seen times and kept bytes."""
