"""How does a wheel become a conda package? Where it is pure Python; with whl2conda, offline."""

from __future__ import annotations

import logging
import secrets
import shutil
import struct
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from environments.domain.errors import FaultError, PackageInvalidError, UnavailableError
from environments.domain.names import printable
from environments.domain.unpacking import Limits
from environments.engine.zip_files import member_faults, open_zip

_MOST_FAULTS = 20
_HINT = "Build a conda package of it, and upload that."


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """`warnings`: what of the wheel a conda package cannot say."""

    path: Path  # in the folder of the wheel, with a name that is nobody else's
    file_name: str
    warnings: tuple[str, ...]


def is_wheel(file_name: str) -> bool:
    return file_name.endswith(".whl")


def convert(path: Path, file_name: str, *, limits: Limits) -> Converted:
    """A noarch package of the wheel in the file at `path`, which has any name; it stays.

    Names of dependencies become conda's where these are known to differ. Nothing of the wheel is
    run, and nothing is asked of the network.

    Raises:
        PackageInvalidError: it is no wheel, not pure Python, or damaged.
        UnavailableError: this installation has no converter.
    """
    _check_name(file_name)
    _check_archive(path, file_name, limits)
    try:
        from whl2conda.api.converter import Wheel2CondaConverter
    except ImportError:
        raise UnavailableError(
            "This installation converts no wheels.",
            hint="Ask an administrator to install condastore[wheels]; or build a conda package.",
        ) from None
    folder = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        named = folder / file_name
        named.hardlink_to(path)
        converter = Wheel2CondaConverter(named, folder / "made")
        warnings: list[str] = []
        # One of its own, that nothing else hears and that is gone afterwards.
        converter.logger = logging.Logger("whl2conda", logging.WARNING)
        converter.logger.addHandler(_Ear(warnings))
        made = Path(converter.convert())
        # Wheels that are uploaded at the same time may become packages of one name.
        final = folder.with_suffix(".made")
        made.rename(final)
    except OSError:
        raise
    except Exception as error:  # what the converter raises of a wheel has no common base
        raise _refused(f"{file_name} cannot be converted: {printable(str(error))}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Converted(path=final, file_name=made.name, warnings=tuple(warnings))


def _refused(message: str) -> PackageInvalidError:
    return PackageInvalidError([FaultError(message)], hint=_HINT)


def _check_name(file_name: str) -> None:
    try:
        *_, tags = parse_wheel_filename(file_name)
    except InvalidWheelFilename as error:
        raise _refused(f"{printable(file_name)} is not the name of a wheel.") from error
    if not any(tag.abi == "none" and tag.platform == "any" for tag in tags):
        raise _refused(f"{file_name} is not pure Python: only such wheels are converted.")


def _check_archive(path: Path, file_name: str, limits: Limits) -> None:
    """Refuse members that no wheel may have, and what is damaged."""
    try:
        with open_zip(path) as archive:
            members = member_faults(archive, packed=path.stat().st_size, limits=limits)
            faults = [
                FaultError(fault, where=printable(member).strip("'\"") if member else "")
                for member, fault in islice(members, _MOST_FAULTS)
            ]
            if faults:
                raise PackageInvalidError(faults)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error) as error:
        raise _refused(f"{file_name} is no archive that can be read.") from error
    if damaged is not None:
        raise _refused(f"{file_name} is damaged: {printable(damaged)}.")


class _Ear(logging.Handler):
    """Keeps the warnings of the converter for the one who uploads."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(printable(record.getMessage(), limit=300).strip("'\""))
