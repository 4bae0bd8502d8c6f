"""How does a request show who asks, so that no URL, record, log or error shows it too?"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

from environments.domain.names import Credential, without_credentials

#: What is known for a URL: that of a channel, of an index, of a file of either. Asked in the
#: thread of the caller, never in one of the network's.
CredentialSource = Callable[[str], Credential | None]

# Signed URLs, as object stores give them in a redirect, hold their secret in the query.
_QUERY_SECRET = re.compile(
    r"(?i)([?&](?:[a-z-]*token|[a-z-]*signature|[a-z-]*credential|password|secret|sig|key)=)"
    r"[^&\s\"'<>]+"
)


def no_credentials(url: str) -> Credential | None:
    """Where every channel and index is public."""
    return None


def request_headers(credential: Credential | None) -> dict[str, str]:
    """The headers that show `credential`; a token in the path needs none."""
    if credential is None or credential.kind != "basic":
        return {}
    return {"Authorization": f"Basic {base64.b64encode(credential.secret.encode()).decode()}"}


def request_url(credential: Credential | None, url: str) -> str:
    """The URL to ask for: `url`, with the token in its path where that is how it is shown."""
    if credential is None or credential.kind != "token":
        return url
    return credential.authenticated(url)


def redact(text: str, credentials: Iterable[Credential | None] = ()) -> str:
    """`text` for a log or an error: no credentials in URLs, and no secret anywhere."""
    for credential in credentials:
        if credential is None:
            continue
        _, _, password = credential.secret.rpartition(":")
        for secret in {credential.secret, password}:
            if len(secret) > 3:
                text = text.replace(quote(secret, safe=""), "***").replace(secret, "***")
    return _QUERY_SECRET.sub(r"\1***", without_credentials(text))
