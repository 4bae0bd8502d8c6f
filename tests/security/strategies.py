"""Hypothesis strategies for what strangers bring: URLs, packages, locks and environment files.

`generated(n)` gives the settings of a property: the same n examples each time, or with
CONDASTORE_FUZZ_SEED n times CONDASTORE_FUZZ_ROUNDS others (`make fuzz`).
"""

from __future__ import annotations

import json
import os
import string
import tarfile
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.environments.engine.packing import Entry, entry
from tests.security.hostile_values import TEXTS

_UNRESERVED = string.ascii_letters + string.digits + "-._~"


def generated(examples: int) -> settings:
    """Settings of a property with this many examples."""
    seeded = "CONDASTORE_FUZZ_SEED" in os.environ
    rounds = int(os.environ.get("CONDASTORE_FUZZ_ROUNDS", "1"))
    return settings(
        max_examples=examples * rounds,
        derandomize=not seeded,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# --- URLs -----------------------------------------------------------------------------------------

_label = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
_names = st.lists(_label, min_size=1, max_size=3).map(".".join)
_v4 = st.ip_addresses(v=4).map(str)
_v6 = st.integers(1 << 64, (1 << 128) - 1).map(lambda number: f"[{IPv6Address(number)}]")
_hosts = st.one_of(_names, _v4, _v6)
_ports = st.one_of(st.none(), st.integers(1, 65535))
_segment = st.text(_UNRESERVED + "!&(),;=:@+$", min_size=1, max_size=8)
_segments = st.lists(
    _segment.filter(lambda text: text not in (".", "..", "t")), min_size=1, max_size=4
)
resources = st.tuples(st.sampled_from(["http", "https"]), _hosts, _ports, _segments)


def plain_url(resource: tuple[str, str, int | None, list[str]]) -> str:
    scheme, host, port, segments = resource
    authority = host if port is None else f"{host}:{port}"
    return f"{scheme}://{authority}/" + "/".join(segments)


@st.composite
def respelt(draw: st.DrawFn, resource: tuple[str, str, int | None, list[str]]) -> str:
    """Another spelling of a resource: what servers and clients take for the same."""
    scheme, host, port, segments = resource
    host = draw(_host_spelt(host))
    default = {"http": 80, "https": 443}[scheme]
    written = "" if port is None else f":{'0' * draw(st.integers(0, 3))}{port}"
    if port in (None, default):
        written = draw(st.sampled_from(["", ":", f":{default}", f":00{default}"]))
    userinfo = draw(st.sampled_from(["", "@", "user@", "user:p%40ss@", "a@b@"]))
    slashes = st.integers(1, 3).map(lambda number: "/" * number)
    token = draw(st.sampled_from([[], [], ["t", "tk-1"]]))
    path = "".join(
        draw(slashes) + "".join(draw(_character_spelt(c)) for c in segment)
        for segment in [*token, *segments]
    )
    scheme = draw(st.sampled_from([scheme, scheme.upper(), scheme.title()]))
    return f"{scheme}://{userinfo}{host}{written}{path}" + draw(st.sampled_from(["", "/", "//"]))


def _character_spelt(character: str) -> st.SearchStrategy[str]:
    escape = f"%{ord(character):02x}"
    return st.sampled_from([character, character, character, escape, escape.upper()])


@st.composite
def _host_spelt(draw: st.DrawFn, host: str) -> str:
    if host.startswith("["):
        exploded = IPv6Address(host[1:-1]).exploded
        return draw(st.sampled_from([host, host.upper(), f"[{exploded}]"]))
    try:
        address = IPv4Address(host)
    except ValueError:
        spelt = "".join(draw(_character_spelt(c)) for c in host)
        return draw(st.sampled_from([spelt, host.upper(), f"{host}.", f"{spelt}."]))
    numbers = address.packed
    number = int(address)
    forms = [
        host,
        f"{number}",
        f"{number:#x}",
        f"0{number:o}",
        f"{numbers[0]}.{number & 0xFFFFFF}",
        f"{numbers[0]:#x}.{numbers[1]}.{number & 0xFFFF}",
        ".".join(f"0{part:o}" for part in numbers),
        f"[::ffff:{host}]",
        f"{host}.",
    ]
    return draw(st.sampled_from(forms))


# --- packages -------------------------------------------------------------------------------------

#: What a package must never reach; the test puts a file there and names it in `links`.
OUTSIDE = "OUTSIDE"
_FOLDERS = ("lib", "bin", "share", "d", "lib/d", "info", "conda-meta", "etc/conda/env_vars.d")
_NAMES = (
    "a",
    "b",
    "tool.py",
    "x.so",
    "state",
    "secret_key",
    ".hidden",
    "A",
    "\u00e9",
    "python3.11",
)
_PATHS = st.one_of(
    st.tuples(st.sampled_from(_FOLDERS), st.sampled_from(_NAMES)).map("/".join),
    st.sampled_from(_NAMES),
    st.sampled_from(_FOLDERS),
    st.sampled_from(
        (
            *("../escape", "lib/../../escape", "/abs", "./a", "a//b", "lib/", "d/../a", "a\nb"),
            *("info/index.json", "info/paths.json", "a" * 300, "x" + "/y" * 40),
        )
    ),
)
_TARGETS = st.sampled_from(
    (
        *("a", "lib/a", "../a", ".", "..", "../..", "../../../../../../..", "/", "/etc/passwd", ""),
        *(OUTSIDE, f"{OUTSIDE}/secret_key", "d", "../d", "lib/d/..", "a\0b", "x" * 300),
    )
)
_MODES = st.sampled_from((0o644, 0o755, 0, 0o777, 0o4755, 0o2755, 0o1777, 0o600, 0o444))
_KINDS = (
    *((tarfile.REGTYPE,) * 4),
    *((tarfile.SYMTYPE,) * 3),
    *(tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"9"),
)


@st.composite
def _entries(draw: st.DrawFn, outside: str) -> Entry:
    kind = draw(st.sampled_from(_KINDS))
    changes: dict[str, Any] = {"type": kind, "mode": draw(_MODES)}
    content = b""
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        changes["linkname"] = draw(_TARGETS).replace(OUTSIDE, outside)
    elif kind == tarfile.REGTYPE:
        content = draw(st.sampled_from((b"", b"x", b"#!/bin/sh\necho\n", bytes(4096))))
    return entry(draw(_PATHS), content, **changes)


#: What a package or its channel says of it.
_CLAIMS: dict[str, tuple[Any, ...]] = {
    "name": ("tool", "other", "Tool", "../x", "", None, 7),
    "version": ("1.0", "1.0.0", "2", "", "1!1", None, 1),
    "build": ("0", "1", "h_0", "", None, 0),
    "build_number": (0, 1, -1, 2**64, None, "0"),
    "subdir": ("linux-64", "noarch", "osx-64", "..", None),
    "noarch": (None, "python", "generic", "x"),
    "depends": ([], ["python"], [""], [7], None, "python"),
    "license": ("MIT", "AGPL-3.0-only", None, 7),
}
_claims = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(values) for name, values in _CLAIMS.items()}
)


def packages(outside: str, make: Callable[..., Any]) -> st.SearchStrategy[Any]:
    """Packages as nobody should make them.

    Args:
        outside: a folder that links may name.
        make: what takes `payload`, `listed`, `index`, `more` and `compressed`, as `Hostile` of
            test_package_contents.py does.
    """

    @st.composite
    def package(draw: st.DrawFn) -> Any:
        payload = draw(st.lists(_entries(outside), min_size=1, max_size=5))
        names = [info.name for info, _ in payload]
        unlisted = draw(st.sampled_from((0, 0, 0, 1, 2)))
        extra = draw(st.lists(_PATHS, max_size=1)) if draw(st.integers(0, 3)) == 0 else []
        lies = draw(_claims) if draw(st.integers(0, 3)) == 0 else {}
        return make(
            payload=payload[unlisted:],
            more=payload[:unlisted],
            listed=[*names[unlisted:], *extra],
            index=lies,
            record=dict.fromkeys(()),
            compressed=draw(st.sampled_from((".conda", ".tar.bz2"))),
        )

    return package()


# --- locks ----------------------------------------------------------------------------------------

_HOSTS = (
    "https://conda.example.org/main",
    "HTTPS://Conda.example.org:443//main",
    "file:///srv/main",
)
_SHA256 = ("0" * 64, "F" * 64, "0" * 63, "", "g" * 64)
_FILES = (
    "tool-1.0-0.conda",
    "tool-1.0-0.tar.bz2",
    "%74ool-1.0-0.conda",
    "tool-1.0.conda",
    "..%2ftool-1.0-0.conda",
    "tool-1.0-0.conda#x",
    "x-1-0.conda?y",
    ".conda",
    "TOOL-1.0-0.conda",
    "a" * 300 + "-1-0.conda",
)
_WHEELS = (
    "tool-1.0-py3-none-any.whl",
    "tool-1.0.tar.gz",
    "other-2-py3-none-any.whl",
    "tool-1.0-py3-none-any.whl%00",
    "Tool_x-1.0-1-py3-none-any.whl",
)
_text = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12))


def _mostly(good: Any, *others: Any) -> st.SearchStrategy[Any]:
    """`good` nine times of ten: a document with many faults shows one of them."""
    bad = st.sampled_from(others) if others else _text
    return st.integers(0, 9).flatmap(lambda number: bad if number == 9 else st.just(good))


_package_name = st.one_of(_mostly("tool", "Tool", "tool_x", "python"), _mostly("tool"))
_version = st.one_of(_mostly("1.0", "1", "1.0.0", "v1", "1!2"), _mostly("1.0"))


@st.composite
def _package_url(draw: st.DrawFn, files: tuple[str, ...]) -> str:
    if draw(st.integers(0, 19)) == 0:
        return draw(_text)
    base = draw(st.one_of(_mostly(*_HOSTS), resources.flatmap(respelt)))
    subdir = draw(_mostly("noarch", "linux-64", "Linux-64", "..", "%6eoarch"))
    return f"{base}/{subdir}/{draw(_mostly(*files))}"


@st.composite
def explicit_lists(draw: st.DrawFn) -> str:
    """`@EXPLICIT` lists, most of whose lines are nearly right."""
    lines = ["@EXPLICIT"]
    if draw(st.booleans()):
        lines.insert(0, f"# platform: {draw(_mostly('linux-64', 'osx-64', 'x', ''))}")
    for _ in range(draw(st.integers(0, 4))):
        url = draw(_package_url(_FILES))
        others = ("", *(f"#sha256:{one}" for one in _SHA256))
        digest = draw(_mostly("#" + "0" * 32, *others))
        lines.append(url + digest)
    if draw(st.booleans()):
        url = draw(_package_url(_WHEELS))
        digest = draw(_mostly(*_SHA256))
        lines.append(f"# pip {draw(_package_name)} @ {url} --hash=sha256:{digest}")
    return "\n".join(lines) + "\n"


@st.composite
def conda_locks(draw: st.DrawFn) -> str:
    """Texts of `conda-lock.yml`, whose entries lie about names, versions, URLs and digests."""

    def package() -> dict[str, Any]:
        manager = draw(st.one_of(_mostly("conda", "x", None), _mostly("pip")))
        files = _WHEELS if manager == "pip" else _FILES
        found: dict[str, Any] = {
            "name": draw(_package_name),
            "version": draw(_version),
            "manager": manager,
            "platform": draw(_mostly("linux-64", "osx-64", "x")),
            "dependencies": draw(_mostly({}, {"python": ">=3"}, {"a": 1}, [], None)),
            "url": draw(_package_url(files)),
            "hash": draw(_mostly({"sha256": "0" * 64}, {"md5": "0" * 32}, {}, None, {"sha256": 7})),
            "category": draw(_mostly("main", "dev", None)),
            "optional": draw(_mostly(False, True, "x")),
        }
        if draw(st.integers(0, 15)) == 0:
            found.pop(draw(st.sampled_from(sorted(found))))
        return found

    document = {
        "version": draw(_mostly(1, 2, "1", None)),
        "metadata": {
            "channels": draw(
                _mostly([{"url": "conda-forge", "used_env_vars": []}], [], ["x"], None)
            ),
            "platforms": draw(_mostly(["linux-64"], ["linux-64", "osx-64"], [], "x")),
            "sources": [],
            "content_hash": {"linux-64": "0" * 64},
        },
        "package": [package() for _ in range(draw(st.integers(0, 3)))],
    }
    return json.dumps(document)


# --- environment.yml ------------------------------------------------------------------------------


@st.composite
def environment_files(draw: st.DrawFn) -> str:
    """Texts of `environment.yml`: keys that are known, with values of any kind."""
    values = st.recursive(
        st.one_of(_text, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3)
        ),
        max_leaves=6,
    )
    good: dict[str, Any] = {
        "name": "ml",
        "channels": ["conda-forge"],
        "dependencies": ["python >=3.11", "numpy"],
        "platforms": ["linux-64"],
        "variables": {"A": "1"},
        "tests": {"imports": ["numpy"], "commands": ["true"]},
    }
    document = {
        key: draw(values) if draw(st.integers(0, 11)) == 0 else value
        for key, value in good.items()
        if key == "dependencies" or draw(st.booleans())
    }
    if draw(st.integers(0, 2)) == 0:
        document["dependencies"] = [
            draw(_mostly("numpy 1.*", "a::b", "*", *TEXTS)) for _ in range(3)
        ] + ([{"pip": [draw(_mostly("x ==1"))]}] if draw(st.booleans()) else [])
    if draw(st.integers(0, 3)) == 0:
        document["channels"] = [draw(resources.flatmap(respelt)), draw(_mostly("main"))]
    if draw(st.integers(0, 9)) == 0:
        document[draw(_text)] = draw(values)
    return json.dumps(document, ensure_ascii=draw(st.booleans()))
