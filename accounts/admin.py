"""Unregister admin pages of libraries whose models are not used here.

The pages of users, groups and tokens are in `environments.admin.people`: they record changes in
the audit log.
"""

from __future__ import annotations

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from django.contrib import admin

# Their tables are empty: identities say who a person is, settings name the providers.
for model in (EmailAddress, SocialAccount, SocialApp, SocialToken, Authenticator):
    if admin.site.is_registered(model):
        admin.site.unregister(model)
