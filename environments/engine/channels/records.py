"""How does a package of ours become a record of rattler's, and back?"""

from __future__ import annotations

import json
import os
from pathlib import Path

from rattler import PackageRecord, RepoDataRecord

from condastore.errors import InvalidInputError
from environments.domain.records import CondaPackage


def to_rattler(package: CondaPackage) -> RepoDataRecord:
    """The record to solve and link with; everything the channel said of it is kept.

    Raises:
        InvalidInputError: rattler cannot read the record.
    """
    # rattler reads a record from a path only. The path of an anonymous file in memory costs 70 us
    # and, unlike setting attribute by attribute, keeps keys that Python cannot set (purls).
    descriptor = os.memfd_create("record")
    try:
        os.write(descriptor, json.dumps(dict(package.record)).encode())
        record = PackageRecord.from_index_json(
            Path(f"/proc/self/fd/{descriptor}"),
            package.size or None,
            package.sha256 or None,
            package.md5 or None,
        )
    except Exception as error:  # rattler's errors have no common base
        raise InvalidInputError(
            f"The channel's record of {package.file_name} cannot be read: {error}",
            where=package.url,
            hint="Report it to the owner of the channel, or ask for another version.",
        ) from error
    finally:
        os.close(descriptor)
    found = RepoDataRecord(record, package.file_name, package.url, package.channel)
    indexed = package.record.get("indexed_timestamp")  # which is no part of a package's own index
    if isinstance(indexed, int) and 0 <= indexed < 2**53:
        found._record.indexed_timestamp = indexed
    return found


def from_rattler(record: RepoDataRecord) -> CondaPackage:
    """The package that rattler's answer names. Credentials are not taken out of the URL here."""
    content = json.loads(record._record.to_json())
    for key in ("fn", "url", "channel"):
        content.pop(key, None)
    return CondaPackage.from_record(
        content, url=record.url, channel=record.channel or "", file_name=record.file_name
    )
