"""Client of the server's REST API: which environments this machine should have.

Only valid answers of the server count. An answer of a proxy, of a wrong address or of a failing
server is an error, so that nothing is removed because of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx

from condastore import __version__
from condastore.agent.plan import Name, Recipe, Wanted, WantedBuild, parse_environments
from condastore.errors import (
    AccessDeniedError,
    InvalidInputError,
    LinkError,
    NotFoundError,
    NotSignedInError,
    StoreError,
    UnavailableError,
)
from environments.domain.lock import Lock
from environments.domain.names import Credential
from environments.domain.records import CondaPackage, PypiPackage
from environments.engine.network import addresses

#: Of the answers that this program understands.
VERSION = 1
_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_UNREACHABLE = "Is the address right, and is the server running?"
#: What the server says by these codes is its last word on what was asked.
_REFUSALS: Mapping[str, type[StoreError]] = {
    "not-found": NotFoundError,
    "access-denied": AccessDeniedError,
    "not-signed-in": NotSignedInError,
    "token-invalid": NotSignedInError,
}


def permit_every_address() -> None:
    """Allow requests to every address to which the server redirects, such as its object store."""
    addresses.install(lambda: addresses.UNRESTRICTED)


class Server:
    """A condastore server, with a token, or without one for public environments."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.token = token
        headers = {"User-Agent": f"condastore-sync/{__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT)
        self._known: dict[str, tuple[str, Mapping[str, Wanted]]] = {}  # namespace: ETag, answer

    def close(self) -> None:
        self._http.close()

    def credentials(self, url: str) -> Credential | None:
        """As the engine asks for them: the token, for this server alone, in a header."""
        own = Credential(url_prefix=self.url, kind="basic", secret=f"condastore:{self.token}")
        return own if self.token and own.covers(url) else None

    def environments(self, namespace: str) -> Mapping[str, Wanted]:
        """What the folders of a namespace are to hold, as far as one may have it.

        Raises:
            NotFoundError, AccessDeniedError, NotSignedInError: the server says that one may not.
            UnavailableError: it said nothing that can be relied on.
        """
        etag, known = self._known.get(namespace, ("", {}))
        headers = {"If-None-Match": etag} if etag else {}
        answer = self._get(f"/api/envs/{quote(namespace, safe='')}", headers)
        if etag and answer.status_code == httpx.codes.NOT_MODIFIED:
            return known
        try:
            found = parse_environments(self._document(answer))
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange(answer) from error
        self._known[namespace] = answer.headers.get("ETag", ""), found
        return found

    def recipe(self, name: Name, build: WantedBuild, platform: str) -> Recipe:
        """What the folder of a build is made from.

        Raises:
            LinkError: the build has nothing for this platform.
            As `environments`.
        """
        if platform not in build.platforms:
            raise LinkError(
                f"Build {build.number} is not for {platform}, but for {', '.join(build.platforms)}."
            )
        path = f"/api/envs/{name.namespace}/{name.environment}/{build.number}/lock.json"
        answer = self._get(f"{path}?platform={platform}", {})
        document = self._document(answer)
        try:
            part = Lock.from_json(document["lock"]).on(platform)
            if part is None or document["digest"] != build.lock:
                raise self._strange(answer)
            return Recipe(
                lock=part,
                requested=tuple(map(str, document["requested"])),
                variables={str(key): str(value) for key, value in document["variables"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._strange(answer) from error

    def packages(
        self, name: Name, build: WantedBuild, packages: Sequence[CondaPackage]
    ) -> list[CondaPackage]:
        """Return the packages, with URLs in the channel of the build."""
        return [
            replace(one, url=self._channel(name, build, one.subdir, one.file_name))
            for one in packages
        ]

    def wheels(
        self, name: Name, build: WantedBuild, wheels: Sequence[PypiPackage]
    ) -> list[PypiPackage]:
        return [
            replace(one, url=self._channel(name, build, "wheels", one.file_name)) for one in wheels
        ]

    def _channel(self, name: Name, build: WantedBuild, subdir: str, file_name: str) -> str:
        parts = (name.namespace, name.environment, str(build.number), subdir, file_name)
        return f"{self.url}/channel/{'/'.join(quote(part, safe='') for part in parts)}"

    def _get(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        try:
            return self._http.get(path, headers=headers)
        except httpx.TimeoutException as error:
            raise UnavailableError(
                f"{self.url} does not answer in time.", hint=_UNREACHABLE
            ) from error
        except httpx.HTTPError as error:
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise UnavailableError(
                f"{self.url} cannot be reached: {reason}.", hint=_UNREACHABLE
            ) from error

    def _document(self, answer: httpx.Response) -> dict[str, Any]:
        """The JSON of an answer; an error for everything else."""
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        try:
            document = answer.json() if kind.endswith("json") else None
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self._strange(answer)
        if answer.status_code == httpx.codes.OK:
            if document.get("version") != VERSION:
                raise InvalidInputError(
                    f"{self.url} speaks another version of this protocol.",
                    hint="Install the version of condastore that the server has.",
                )
            return document
        if kind != "application/problem+json" or answer.is_server_error:
            raise self._strange(answer)
        refusal = _REFUSALS.get(str(document.get("code")), UnavailableError)
        raise refusal(str(document.get("detail") or "The server refused."))

    def _strange(self, answer: httpx.Response) -> UnavailableError:
        status = answer.status_code
        if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
            return UnavailableError(f"{self.url} is not ready: HTTP status {status}.")
        if answer.is_redirect:
            location = answer.headers.get("Location", "elsewhere")
            return UnavailableError(f"{self.url} points to {location}: sign in there.")
        return UnavailableError(
            f"{self.url} does not answer like a condastore server (HTTP status {status})."
        )
