"""Repodata of hosted channels; the bytes depend on the records alone.

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
#: Fields of a record that describe its former channel.
_NOT_OURS = frozenset({"url", "channel", "fn"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedIndex:
    """The index of shards, and the shard of each name by its digest (hex)."""

    index: bytes
    shards: Mapping[str, bytes]


def records_of(packages: Iterable[CondaPackage], subdir: str) -> dict[str, CondaPackage]:
    """Return the packages of one subdir by file name; the first of equal names is kept."""
    found: dict[str, CondaPackage] = {}
    for package in packages:
        if package.subdir == subdir:
            found.setdefault(package.file_name, package)
    return {name: found[name] for name in sorted(found)}


def repodata_json(records: Mapping[str, CondaPackage], subdir: str) -> bytes:
    document: dict[str, Any] = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": {}}
    for name, package in records.items():
        document[_section(name)][name] = _record(package.record)
    document |= {"removed": [], "repodata_version": 1}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def compressed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(content)


def sharded(records: Mapping[str, CondaPackage], subdir: str) -> ShardedIndex:
    """Return sharded repodata: clients fetch missing shards by digest."""
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for file_name, package in records.items():
        by_name.setdefault(package.name, {})[file_name] = package.record
    shards: dict[str, bytes] = {}
    digests: dict[str, bytes] = {}
    for name in sorted(by_name):
        content = compressed(msgpack.packb(shard(by_name[name])))
        digest = hashlib.sha256(content)
        digests[name] = digest.digest()
        shards[digest.hexdigest()] = content
    return ShardedIndex(index=compressed(shard_index(digests, subdir)), shards=shards)


def shard(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the contents of the shard of one name; `records` are by file name."""
    content: dict[str, Any] = {"packages": {}, "packages.conda": {}, "removed": []}
    for file_name, record in records.items():
        content[_section(file_name)][file_name] = _with_bytes(_record(record))
    return content


def shard_index(digests: Mapping[str, bytes], subdir: str) -> bytes:
    """Return the index of shards as msgpack, not compressed."""
    index = {
        "version": 1,
        "info": {"subdir": subdir, "base_url": "./", "shards_base_url": "./shards/"},
        "shards": digests,
    }
    packed: bytes = msgpack.packb(index)
    return packed


def _section(file_name: str) -> str:
    return "packages.conda" if file_name.endswith(".conda") else "packages"


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in _NOT_OURS}


def _with_bytes(record: dict[str, Any]) -> dict[str, Any]:
    digests = {key: bytes.fromhex(record[key]) for key in ("md5", "sha256") if record.get(key)}
    return record | digests
