"""Forms of sign-in and of password resets."""

from __future__ import annotations

from typing import Any

from allauth.account.forms import LoginForm, UserTokenForm
from django import forms
from django.http import HttpRequest

from accounts.authentication import client_address
from accounts.models import User
from accounts.password_reset import may_reset
from accounts.signals import password_reset_asked


class SignInForm(LoginForm):  # type: ignore[misc]
    """Names its fields username and password, as password managers and scripts expect."""

    def add_prefix(self, field_name: str) -> str:
        return "username" if field_name == "login" else super().add_prefix(field_name)


class AskForResetForm(forms.Form):
    """Requests a link by mail.

    A worker looks the account up later, so that neither the response nor its time reveals whether
    an account exists.
    """

    email = forms.EmailField(max_length=254)

    def save(self, request: HttpRequest, **options: Any) -> str:
        email = str(self.cleaned_data["email"])
        password_reset_asked.send(sender=User, email=email, address=client_address(request.META))
        return email


class ResetLinkForm(UserTokenForm):  # type: ignore[misc]
    """Validates the account and the token of a link."""

    def clean(self) -> Any:
        cleaned = super().clean()
        if self.reset_user is None or not may_reset(self.reset_user):
            raise forms.ValidationError("The link is not valid.")
        return cleaned
