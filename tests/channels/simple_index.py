"""A small Python package index in a folder: real wheels, made here or downloaded before.

``simple/`` holds the pages of PEP 503 (``index.html``) and PEP 691 (``index.v1.json``), with the
files' hashes and their metadata beside them (PEP 658); ``files/`` holds the files. Any web server
will do for the first form; ``server`` gives the second to those who ask for it.

What is made here is reproducible: the same input gives the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

#: When everything that is made here was uploaded, unless it says otherwise.
UPLOADED = datetime(2024, 1, 15, tzinfo=UTC)

_SIMPLE = "simple"
_FILES = "files"
_NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A file of an index."""

    project: str  # as PEP 503 normalises it
    version: str
    file_name: str
    #: The bytes, or the path of a file that holds them.
    content: bytes | Path
    #: The wheel's METADATA; None for an sdist, whose own an installer has to look at.
    metadata: bytes | None
    requires_python: str
    uploaded: datetime = UPLOADED
    #: Why it was withdrawn; None if it was not.
    yanked: str | None = None

    @property
    def sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def make_wheel(
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    extras: Mapping[str, Sequence[str]] | None = None,
    files: Mapping[str, str | bytes] | None = None,
    scripts: Mapping[str, str] | None = None,
    license_expression: str = "MIT",
    requires_python: str = ">=3.9",
    tag: str = "py3-none-any",
    uploaded: datetime = UPLOADED,
    yanked: str | None = None,
) -> Distribution:
    """A wheel of a few files.

    Args:
        requires: requirements, with markers if any.
        extras: the requirements of each extra.
        files: content by path; without them, a module that holds its `__version__`.
        scripts: `module:function` by the name of a command.
        license_expression: SPDX.
        tag: `any` as the platform makes a pure wheel.
    """
    module = re.sub(r"[-.]+", "_", name)
    contents = dict(files or {f"{module}.py": f'__version__ = "{version}"\n'})
    metadata = _metadata(name, version, requires, extras or {}, license_expression, requires_python)
    dist_info = f"{module}-{version}.dist-info"
    pure = str(tag.endswith("-any")).lower()
    contents[f"{dist_info}/METADATA"] = metadata
    contents[f"{dist_info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"
    )
    if scripts:
        lines = "".join(f"{command} = {target}\n" for command, target in scripts.items())
        contents[f"{dist_info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    encoded = {path: _encoded(content) for path, content in contents.items()}
    record = f"{dist_info}/RECORD"
    lines = "".join(f"{path},{_record_hash(data)},{len(data)}\n" for path, data in encoded.items())
    encoded[record] = f"{lines}{record},,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in encoded.items():
            member = zipfile.ZipInfo(path, _NO_DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (0o755 if ".data/scripts/" in path else 0o644) << 16
            archive.writestr(member, data)
    return Distribution(
        project=canonicalize_name(name),
        version=version,
        file_name=f"{module}-{version}-{tag}.whl",
        content=buffer.getvalue(),
        metadata=metadata.encode(),
        requires_python=requires_python,
        uploaded=uploaded,
        yanked=yanked,
    )


def make_sdist(name: str, version: str, *, uploaded: datetime = UPLOADED) -> Distribution:
    """A source distribution of one module.

    It is built by a module of its own, needs nothing else for that, and appends a line to the
    file that the variable SDIST_TRACE names: a test can see whether foreign code was run.
    """
    module = re.sub(r"[-.]+", "_", name)
    root = f"{module}-{version}"
    built = make_wheel(name, version).content
    wheel = base64.b64encode(built if isinstance(built, bytes) else built.read_bytes()).decode()
    contents = {
        "PKG-INFO": _metadata(name, version, (), {}, "MIT", ">=3.9"),
        "pyproject.toml": (
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n\n'
            f'[project]\nname = "{name}"\nversion = "{version}"\n'
        ),
        "backend.py": _SDIST_BACKEND.format(wheel=wheel, name=f"{root}-py3-none-any.whl"),
        f"{module}.py": f'__version__ = "{version}"\n',
    }
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in sorted(contents.items()):
            member = tarfile.TarInfo(f"{root}/{path}")
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return Distribution(
        project=canonicalize_name(name),
        version=version,
        file_name=f"{root}.tar.gz",
        content=buffer.getvalue(),
        metadata=None,
        requires_python=">=3.9",
        uploaded=uploaded,
    )


_SDIST_BACKEND = '''"""Builds the one wheel that it carries."""

import base64
import os
import pathlib

WHEEL = "{wheel}"


def _trace(what):
    if path := os.environ.get("SDIST_TRACE"):
        with open(path, "a") as stream:
            stream.write(what + "\\n")


_trace("imported")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _trace("built")
    pathlib.Path(wheel_directory, "{name}").write_bytes(base64.b64decode(WHEEL))
    return "{name}"
'''


def read_distribution(path: Path, *, uploaded: datetime = UPLOADED) -> Distribution:
    """A wheel that was downloaded, as a file of an index."""
    with zipfile.ZipFile(path) as archive:
        name = next(
            name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)
        )
        metadata = archive.read(name)
    headers = BytesHeaderParser().parsebytes(metadata)
    return Distribution(
        project=canonicalize_name(headers["Name"]),
        version=headers["Version"],
        file_name=path.name,
        content=path,
        metadata=metadata,
        requires_python=headers.get("Requires-Python", ""),
        uploaded=uploaded,
    )


def sample_distributions() -> Iterator[Distribution]:
    """The files of a small index, each for a case that an installer must handle."""
    for version in ("1.0", "1.1"):
        # Depends on what a conda channel usually provides.
        yield make_wheel(
            "tinyplot",
            version,
            requires=["numpy>=1"],
            files={"tinyplot/__init__.py": _TINYPLOT.format(version=version)},
            scripts={"tinyplot": "tinyplot:main"},
        )
    # Extras, markers, and a script that is to be started by the environment's Python.
    yield make_wheel(
        "tinyutil",
        "2.3",
        requires=['tinywin; sys_platform == "win32"', 'tinylinux>=1; sys_platform == "linux"'],
        extras={"colour": ["tinycolour>=1"], "all": ["tinyutil[colour]", "tinyname"]},
        files={
            "tinyutil.py": '__version__ = "2.3"\n',
            "tinyutil-2.3.data/scripts/tinyutil-script": "#!python\nimport tinyutil\n"
            "print(tinyutil.__version__)\n",
        },
    )
    for name in ("tinywin", "tinylinux", "tinycolour"):
        yield make_wheel(name, "1.0")
    yield make_sdist("sdist-only", "1.0")
    # What it asks for is not what the newest package of the conda channel provides.
    yield make_wheel("needs-old-hello", "1.0", requires=["hello-noarch<1.1"])
    yield make_wheel("needs-old-numpy", "1.0", requires=["numpy<1.20"])
    # The newest is newer than the conda package of the project, which must nevertheless be kept;
    # the second project has another name there (`python-tinyname`).
    for version in ("1.0", "1.1", "2.0", "9.0"):
        yield make_wheel("hello-noarch", version)
    for version in ("1.0", "9.0"):
        yield make_wheel("tinyname", version)
    yield make_wheel("needs-tinyname", "1.0", requires=["tinyname>=1", "hello-noarch>=1"])
    yield make_wheel("tinywithdrawn", "1.0")
    yield make_wheel("tinywithdrawn", "1.1", yanked="it deletes files")
    yield make_wheel("tinyfuture", "1.0", requires_python=">=4")
    yield make_wheel("tinygpl", "1.0", license_expression="GPL-3.0-only")
    yield make_wheel("tinyold", "1.0", uploaded=datetime(2020, 5, 1, tzinfo=UTC))
    yield make_wheel("tinymissing", "1.0", requires=["project-that-does-not-exist>=1"])


_TINYPLOT = '''"""Bars of text."""

__version__ = "{version}"


def bars(values):
    import numpy

    heights = numpy.asarray(values, dtype=int)
    return "\\n".join("#" * int(height) for height in heights)


def main():
    print(bars([1, 3, 2]))
'''


def write_simple_index(folder: Path, distributions: Iterable[Distribution]) -> Path:
    """Write an index into `folder`; gives its root, to be named to an installer."""
    root = folder / _SIMPLE
    by_project: dict[str, list[Distribution]] = defaultdict(list)
    for distribution in distributions:
        by_project[distribution.project].append(distribution)
        file = folder / _FILES / distribution.file_name
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(distribution.content, file)
        if distribution.metadata is not None:
            file.with_name(f"{file.name}.metadata").write_bytes(distribution.metadata)
    projects = sorted(by_project)
    _write_page(
        root,
        title="Simple index",
        links=[f'<a href="{project}/">{project}</a>' for project in projects],
        document={"projects": [{"name": project} for project in projects]},
    )
    for project, files in by_project.items():
        _write_page(
            root / project,
            title=f"Links for {project}",
            links=[_link(file) for file in files],
            document={
                "name": project,
                "versions": sorted({file.version for file in files}),
                "files": [_entry(file) for file in files],
            },
        )
    return root


def _write(content: bytes | Path, target: Path) -> None:
    if isinstance(content, bytes):
        target.write_bytes(content)
        return
    target.unlink(missing_ok=True)
    try:
        os.link(content, target)
    except OSError:
        shutil.copyfile(content, target)


def _write_page(folder: Path, *, title: str, links: list[str], document: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"meta": {"api-version": "1.1"}, **document}
    (folder / "index.v1.json").write_text(json.dumps(document, indent=1))
    lines = "".join(f"    {link}<br>\n" for link in links)
    page = (
        '<!DOCTYPE html>\n<html>\n  <head>\n    <meta name="pypi:repository-version" '
        f'content="1.1">\n    <title>{title}</title>\n  </head>\n  <body>\n{lines}  </body>\n'
        "</html>\n"
    )
    (folder / "index.html").write_text(page)


def _url(file: Distribution) -> str:
    return f"../../{_FILES}/{file.file_name}"


def _link(file: Distribution) -> str:
    attributes = {"href": f"{_url(file)}#sha256={file.sha256}"}
    if file.requires_python:
        attributes["data-requires-python"] = file.requires_python
    if file.metadata is not None:
        digest = f"sha256={hashlib.sha256(file.metadata).hexdigest()}"
        attributes |= {"data-core-metadata": digest, "data-dist-info-metadata": digest}
    if file.yanked is not None:
        attributes["data-yanked"] = file.yanked
    written = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
    return f"<a {written}>{file.file_name}</a>"


def _entry(file: Distribution) -> dict[str, Any]:
    metadata: dict[str, str] | bool = False
    if file.metadata is not None:
        metadata = {"sha256": hashlib.sha256(file.metadata).hexdigest()}
    entry: dict[str, Any] = {
        "filename": file.file_name,
        "url": _url(file),
        "hashes": {"sha256": file.sha256},
        "size": file.size,
        "upload-time": file.uploaded.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "core-metadata": metadata,
        "dist-info-metadata": metadata,
        "yanked": False if file.yanked is None else file.yanked,
    }
    if file.requires_python:
        entry["requires-python"] = file.requires_python
    return entry


def _metadata(
    name: str,
    version: str,
    requires: Sequence[str],
    extras: Mapping[str, Sequence[str]],
    license_expression: str,
    requires_python: str,
) -> str:
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Summary: generated package {name}", f"License-Expression: {license_expression}"]
    lines.append(f"Requires-Python: {requires_python}")
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    for extra, requirements in extras.items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {item}; extra == "{extra}"' for item in requirements]
    return "\n".join(lines) + "\n"


def _encoded(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"
