"""Accounts with a password of ours; and Django's own permissions, of everybody."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.backends import ModelBackend

from accounts.models import User


class LocalBackend(ModelBackend):
    def user_can_authenticate(self, user: Any) -> bool:
        """Also asked at each request with a session."""
        return isinstance(user, User) and user.may_act
