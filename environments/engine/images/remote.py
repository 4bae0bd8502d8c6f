"""How is an image fetched from another registry, and pushed to one? (OCI distribution 1.1)"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin

import httpx

from condastore.errors import (
    AccessDeniedError,
    DownloadError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from environments.domain.images import INDEX, MANIFEST, conda_platform
from environments.domain.json_text import parse_json
from environments.domain.unpacking import DEFAULT_LIMITS, Limits
from environments.engine.channels.credentials import redact
from environments.engine.images.archives import CHUNK
from environments.engine.images.loading import (
    LARGEST_DOCUMENT,
    LoadedImage,
    digest_of,
    image_of,
    read_json,
)
from environments.engine.network import clients
from environments.engine.network.addresses import Guard

_MANIFESTS = (
    MANIFEST,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
#: As the specification has it. So no part is `..`, which a URL would take for a way out of what is
#: allowed.
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?P<insecure>http://)?(?P<host>[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?)"
    rf"/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT = httpx.Timeout(30, read=60)
#: Refusals of a request that may be taken later.
_LATER = (
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.TOO_EARLY,
    httpx.codes.TOO_MANY_REQUESTS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        user, colon, password = text.partition(":")
        if not colon:
            raise InvalidInputError("The login of a registry is written user:password.")
        return cls(user=user, password=password)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`registry.example.org/team/debian:12`; with `http://` in front where there is no TLS."""

    host: str
    name: str
    tag: str
    digest: str = ""  # sha256:...
    insecure: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        found = _REFERENCE.fullmatch(text.strip())
        if found is None or ("." not in found["host"] and ":" not in found["host"]):
            raise InvalidInputError(
                f"{text!r:.200} names no image of a registry.",
                hint="Write registry.example.org/name:tag; for one without TLS http://host:port/...",
            )
        return cls(
            host=found["host"],
            name=found["name"],
            tag=found["tag"] or "latest",
            digest=found["digest"] or "",
            insecure=bool(found["insecure"]),
        )

    @property
    def address(self) -> str:
        host = "registry-1.docker.io" if self.host == "docker.io" else self.host
        return f"{'http' if self.insecure else 'https'}://{host}/v2/{self.name}"

    def __str__(self) -> str:
        return f"{self.host}/{self.name}:{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a registry answered, read whole: documents only."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Repository:
    """A repository of another registry; signs in as it asks. A context manager.

    `within`: what may be reached, also by redirects and for the sign-in; the process's guard by
    default.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        actions: str = "pull",
        login: Login | None = None,
        within: Guard | None = None,
    ) -> None:
        self.reference, self._login, self._actions = reference, login, actions
        self._authorization = ""
        self._client = clients.client(within=within, timeout=_TIMEOUT, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, **options: Any) -> Answer:
        """`path` is below the repository, or a URL that the registry gave.

        Raises:
            UnavailableError, AccessDeniedError, NotFoundError
        """
        url = urljoin(f"{self.reference.address}/", path)
        make: Callable[[], Any] | None = options.pop("body", None)
        headers = dict(options.pop("headers", {}))
        for attempt in (1, 2):
            if self._authorization and self._is_its_own(url):
                headers["Authorization"] = self._authorization
            content = {"content": make()} if make else {}
            answer = self._ask(method, url, headers=headers, **content, **options)
            if answer.status != httpx.codes.UNAUTHORIZED or attempt == 2:
                return self._good(answer)
            self._sign_in(answer.headers.get("www-authenticate", ""))
        raise AssertionError("the second attempt is answered")

    def _is_its_own(self, url: str) -> bool:
        """Is it at the registry itself? What is shown there is nobody else's to see."""
        own = httpx.URL(self.reference.address)
        asked = httpx.URL(url)
        return (asked.scheme, asked.host, asked.port) == (own.scheme, own.host, own.port)

    def _ask(self, method: str, url: str, **options: Any) -> Answer:
        content = b""
        try:
            with self._client.stream(method, url, **options) as answer:
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > LARGEST_DOCUMENT:
                        raise InvalidInputError(
                            f"{self.reference.host} sends more than a document may have."
                        )
        # A stream that was sent already cannot be sent to where a redirection leads.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            told = redact(str(error) or type(error).__name__)
            raise UnavailableError(f"{self.reference.host} does not answer: {told}") from error
        return Answer(status=answer.status_code, headers=answer.headers, content=content)

    def _good(self, answer: Answer) -> Answer:
        status, host = answer.status, self.reference.host
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AccessDeniedError(
                f"{host} refuses {self.reference.name}: {_said(answer)}.",
                hint="Is the login for it right, and may it do this?",
            )
        if status == httpx.codes.NOT_FOUND:
            raise NotFoundError(f"{self.reference} is not there: {_said(answer)}.")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status in _LATER:
            raise UnavailableError(f"{host} answers {status}: {_said(answer)}.")
        if status >= httpx.codes.BAD_REQUEST:  # asked again, it would say the same
            raise InvalidInputError(f"{host} answers {status}: {_said(answer)}.")
        return answer

    def _sign_in(self, challenge: str) -> None:
        kind, _, rest = challenge.partition(" ")
        login = (self._login.user, self._login.password) if self._login else None
        if kind.lower() == "basic" and login:
            pair = base64.b64encode(":".join(login).encode()).decode()
            self._authorization = f"Basic {pair}"
            return
        asked = dict(_CHALLENGE.findall(rest))
        if kind.lower() != "bearer" or not asked.get("realm", "").startswith(
            ("http://", "https://")
        ):
            raise AccessDeniedError(
                f"{self.reference.host} wants a sign-in"
                + (" of another kind." if login else ", and there is no login for it."),
                hint="Keep one: condastore image login REGISTRY.",
            )
        scope = f"repository:{self.reference.name}:{self._actions}"
        query = {"scope": scope, "service": asked.get("service", "")}
        answer = self._ask("GET", asked["realm"], params=query, auth=login)
        document = read_json(self._good(answer).content, "the answer of the sign-in")
        token = document.get("token") or document.get("access_token") or ""
        self._authorization = f"Bearer {token}"

    def has(self, path: str) -> bool:
        try:
            self.request("HEAD", path)
        except NotFoundError:
            return False
        return True

    def manifest(self, which: str) -> dict[str, Any]:
        answer = self.request(
            "GET", f"manifests/{which}", headers={"Accept": ", ".join(_MANIFESTS)}
        )
        content = answer.content
        if which.startswith("sha256:"):
            _compare(hashlib.sha256(content).hexdigest(), which)
        return read_json(content, "the manifest")

    def fetch(self, descriptor: Mapping[str, Any], to: Path) -> None:
        """Write a blob to `to`, held against its digest."""
        wanted = digest_of(descriptor)
        digest, left = hashlib.sha256(), _size_of(descriptor)
        self.request("HEAD", f"blobs/sha256:{wanted}")  # signs in, before what is streamed
        headers = {"Authorization": self._authorization} if self._authorization else {}
        url = f"{self.reference.address}/blobs/sha256:{wanted}"
        try:
            with (
                to.open("xb") as file,
                self._client.stream("GET", url, headers=headers) as answer,
            ):
                if answer.is_error:
                    raise UnavailableError(f"{self.reference.host} answers {answer.status_code}.")
                for part in answer.iter_bytes(CHUNK):
                    digest.update(part)
                    file.write(part)
                    left -= len(part)
                    if left < 0:
                        raise DownloadError("The registry sends more bytes than it named.")
        except httpx.HTTPError as error:
            told = redact(str(error) or type(error).__name__)
            raise DownloadError(f"{self.reference.host} stopped sending: {told}") from error
        _compare(digest.hexdigest(), wanted)

    def push_blob(self, sha256: str, size: int, parts: Callable[[], Iterator[bytes]]) -> bool:
        """Send a blob that is missing there; False where it is there already."""
        if self.has(f"blobs/sha256:{sha256}"):
            return False
        place = self.request("POST", "blobs/uploads/").headers.get("location", "")
        if not place:
            raise UnavailableError(f"{self.reference.host} does not say where to send blobs.")
        url = httpx.URL(urljoin(self.reference.address, place)).copy_merge_params(
            {"digest": f"sha256:{sha256}"}
        )
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self.request("PUT", str(url), body=parts, headers=headers)
        return True

    def push_manifest(self, which: str, content: bytes, media_type: str) -> None:
        headers = {"Content-Type": media_type}
        self.request("PUT", f"manifests/{which}", content=content, headers=headers)


def _compare(found: str, wanted: str) -> None:
    if found != wanted.removeprefix("sha256:"):
        raise DownloadError("The registry sent other bytes than it named.")


def _said(answer: Answer) -> str:
    try:
        errors = parse_json(answer.content).get("errors") or []
        told = "; ".join(str(one.get("message") or one.get("code")) for one in errors)[:500]
    except (ValueError, AttributeError, TypeError):
        told = ""
    return told.rstrip(".") or httpx.codes.get_reason_phrase(answer.status)


def pull(
    reference: Reference,
    *,
    platform: str,
    folder: Path,
    login: Login | None = None,
    within: Guard | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> LoadedImage:
    """The image of one platform, its layers in the new `folder`.

    Args:
        limits: what each layer may unpack to, and all of them together be, as they are sent.

    Raises:
        NotFoundError: it is not there, or not for this platform.
        InvalidInputError, AccessDeniedError, UnavailableError
    """
    folder.mkdir(parents=True)
    with Repository(reference, login=login, within=within) as repository:
        document = repository.manifest(reference.digest or reference.tag)
        if "manifests" in document:
            document = repository.manifest(_choose(document, platform, reference))
        config = folder / "config"
        described, listed = document.get("config") or {}, document.get("layers") or ()
        if _size_of(described) > LARGEST_DOCUMENT:
            raise InvalidInputError("The config of the image is too large.")
        if sum(map(_size_of, listed)) > limits.unpacked:
            raise InvalidInputError(f"The image has more than {limits.unpacked:,} bytes.")
        repository.fetch(described, config)
        layers: list[tuple[Path, str]] = []
        for position, layer in enumerate(listed):
            path = folder / f"blob-{position}"
            repository.fetch(layer, path)
            layers.append((path, str(layer.get("mediaType"))))
        image = image_of(config.read_bytes(), layers, folder=folder, limits=limits)
    if image.platform != platform:
        raise NotFoundError(f"{reference} is for {image.platform}, not for {platform}.")
    return image


def _size_of(descriptor: Any) -> int:
    """Return the bytes that a descriptor names."""
    size = descriptor.get("size") if isinstance(descriptor, Mapping) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidInputError("The image names something without its size.")
    return size


def _choose(index: Mapping[str, Any], platform: str, reference: Reference) -> str:
    for one in index.get("manifests") or ():
        where = one.get("platform") or {}
        found = conda_platform(where.get("architecture", ""), where.get("variant", ""))
        if where.get("os") == "linux" and found == platform:
            return f"sha256:{digest_of(one)}"
    raise NotFoundError(f"{reference} has no image for {platform}.")
