"""Project pages of Python indexes (PEP 503 and PEP 691).

An imported lock names files of PyPI by URL. A file counts as a package of an index only if the
index itself links to this URL with this sha256.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx
from packaging.utils import canonicalize_name

from condastore.errors import ChannelNotAllowedError, ChannelUnavailableError, StoreError
from environments.domain.json_text import parse_json
from environments.domain.names import without_credentials
from environments.domain.urls import canonical_or_same
from environments.engine.channels.credentials import (
    CredentialSource,
    no_credentials,
    redact,
    request_headers,
    request_url,
)
from environments.engine.network import bounded_reading, clients
from environments.engine.network.bounded_reading import ACCEPT_ENCODING, ReadLimits, TransferError

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
#: The largest pages of pypi.org have some 20 MB.
#: Size limit of a page; the largest pages of pypi.org have about 20 MB.
PAGE_BYTES = 64 << 20
DEFAULT_PAGE_LIMITS = ReadLimits(size=PAGE_BYTES)
#: Hosts of an index's files, beside those that its pages link to.
_FILE_HOSTS = {"https://pypi.org": "https://files.pythonhosted.org"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedFile:
    """A file linked from a page of an index. Missing values are "", 0 or None."""

    file_name: str
    url: str  # canonical if it has a canonical form
    sha256: str
    size: int
    requires_python: str
    uploaded: int | None  # milliseconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project in the first index that has it, with the requested files."""

    index: str
    files: Mapping[str, IndexedFile]  # by file name
    hosts: frozenset[str]  # hosts of all of its files

    def holds(self, url: str) -> bool:
        """Return True if `url` is on a host of this index's files."""
        return _origin(url) in self.hosts | file_hosts(self.index)


def file_hosts(index: str) -> frozenset[str]:
    """Return the hosts of an index's files that are known from its URL."""
    host = _origin(index)
    return frozenset({host, _FILE_HOSTS.get(host, host)})


class PythonIndexes:
    """The installation's Python indexes, in the order of priority."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        credentials: CredentialSource = no_credentials,
        limits: ReadLimits = DEFAULT_PAGE_LIMITS,
        parallel: int = 4,
    ) -> None:
        """
        Args:
            limits: limits of each page; its size is also limited by `PAGE_BYTES`.
        """
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._credentials = credentials
        if limits.size > PAGE_BYTES:
            limits = replace(limits, size=PAGE_BYTES, size_setting="the limit of an index page")
        self._limits = limits
        self._parallel = parallel

    def hold(self, url: str) -> bool:
        """Return True if `url` is on a host of the files of one of the indexes."""
        return any(_origin(url) in file_hosts(index) for index in self.urls)

    async def projects(self, wanted: Mapping[str, Collection[str]]) -> dict[str, Project | None]:
        """Return each project from the first index that has it, as solvers do.

        The caller limits the total time.

        Args:
            wanted: file names by normalized project name.
        Raises:
            ChannelUnavailableError: an index does not respond, is too slow, or a page is too
                large.
            ChannelNotAllowedError: an index denies access.
        """
        requested = {url: self._credentials(url) for url in self.urls}
        limit = asyncio.Semaphore(self._parallel)
        async with clients.async_client(
            timeout=self._limits.timeout,
            headers={
                "User-Agent": "condastore",
                "Accept": _ACCEPT,
                "Accept-Encoding": ACCEPT_ENCODING,
            },
        ) as client:

            async def find(name: str) -> Project | None:
                async with limit:
                    for index in self.urls:
                        credential = requested[index]
                        url = request_url(credential, f"{index}/{canonicalize_name(name)}/")
                        headers = request_headers(credential)
                        files = await _page(client, url, headers, self._limits)
                        if files is not None:
                            return _project(index, files, wanted[name])
                return None

            ordered = sorted(wanted)
            found = await asyncio.gather(*map(find, ordered), return_exceptions=True)
        for fault in found:
            if isinstance(fault, BaseException):
                raise fault
        return {
            name: project
            for name, project in zip(ordered, found, strict=True)
            if not isinstance(project, BaseException)
        }


def _project(index: str, files: Iterable[IndexedFile], wanted: Collection[str]) -> Project:
    hosts: set[str] = set()
    retained: dict[str, IndexedFile] = {}
    for file in files:
        hosts.add(_origin(file.url))
        if file.file_name in wanted:
            retained[file.file_name] = file
    return Project(index=index, files=retained, hosts=frozenset(hosts))


async def _page(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str], limits: ReadLimits
) -> list[IndexedFile] | None:
    """Return the links of a project's page; None if there is no such page."""
    shown = redact(url)
    content = bytearray()
    try:
        async with bounded_reading.stream(
            client, "GET", url, headers=headers, limits=limits
        ) as answer:
            if answer.status_code in (404, 410):
                return None
            if answer.status_code in (401, 403):
                raise ChannelNotAllowedError(
                    f"The Python index denies access to {shown}.",
                    hint="Ask an administrator to store credentials for this index.",
                )
            if answer.is_error:
                raise _unavailable(shown, f"status {answer.status_code}")
            async for part in bounded_reading.read(answer, limits):
                content += part
            kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            base = str(answer.url)
    except TransferError as error:
        raise _unavailable(shown, f"it {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unavailable(shown, redact(str(error) or type(error).__name__)) from error
    try:
        if kind in (_JSON, "application/json"):
            return _from_json(parse_json(bytes(content)), base)
        return _from_html(content.decode(errors="replace"), base)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unavailable(shown, "the page is malformed") from error


def _unavailable(url: str, why: str) -> StoreError:
    return ChannelUnavailableError(f"The Python index cannot be read at {url}: {why}.")


def _from_json(document: Mapping[str, object], base: str) -> list[IndexedFile]:
    found = []
    entries: Any = document["files"]
    for entry in entries:
        uploaded = entry.get("upload-time")
        found.append(
            IndexedFile(
                file_name=str(entry["filename"]),
                url=_plain(urljoin(base, str(entry["url"]))),
                sha256=str((entry.get("hashes") or {}).get("sha256") or "").lower(),
                size=int(entry.get("size") or 0),
                requires_python=str(entry.get("requires-python") or ""),
                uploaded=_moment(uploaded) if isinstance(uploaded, str) else None,
            )
        )
    return found


def _moment(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


def _from_html(text: str, base: str) -> list[IndexedFile]:
    page = _Links()
    page.feed(text)
    page.close()
    found = []
    for href, requires_python in page.links:
        url, _, fragment = urljoin(urljoin(base, page.base), href).partition("#")
        kind, _, digest = fragment.partition("=")
        found.append(
            IndexedFile(
                file_name=unquote(urlsplit(url).path.rsplit("/", 1)[-1]),
                url=_plain(url),
                sha256=digest.lower() if kind == "sha256" else "",
                size=0,
                requires_python=requires_python,
                uploaded=None,
            )
        )
    return found


class _Links(HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.links: list[tuple[str, str]] = []  # (href, data-requires-python)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "base" and not self.base:
            self.base = attributes.get("href") or ""
        elif tag == "a" and attributes.get("href"):
            self.links.append(
                (attributes["href"] or "", attributes.get("data-requires-python") or "")
            )


def _plain(url: str) -> str:
    return canonical_or_same(without_credentials(url.partition("#")[0]))


def _origin(url: str) -> str:
    scheme, _, rest = canonical_or_same(url).partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
