"""Conversion of pure Python wheels to conda packages, offline, with whl2conda.

It runs in a confined process that may only read the wheel and write the package.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import struct
import sys
import zipfile
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from condastore.errors import FaultError, PackageInvalidError, UnavailableError
from environments.domain.json_text import parse_json
from environments.domain.names import printable
from environments.domain.progress import never
from environments.domain.unpacking import Limits
from environments.engine.packages.zip_files import member_faults, open_zip
from environments.engine.system.confinement import child_environment, confine
from environments.engine.system.process_output import read_output, require_output
from environments.engine.system.processes import Confinement, run_tool

_MAX_FAULTS = 20
_HINT = "Build a conda package from the project, and upload that."


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A converted package; `warnings` lists what a conda package cannot express."""

    path: Path  # in the folder of the wheel, with a unique name
    file_name: str
    warnings: tuple[str, ...]


def is_wheel(file_name: str) -> bool:
    return file_name.endswith(".whl")


def convert(path: Path, file_name: str, *, limits: Limits) -> Converted:
    """Convert the wheel in the file `path`, which may have any name, to a noarch package.

    Names of dependencies are replaced by conda's names if these are known to differ. No code of the
    wheel runs, and nothing is requested from the network.

    Raises:
        PackageInvalidError: it is not a wheel, not pure Python, or damaged.
        UnavailableError: this installation has no converter.
    """
    _check_name(file_name)
    _check_archive(path, file_name, limits)
    if find_spec("whl2conda") is None:
        raise UnavailableError(
            "This installation cannot convert wheels.",
            hint="Build a conda package, or ask an administrator for condastore-server[wheels].",
        )
    folder = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    given, out = folder / "given", folder / "out"
    given.mkdir(parents=True)
    out.mkdir()
    try:
        (given / file_name).hardlink_to(path)
        answer = _converted(given / file_name, out)
        created = out / "made" / answer["made"]
        require_output(created)
        # Concurrent uploads may produce packages of the same name.
        final = folder.with_suffix(".made")
        created.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Converted(path=final, file_name=created.name, warnings=tuple(answer["warnings"]))


def _converted(wheel: Path, out: Path) -> _Answer:
    """Convert `wheel` in a process, to a package in `out`/made."""
    confinement = Confinement(readable=[wheel.parent], writable=[out], connect=[])
    root = os.fspath(Path(__file__).resolve().parents[3])
    result = run_tool(
        [
            *(sys.executable, "-c", _PROGRAM, os.fspath(wheel), os.fspath(out)),
            json.dumps(confinement.arguments()),
        ],
        cwd=out,
        env=child_environment({"PYTHONPATH": root, **dict.fromkeys(("HOME", "TMPDIR"), str(out))}),
        time_limit=_TIME_LIMIT,
        cancelled=never,
        on_line=lambda line: None,
    )
    result.require_not_killed("The converter of wheels")
    try:
        answer = parse_json(read_output(out / _ANSWER, most=_MAX_ANSWER_BYTES))
        if "refused" in answer:
            reason = printable(str(answer["refused"]))
            raise _refused(f"{wheel.name} cannot be converted: {reason}.")
        created, warnings = str(answer["made"]), [str(each) for each in answer["warnings"]]
        if Path(created).name != created:
            raise ValueError("not a file name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(
            f"{wheel.name} cannot be converted: the converter failed with status {result.status}."
        ) from error
    return {"made": created, "warnings": [printable(each, limit=300) for each in warnings]}


class _Answer(TypedDict):
    made: str  # a file name
    warnings: list[str]


_ANSWER = "answer.json"
_MAX_ANSWER_BYTES = 1 << 20
_TIME_LIMIT = timedelta(minutes=10)
_PROGRAM = "from environments.engine.pypi.wheel_conversion import main; main()"


def main() -> None:
    """Convert a wheel in a process; arguments: WHEEL FOLDER CONFINEMENT."""
    from whl2conda.api.converter import Wheel2CondaConverter

    confine(**json.loads(sys.argv[3]))
    wheel, out = map(Path, sys.argv[1:3])
    warnings: list[str] = []
    answer: dict[str, Any]
    try:
        converter = Wheel2CondaConverter(wheel, out / "made")
        # A separate logger without the handlers of the root logger.
        converter.logger = logging.Logger("whl2conda", logging.WARNING)
        converter.logger.addHandler(_WarningCollector(warnings))
        answer = {"made": Path(converter.convert()).name, "warnings": warnings}
    except Exception as error:  # the converter's errors have no common base
        answer = {"refused": str(error)}
    (out / _ANSWER).write_text(json.dumps(answer))


def _refused(message: str) -> PackageInvalidError:
    return PackageInvalidError([FaultError(message)], hint=_HINT)


def _check_name(file_name: str) -> None:
    try:
        *_, tags = parse_wheel_filename(file_name)
    except InvalidWheelFilename as error:
        raise _refused(f"{printable(file_name)} is not a valid wheel file name.") from error
    if not any(tag.abi == "none" and tag.platform == "any" for tag in tags):
        raise _refused(f"{file_name} is not pure Python; only pure Python wheels are converted.")


def _check_archive(path: Path, file_name: str, limits: Limits) -> None:
    """Refuse damaged archives and members that no wheel may have."""
    try:
        with open_zip(path) as archive:
            members = member_faults(archive, packed=path.stat().st_size, limits=limits)
            faults = [
                FaultError(fault, where=printable(member).strip("'\"") if member else "")
                for member, fault in islice(members, _MAX_FAULTS)
            ]
            if faults:
                raise PackageInvalidError(faults)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error) as error:
        raise _refused(f"{file_name} is not a readable zip archive.") from error
    if damaged is not None:
        raise _refused(f"{file_name} is damaged: {printable(damaged)}.")


class _WarningCollector(logging.Handler):
    """Collects the converter's warnings for the uploader."""

    def __init__(self, collected: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._collected = collected

    def emit(self, record: logging.LogRecord) -> None:
        self._collected.append(printable(record.getMessage(), limit=300).strip("'\""))
