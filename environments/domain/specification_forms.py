"""Parsing of specifications in every form: environment file, lock, explicit list, export list."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from condastore.errors import FaultError, SpecificationError
from environments.domain.environment_file_reader import EnvironmentFileReader, lines_of
from environments.domain.export_lists import is_export_list
from environments.domain.lockfiles import (
    LockDocument,
    ReadLock,
    find_conda_lock,
    is_explicit,
    may_be_conda_lock,
    scan_conda_lock,
    scan_explicit,
)
from environments.domain.names import (
    without_credentials,
)
from environments.domain.specification import (
    MAX_DESCRIPTION,
    Defaults,
    Specification,
    Submission,
)
from environments.domain.yaml_text import Node, checked_text, read_yaml


def parse_specification(text: str | bytes, *, defaults: Defaults) -> Submission:
    """Parse a specification in any of its forms, which are recognized by content.

    Forms: `environment.yml`, `conda-lock.yml` (version 1), both as YAML or JSON; explicit
    lists (`@EXPLICIT`); and what `conda list --export` writes.

    Raises:
        SpecificationError: with every fault found, each with its key and line.
    """
    checked = checked_text(text, max_bytes=max(defaults.max_bytes, defaults.max_lock_bytes))
    if is_explicit(checked):
        platform = defaults.platforms[0] if defaults.platforms else ""
        return _locked("explicit", checked, scan_explicit(checked, default_platform=platform))
    if is_export_list(checked):
        checked_text(checked, max_bytes=defaults.max_bytes)
        return EnvironmentFileReader(defaults).read_export_list(checked)
    if not may_be_conda_lock(checked):
        checked_text(checked, max_bytes=defaults.max_bytes)
    root = read_yaml(checked)
    if document := find_conda_lock(root):
        return _locked("lock", checked, scan_conda_lock(document.root), document)
    checked_text(checked, max_bytes=defaults.max_bytes)
    reader = EnvironmentFileReader(defaults)
    submission = reader.read(checked, root)
    if reader.credentials:
        return _without_credentials(checked, root, submission, defaults)
    return submission


def _without_credentials(text: str, root: Node, read: Submission, defaults: Defaults) -> Submission:
    """Return `read` with a source text without credentials of channels.

    The changed text is parsed again, which proves that no credential is left in it.

    Raises:
        SpecificationError: they cannot be removed; it names the place.
    """
    everywhere = without_credentials(text)
    # Other values may contain a login too, such as a database URL.
    last = text.count("\n") + 1
    lines = [*lines_of(root, "channels", last), *lines_of(root, "dependencies", last)]
    in_channels = _in_lines(text, without_credentials, lines)
    reader = EnvironmentFileReader(defaults)
    for source in (everywhere, in_channels):
        reader = EnvironmentFileReader(defaults)
        try:
            again = reader.read(source, read_yaml(source))
        except SpecificationError:
            continue
        if not reader.credentials and again.specification == read.specification:
            return replace(read, source=source)
    where = next((location for location in reader.credentials.values()), "channels")
    raise SpecificationError(
        [
            FaultError(
                "The credentials of a channel are written in a form that cannot be removed.",
                where=where,
                hint="Write the channel's URL plainly in one line, without escapes.",
            )
        ],
    )


def _in_lines(text: str, change: Callable[[str], str], numbers: Iterable[int]) -> str:
    """Apply `change` to the numbered lines of `text` and to all comment lines."""
    chosen = set(numbers)
    return "\n".join(
        change(line) if number in chosen or line.lstrip().startswith("#") else line
        for number, line in enumerate(text.split("\n"), start=1)
    )


def _locked(
    kind: Literal["lock", "explicit"],
    source: str,
    read: ReadLock,
    document: LockDocument | None = None,
) -> Submission:
    lock = read.lock
    return Submission(
        specification=Specification(
            kind=kind,
            channels=lock.channels,
            platforms=tuple(sorted(part.platform for part in lock)),
            description=document.description[:MAX_DESCRIPTION] if document else "",
            lock=lock,
        ),
        source=without_credentials(source),
        credentials=read.credentials,
        warnings=read.warnings,
    )
