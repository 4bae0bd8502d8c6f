"""Wheels of what is installed beside the tests: real build backends without a network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from tests.channels.simple_index import Distribution, read_distribution


def installed_wheel(name: str, folder: Path) -> Distribution:
    """Pack an installed pure distribution again, as a file of an index."""
    installed = distribution(name)
    stem = f"{name.replace('-', '_')}-{installed.version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as wheel:
        for entry in installed.files or ():
            parts = entry.parts
            location = Path(str(entry.locate()))
            if parts[0] == ".." or "__pycache__" in parts or not location.is_file():
                continue
            if parts[-1] in ("RECORD", "INSTALLER", "REQUESTED"):
                continue
            wheel.writestr(str(entry), location.read_bytes())
        lines = "".join(
            f"{item.filename},{_record_hash(wheel.read(item))},{item.file_size}\n"
            for item in wheel.infolist()
        )
        record = f"{stem}.dist-info/RECORD"
        wheel.writestr(record, f"{lines}{record},,\n")
    return read_distribution(path)


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={digest}"
