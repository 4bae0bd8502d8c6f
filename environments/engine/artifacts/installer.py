"""Offline installer of an environment: a shell script followed by an archive, in one file.

The archive is the `tar.gz` of the same lock. The script verifies it, unpacks it into an empty
folder, and lets the environment's Python, or sed if there is none, write the prefix into its files.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from condastore.errors import InvalidInputError
from environments.domain.artifacts import FORMS, ArtifactKind
from environments.domain.records import Package
from environments.engine.artifacts.archives import archive_parts, disk_full_as_error, parts_folder
from environments.engine.artifacts.parts import GZIP, write_parts
from environments.engine.artifacts.staging import Material
from environments.engine.artifacts.tree import Part, PrefixRecord

#: Maximum length of the prefix if no package limits it.
LONGEST_PREFIX = 1000
#: Output of `uname -s` and `uname -m` on machines of each platform.
SYSTEMS = {
    "linux-64": "Linux x86_64",
    "linux-aarch64": "Linux aarch64|Linux arm64",
    "linux-armv7l": "Linux armv7l",
    "linux-ppc64le": "Linux ppc64le",
    "linux-s390x": "Linux s390x",
    "linux-riscv64": "Linux riscv64",
    "osx-64": "Darwin x86_64",
    "osx-arm64": "Darwin arm64",
}


def make_installer(material: Material) -> Path:
    """Write the installer.

    Raises:
        InvalidInputError: the platform's machines have no `sh`.
    """
    if material.platform not in SYSTEMS:
        raise InvalidInputError(
            f"Installers are not supported for {material.platform}.",
            where="platform",
            hint=f"Supported: {', '.join(SYSTEMS)}. Request the bundle or the lock file instead.",
        )
    parts = archive_parts(material)
    archive = material.work / "payload.tar.gz"
    path = material.work / FORMS[ArtifactKind.INSTALLER].file_name
    with disk_full_as_error():
        with archive.open("xb") as file:
            write_parts(
                parts,
                file,
                compression=GZIP,
                kept=parts_folder(material),
                progress=material.progress,
                cancelled=material.cancelled,
            )
        with archive.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with path.open("xb") as out, archive.open("rb") as file:
            out.write(_script(material, parts, sha256))
            shutil.copyfileobj(file, out, 1 << 20)
    archive.unlink()
    return path


def _script(material: Material, parts: Sequence[Part], sha256: str) -> bytes:
    """Return the script; the archive follows its last newline."""
    prefixes = [record for part in parts for record in part.prefixes]
    spaces = [len(record.placeholder) for record in prefixes if record.mode == "binary"]
    records = _records(prefixes) if material.python is None else []
    text = resources.files(__package__).joinpath("installer.sh").read_text()
    values = {
        "FILE": FORMS[ArtifactKind.INSTALLER].file_name,
        "LOCK": material.lock.digest,
        "PLATFORM": material.platform,
        "SYSTEM": SYSTEMS[material.platform],
        "SHA256": sha256,
        "ROOM": str(min(spaces, default=LONGEST_PREFIX)),
        "COUNT": str(len(records)),
        "LICENSES": "\n".join(_licenses(material)),
        "RECORDS": "\n".join(records),
        "OFFSET": "0" * 10,  # replaced below, when the script's length is known
    }
    script = re.sub(r"@([A-Z0-9]+)@", lambda found: values[found[1]], text).encode()
    first = f"{f'+{len(script) + 1}':>10}".encode()  # in the format of `tail -c`
    return script.replace(b'offset="' + b"0" * 10, b'offset="' + first, 1)


def _records(prefixes: Sequence[PrefixRecord]) -> list[str]:
    """Return the records for sed, with special characters of basic regular expressions escaped."""
    return [
        "\t".join(
            (
                record.mode,
                re.sub(r"([.*\[\]^$\\|])", r"\\\1", record.placeholder),
                str(len(record.placeholder)),
                record.path,
            )
        )
        for record in sorted(prefixes)
    ]


def _licenses(material: Material) -> list[str]:
    lines = [
        "This environment holds these packages, each under its own license. The license texts are",
        "in the packages' own archives, and at the addresses that the packages name.",
        "",
    ]
    packages: list[Package] = [*material.part.conda, *material.part.pypi]
    for package in sorted(packages, key=lambda each: (each.name, each.version)):
        line = f"  {package.name} {package.version}: {package.license or 'not stated'}"
        lines.append("".join(letter if letter.isprintable() else " " for letter in line))
    return lines
