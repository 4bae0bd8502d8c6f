"""What other apps may want to hear of sign-ins, without accounts knowing them."""

from __future__ import annotations

from django.dispatch import Signal

#: A token that was refused: `address`, and `token`, the row, where it is known (else None).
token_refused = Signal()
#: A token that came from another address than the last time: `actor`.
token_moved = Signal()
