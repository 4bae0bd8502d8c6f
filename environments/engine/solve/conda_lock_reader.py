"""Cross-check of an imported lock: conda-lock must read the same packages as condastore.

conda-lock defines the format. Importing it takes seconds, so only workers import it, at the first
imported lock.
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

#: Reported faults of one file.
_MAX_FAULTS = 20
_INSIDE = re.compile(r"^lockfile:", re.MULTILINE)
#: What pydantic's most frequent error types mean, for people who do not know pydantic.
_REASONS = {
    "missing": "this field is required but missing",
    "extra_forbidden": "this field is not part of the format",
    "string_type": "this field must be a text",
    "int_type": "this field must be an integer",
    "bool_type": "this field must be true or false",
    "dict_type": "this field must be a mapping",
    "list_type": "this field must be a list",
    "model_type": "this field must be a mapping",
}


def confirm(text: str, lock: Lock) -> None:
    """Check that conda-lock reads the packages of `lock` from `text`.

    Raises:
        SpecificationError: it cannot read the file, or reads other packages.
    """
    # Compare digests: condastore removes credentials from URLs.
    ours = {(part.platform, each.sha256 or each.md5) for part in lock for each in part.conda}
    ours |= {(part.platform, each.sha256) for part in lock for each in part.pypi}
    if ours - _packages(text):
        raise SpecificationError(
            [FaultError("conda-lock reads different packages from this file than condastore.")],
            hint="Create the lock again with `conda-lock lock`, and submit the new file.",
        )


def _packages(text: str) -> set[tuple[str, str]]:
    """Return (platform, digest) of every package, once for each of its digests."""
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
        except Exception as error:  # conda-lock passes on errors of its dependencies
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
    """Return `text` as conda-lock writes it: with a version, and not nested in another mapping.

    conda-store keeps locks as JSON, without a version, or below `lockfile`.
    """
    if text.lstrip().startswith("{"):
        try:
            document: Any = parse_json(text)
        except JsonTextError:  # YAML in flow style
            document = yaml.load(text, Loader=yaml.CSafeLoader)
    else:
        if re.search(r"^version:", text, re.MULTILINE) and not _INSIDE.search(text):
            return text
        document = yaml.load(text, Loader=yaml.CSafeLoader)
    if "package" not in document and isinstance(document.get("lockfile"), dict):
        document = document["lockfile"]
    return json.dumps({"version": 1, **document}, ensure_ascii=False)


def _faults(error: ValidationError) -> list[StoreError]:
    """Return pydantic's findings in plain words, without its links and without the values."""
    found: list[StoreError] = []
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        location = ".".join(str(part) for part in each["loc"])
        reason = _REASONS.get(each["type"]) or each["msg"].removeprefix("Value error, ")
        message = printable(reason, limit=200).strip("'\"").rstrip(".")
        found.append(FaultError(f"conda-lock cannot read this file: {message}.", where=location))
    if len(found) > _MAX_FAULTS:
        more = FaultError(f"{len(found) - _MAX_FAULTS:,} more faults are not shown.")
        return [*found[:_MAX_FAULTS], more]
    return found


def _unreadable(faults: Sequence[StoreError]) -> SpecificationError:
    return SpecificationError(
        faults, hint="Create the lock again with `conda-lock lock`, and submit the new file."
    )
