"""Conversion of packages to rattler's records and back."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rattler import PackageRecord, RepoDataRecord

from condastore.errors import InvalidInputError
from environments.domain.records import CondaPackage
from environments.engine._private import native_record


def to_rattler(package: CondaPackage) -> RepoDataRecord:
    """Return the record to solve and link with, with every key of the channel's record.

    Raises:
        InvalidInputError: rattler cannot parse the record.
    """
    # rattler parses a record from a path only. An anonymous file in memory costs 70 us and, unlike
    # setting attribute by attribute, keeps keys that Python cannot set (purls).
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
            f"The channel's record of {package.file_name} is invalid: {error}",
            where=package.url,
            hint="Report it to the channel's owner, or use another version.",
        ) from error
    finally:
        os.close(descriptor)
    found = RepoDataRecord(record, package.file_name, package.url, package.channel)
    indexed = package.record.get("indexed_timestamp")  # missing in a package's own index.json
    if isinstance(indexed, int) and 0 <= indexed < 2**53:
        native_record(found).indexed_timestamp = indexed
    return found


def from_rattler(record: RepoDataRecord) -> CondaPackage:
    """Convert a rattler record. Credentials in its URL are not removed here."""
    content = json.loads(native_record(record).to_json())
    for key in ("fn", "url", "channel"):
        content.pop(key, None)
    return CondaPackage.from_record(
        content, url=record.url, channel=record.channel or "", file_name=record.file_name
    )
