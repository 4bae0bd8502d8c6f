"""What other apps may want to hear of people and sign-ins, without accounts knowing them."""

from __future__ import annotations

from django.dispatch import Signal

#: A token that was refused: `address`, and `token`, the row, where it is known (else None).
token_refused = Signal()
#: A token that came from another address than the last time: `actor`.
token_moved = Signal()
#: A directory has said which of its groups a person is in. Sent in the transaction of the change,
#: with `user`, `directory`, `added` and `removed` (names of groups), `made` (groups new to us).
groups_mirrored = Signal()
#: A mail is to be sent to `email`, with `subject` and `text`.
mail_wanted = Signal()
#: Somebody at `address` asks for links to new passwords of the accounts with the address `email`.
password_reset_asked = Signal()
#: An account was made, or ended with its tokens and sessions, by what its `directory` says of
#: `user`.
account_opened = Signal()
account_closed = Signal()
