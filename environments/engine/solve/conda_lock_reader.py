"""Cross-check of a lock that somebody brought: conda-lock must read it as condastore does.

conda-lock owns the format. Importing it costs seconds, so only workers do, at the first lock that
is brought.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from condastore.errors import FaultError, SpecificationError, StoreError
from environments.domain.json_text import JsonTextError, parse_json
from environments.domain.lock import Lock
from environments.domain.names import printable

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Of one file, that are reported.
_MAX_FAULTS = 20
_INSIDE = re.compile(r"^lockfile:", re.MULTILINE)


def confirm(text: str, lock: Lock) -> None:
    """Raise SpecificationError unless conda-lock finds the packages of `lock` in `text`."""
    # By what names the bytes: we take credentials out of URLs.
    ours = {(part.platform, each.sha256 or each.md5) for part in lock for each in part.conda}
    ours |= {(part.platform, each.sha256) for part in lock for each in part.pypi}
    if ours - _packages(text):
        raise SpecificationError(
            [FaultError("conda-lock reads other packages in this file than condastore does.")],
            hint="Write the lock again with `conda-lock lock`, and submit that.",
        )


def _packages(text: str) -> set[tuple[str, str]]:
    """Return (platform, digest) of every package, by each of its digests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from conda_lock.lockfile import parse_conda_lock_file
        from pydantic import ValidationError
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conda-lock.yml"
        path.write_text(_plain(text))
        try:
            content = parse_conda_lock_file(path)
        except ValidationError as error:
            raise _unreadable(_faults(error)) from error
        except Exception as error:  # conda-lock raises whatever its parts raise
            first = (str(error).splitlines() or [type(error).__name__])[0]
            reason = printable(first, limit=200).strip("'\"")
            fault = FaultError(f"conda-lock cannot read this file: {reason}")
            raise _unreadable([fault]) from error
    return {
        (package.platform, digest)
        for package in content.package
        for digest in (package.hash.sha256, package.hash.md5)
        if digest
    }


def _plain(text: str) -> str:
    """Return `text` as conda-lock writes it: with its version, and not inside of another mapping.

    conda-store keeps locks as JSON, without a version, or below `lockfile`.
    """
    if text.lstrip().startswith("{"):
        try:
            document: Any = parse_json(text)
        except JsonTextError:  # YAML in braces
            document = yaml.load(text, Loader=yaml.CSafeLoader)
    else:
        if re.search(r"^version:", text, re.MULTILINE) and not _INSIDE.search(text):
            return text
        document = yaml.load(text, Loader=yaml.CSafeLoader)
    if "package" not in document and isinstance(document.get("lockfile"), dict):
        document = document["lockfile"]
    return json.dumps({"version": 1, **document}, ensure_ascii=False)


def _faults(error: ValidationError) -> list[StoreError]:
    """Return what pydantic says, without its links and the values."""
    found: list[StoreError] = []
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in each["loc"])
        message = printable(each["msg"], limit=200).strip("'\"")
        found.append(FaultError(f"conda-lock cannot read this file: {message}.", where=place))
    if len(found) > _MAX_FAULTS:
        more = FaultError(f"There are {len(found) - _MAX_FAULTS:,} more faults.")
        return [*found[:_MAX_FAULTS], more]
    return found


def _unreadable(faults: Sequence[StoreError]) -> SpecificationError:
    return SpecificationError(
        faults, hint="Write the lock again with `conda-lock lock`, and submit that."
    )
