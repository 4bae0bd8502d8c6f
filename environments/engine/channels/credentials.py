"""Credentials of requests: how to send them, and how to keep them out of texts."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote, urlsplit

from condastore.errors import InvalidInputError
from environments.domain.names import Credential, without_credentials

#: Returns the credential of a channel, of an index, or of a file of either. Called in the thread
#: of the caller, never in a network thread.
CredentialSource = Callable[[str], Credential | None]

# Signed URLs of object stores carry their secret in the query.
_QUERY_SECRET = re.compile(
    r"(?i)([?&](?:[a-z-]*token|[a-z-]*signature|[a-z-]*credential|password|secret|sig|key)=)"
    r"[^&\s\"'<>]+"
)


def no_credentials(url: str) -> Credential | None:
    """Return None: every channel and index is public."""
    return None


def request_headers(credential: Credential | None) -> dict[str, str]:
    """Return the headers of `credential`; a token in the path needs none."""
    if credential is None or credential.kind != "basic":
        return {}
    return {"Authorization": f"Basic {base64.b64encode(credential.secret.encode()).decode()}"}


def request_url(credential: Credential | None, url: str) -> str:
    """Return the URL to request: `url`, with the token in its path if the credential is one."""
    if credential is None or credential.kind != "token":
        return url
    return credential.authenticated(url)


def redact(text: str, credentials: Iterable[Credential | None] = ()) -> str:
    """Remove credentials from URLs in `text`, and the given secrets anywhere in it."""
    for credential in credentials:
        if credential is None:
            continue
        _, _, password = credential.secret.rpartition(":")
        for secret in {credential.secret, password}:
            if len(secret) > 3:
                text = text.replace(quote(secret, safe=""), "***").replace(secret, "***")
    return _QUERY_SECRET.sub(r"\1***", without_credentials(text))


def refuse_ambiguous(credentials: Mapping[str, Credential | None]) -> None:
    """Refuse URLs that rattler cannot tell apart: it knows host and path, not scheme and port."""
    for channel, credential in credentials.items():
        if credential is None:
            continue
        mine = urlsplit(channel)
        for other in credentials:
            theirs = urlsplit(other)
            if (
                theirs.hostname == mine.hostname
                and (theirs.scheme, theirs.netloc) != (mine.scheme, mine.netloc)
                and f"{theirs.path}/".startswith(f"{mine.path}/")
            ):
                raise InvalidInputError(
                    f"{other} and {channel} have the same host and path; the credential of the "
                    "second could be sent to the first.",
                    hint="Write the channel with the same scheme and port as its credential.",
                )
