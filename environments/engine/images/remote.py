"""Client of other container registries: pull and push images (OCI distribution 1.1)."""

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
#: As in the specification. So no part can be `..`, with which a URL could leave the allowed path.
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?P<insecure>http://)?(?P<host>[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?)"
    rf"/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT = httpx.Timeout(30, read=60)
#: Statuses of a request that may succeed later.
_LATER = (
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.TOO_EARLY,
    httpx.codes.TOO_MANY_REQUESTS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """User name and password for a registry."""

    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        user, colon, password = text.partition(":")
        if not colon:
            raise InvalidInputError("Write the login of a registry as user:password.")
        return cls(user=user, password=password)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image such as `registry.example.org/team/debian:12`; with `http://` in front: no TLS."""

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
                f"{text!r:.200} is not the name of an image in a registry.",
                hint="Write registry.example.org/name:tag, or http://host:port/name:tag (no TLS).",
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
    """Response of a registry, read completely; for documents only."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Repository:
    """Client of a repository in another registry; signs in when required. A context manager.

    Its requests, also after redirects and for the sign-in, go only to what `within` permits; the
    default is the process's guard.
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
        """Send a request; `path` is relative to the repository, or a URL from the registry.

        Raises:
            UnavailableError, AccessDeniedError, NotFoundError, InvalidInputError: by the status.
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
        raise AssertionError("the second attempt returns")

    def _is_its_own(self, url: str) -> bool:
        """Return True for URLs on the registry's host, which alone may get the credentials."""
        own = httpx.URL(self.reference.address)
        requested = httpx.URL(url)
        return (requested.scheme, requested.host, requested.port) == (
            own.scheme,
            own.host,
            own.port,
        )

    def _ask(self, method: str, url: str, **options: Any) -> Answer:
        content = b""
        try:
            with self._client.stream(method, url, **options) as answer:
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > LARGEST_DOCUMENT:
                        raise InvalidInputError(
                            f"{self.reference.host} sent more than {LARGEST_DOCUMENT:,} bytes."
                        )
        # A stream that was already sent cannot be sent again after a redirect.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            reason = redact(str(error) or type(error).__name__)
            raise UnavailableError(f"{self.reference.host} does not respond: {reason}") from error
        return Answer(status=answer.status_code, headers=answer.headers, content=content)

    def _good(self, answer: Answer) -> Answer:
        status, host = answer.status, self.reference.host
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AccessDeniedError(
                f"{host} denies access to {self.reference.name}: {_error_text(answer)}.",
                hint="Check the login for this registry, and its permissions.",
            )
        if status == httpx.codes.NOT_FOUND:
            raise NotFoundError(f"{self.reference} does not exist: {_error_text(answer)}.")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status in _LATER:
            raise UnavailableError(f"{host} responded with status {status}: {_error_text(answer)}.")
        if status >= httpx.codes.BAD_REQUEST:  # a retry would fail as well
            raise InvalidInputError(
                f"{host} responded with status {status}: {_error_text(answer)}."
            )
        return answer

    def _sign_in(self, challenge: str) -> None:
        kind, _, rest = challenge.partition(" ")
        login = (self._login.user, self._login.password) if self._login else None
        if kind.lower() == "basic" and login:
            pair = base64.b64encode(":".join(login).encode()).decode()
            self._authorization = f"Basic {pair}"
            return
        fields = dict(_CHALLENGE.findall(rest))
        if kind.lower() != "bearer" or not fields.get("realm", "").startswith(
            ("http://", "https://")
        ):
            raise AccessDeniedError(
                f"{self.reference.host} requires a sign-in"
                + (" of an unsupported kind." if login else ", and no login is stored for it."),
                hint="Store a login: condastore image login REGISTRY.",
            )
        scope = f"repository:{self.reference.name}:{self._actions}"
        query = {"scope": scope, "service": fields.get("service", "")}
        answer = self._ask("GET", fields["realm"], params=query, auth=login)
        document = read_json(self._good(answer).content, "the response of the sign-in")
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
        """Download a blob to `to`, and check its digest."""
        requested = digest_of(descriptor)
        digest, left = hashlib.sha256(), _size_of(descriptor)
        self.request("HEAD", f"blobs/sha256:{requested}")  # signs in if required, before the stream
        headers = {"Authorization": self._authorization} if self._authorization else {}
        url = f"{self.reference.address}/blobs/sha256:{requested}"
        try:
            with (
                to.open("xb") as file,
                self._client.stream("GET", url, headers=headers) as answer,
            ):
                if answer.is_error:
                    raise UnavailableError(
                        f"{self.reference.host} responded with status {answer.status_code}."
                    )
                for part in answer.iter_bytes(CHUNK):
                    digest.update(part)
                    file.write(part)
                    left -= len(part)
                    if left < 0:
                        raise DownloadError("The registry sent more bytes than the manifest says.")
        except httpx.HTTPError as error:
            reason = redact(str(error) or type(error).__name__)
            raise DownloadError(f"{self.reference.host} stopped sending: {reason}") from error
        _compare(digest.hexdigest(), requested)

    def push_blob(self, sha256: str, size: int, parts: Callable[[], Iterator[bytes]]) -> bool:
        """Upload a blob if the registry does not have it; return False if it does."""
        if self.has(f"blobs/sha256:{sha256}"):
            return False
        location = self.request("POST", "blobs/uploads/").headers.get("location", "")
        if not location:
            raise UnavailableError(f"{self.reference.host} gave no address for the upload.")
        url = httpx.URL(urljoin(self.reference.address, location)).copy_merge_params(
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
        raise DownloadError("The registry sent bytes that differ from the digest in the manifest.")


def _error_text(answer: Answer) -> str:
    try:
        errors = parse_json(answer.content).get("errors") or []
        reason = "; ".join(str(one.get("message") or one.get("code")) for one in errors)[:500]
    except (ValueError, AttributeError, TypeError):
        reason = ""
    return reason.rstrip(".") or httpx.codes.get_reason_phrase(answer.status)


def pull(
    reference: Reference,
    *,
    platform: str,
    folder: Path,
    login: Login | None = None,
    within: Guard | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> LoadedImage:
    """Pull the image of one platform, with its layers in the new folder `folder`.

    Args:
        limits: limits of what each layer may unpack to, and of the total compressed size.

    Raises:
        NotFoundError: the image does not exist, or not for this platform.
        InvalidInputError, AccessDeniedError, UnavailableError: see `Repository.request`.
    """
    folder.mkdir(parents=True)
    with Repository(reference, login=login, within=within) as repository:
        document = repository.manifest(reference.digest or reference.tag)
        if "manifests" in document:
            document = repository.manifest(_choose(document, platform, reference))
        config = folder / "config"
        described, listed = document.get("config") or {}, document.get("layers") or ()
        if _size_of(described) > LARGEST_DOCUMENT:
            raise InvalidInputError(
                f"The config of the image is larger than {LARGEST_DOCUMENT:,} bytes."
            )
        if sum(map(_size_of, listed)) > limits.unpacked:
            raise InvalidInputError(f"The image is larger than {limits.unpacked:,} bytes.")
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
    """Return the size in a descriptor, in bytes."""
    size = descriptor.get("size") if isinstance(descriptor, Mapping) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidInputError("A descriptor of the image has no valid size.")
    return size


def _choose(index: Mapping[str, Any], platform: str, reference: Reference) -> str:
    for one in index.get("manifests") or ():
        where = one.get("platform") or {}
        found = conda_platform(where.get("architecture", ""), where.get("variant", ""))
        if where.get("os") == "linux" and found == platform:
            return f"sha256:{digest_of(one)}"
    raise NotFoundError(f"{reference} has no image for {platform}.")
