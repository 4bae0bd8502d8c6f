"""Requests to every route of the URL configuration, with hostile paths, headers and bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.regex_helper import normalize

from tests.security import hostile_values

#: Part of a URL -> whose values fit it, where the name is not the same.
MEANT = {
    **dict.fromkeys(("name", "file_name"), "fileName"),
    **dict.fromkeys(("object_id", "pk", "user_id", "key"), "id"),
}
#: Values that lead somewhere for any tenant, by the name of the part.
FITTING: dict[str, tuple[str, ...]] = {
    "subdir": ("noarch", "linux-64"),
    "name": (
        *("repodata.json", "repodata.json.zst", "current_repodata.json", "explicit.txt"),
        *("environment.yml", "conda-lock.yml", "env.tar.zst", "env.tar.gz", "image"),
        *("provenance.json", "sbom.cdx.json", "shards/x", "repodata_shards.msgpack.zst"),
    ),
    "day": ("2026-01-01",),
    "app_label": ("environments", "accounts", "auth"),
    "content_type_id": ("1", "7"),
}
METHODS = ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
#: Names of parameters that some route reads.
PARAMETERS = (
    *("search", "q", "p", "o", "e", "all", "_facets", "_popup", "_to_field", "page", "kind", "ids"),
    *("back", "n", "last", "artifactType", "platform", "code", "next", "scope", "service"),
    *("account", "client_id", "since", "until", "actor", "action", "target", "namespace"),
    *("refused", "filter", "startIndex", "count", "sortBy", "sortOrder", "attributes"),
    *("excludedAttributes", "_changelist_filters", "id__in", "namespace__name__startswith"),
    *("environment__namespace__name__contains", "user__password__startswith", "pk__gt"),
)
HEADERS: dict[str, tuple[str, ...]] = {
    "HTTP_RANGE": (
        *("bytes=0-0", "bytes=-1", "bytes=5-2", "bytes=0-0,2-3", "bytes=", "bytes=-", "lines=0-1"),
        *("bytes=" + "9" * 400 + "-", "bytes=\xb2-", "bytes=-0", "bytes=0-" + "9" * 40),
    ),
    "HTTP_IF_NONE_MATCH": ("*", '"x"', "W/", '"' * 99, ",,,", '"\xff"'),
    "HTTP_IF_MODIFIED_SINCE": ("x", "Thu, 01 Jan 0001 00:00:00 GMT", "Mon, 99 Foo 2026"),
    "HTTP_IF_RANGE": ("x", '"x"'),
    "HTTP_ACCEPT": (
        *("*/*", "text/html", "application/json", "", ";", "text/html;q=x", "a/b/c", "\xff"),
        *("application/vnd.oci.image.layer.v1.tar+zstd", "text/event-stream", ",".join("a" * 500)),
    ),
    "HTTP_ACCEPT_ENCODING": ("gzip;q=\xb2", "zstd", "*;q=0", "br;q=x"),
    "HTTP_ACCEPT_LANGUAGE": ("xx-" + "y" * 400, "en;q=\xb2", "*"),
    "HTTP_CONTENT_DIGEST": ("sha-256=:x:", "x", "sha-256=:" + "A" * 44 + ":"),
    "HTTP_REPR_DIGEST": ("sha-256=x",),
    "HTTP_CONTENT_ENCODING": ("gzip", "zstd", "x"),
    "HTTP_PREFER": ("respond-async", "wait=0", "wait=-1", "wait=x"),
    "HTTP_AUTHORIZATION": (
        *("Bearer", "Bearer \0", "Bearer \xff", "Basic", "Basic x", "Basic /w==", "Basic Og=="),
        *("Basic " + "A" * 4_000, "Digest x", "token x", "Negotiate x", " "),
    ),
    "HTTP_COOKIE": ("sessionid=x", "sessionid=\0", "=;=", "csrftoken=" + "x" * 64, "\xff=1"),
    "HTTP_X_FORWARDED_FOR": ("x", "1.2.3.4, ::1", "\xff", ""),
    "HTTP_X_FORWARDED_PROTO": ("https", "x"),
    "HTTP_X_REQUEST_ID": ("x" * 400, "a\r\nb", "\xff"),
    "HTTP_HOST": ("evil.example.org", "[", "localhost:x", ""),
    "HTTP_ORIGIN": ("null", "http://[", "https://evil.example.org"),
    "HTTP_REFERER": ("http://[", "x"),
    "CONTENT_LENGTH": ("-1", "\xb2", "9" * 40, "x"),
    "HTTP_TRANSFER_ENCODING": ("x",),
    "HTTP_EXPECT": ("x",),
    "HTTP_X_CSRFTOKEN": ("x",),
    "HTTP_X_HTTP_METHOD_OVERRIDE": ("DELETE",),
}
CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-99",
    "application/json; charset=utf-16",
    "application/scim+json",
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=x",
    "multipart/form-data",
    "multipart/form-data; boundary=\xff",
    "multipart/form-data; boundary=x",
    "multipart/mixed; boundary=x",
    "text/plain",
    "application/octet-stream",
    "application/graphql",
    "",
    "/",
    "\xff",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route: its name, and its path as a format of its `parts`."""

    name: str
    path: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    body: bytes = b""

    def text(self) -> str:
        """All that the server may repeat."""
        headers = " ".join(f"{name}={value}" for name, value in self.headers.items())
        body = self.body[:2_000].decode("utf-8", "replace")
        return f"{self.method} {self.path}?{self.query} {headers} {self.content_type} {body}"


def routes(patterns: Any = None, path: str = "/", name: str = "") -> Iterator[Route]:
    """All routes below `patterns`."""
    for one in get_resolver().url_patterns if patterns is None else patterns:
        # What Django itself makes of it, to write URLs.
        (form, parts), *_ = normalize(one.pattern.regex.pattern)
        known = tuple(name for name in parts if f"%({name})s" in form)
        if isinstance(one, URLResolver):
            space = f"{name}{one.namespace}:" if one.namespace else name
            yield from routes(one.url_patterns, path + form, space)
        elif isinstance(one, URLPattern):
            full = path + form
            names = list(full.split("%(")[1:])
            yield Route(
                name=f"{name}{one.name or form}",
                path=full,
                parts=tuple(part.partition(")s")[0] for part in names) or known,
            )


@dataclass(kw_only=True)
class Requests:
    """Generates requests; see `graphql_documents.Documents`."""

    random: Random
    pools: Mapping[str, Sequence[Any]]
    hostile: float = 0.0

    def request(self, route: Route, method: str = "GET") -> Request:
        random = self.random
        path = self.path(route)
        query = ""
        if random.random() < max(0.2, self.hostile):
            pairs = [
                (random.choice(PARAMETERS), self._text()) for _ in range(random.randrange(1, 4))
            ]
            query = urlencode(pairs, errors="surrogatepass")
        headers: dict[str, str] = {}
        if random.random() < self.hostile:
            for name in random.sample(list(HEADERS), random.randrange(1, 3)):
                headers[name] = random.choice(HEADERS[name])
        content_type, body = "", b""
        if method in ("POST", "PUT", "PATCH", "DELETE", "PROPFIND"):
            content_type, body = self._content()
        return Request(
            method=method,
            path=path,
            query=query,
            headers=headers,
            content_type=content_type,
            body=body,
        )

    def path(self, route: Route) -> str:
        values = {
            part: quote(self._part(part), safe="", errors="surrogatepass") for part in route.parts
        }
        return route.path % values if values else route.path.replace("%%", "%")

    def _part(self, name: str) -> str:
        random = self.random
        if random.random() < self.hostile:
            return hostile_values.text(random)[:300] or "x"
        fitting = FITTING.get(name, ())
        known = self.pools.get(name) or self.pools.get(MEANT.get(name, "")) or ()
        pool = fitting if fitting and (not known or random.random() < 0.5) else known
        return str(hostile_values.one_of(pool, random)) if pool else "x"

    def _text(self) -> str:
        random = self.random
        if random.random() < self.hostile:
            return hostile_values.text(random)
        return str(random.choice(self.pools["text"]))

    def _content(self) -> tuple[str, bytes]:
        random = self.random
        kind = random.choice(CONTENT_TYPES)
        if random.random() < 0.5:
            fields = {random.choice(PARAMETERS): self._text() for _ in range(3)}
            fields |= {name: self._text() for name in ("name", "namespace", "action", "_save")}
            if "json" in kind:
                return kind, json.dumps(fields).encode()
            return "application/x-www-form-urlencoded", urlencode(
                fields, errors="surrogatepass"
            ).encode()
        return kind, hostile_values.body(random)
