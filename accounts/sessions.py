"""Session store with hashed keys and encrypted data, so that a database leak signs nobody in.

The cookie contains the key of a session, the row its digest. Session data contains secrets, such as
that of a second factor during its setup, or of a password reset.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from django.contrib.sessions.backends import db
from django.utils import timezone

from accounts.sealing import seal, unseal

_PURPOSE = "sessions"


def key_digest(session_key: str) -> str:
    """Return 240 bits of the sha256, which fill the column. Keys are random."""
    digest = hashlib.sha256(session_key.encode()).digest()
    return base64.urlsafe_b64encode(digest[:30]).decode()


class SessionStore(db.SessionStore):
    def encode(self, session_dict: dict[str, Any]) -> str:
        return seal(self.serializer().dumps(session_dict).decode("latin-1"), purpose=_PURPOSE)

    def decode(self, session_data: bytes | str) -> dict[str, Any]:
        sealed = session_data if isinstance(session_data, str) else session_data.decode()
        text = unseal(sealed, purpose=_PURPOSE)
        return self.serializer().loads(text.encode("latin-1")) if text else {}

    def load(self) -> dict[str, Any]:
        row = self._rows().first()
        if row is None:
            self._session_key = None
        return self.decode(row.session_data) if row else {}

    async def aload(self) -> dict[str, Any]:
        row = await self._rows().afirst()
        if row is None:
            self._session_key = None
        return self.decode(row.session_data) if row else {}

    def _rows(self) -> Any:
        digest = key_digest(self.session_key or "")
        return self.model.objects.filter(session_key=digest, expire_date__gt=timezone.now())

    def exists(self, session_key: str) -> bool:
        return super().exists(key_digest(session_key))

    async def aexists(self, session_key: str) -> bool:
        return await super().aexists(key_digest(session_key))

    def delete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            super().delete(key_digest(key))

    async def adelete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            await super().adelete(key_digest(key))

    def create_model_instance(self, data: dict[str, Any]) -> Any:
        row = super().create_model_instance(data)
        row.session_key = key_digest(row.session_key)
        return row

    async def acreate_model_instance(self, data: dict[str, Any]) -> Any:
        row = await super().acreate_model_instance(data)
        row.session_key = key_digest(row.session_key)
        return row
