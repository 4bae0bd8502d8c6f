"""Signals about accounts and sign-ins, for apps that `accounts` does not import."""

from __future__ import annotations

from django.dispatch import Signal

#: A refused token: `address`, and the row `token` if it is known (else None).
token_refused = Signal()
#: A token was used from another address than before: `actor`.
token_moved = Signal()
#: The groups of a person changed in a directory. Sent in the transaction of the change, with
#: `user`, `directory`, `added` and `removed` (names of groups), `made` (new groups).
groups_mirrored = Signal()
#: A mail must be sent to `email`, with `subject` and `text`.
mail_wanted = Signal()
#: A password reset was requested from `address` for the accounts with the e-mail `email`.
password_reset_asked = Signal()
#: An account was created or closed because of its `directory`: `user`.
account_opened = Signal()
account_closed = Signal()
