"""Does conda-lock read a lock that somebody brought as we do?

conda-lock owns the format. Importing it costs seconds, so only workers do, at the first lock that
is brought.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from environments.domain.errors import FaultError, SpecificationError
from environments.domain.lock import Lock


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
    """(platform, digest) of every package, by each of its digests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from conda_lock.lockfile import parse_conda_lock_file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conda-lock.yml"
        path.write_text(text)
        try:
            content = parse_conda_lock_file(path)
        except Exception as error:  # conda-lock raises whatever its parts raise
            raise SpecificationError(
                [FaultError(f"conda-lock cannot read this file: {error}")],
                hint="Write the lock again with `conda-lock lock`, and submit that.",
            ) from error
    return {
        (package.platform, digest)
        for package in content.package
        for digest in (package.hash.sha256, package.hash.md5)
        if digest
    }
