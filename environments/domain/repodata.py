"""What does a channel of ours say of its packages? Bytes that depend on the records alone.

Sources: CEP 16 (sharded repodata), and repodata.json as conda reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import zstandard

from environments.domain.records import CondaPackage

LEVEL = 6  # of zstd
_SECTIONS = ("packages", "packages.conda")
#: What a record says of the channel that it came from, which is another one now.
_NOT_OURS = frozenset({"url", "channel", "fn"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedIndex:
    """The index, and each name's shard by its digest (hex)."""

    index: bytes
    shards: Mapping[str, bytes]


def records_of(packages: Iterable[CondaPackage], subdir: str) -> dict[str, CondaPackage]:
    """The packages of one subdir by file name; of two with one name the first stays."""
    found: dict[str, CondaPackage] = {}
    for package in packages:
        if package.subdir == subdir:
            found.setdefault(package.file_name, package)
    return {name: found[name] for name in sorted(found)}


def repodata_json(records: Mapping[str, CondaPackage], subdir: str) -> bytes:
    document: dict[str, Any] = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": {}}
    for name, package in records.items():
        document[_section(name)][name] = _record(package)
    document |= {"removed": [], "repodata_version": 1}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def compressed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(content)


def sharded(records: Mapping[str, CondaPackage], subdir: str) -> ShardedIndex:
    """Sharded repodata: a client fetches what it has no shard of, by digest."""
    by_name: dict[str, dict[str, Any]] = {}
    for file_name, package in records.items():
        shard = by_name.setdefault(
            package.name, {"packages": {}, "packages.conda": {}, "removed": []}
        )
        shard[_section(file_name)][file_name] = _with_bytes(_record(package))
    shards: dict[str, bytes] = {}
    digests: dict[str, bytes] = {}
    for name in sorted(by_name):
        content = compressed(msgpack.packb(by_name[name]))
        digest = hashlib.sha256(content)
        digests[name] = digest.digest()
        shards[digest.hexdigest()] = content
    index = {
        "version": 1,
        "info": {"subdir": subdir, "base_url": "./", "shards_base_url": "./shards/"},
        "shards": digests,
    }
    return ShardedIndex(index=compressed(msgpack.packb(index)), shards=shards)


def _section(file_name: str) -> str:
    return "packages.conda" if file_name.endswith(".conda") else "packages"


def _record(package: CondaPackage) -> dict[str, Any]:
    return {key: value for key, value in package.record.items() if key not in _NOT_OURS}


def _with_bytes(record: dict[str, Any]) -> dict[str, Any]:
    digests = {key: bytes.fromhex(record[key]) for key in ("md5", "sha256") if record.get(key)}
    return record | digests
