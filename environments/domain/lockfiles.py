"""Read a lock from a `conda-lock.yml` (v1) or an explicit list."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from condastore.errors import FaultError, InvalidInputError, SpecificationError
from environments.domain.default_channels import CONDA_DEFAULTS, channels_of
from environments.domain.lock import Lock, PlatformLock, dependency_order
from environments.domain.names import (
    KNOWN_PLATFORMS,
    SUBDIRS,
    Credential,
    canonical_channel,
    did_you_mean,
    printable,
    split_credentials,
)
from environments.domain.records import CondaPackage, PypiPackage
from environments.domain.urls import UrlError, canonical_or_same, canonical_url
from environments.domain.yaml_text import Node, checked_text, read_yaml

_MD5 = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"(?P<name>[^/]+)-(?P<version>[^/-]+)-(?P<build>[^/-]+)\.(?:conda|tar\.bz2)")
#: As `_FILE`, limited to conda's characters for each part; names are lowercase.
_CONDA_FILE = re.compile(
    r"(?P<name>[a-z0-9_][a-z0-9_.+-]*)-(?P<version>[A-Za-z0-9_.!+~=]+)-(?P<build>[A-Za-z0-9_.!+~=]+)"
    r"\.(?:conda|tar\.bz2)"
)
_WHEEL_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]*\.whl")
#: Message and hint of a fault.
Fault = Callable[[str, str | None], None]
_MAX_LOCK_BYTES = 64 * 2**20
_SPELT_OUT = 10  # names of packages in one fault
_REPOSITORY = re.compile(r"(?i)(?:git|hg|svn|bzr)\+")

_NO_HASH = (
    "No hash, so that the bytes could not be checked: {}.",
    "Lock it again with conda-lock, which writes hashes.",
)
_CUT_HASH = ("A hash is not hexadecimal, or cut: {}.", "Write the whole md5 or sha256.")
_FROM_REPOSITORY = (
    "From a repository of source code, not from a Python index: {}.",
    "Locks hold wheels. Submit the environment file, where a rule may allow Git at a full commit.",
)
_NOT_A_WHEEL = (
    "Not the URL of a wheel: {}.",
    "Only wheels are installed from a lock: lock it again with wheels.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLock:
    """A parsed lock, with the credentials of its URLs and warnings."""

    lock: Lock
    credentials: tuple[Credential, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockDocument:
    """The root of a `conda-lock.yml`, and the description of its environment, or ""."""

    root: Node
    description: str = ""


def may_be_conda_lock(text: str) -> bool:
    """Cheap test whether `text` may be a `conda-lock.yml`."""
    return "package" in text and "metadata" in text


def find_conda_lock(root: Node) -> LockDocument | None:
    """Return the lock in `root`, also inside conda-store's wrapper; None if there is none.

    conda-store stores `{"name": ..., "description": ..., "lockfile": {...}}` for an
    environment that was made from a lock.
    """
    if _is_conda_lock(root):
        return LockDocument(root=root)
    inner = root.get("lockfile")
    if inner is not None and _is_conda_lock(inner):
        description = root.get("description")
        text = description is not None and description.kind == "text" and not description.empty
        return LockDocument(
            root=inner, description=description.text.strip() if text and description else ""
        )
    return None


def _is_conda_lock(root: Node) -> bool:
    return root.get("package") is not None and root.get("metadata") is not None


def is_explicit(text: str) -> bool:
    return re.search(r"^@EXPLICIT[ \t\r]*$", text, re.MULTILINE) is not None


def is_complete(package: CondaPackage) -> bool:
    """Whether the channel's own record is known; lock files contain only a part of it.

    If it is not, `record` has no `build_number`, and license, size, noarch kind and constraints
    are unknown: the channel, or the package's own `index.json`, has them.
    """
    return "build_number" in package.record


def unhashed(lock: Lock, platform: str) -> tuple[str, ...]:
    """Return the files of a submitted lock without a hash, which the channel's record has."""
    part = lock.on(platform)
    conda = part.conda if part is not None else ()
    return tuple(package.file_name for package in conda if not (package.md5 or package.sha256))


def is_wheel_file_name(name: str) -> bool:
    """Whether `name` has only characters allowed in names of wheels, so no slash."""
    return _WHEEL_FILE.fullmatch(name) is not None


def conda_file_parts(file_name: str) -> dict[str, str]:
    """Return `name`, `version` and `build` of a file name; empty if it is not a package's."""
    match = _FILE.fullmatch(file_name)
    return match.groupdict() if match else {}


def read_conda_lock(text: str | bytes) -> Lock:
    """Parse a `conda-lock.yml`, version 1; packages are reordered, categories are dropped.

    Raises:
        SpecificationError: with every fault found, each with its line.
    """
    root = read_yaml(checked_text(text, max_bytes=_MAX_LOCK_BYTES))
    return scan_conda_lock(root).lock


def read_explicit(text: str | bytes, *, default_platform: str) -> Lock:
    """Parse an explicit list; its `# platform:` takes precedence over `default_platform`.

    Raises:
        SpecificationError: with every fault found, each with its line.
    """
    checked = checked_text(text, max_bytes=_MAX_LOCK_BYTES)
    return scan_explicit(checked, default_platform=default_platform).lock


class _Gathered:
    """Result of both forms: packages by platform, faults and credentials."""

    def __init__(self) -> None:
        self.faults: list[FaultError] = []
        #: Names with key and line by (message, hint), for faults that many packages share.
        self.shared: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
        self.credentials: dict[Credential, None] = {}
        self.conda: dict[str, dict[str, CondaPackage]] = {}
        self.pypi: dict[str, dict[str, PypiPackage]] = {}
        self.lines: dict[tuple[str, str, str], int] = {}

    def fault(self, message: str, line: int, hint: str | None = None, key: str = "") -> None:
        where = f"{key}, line {line}" if key else f"line {line}"
        self.faults.append(FaultError(message, where=where, hint=hint))

    def shared_fault(self, kind: tuple[str, str], name: str, line: int, key: str) -> None:
        """Record a fault that is reported once for all packages that have it."""
        self.shared.setdefault(kind, []).append((name, key, line))

    def all_faults(self) -> list[FaultError]:
        found = []
        for (message, hint), packages in self.shared.items():
            names = list(dict.fromkeys(printable(name).strip("'\"") for name, _, _ in packages))
            more = f" and {len(names) - _SPELT_OUT} more" if len(names) > _SPELT_OUT else ""
            _, key, line = packages[0]
            where = f"{key}, line {line}" if key else f"line {line}"
            listed = f"{', '.join(names[:_SPELT_OUT])}{more}"
            found.append(FaultError(message.format(listed), where=where, hint=hint))
        said: set[str] = set()
        for fault in self.faults:
            if fault.message not in said:
                said.add(fault.message)
                found.append(fault)
        return found

    def plain_url(self, url: str, line: int) -> str:
        """Return the canonical form of `url`; its credentials are stored separately."""
        plain, found = split_credentials(url)
        try:
            plain = canonical_url(plain)
        except UrlError as error:
            self.fault(f"{printable(url)} is not the URL of a package: {error}.", line)
        prefix = plain.rsplit("/", 2)[0]
        for kind, secret, base in found:
            credential = (
                Credential(url_prefix=prefix, kind="basic", secret=secret)
                if kind == "basic"
                else Credential(
                    url_prefix=prefix, kind="token", secret=secret, base=canonical_or_same(base)
                )
            )
            self.credentials.setdefault(credential)
        return plain

    def add(self, package: CondaPackage | PypiPackage, platform: str, line: int) -> None:
        conda = isinstance(package, CondaPackage)
        key = (platform, "conda" if conda else "pypi", package.name)
        held: CondaPackage | PypiPackage | None
        if isinstance(package, CondaPackage):
            held = self.conda.setdefault(platform, {}).setdefault(package.name, package)
        else:
            held = self.pypi.setdefault(platform, {}).setdefault(package.name, package)
        first = self.lines.setdefault(key, line)
        if held is not package and (held.url, held.sha256) != (package.url, package.sha256):
            self.fault(
                f"{package.name} is listed twice for {platform}, and differs from line {first}.",
                line,
                "Keep one of the two.",
            )

    def finished(
        self, channels: Iterable[str], platforms: Iterable[str], *, in_order: bool = False
    ) -> ReadLock:
        """Finish the lock.

        Args:
            in_order: the text lists dependencies first and does not name them.
        """
        if faults := self.all_faults():
            raise SpecificationError(faults)
        seen = dict.fromkeys(channels)
        for packages in self.conda.values():
            for package in packages.values():
                seen.setdefault(package.channel)
        names = sorted({*platforms, *self.conda, *self.pypi})
        order = tuple if in_order else dependency_order
        return ReadLock(
            lock=Lock(
                channels=tuple(seen),
                platforms=tuple(
                    PlatformLock(
                        platform=name,
                        conda=order(self.conda.get(name, {}).values()),
                        pypi=tuple(value for _, value in sorted(self.pypi.get(name, {}).items())),
                    )
                    for name in names
                ),
            ),
            credentials=tuple(self.credentials),
        )


# --- conda-lock.yml ---------------------------------------------------------------------------


def scan_conda_lock(root: Node) -> ReadLock:
    """Parse the root of a `conda-lock.yml`; a missing version means version 1."""
    gathered = _Gathered()
    version, packages = root.get("version"), root.get("package")
    if version is not None and version.text != "1":
        gathered.fault(
            f"The lock file has version {printable(version.text)}; only version 1 is supported.",
            version.line,
            "Create it with conda-lock, which writes version 1.",
        )
    elif packages is None or packages.kind != "list":
        gathered.fault("The list 'package' is missing.", root.line)
    else:
        for index, entry in enumerate(packages.items):
            _conda_lock_entry(gathered, entry, f"package[{index}]")
    channels, platforms = _metadata(gathered, root.get("metadata"))
    return gathered.finished(channels, platforms)


def _metadata(gathered: _Gathered, node: Node | None) -> tuple[list[str], list[str]]:
    channels: dict[str, None] = {}
    if node is None or node.kind != "mapping":
        return [], []
    listed = node.get("channels")
    for item in listed.items if listed is not None else ():
        url = item.get("url") if item.kind == "mapping" else item
        if url is None or url.kind != "text":
            gathered.fault("A channel has no URL.", item.line, key="metadata.channels")
            continue
        # conda-lock replaces credentials by references to variables.
        written = split_credentials(url.text)[0] if "$" in url.text else url.text
        for name in channels_of(written, CONDA_DEFAULTS):
            try:
                reference = canonical_channel(name, alias="https://conda.anaconda.org")
            except InvalidInputError as error:
                gathered.fault(error.message, url.line, error.hint, key="metadata.channels")
                continue
            gathered.credentials.update(dict.fromkeys(reference.credentials))
            channels[reference.url] = None
    listed = node.get("platforms")
    names = [(item.text, item.line) for item in listed.items] if listed is not None else []
    return [*channels], [name for name, line in names if _known_platform(gathered, name, line)]


def _known_platform(gathered: _Gathered, platform: str, line: int) -> bool:
    if platform in KNOWN_PLATFORMS:
        return True
    gathered.fault(
        f"{printable(platform)} is not a known platform.",
        line,
        did_you_mean(platform, KNOWN_PLATFORMS)
        or f"Known platforms: {', '.join(KNOWN_PLATFORMS)}.",
    )
    return False


def _conda_lock_entry(gathered: _Gathered, entry: Node, key: str) -> None:
    line = entry.line
    if entry.kind != "mapping":
        gathered.fault("A package must be a mapping.", line, key=key)
        return
    text = {name: value.text for name, value in entry.values() if value.kind == "text"}
    missing = [
        name for name in ("name", "version", "manager", "platform", "url") if name not in text
    ]
    if missing:
        gathered.fault(f"The package has no {', no '.join(missing)}.", line, key=key)
        return
    hashes = entry.get("hash")
    found = {name: value.text.lower() for name, value in hashes.values()} if hashes else {}
    md5, sha256 = found.get("md5", ""), found.get("sha256", "")
    if _REPOSITORY.match(text["url"]):
        gathered.shared_fault(_FROM_REPOSITORY, text["name"], line, key)
        return
    if not md5 and not sha256:
        gathered.shared_fault(_NO_HASH, text["name"], line, key)
        return
    if not _hashes_hold(gathered, md5, sha256, text["name"], line, key):
        return
    if not _known_platform(gathered, text["platform"], line):
        return
    url = gathered.plain_url(text["url"].partition("#")[0], line)
    depends = entry.get("dependencies")
    requested = {
        name: value.text.strip()
        for name, value in (depends.values() if depends is not None else ())
    }
    package: CondaPackage | PypiPackage | None

    def fault(message: str, hint: str | None) -> None:
        gathered.fault(message, line, hint, key)

    if text["manager"] == "conda":
        package = _conda_package(
            url,
            name=text["name"],
            version=text["version"],
            build=text.get("build", ""),
            md5=md5,
            sha256=sha256,
            depends=[f"{name} {value}".strip() for name, value in requested.items()],
            fault=fault,
        )
        if package is not None and package.subdir not in (text["platform"], "noarch"):
            gathered.fault(
                f"The package is for {package.subdir}, not for {text['platform']}.", line, key=key
            )
    elif text["manager"] == "pip":
        package = _pypi_package(
            url,
            name=text["name"],
            version=text["version"],
            sha256=sha256,
            requires=requested,
            fault=fault,
            not_a_wheel=lambda: gathered.shared_fault(_NOT_A_WHEEL, url, line, key),
        )
        if not sha256:
            gathered.fault(f"{text['name']} from PyPI has no sha256.", line, "Lock it again.", key)
    else:
        gathered.fault(
            f"{printable(text['manager'])} is not a known package manager.", line, key=key
        )
        return
    if package is not None:
        gathered.add(package, text["platform"], line)


def _hashes_hold(
    gathered: _Gathered, md5: str, sha256: str, name: str, line: int, key: str = ""
) -> bool:
    if (md5 and not _MD5.fullmatch(md5)) or (sha256 and not _SHA256.fullmatch(sha256)):
        gathered.shared_fault(_CUT_HASH, name, line, key)
        return False
    return True


def _conda_package(
    url: str,
    *,
    name: str,
    version: str,
    build: str,
    md5: str,
    sha256: str,
    depends: Iterable[str],
    fault: Fault,
) -> CondaPackage | None:
    parts = url.rsplit("/", 2)
    file = _CONDA_FILE.fullmatch(unquote(parts[-1]))
    if len(parts) != 3 or file is None or parts[1] not in SUBDIRS:
        fault(
            f"{printable(url)} is not the URL of a conda package.",
            "It reads CHANNEL/PLATFORM/NAME-VERSION-BUILD.conda or .tar.bz2.",
        )
        return None
    claimed = {"name": name, "version": version, "build": build}
    if any(said and said != file[part] for part, said in claimed.items()):
        fault(f"{printable(url)} is not {' '.join(filter(None, claimed.values()))}.", None)
        return None
    record: dict[str, Any] = {
        "name": file["name"],
        "version": file["version"],
        "build": file["build"],
        "subdir": parts[1],
        "depends": list(depends),
        **({"md5": md5} if md5 else {}),
        **({"sha256": sha256} if sha256 else {}),
    }
    return CondaPackage.from_record(record, url=url, channel=parts[0], file_name=unquote(parts[-1]))


def _pypi_package(
    url: str,
    *,
    name: str,
    version: str,
    sha256: str,
    requires: Iterable[str] = (),
    fault: Fault,
    not_a_wheel: Callable[[], None],
) -> PypiPackage | None:
    """Return the wheel at `url`; name and version are those of the file name."""
    file_name = unquote(url.rsplit("/", 1)[-1])
    if url.startswith("file:"):
        fault(
            f"{printable(url)} is a local file, not a file of a Python index.",
            "Lock it again with an index of this installation.",
        )
        return None
    try:
        # The library accepts slashes in a build tag.
        if not is_wheel_file_name(file_name):
            raise InvalidWheelFilename
        true_name, true_version, _, _ = parse_wheel_filename(file_name)
    except InvalidWheelFilename:
        not_a_wheel()
        return None
    if canonicalize_name(name) != true_name or (
        version and not _same_version(version, true_version)
    ):
        fault(f"{printable(url)} is not {' '.join(filter(None, (name, version)))}.", None)
        return None
    return PypiPackage(
        name=true_name,
        version=str(true_version),
        file_name=file_name,
        url=url,
        sha256=sha256,
        size=0,
        requires=tuple(sorted(requires)),
        requires_python="",
        license="",
    )


def _same_version(text: str, version: Version) -> bool:
    try:
        return Version(text) == version
    except InvalidVersion:
        return False


# --- @EXPLICIT --------------------------------------------------------------------------------

_PLATFORM = re.compile(r"#\s*platform:\s*(\S+)")
#: condastore's addition for what a line `URL#md5` cannot express.
_SHA256_COMMENT = re.compile(r"#\s*sha256:([0-9a-f]{64})\s+(\S+)")
#: conda-lock's comment for PyPI packages.
_PIP_COMMENT = re.compile(r"#\s*pip\s+([A-Za-z0-9._-]+)\s*@\s*(\S+)")


def scan_explicit(text: str, *, default_platform: str) -> ReadLock:
    """Parse the checked text of an explicit list."""
    gathered = _Gathered()
    lines = list(enumerate(text.splitlines(), start=1))
    platform = default_platform
    sha256s: dict[str, str] = {}
    for number, line in lines:
        if named := _PLATFORM.match(line.strip()):
            platform = named[1]
            _known_platform(gathered, platform, number)
        elif digest := _SHA256_COMMENT.match(line.strip()):
            sha256s[unquote(digest[2])] = digest[1]
    for number, line in lines:
        stripped = line.strip()
        if pip := _PIP_COMMENT.match(stripped):
            _explicit_pip(gathered, pip[1], pip[2], platform, number)
        elif stripped and not stripped.startswith("#") and stripped != "@EXPLICIT":
            _explicit_line(gathered, stripped, platform, sha256s, number)
    platforms = [platform] if platform in KNOWN_PLATFORMS else []
    read = gathered.finished((), platforms, in_order=True)
    warnings = []
    if not any(_PLATFORM.match(line.strip()) for _, line in lines):
        warnings.append(f"The list names no platform ('# platform:'): {platform} is assumed.")
    if names := unhashed(read.lock, platform):
        warnings.append(
            f"The list has no hash for {len(names)} of its packages: the hashes of their channels "
            "at the start of the build are used."
        )
    return replace(read, warnings=tuple(warnings))


def _explicit_line(
    gathered: _Gathered, text: str, platform: str, sha256s: dict[str, str], line: int
) -> None:
    written, _, digest = text.partition("#")
    digest = digest.strip().lower()
    sha256 = digest.removeprefix("sha256:")
    md5 = ""
    if not digest.startswith("sha256:") and len(digest) == 32:
        sha256, md5 = "", digest
    if "://" not in written:
        gathered.fault(
            f"{printable(text)} is not the URL of a package.",
            line,
            "An explicit list has one URL per line, with its hash: URL#MD5 or URL#sha256:HASH.",
        )
        return
    if not _hashes_hold(gathered, md5, sha256, written.rstrip().rsplit("/", 1)[-1], line):
        return
    url = gathered.plain_url(written.strip(), line)
    sha256 = sha256 or sha256s.get(unquote(url.rsplit("/", 1)[-1]), "")
    package = _conda_package(
        url,
        name="",
        version="",
        build="",
        md5=md5,
        sha256=sha256,
        depends=(),
        fault=lambda message, hint: gathered.fault(message, line, hint),
    )
    if package is None:
        return
    if package.subdir not in (platform, "noarch"):
        if platform not in KNOWN_PLATFORMS:
            return  # which was said
        gathered.fault(
            f"{package.file_name} is for {package.subdir}; the list is for {platform}.",
            line,
            "Submit one list per platform, with its '# platform:' line.",
        )
        return
    gathered.add(package, platform, line)


def _explicit_pip(gathered: _Gathered, name: str, text: str, platform: str, line: int) -> None:
    written, _, digest = text.partition("#")
    if _REPOSITORY.match(text):
        gathered.shared_fault(_FROM_REPOSITORY, name, line, "pip")
        return
    sha256 = re.sub(r"^sha256[=:]", "", digest)
    if not _SHA256.fullmatch(sha256):
        gathered.fault(
            f"{name} from PyPI has no sha256.", line, "Write NAME @ URL#sha256=HASH.", "pip"
        )
        return
    url = gathered.plain_url(written, line)
    package = _pypi_package(
        url,
        name=name,
        version="",
        sha256=sha256,
        fault=lambda message, hint: gathered.fault(message, line, hint, "pip"),
        not_a_wheel=lambda: gathered.shared_fault(_NOT_A_WHEEL, url, line, "pip"),
    )
    if package is not None:
        gathered.add(package, platform, line)
